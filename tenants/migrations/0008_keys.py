"""Keyring places, epochs, root keys in rotation, and what shredding destroyed."""

from typing import Any, ClassVar

import django.db.models.deletion
from django.db import migrations, models

import core.clock


class Migration(migrations.Migration):
    dependencies: ClassVar[list[Any]] = [("tenants", "0007_retention")]
    operations: ClassVar[list[Any]] = [
        migrations.CreateModel(
            name="RootRotation",
            fields=[
                ("id", models.CharField(editable=False, max_length=32, primary_key=True, serialize=False)),
                ("created_at", models.DateTimeField(default=core.clock.now, editable=False)),
                ("old_key_id", models.CharField(max_length=64)),
                ("new_key_id", models.CharField(max_length=64)),
                ("running", models.BooleanField(default=True)),
                ("finished_at", models.DateTimeField(null=True)),
                ("created_by", models.CharField(blank=True, max_length=200)),
                ("reason", models.CharField(blank=True, max_length=500)),
                ("rewrapped", models.JSONField(default=dict)),
                ("waiting", models.JSONField(default=list)),
            ],
            options={
                "ordering": ["-id"],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("running", True)), fields=("running",), name="root_rotation_single"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="DestroyedKey",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("place", models.CharField(max_length=200)),
                ("what", models.CharField(max_length=300)),
                ("versions", models.PositiveIntegerField(default=1)),
                ("sha256", models.CharField(blank=True, max_length=64)),
                ("destroyed_at", models.DateTimeField(default=core.clock.now)),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="destroyed_keys", to="tenants.tenant"
                    ),
                ),
            ],
            options={
                "ordering": ["id"],
                "constraints": [
                    models.UniqueConstraint(fields=("tenant", "place", "what"), name="destroyed_key_unique")
                ],
            },
        ),
        migrations.CreateModel(
            name="KeyEpoch",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("epoch", models.PositiveIntegerField()),
                ("compromised", models.BooleanField(default=False)),
                ("began_at", models.DateTimeField(default=core.clock.now)),
                ("created_by", models.CharField(blank=True, max_length=200)),
                ("reason", models.CharField(blank=True, max_length=500)),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="key_epochs", to="tenants.tenant"
                    ),
                ),
            ],
            options={
                "ordering": ["tenant", "epoch"],
                "constraints": [models.UniqueConstraint(fields=("tenant", "epoch"), name="key_epoch_unique")],
            },
        ),
        migrations.CreateModel(
            name="KeyringPlace",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("pending", "has still to be written"),
                            ("written", "holds the keyring as it is"),
                            ("damaged", "holds something else"),
                        ],
                        default="pending",
                        max_length=10,
                    ),
                ),
                ("sha256", models.CharField(blank=True, max_length=64)),
                ("root_key_id", models.CharField(blank=True, max_length=64)),
                ("written_at", models.DateTimeField(null=True)),
                ("checked_at", models.DateTimeField(null=True)),
                ("error_code", models.CharField(blank=True, max_length=100)),
                ("error", models.TextField(blank=True)),
                (
                    "store",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="keyring_places",
                        to="tenants.storeconfig",
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="keyring_places", to="tenants.tenant"
                    ),
                ),
            ],
            options={
                "ordering": ["tenant", "store"],
                "indexes": [
                    models.Index(fields=["state", "id"], name="keyring_place_state"),
                    models.Index(fields=["root_key_id", "id"], name="keyring_place_root"),
                ],
                "constraints": [models.UniqueConstraint(fields=("tenant", "store"), name="keyring_place_unique")],
            },
        ),
        migrations.CreateModel(
            name="ShredCertificate",
            fields=[
                ("id", models.CharField(editable=False, max_length=32, primary_key=True, serialize=False)),
                ("created_at", models.DateTimeField(default=core.clock.now, editable=False)),
                ("number", models.PositiveIntegerField()),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("pending", "something still has the tenant"),
                            ("complete", "nothing that Lastro knows of has it"),
                        ],
                        max_length=10,
                    ),
                ),
                ("document", models.JSONField()),
                ("sha256", models.CharField(max_length=64)),
                ("operation_id", models.CharField(blank=True, db_index=True, max_length=40)),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="certificates", to="tenants.tenant"
                    ),
                ),
            ],
            options={
                "ordering": ["-id"],
                "constraints": [models.UniqueConstraint(fields=("tenant", "number"), name="certificate_number_unique")],
            },
        ),
    ]
