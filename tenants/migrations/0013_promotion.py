import django.db.models.deletion
from django.db import migrations, models

import core.clock


class Migration(migrations.Migration):
    dependencies = [("tenants", "0012_figures")]

    operations = [
        migrations.CreateModel(
            name="Promotion",
            fields=[
                ("id", models.CharField(editable=False, max_length=32, primary_key=True, serialize=False)),
                ("created_at", models.DateTimeField(default=core.clock.now, editable=False)),
                ("before_name", models.CharField(max_length=60)),
                ("after_name", models.CharField(max_length=60)),
                ("lost", models.BooleanField(default=False)),
                ("ending", models.BooleanField(default=False)),
                ("account", models.JSONField(default=dict)),
                ("operation_id", models.CharField(blank=True, max_length=40)),
                ("switched_at", models.DateTimeField()),
                ("settled_at", models.DateTimeField(null=True)),
                (
                    "after",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to="tenants.storeconfig",
                    ),
                ),
                (
                    "before",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to="tenants.storeconfig",
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="promotions", to="tenants.tenant"
                    ),
                ),
            ],
            options={
                "ordering": ["-id"],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("settled_at", None)), fields=("tenant",), name="promotion_unsettled_single"
                    )
                ],
            },
        ),
    ]
