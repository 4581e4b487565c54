"""Drills: restores into throw-away targets, and the questions that operators have them answer."""

from typing import ClassVar

from django.db import models
from django.db.models.functions import Lower

from core.models import Record
from tenants.models.backup import Backup
from tenants.models.tenant import Source, Tenant


class DrillState(models.TextChoices):
    RUNNING = "running", "running"
    PASSED = "passed", "passed"
    FAILED = "failed", "failed"


class Drill(Record):
    """One rehearsal of a restore: what came back, what was asked of it, how long it took."""

    id_prefix: ClassVar[str] = "drl"

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="drills")
    backup = models.ForeignKey(Backup, on_delete=models.PROTECT, related_name="drills")
    state = models.CharField(max_length=10, choices=DrillState.choices, default=DrillState.RUNNING)
    sources = models.JSONField(default=list)
    """Names of the sources restored."""
    evidence = models.BinaryField(default=b"")
    """Checks with expected and actual values and figures per source, sealed under the tenant's key."""
    checks_passed = models.PositiveIntegerField(default=0)
    checks_failed = models.PositiveIntegerField(default=0)
    restored_bytes = models.PositiveBigIntegerField(default=0)
    restore_ms = models.PositiveBigIntegerField(default=0)
    """Time of the restores alone: what the estimate of a real one is made from."""
    duration_ms = models.PositiveBigIntegerField(default=0)
    cleared = models.BooleanField(default=False)
    """Nothing of its targets is left; a drill whose worker died is cleared by the tenant's next one."""
    created_by = models.CharField(max_length=200, blank=True)
    operation_id = models.CharField(max_length=40, blank=True, db_index=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    error_code = models.CharField(max_length=100, blank=True)
    error = models.TextField(blank=True)
    error_hint = models.TextField(blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["tenant", "-id"], name="drill_tenant_newest")]

    def __str__(self) -> str:
        return self.id


class CheckKind(models.TextChoices):
    SQL = "sql", "a question with its answer"
    COMMAND = "command", "a command from the allow-list"


class DrillCheck(Record):
    """An operator's own check of what a drill restored."""

    id_prefix: ClassVar[str] = "dck"

    source = models.ForeignKey(Source, on_delete=models.CASCADE, related_name="drill_checks")
    name = models.CharField(max_length=60)
    kind = models.CharField(max_length=10, choices=CheckKind.choices)
    ask = models.TextField()
    """One SELECT, or the name of a command."""
    expected = models.TextField(blank=True)
    """The answer as text: rows as lines, fields joined by tabs, NULL as `\\N`. A command must exit with 0."""
    timeout_seconds = models.PositiveIntegerField(default=60)

    class Meta:
        ordering = ["source", "name"]
        constraints = [models.UniqueConstraint("source", Lower("name"), name="drill_check_name")]

    def __str__(self) -> str:
        return f"{self.source_id}/{self.name}"
