from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("access", "0002_approvals")]

    operations = [migrations.AddField("approval", "tenant_id", models.CharField(blank=True, max_length=40))]
