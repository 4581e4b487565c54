from django.db import migrations, models

from tenants.figures import triggers

_COLUMNS = ("total", "success", "failed", "duration_ms", "size_bytes")


def _counted():
    return [(name, models.BigIntegerField(default=0)) for name in _COLUMNS]


def drop(apps, schema_editor):
    triggers.drop(schema_editor.connection)


class Migration(migrations.Migration):
    dependencies = [("tenants", "0011_anomalies")]

    operations = [
        migrations.CreateModel(
            name="Figure",
            fields=[
                *_counted(),
                (
                    "subject",
                    models.CharField(
                        choices=[("backups", "backups of tenants"), ("restores", "restores")],
                        max_length=20,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
            ],
            options={"abstract": False},
        ),
        migrations.CreateModel(
            name="FigureChange",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                *_counted(),
                (
                    "subject",
                    models.CharField(
                        choices=[("backups", "backups of tenants"), ("restores", "restores")], max_length=20
                    ),
                ),
            ],
            options={"abstract": False},
        ),
        migrations.AddIndex("backup", models.Index(fields=["state", "finished_at"], name="backup_state_finished")),
        migrations.AddIndex("restore", models.Index(fields=["state", "finished_at"], name="restore_state_finished")),
        migrations.RunPython(migrations.RunPython.noop, drop),
    ]
