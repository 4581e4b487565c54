import django.db.models.deletion
from django.db import migrations, models

import core.clock


class Migration(migrations.Migration):
    dependencies = [("tenants", "0013_promotion")]

    operations = [
        migrations.CreateModel(
            name="GivenUpStore",
            fields=[
                ("id", models.CharField(editable=False, max_length=32, primary_key=True, serialize=False)),
                ("created_at", models.DateTimeField(default=core.clock.now, editable=False)),
                ("name", models.CharField(max_length=63)),
                ("kind", models.CharField(max_length=30)),
                ("place", models.CharField(blank=True, max_length=300)),
                ("given_up_by", models.CharField(blank=True, max_length=200)),
                ("reason", models.CharField(blank=True, max_length=500)),
                ("destroyed_at", models.DateTimeField(null=True)),
                ("destroyed_by", models.CharField(blank=True, max_length=200)),
                ("destroyed_reason", models.CharField(blank=True, max_length=500)),
            ],
            options={"ordering": ["-id"]},
        ),
        migrations.AddField("keyepoch", "adopted", models.BooleanField(default=False)),
        migrations.AddField("keyepoch", "signing_key", models.CharField(blank=True, max_length=64)),
        migrations.AddField("keyepoch", "signs_from", models.PositiveBigIntegerField(null=True)),
        migrations.AddField("repositorymirror", "promised", models.JSONField(null=True)),
        migrations.AddField("repositorymirror", "succession_due", models.BooleanField(default=False)),
        migrations.CreateModel(
            name="GivenUpPlace",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("keys_there", models.BooleanField(default=False)),
                ("objects_there", models.BooleanField(default=False)),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="given_up_places",
                        to="tenants.tenant",
                    ),
                ),
                (
                    "store",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="places", to="tenants.givenupstore"
                    ),
                ),
            ],
            options={
                "ordering": ["store", "tenant"],
                "constraints": [models.UniqueConstraint(fields=("store", "tenant"), name="given_up_place_unique")],
            },
        ),
    ]
