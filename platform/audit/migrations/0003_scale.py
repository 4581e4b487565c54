import core.clock
import django.db.models.deletion
from django.db import migrations, models

from audit import triggers


def install(apps, schema_editor):
    triggers.install(schema_editor.connection)


def drop(apps, schema_editor):
    triggers.drop(schema_editor.connection)


class Migration(migrations.Migration):
    dependencies = [("audit", "0002_append_only")]

    operations = [
        # SQLite makes a table anew for each new column; without triggers, its copying is no deletion.
        migrations.RunPython(drop, install),
        migrations.AddField("entry", "origin", models.JSONField(default=dict)),
        migrations.AddIndex("entry", models.Index(fields=["user_id", "-sequence"], name="audit_entry_user")),
        migrations.AddIndex("entry", models.Index(fields=["level", "-sequence"], name="audit_entry_level")),
        migrations.AddIndex("entry", models.Index(fields=["timestamp", "sequence"], name="audit_entry_time")),
        migrations.AddField("head", "log_id", models.CharField(blank=True, default="", max_length=32), preserve_default=False),
        migrations.AddField("head", "lineage", models.JSONField(default=list)),
        migrations.AddField("head", "first", models.BigIntegerField(default=0)),
        migrations.AddField("head", "frontier", models.JSONField(default=list)),
        migrations.AddField("head", "checkpoint_size", models.BigIntegerField(default=0)),
        migrations.CreateModel(
            name="CheckpointKey",
            fields=[
                ("id", models.CharField(editable=False, max_length=32, primary_key=True, serialize=False)),
                ("created_at", models.DateTimeField(default=core.clock.now, editable=False)),
                ("public", models.CharField(max_length=64)),
                ("sealed", models.BinaryField()),
            ],
            options={"abstract": False},
        ),
        migrations.CreateModel(
            name="Checkpoint",
            fields=[
                ("id", models.CharField(editable=False, max_length=32, primary_key=True, serialize=False)),
                ("created_at", models.DateTimeField(default=core.clock.now, editable=False)),
                ("log_id", models.CharField(max_length=32)),
                ("size", models.BigIntegerField(unique=True)),
                ("root_hash", models.CharField(max_length=64)),
                ("note", models.TextField()),
                (
                    "key",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="checkpoints",
                        to="audit.checkpointkey",
                    ),
                ),
            ],
            options={"abstract": False},
        ),
        migrations.CreateModel(
            name="Delivery",
            fields=[
                ("name", models.CharField(max_length=200, primary_key=True, serialize=False)),
                ("log_id", models.CharField(blank=True, max_length=32)),
                ("position", models.BigIntegerField(default=0)),
                ("failures", models.IntegerField(default=0)),
                ("not_before", models.DateTimeField(null=True)),
                ("claimed_until", models.DateTimeField(null=True)),
                ("sent_at", models.DateTimeField(null=True)),
                ("error", models.TextField(blank=True)),
            ],
        ),
        migrations.CreateModel(
            name="Tile",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("height", models.SmallIntegerField()),
                ("index", models.BigIntegerField()),
                ("hash", models.CharField(max_length=64)),
            ],
            options={"constraints": [models.UniqueConstraint(fields=("height", "index"), name="audit_tile_unique")]},
        ),
        migrations.RunPython(install, drop),
    ]
