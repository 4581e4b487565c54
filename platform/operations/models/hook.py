"""What is done before and after operations, and how it went."""

from django.db import models
from django.db.models.functions import Lower

from core.ids import ID_LENGTH_MAX
from core.models import Record


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
