"""Restores and the records that prove them."""

from typing import ClassVar

from django.db import models

from core.models import Record
from tenants.models.backup import Backup
from tenants.models.tenant import Tenant
from tenants.rules import SOURCE_NAME_CHARS_MAX


class RestoreState(models.TextChoices):
    PLANNED = "planned", "planned"
    APPROVED = "approved", "approved"
    STAGING = "staging", "staging"
    APPLYING = "applying", "applying"
    CHECKING = "checking", "checking"
    SUCCEEDED = "succeeded", "succeeded"
    FAILED = "failed", "failed"
    UNDONE = "undone", "undone"
    CANCELLED = "cancelled", "cancelled"


class RestoreSourceState(models.TextChoices):
    """Which data the target of one source holds, so that an interrupted restore can say it exactly."""

    OLD = "old", "as it was before the restore"
    APPLYING = "applying", "being changed"
    NEW = "new", "as the backup has it"
    UNKNOWN = "unknown", "to be looked at"


class RestoreKind(models.TextChoices):
    RESTORE = "restore", "restore"
    UNDO = "undo", "undo of a restore"


class Restore(Record):
    """A return of a tenant, or of a copy of it, to one backup; or the undoing of such a return."""

    id_prefix: ClassVar[str] = "rst"

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="restores")
    backup = models.ForeignKey(Backup, on_delete=models.PROTECT, related_name="restores")
    """What it goes back to; of an undo the safety backup of the restore that it undoes, where there is one."""
    state = models.CharField(max_length=10, choices=RestoreState.choices, default=RestoreState.PLANNED)
    kind = models.CharField(max_length=10, choices=RestoreKind.choices, default=RestoreKind.RESTORE)
    undoes = models.ForeignKey("self", null=True, on_delete=models.PROTECT, related_name="undos")
    plan = models.ForeignKey("tenants.RestorePlan", null=True, on_delete=models.PROTECT, related_name="restores")
    mode = models.CharField(max_length=10, default="full")
    base = models.ForeignKey(Backup, null=True, on_delete=models.PROTECT, related_name="+")
    """Merge: the backup from which both sides went apart."""
    wishes = models.JSONField(default=dict)
    """`tenants.selection.Selection` as JSON: names of modules, tables and columns, nothing of what they hold."""
    in_place = models.BooleanField(default=True)
    targets = models.JSONField(default=dict)
    """Per source its target settings as given; a secret one is sealed, see `sealed`."""
    sealed = models.JSONField(default=dict)
    """Per source its secret target settings under the context `restore:<id>:<source>.<field>`, base64."""
    validate_after = models.BooleanField(default=True)
    safety_wanted = models.BooleanField(default=True)
    prove = models.BooleanField(default=False)
    safety_backup = models.ForeignKey(Backup, null=True, on_delete=models.SET_NULL, related_name="saved")
    reason = models.CharField(max_length=500, blank=True)
    created_by = models.CharField(max_length=200, blank=True)
    operation_id = models.CharField(max_length=40, blank=True, db_index=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    duration_ms = models.PositiveBigIntegerField(default=0)
    warnings = models.JSONField(default=list)
    error_code = models.CharField(max_length=100, blank=True)
    error = models.TextField(blank=True)
    error_hint = models.TextField(blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["tenant", "-id"], name="restore_tenant_newest"),
            models.Index(fields=["state", "-id"], name="restore_state_newest"),
            models.Index(fields=["state", "finished_at"], name="restore_state_finished"),
        ]

    def __str__(self) -> str:
        return self.id


class RestoreSource(models.Model):
    """One source of a restore: what happened to its target."""

    restore = models.ForeignKey(Restore, on_delete=models.CASCADE, related_name="sources")
    name = models.CharField(max_length=SOURCE_NAME_CHARS_MAX)
    kind = models.CharField(max_length=30)
    state = models.CharField(max_length=10, choices=RestoreSourceState.choices, default=RestoreSourceState.OLD)
    report = models.JSONField(default=dict)
    """Tables and files changed, checks, proof about neighbours."""
    saved = models.ForeignKey(Backup, null=True, on_delete=models.SET_NULL, related_name="+")
    """The safety backup that holds this source as it was; empty when there was nothing left to save."""
    image = models.CharField(max_length=160, blank=True)
    """Name of its change image in the repository; empty for a kind without one, and when the undo term is over."""
    journal = models.BinaryField(default=b"")
    """Sealed under the tenant's key before the commit: what settles it later, and what would be done (its digest)."""
    error_code = models.CharField(max_length=100, blank=True)
    error = models.TextField(blank=True)

    class Meta:
        ordering = ["restore", "name"]
        constraints = [models.UniqueConstraint(fields=["restore", "name"], name="restore_source_unique")]

    def __str__(self) -> str:
        return f"{self.restore_id}/{self.name}"


class ValidationStatus(models.TextChoices):
    PASSED = "passed", "passed"
    FAILED = "failed", "failed"


class Validation(Record):
    """The checks of one restore or drill, with what was expected and what was found."""

    id_prefix: ClassVar[str] = "val"

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="validations")
    backup = models.ForeignKey(Backup, on_delete=models.PROTECT, related_name="validations")
    restore = models.ForeignKey(Restore, null=True, on_delete=models.CASCADE, related_name="validations")
    drill = models.ForeignKey("tenants.Drill", null=True, on_delete=models.CASCADE, related_name="validations")
    status = models.CharField(max_length=10, choices=ValidationStatus.choices)
    duration_ms = models.PositiveBigIntegerField(default=0)
    checks = models.JSONField(default=list)
    report = models.JSONField(default=dict)

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["tenant", "-id"], name="validation_tenant_newest")]

    def __str__(self) -> str:
        return self.id
