import django.db.models.deletion
from django.db import migrations, models

import core.clock


class Migration(migrations.Migration):
    dependencies = [("tenants", "0008_keys")]

    operations = [
        migrations.CreateModel(
            name="Installation",
            fields=[
                ("id", models.CharField(editable=False, max_length=32, primary_key=True, serialize=False)),
                ("created_at", models.DateTimeField(default=core.clock.now, editable=False)),
                ("repository_id", models.CharField(max_length=40, unique=True)),
                ("keyring", models.BinaryField()),
                ("generation", models.PositiveBigIntegerField(default=1)),
                ("single", models.BooleanField(default=True, unique=True)),
                ("adopted_from", models.CharField(blank=True, max_length=64)),
                ("adopted_at", models.DateTimeField(null=True)),
            ],
            options={"abstract": False},
        ),
        migrations.CreateModel(
            name="CatalogueStore",
            fields=[
                (
                    "store",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="catalogue",
                        serialize=False,
                        to="tenants.storeconfig",
                    ),
                ),
                ("ready", models.BooleanField(default=False)),
                ("generation", models.PositiveBigIntegerField(default=0)),
                ("number_reserved", models.PositiveBigIntegerField(default=0)),
                ("numbers_closed", models.PositiveBigIntegerField(default=0)),
                ("behind", models.BooleanField(default=False)),
                ("taken_at", models.DateTimeField(null=True)),
                ("audit_size", models.PositiveBigIntegerField(default=0)),
                ("size_bytes", models.PositiveBigIntegerField(default=0)),
                ("stored_bytes", models.PositiveBigIntegerField(default=0)),
                ("error_code", models.CharField(blank=True, max_length=100)),
                ("error", models.TextField(blank=True)),
            ],
        ),
        migrations.CreateModel(
            name="RepositoryMirror",
            fields=[
                (
                    "tenant",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="mirror",
                        serialize=False,
                        to="tenants.tenant",
                    ),
                ),
                ("sealed_generation", models.PositiveBigIntegerField(default=0)),
                ("plain_generation", models.PositiveBigIntegerField(default=0)),
                ("behind_since", models.DateTimeField(null=True)),
                ("behind_reason", models.CharField(blank=True, max_length=300)),
                ("reconciled_at", models.DateTimeField(null=True)),
                ("images_kept", models.JSONField(default=list)),
            ],
        ),
        migrations.CreateModel(
            name="RecoveryKit",
            fields=[
                ("id", models.CharField(editable=False, max_length=32, primary_key=True, serialize=False)),
                ("created_at", models.DateTimeField(default=core.clock.now, editable=False)),
                ("sha256", models.CharField(max_length=64)),
                ("root_key_id", models.CharField(max_length=64)),
                ("printable", models.BooleanField(default=False)),
                ("repositories", models.PositiveBigIntegerField(default=0)),
                ("created_by", models.CharField(blank=True, max_length=200)),
            ],
            options={"ordering": ["-id"]},
        ),
    ]
