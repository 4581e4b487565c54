from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("operations", "0002_hooks")]

    operations = [
        migrations.AddField("hookrun", "sealed", models.BinaryField(default=b"")),
    ]
