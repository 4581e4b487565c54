"""One piece of long work."""

import datetime

from django.db import models

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
    lane = models.CharField(max_length=80, blank=True)
    """The store it loads, by name: what quotas of stores count by; empty for none."""
    priority = models.PositiveSmallIntegerField(default=10)
    """Lower is taken first; see operations.priorities."""
    turn = models.BigIntegerField(default=0)
    """Its place among operations of the same priority: a tenant's second waits until every other's first was taken."""

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
    """Until then a cluster has taken the queued operation for one of its workers; after it any may."""
    dispatches = models.IntegerField(default=0)
    """How often it was handed to a worker."""

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
            models.Index(
                fields=["priority", "turn", "id"],
                condition=models.Q(state="queued", here=False),
                name="operations_op_queue",
            ),
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
