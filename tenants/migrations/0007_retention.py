from typing import Any, ClassVar

import django.db.models.deletion
from django.db import migrations, models

import core.clock


def _place(to: str) -> Any:
    return models.ForeignKey(
        null=True, on_delete=django.db.models.deletion.CASCADE, related_name="retention_policies", to=to
    )


class Migration(migrations.Migration):
    dependencies: ClassVar[list[Any]] = [("tenants", "0006_copies")]
    operations: ClassVar[list[Any]] = [
        migrations.CreateModel(
            name="ClockWitness",
            fields=[
                ("boot_id", models.CharField(max_length=64, primary_key=True, serialize=False)),
                ("booted_at", models.DateTimeField()),
                ("seen_at", models.DateTimeField()),
            ],
            options={"verbose_name_plural": "clock witnesses", "ordering": ["-seen_at"]},
        ),
        migrations.CreateModel(
            name="DeletionFreeze",
            fields=[
                ("id", models.CharField(editable=False, max_length=32, primary_key=True, serialize=False)),
                ("created_at", models.DateTimeField(default=core.clock.now, editable=False)),
                ("active", models.BooleanField(default=True)),
                ("code", models.CharField(max_length=60)),
                ("reason", models.CharField(max_length=500)),
                ("thawed_at", models.DateTimeField(null=True)),
                ("thawed_by", models.CharField(blank=True, max_length=200)),
            ],
            options={"ordering": ["-id"]},
        ),
        migrations.CreateModel(
            name="RetentionPolicy",
            fields=[
                ("id", models.CharField(editable=False, max_length=32, primary_key=True, serialize=False)),
                ("created_at", models.DateTimeField(default=core.clock.now, editable=False)),
                ("place", models.CharField(max_length=130, unique=True)),
                ("values", models.JSONField(default=dict)),
                ("set_by", models.CharField(blank=True, max_length=200)),
                ("set_at", models.DateTimeField(default=core.clock.now)),
                ("tenant", _place("tenants.tenant")),
                ("source", _place("tenants.source")),
                ("store", _place("tenants.storeconfig")),
            ],
            options={"verbose_name_plural": "retention policies", "ordering": ["place"]},
        ),
        migrations.AddConstraint(
            model_name="deletionfreeze",
            constraint=models.UniqueConstraint(
                condition=models.Q(("active", True)), fields=("active",), name="deletion_freeze_single"
            ),
        ),
        migrations.AddField(model_name="backup", name="left_at", field=models.DateTimeField(null=True)),
        migrations.AddField(model_name="backup", name="locked_until", field=models.DateTimeField(null=True)),
        migrations.AddIndex(model_name="backup", index=models.Index(fields=["expires_at"], name="backup_expires")),
        migrations.AddIndex(
            model_name="backup",
            index=models.Index(
                condition=models.Q(("trashed_at__isnull", False)), fields=["trashed_at"], name="backup_trashed"
            ),
        ),
    ]
