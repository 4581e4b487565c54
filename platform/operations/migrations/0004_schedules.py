"""Schedules of our own; what stood in django-q2's table moves over."""

import datetime

import django.db.models.deletion
import django.db.models.functions.text
from django.db import migrations, models

import core.clock
from core import clock
from core.ids import new_id

# What the first start of a worker makes anew, as schedules that operators can see and change.
STANDING = (
    "lastro: keep the catalogue",
    "lastro: bring copies up to date",
    "lastro: read stored bytes in turn",
    "lastro: look through stores",
    "lastro: retention",
)
DRILLS = "tenants.tasks.drill_scheduled"


def move(apps, schema_editor):
    queue = apps.get_model("django_q", "Schedule")
    schedule = apps.get_model("operations", "Schedule")
    queue.objects.filter(name__in=STANDING).delete()
    for row in queue.objects.filter(func=DRILLS).order_by("id"):
        slug = (row.name or "").partition(":")[2]
        name = f"drill-{slug}"
        if slug and row.cron and not schedule.objects.filter(name=name).exists():
            schedule.objects.create(
                id=new_id("sch"),
                name=name,
                work="drill",
                selection={"tenants": [slug]},
                cron=row.cron,
                zone="UTC",
                next_at=clock.now(),
                created_by="system:migration",
            )
        row.delete()


