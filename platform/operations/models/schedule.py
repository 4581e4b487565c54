"""Work by the clock: schedules, the runs that are expected of them, and limits of what may run at once."""

import datetime
from typing import ClassVar

from django.db import models
from django.db.models.functions import Lower

from core.ids import ID_LENGTH_MAX
from core.models import Record

NEVER = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class CatchUp(models.TextChoices):
    ONCE = "once", "run once as soon as possible, however much was missed"
    SKIP = "skip", "leave out what could not begin in time"


class Schedule(Record):
    """When which kind of work is done for whom."""

    id_prefix: ClassVar[str] = "sch"

    name = models.CharField(max_length=80)
    work = models.CharField(max_length=40)
    """The kind of work, as an app registered it (operations.scheduling.works)."""
    params = models.JSONField(default=dict)
    selection = models.JSONField(default=dict)
    """For whom: lists under `tenants`, `classes`, `categories`, `sources`; what is absent or empty selects all."""
    cron = models.CharField(max_length=120)
    zone = models.CharField(max_length=64, default="UTC")
    full = models.CharField(max_length=60, blank=True)
    """On which days a run is a full one, as `operations.scheduling.days` reads it; empty: never."""
    jitter_seconds = models.PositiveIntegerField(default=0)
    """Up to so long after its time a tenant's run begins; how long exactly is the tenant's own and does not change."""
    concurrency = models.PositiveIntegerField(default=0)
    """At most so many of its runs at once; 0: as many as the installation lets run."""
    priority = models.PositiveSmallIntegerField(default=20)
    """Lower goes first; see operations.priorities."""
    catch_up = models.CharField(max_length=10, choices=CatchUp.choices, default=CatchUp.ONCE)
    late_seconds = models.PositiveIntegerField(default=3_600)
    """With `skip`: a run that has not begun so long after its time is missed."""

    paused_at = models.DateTimeField(null=True)
    paused_until = models.DateTimeField(null=True)
    """None while it is paused: until it is resumed."""
    paused_by = models.CharField(max_length=150, blank=True)
    paused_reason = models.TextField(blank=True)

    next_at = models.DateTimeField(db_index=True)
    """Its first time without rows: all before it have theirs."""
    planned_last = models.DateTimeField(null=True)
    """Its newest time that has rows."""
    topup_at = models.DateTimeField(null=True, db_index=True)
    """Its first time whose rows have not been compared with the tenants there were when it came."""
    standing = models.BooleanField(default=False)
    """Made by the first start, not by an operator."""
    created_by = models.CharField(max_length=150, blank=True)
    changed_at = models.DateTimeField(null=True)
    removed_at = models.DateTimeField(null=True)
    """Removed: nothing is expected of it, and its name is free; the row stays for the runs there were."""

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(Lower("name"), condition=models.Q(removed_at=None), name="operations_schedule_name")
        ]

    def __str__(self) -> str:
        return self.name


class RunState(models.TextChoices):
    EXPECTED = "expected"
    RUNNING = "running"
    OK = "ok"
    WARNED = "warned"
    FAILED = "failed"
    MISSED = "missed"


_WAITS = models.Q(state="expected")
RUN_FINAL_STATES = (RunState.OK, RunState.WARNED, RunState.FAILED, RunState.MISSED)


class ExpectedRun(Record):
    """One planned run of a schedule for one tenant: there before it happens, and in one final state after."""

    id_prefix: ClassVar[str] = "run"

    schedule = models.ForeignKey(Schedule, on_delete=models.PROTECT, related_name="runs", db_index=False)
    schedule_name = models.CharField(max_length=80)
    work = models.CharField(max_length=40)
    tenant = models.CharField(max_length=63, blank=True)
    """Slug; empty for work that is done once for the whole installation."""
    lane = models.CharField(max_length=80, blank=True)
    """The store that it will load, by name."""
    state = models.CharField(max_length=10, choices=RunState.choices, default=RunState.EXPECTED)
    planned_for = models.DateTimeField()
    """The schedule's own time."""
    due_at = models.DateTimeField()
    """`planned_for` and the tenant's jitter: not released before."""
    occurrences = models.PositiveIntegerField(default=1)
    """How many of the schedule's times this row stands for: more than one only for times missed in one outage."""
    full = models.BooleanField(default=False)
    """It, or a missed one that it makes up for, was to be a full one."""
    catch_up = models.BooleanField(default=False)
    """It makes up for times that passed while nobody planned."""
    priority = models.PositiveSmallIntegerField(default=20)
    rank_at = models.DateTimeField(default=NEVER)
    """When the tenant's turn in this schedule last was. The longest ago goes first."""
    operation_id = models.CharField(max_length=ID_LENGTH_MAX, blank=True)
    attempts = models.PositiveSmallIntegerField(default=0)
    """Operations begun for it: more than one when a worker was lost."""
    released_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    error_code = models.CharField(max_length=100, blank=True)
    note = models.CharField(max_length=500, blank=True)
    """Why it was missed or failed, or what there was to say; nothing about the tenant's data."""

    class Meta:
        ordering = ["-planned_for", "-id"]
        constraints = [
            models.UniqueConstraint(fields=["schedule", "planned_for", "tenant"], name="operations_run_once"),
            models.UniqueConstraint(
                fields=["schedule", "tenant"], condition=models.Q(state="running"), name="operations_run_alone"
            ),
        ]
        # Partial where they can be: ten thousand rows are made in a second.
        indexes = [
            models.Index(fields=["priority", "rank_at", "due_at"], condition=_WAITS, name="operations_run_waiting"),
            models.Index(fields=["due_at"], condition=_WAITS, name="operations_run_due"),
            models.Index(fields=["schedule", "tenant", "planned_for"], condition=_WAITS, name="operations_run_next"),
            models.Index(fields=["tenant", "-planned_for"], name="operations_run_tenant"),
            models.Index(
                fields=["operation_id"], condition=models.Q(operation_id__gt=""), name="operations_run_operation"
            ),
            models.Index(fields=["ended_at"], condition=models.Q(ended_at__isnull=False), name="operations_run_ended"),
        ]

    def __str__(self) -> str:
        return f"{self.schedule_name} {self.tenant} {self.planned_for:%Y-%m-%d %H:%M}"

    @property
    def is_final(self) -> bool:
        return self.state in RUN_FINAL_STATES


class Scheduler(models.Model):
    """The one row about the planner; whoever plans or releases holds it locked."""

    last_tick_at = models.DateTimeField(null=True)
    """When a tick last ended well."""
    last_tick_ms = models.PositiveIntegerField(default=0)
    boot_id = models.CharField(max_length=64, blank=True)
    running_seconds = models.FloatField(default=0)
    """Of the machine that ticked: shows a wall clock that jumped."""

    def __str__(self) -> str:
        return f"scheduler, last at {self.last_tick_at}"


class QuotaScope(models.TextChoices):
    ALL = "all", "all operations"
    TENANT = "tenant", "operations of one tenant"
    STORE = "store", "operations of tenants of one store"


class Quota(models.Model):
    """How many operations may run at once on all workers together."""

    scope = models.CharField(max_length=10, choices=QuotaScope.choices)
    name = models.CharField(max_length=63, blank=True)
    """Slug of the tenant or name of the store; empty: each of them that has no quota of its own."""
    running_max = models.PositiveIntegerField()

    class Meta:
        ordering = ["scope", "name"]
        constraints = [models.UniqueConstraint(fields=["scope", "name"], name="operations_quota_place")]

    def __str__(self) -> str:
        return f"{self.scope} {self.name or 'each'}: {self.running_max}"
