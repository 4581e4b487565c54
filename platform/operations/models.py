"""One piece of long work, and the lease under which it works on its resource."""

import datetime

from django.db import models
from django.db.models.functions import Lower

from core.ids import ID_LENGTH_MAX
from core.models import Record


class OperationState(models.TextChoices):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    WARNED = "warned"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    LOST = "lost"


ACTIVE_STATES = (OperationState.RUNNING, OperationState.CANCELLING)
FINAL_STATES = (
    OperationState.SUCCEEDED,
    OperationState.WARNED,
    OperationState.FAILED,
    OperationState.CANCELLED,
    OperationState.LOST,
)


class Operation(Record):
    """The authority on what has happened; a task of the queue carries nothing but its id."""

    id_prefix = "opr"

    kind = models.CharField(max_length=40)
    state = models.CharField(max_length=16, choices=OperationState.choices, default=OperationState.QUEUED)
    tenant = models.CharField(max_length=63, blank=True)
    subject_id = models.CharField(max_length=ID_LENGTH_MAX, blank=True, db_index=True)
    params = models.JSONField(default=dict, blank=True)
    actor = models.CharField(max_length=150)
    reason = models.TextField(blank=True)
    resource = models.CharField(max_length=120, blank=True)
    """What at most one operation works on at a time; empty for none."""

    phases = models.JSONField(default=list, blank=True)
    phase = models.CharField(max_length=60, blank=True)
    bytes_done = models.BigIntegerField(default=0)
    bytes_total = models.BigIntegerField(null=True, blank=True)
    items_done = models.BigIntegerField(default=0)
    items_total = models.BigIntegerField(null=True, blank=True)
    phase_started_at = models.DateTimeField(null=True, blank=True)
    warnings = models.JSONField(default=list, blank=True)
    """[{"code", "message"}], at most `operations.context.WARNINGS_MAX` of them."""

    cancellable = models.BooleanField(default=True)
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    token = models.BigIntegerField(default=0)
    """The fencing token of the lease it works under; 0 without a resource or before it was claimed."""
    worker = models.CharField(max_length=120, blank=True)
    here = models.BooleanField(default=False)
    """Runs in the process that asked for it, and is never handed to a worker."""
    dispatch_after = models.DateTimeField(null=True, blank=True)
    """From then on the reaper hands a queued operation to the workers again: its task may have been lost."""
    dispatches = models.IntegerField(default=0)

    attempt = models.IntegerField(default=1)
    retry_of = models.CharField(max_length=ID_LENGTH_MAX, blank=True)
    result = models.JSONField(default=dict, blank=True)
    error = models.JSONField(null=True, blank=True)
    """`core.errors.problem` of what ended it."""

    requested_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [
            models.Index(fields=["state", "heartbeat_at"], name="operations_op_state"),
            models.Index(fields=["tenant", "-id"], name="operations_op_tenant"),
            models.Index(fields=["resource", "state"], name="operations_op_resource"),
        ]

    @property
    def is_final(self) -> bool:
        return self.state in FINAL_STATES

    @property
    def duration(self) -> datetime.timedelta | None:
        """Time from start to finish; None while it is not finished or never ran."""
        if self.started_at is None or self.finished_at is None:
            return None
        return self.finished_at - self.started_at


class HookEvent(models.TextChoices):
    BEFORE = "before"
    AFTER = "after"


class HookFailure(models.TextChoices):
    STOP = "stop"
    WARN = "warn"


class Hook(Record):
    """Something to do before or after each operation of a kind; see operations.hooks."""

    id_prefix = "hok"

    name = models.CharField(max_length=60)
    operation_kind = models.CharField(max_length=40)
    event = models.CharField(max_length=10, choices=HookEvent.choices)
    tenant = models.CharField(max_length=63, blank=True)
    """Slug of the only tenant it runs for; empty for all."""
    kind = models.CharField(max_length=20)
    config = models.JSONField(default=dict)
    sealed = models.JSONField(default=dict)
    """Secret settings, each sealed by the root key under the context `hook:<id>:<field>`, base64."""
    timeout_seconds = models.PositiveIntegerField(default=60)
    on_failure = models.CharField(max_length=10, choices=HookFailure.choices, default=HookFailure.STOP)
    position = models.IntegerField(default=0)
    enabled = models.BooleanField(default=True)

    class Meta:
        constraints = [models.UniqueConstraint(Lower("name"), name="operations_hook_name")]
        indexes = [models.Index(fields=["operation_kind", "tenant"], name="operations_hook_kind")]


class HookRun(Record):
    """One run of a hook: how it ended and the beginning of what it said."""

    id_prefix = "hkr"

    hook = models.ForeignKey(Hook, null=True, on_delete=models.SET_NULL, related_name="runs")
    hook_name = models.CharField(max_length=60)
    operation_id = models.CharField(max_length=ID_LENGTH_MAX, blank=True, db_index=True)
    """Empty for a test."""
    tenant = models.CharField(max_length=63, blank=True)
    event = models.CharField(max_length=10, choices=HookEvent.choices)
    started_at = models.DateTimeField()
    duration_ms = models.PositiveBigIntegerField(default=0)
    passed = models.BooleanField()
    status = models.CharField(max_length=40)
    output = models.TextField(blank=True)
    """In clear, as kept by versions before `sealed`; empty since."""
    sealed = models.BinaryField(default=b"")
    """What it said, sealed under the tenant's key as `hook_run:<id>`; see operations.hook_runs."""

    class Meta:
        indexes = [models.Index(fields=["hook", "-id"], name="operations_hookrun_newest")]


class Lease(models.Model):
    """The claim on a resource; one row each, kept for ever so that `token` only grows."""

    resource = models.CharField(primary_key=True, max_length=120)
    holder = models.CharField(max_length=ID_LENGTH_MAX, blank=True)
    """Id of the operation; empty when free."""
    token = models.BigIntegerField(default=0)
    expires_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.resource} #{self.token} {self.holder or 'free'}"