class Migration(migrations.Migration):
    dependencies = [
        ("operations", "0003_hook_outputs"),
        ("django_q", "0019_alter_task_options_alter_ormq_key_alter_ormq_lock_and_more"),
    ]

    operations = [
        migrations.CreateModel(
            name="ExpectedRun",
            fields=[
                ("id", models.CharField(editable=False, max_length=32, primary_key=True, serialize=False)),
                ("created_at", models.DateTimeField(default=core.clock.now, editable=False)),
                ("schedule_name", models.CharField(max_length=80)),
                ("work", models.CharField(max_length=40)),
                ("tenant", models.CharField(blank=True, max_length=63)),
                ("lane", models.CharField(blank=True, max_length=80)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("expected", "Expected"),
                            ("running", "Running"),
                            ("ok", "Ok"),
                            ("warned", "Warned"),
                            ("failed", "Failed"),
                            ("missed", "Missed"),
                        ],
                        default="expected",
                        max_length=10,
                    ),
                ),
                ("planned_for", models.DateTimeField()),
                ("due_at", models.DateTimeField()),
                ("occurrences", models.PositiveIntegerField(default=1)),
                ("full", models.BooleanField(default=False)),
                ("catch_up", models.BooleanField(default=False)),
                ("priority", models.PositiveSmallIntegerField(default=20)),
                (
                    "rank_at",
                    models.DateTimeField(default=datetime.datetime(1970, 1, 1, 0, 0, tzinfo=datetime.UTC)),
                ),
                ("operation_id", models.CharField(blank=True, max_length=32)),
                ("attempts", models.PositiveSmallIntegerField(default=0)),
                ("released_at", models.DateTimeField(null=True)),
                ("ended_at", models.DateTimeField(null=True)),
                ("error_code", models.CharField(blank=True, max_length=100)),
                ("note", models.CharField(blank=True, max_length=500)),
            ],
            options={
                "ordering": ["-planned_for", "-id"],
            },
        ),
        migrations.CreateModel(
            name="Quota",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "scope",
                    models.CharField(
                        choices=[
                            ("all", "all operations"),
                            ("tenant", "operations of one tenant"),
                            ("store", "operations of tenants of one store"),
                        ],
                        max_length=10,
                    ),
                ),
                ("name", models.CharField(blank=True, max_length=63)),
                ("running_max", models.PositiveIntegerField()),
            ],
            options={
                "ordering": ["scope", "name"],
            },
        ),
        migrations.CreateModel(
            name="Schedule",
            fields=[
                ("id", models.CharField(editable=False, max_length=32, primary_key=True, serialize=False)),
                ("created_at", models.DateTimeField(default=core.clock.now, editable=False)),
                ("name", models.CharField(max_length=80)),
                ("work", models.CharField(max_length=40)),
                ("params", models.JSONField(default=dict)),
                ("selection", models.JSONField(default=dict)),
                ("cron", models.CharField(max_length=120)),
                ("zone", models.CharField(default="UTC", max_length=64)),
                ("full", models.CharField(blank=True, max_length=60)),
                ("jitter_seconds", models.PositiveIntegerField(default=0)),
                ("concurrency", models.PositiveIntegerField(default=0)),
                ("priority", models.PositiveSmallIntegerField(default=20)),
                (
                    "catch_up",
                    models.CharField(
                        choices=[
                            ("once", "run once as soon as possible, however much was missed"),
                            ("skip", "leave out what could not begin in time"),
                        ],
                        default="once",
                        max_length=10,
                    ),
                ),
                ("late_seconds", models.PositiveIntegerField(default=3600)),
                ("paused_at", models.DateTimeField(null=True)),
                ("paused_until", models.DateTimeField(null=True)),
                ("paused_by", models.CharField(blank=True, max_length=150)),
                ("paused_reason", models.TextField(blank=True)),
                ("next_at", models.DateTimeField(db_index=True)),
                ("planned_last", models.DateTimeField(null=True)),
                ("topup_at", models.DateTimeField(db_index=True, null=True)),
                ("standing", models.BooleanField(default=False)),
                ("created_by", models.CharField(blank=True, max_length=150)),
                ("changed_at", models.DateTimeField(null=True)),
                ("removed_at", models.DateTimeField(null=True)),
            ],
            options={
                "ordering": ["name"],
            },
        ),
        migrations.CreateModel(
            name="Scheduler",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("last_tick_at", models.DateTimeField(null=True)),
                ("last_tick_ms", models.PositiveIntegerField(default=0)),
                ("boot_id", models.CharField(blank=True, max_length=64)),
                ("running_seconds", models.FloatField(default=0)),
            ],
        ),
        migrations.AddField(
            model_name="operation",
            name="lane",
            field=models.CharField(blank=True, max_length=80),
        ),
        migrations.AddField(
            model_name="operation",
            name="priority",
            field=models.PositiveSmallIntegerField(default=10),
        ),
        migrations.AddField(
            model_name="operation",
            name="turn",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddIndex(
            model_name="operation",
            index=models.Index(
                condition=models.Q(("here", False), ("state", "queued")),
                fields=["priority", "turn", "id"],
                name="operations_op_queue",
            ),
        ),
        migrations.AddConstraint(
            model_name="quota",
            constraint=models.UniqueConstraint(fields=("scope", "name"), name="operations_quota_place"),
        ),
        migrations.AddConstraint(
            model_name="schedule",
            constraint=models.UniqueConstraint(
                django.db.models.functions.text.Lower("name"),
                condition=models.Q(("removed_at", None)),
                name="operations_schedule_name",
            ),
        ),
        migrations.AddField(
            model_name="expectedrun",
            name="schedule",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="runs",
                to="operations.schedule",
            ),
        ),
        migrations.AddIndex(
            model_name="expectedrun",
            index=models.Index(
                condition=models.Q(("state", "expected")),
                fields=["priority", "rank_at", "due_at"],
                name="operations_run_waiting",
            ),
        ),
        migrations.AddIndex(
            model_name="expectedrun",
            index=models.Index(condition=models.Q(("state", "expected")), fields=["due_at"], name="operations_run_due"),
        ),
        migrations.AddIndex(
            model_name="expectedrun",
            index=models.Index(
                condition=models.Q(("state", "expected")),
                fields=["schedule", "tenant", "planned_for"],
                name="operations_run_next",
            ),
        ),
        migrations.AddIndex(
            model_name="expectedrun",
            index=models.Index(fields=["tenant", "-planned_for"], name="operations_run_tenant"),
        ),
        migrations.AddIndex(
            model_name="expectedrun",
            index=models.Index(
                condition=models.Q(("operation_id__gt", "")), fields=["operation_id"], name="operations_run_operation"
            ),
        ),
        migrations.AddIndex(
            model_name="expectedrun",
            index=models.Index(
                condition=models.Q(("ended_at__isnull", False)), fields=["ended_at"], name="operations_run_ended"
            ),
        ),
        migrations.AddConstraint(
            model_name="expectedrun",
            constraint=models.UniqueConstraint(
                fields=("schedule", "planned_for", "tenant"), name="operations_run_once"
            ),
        ),
        migrations.AddConstraint(
            model_name="expectedrun",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state", "running")), fields=("schedule", "tenant"), name="operations_run_alone"
            ),
        ),
        migrations.RunPython(move, migrations.RunPython.noop),
    ]
