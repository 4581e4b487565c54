import core.clock
import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("tenants", "0009_adoption"),
    ]

    operations = [
        migrations.CreateModel(
            name="Objective",
            fields=[
                ("id", models.CharField(editable=False, max_length=32, primary_key=True, serialize=False)),
                ("created_at", models.DateTimeField(default=core.clock.now, editable=False)),
                ("place", models.CharField(max_length=120)),
                (
                    "criticality",
                    models.CharField(
                        blank=True,
                        choices=[("critical", "critical"), ("important", "important"), ("normal", "normal")],
                        max_length=10,
                    ),
                ),
                ("rpo_seconds", models.PositiveBigIntegerField(null=True)),
                ("rto_seconds", models.PositiveBigIntegerField(null=True)),
                ("valid_from", models.DateTimeField()),
                ("valid_until", models.DateTimeField(null=True)),
                ("set_by", models.CharField(blank=True, max_length=200)),
                ("reason", models.TextField(blank=True)),
                (
                    "source",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="objectives",
                        to="tenants.source",
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="objectives",
                        to="tenants.tenant",
                    ),
                ),
            ],
            options={
                "ordering": ["place", "valid_from"],
                "indexes": [models.Index(fields=["tenant", "valid_from"], name="objective_tenant")],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("valid_until", None)), fields=("place",), name="objective_in_force_single"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="SourceClass",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "criticality",
                    models.CharField(
                        choices=[("critical", "critical"), ("important", "important"), ("normal", "normal")],
                        max_length=10,
                    ),
                ),
                ("until", models.DateTimeField()),
                (
                    "source",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="classes", to="tenants.source"
                    ),
                ),
            ],
            options={
                "ordering": ["source", "until"],
                "indexes": [models.Index(fields=["source", "until"], name="source_class_until")],
            },
        ),
    ]
