"""Backups: the catalogue's side of a manifest."""

from typing import ClassVar

from django.db import models

from core.models import Record
from tenants.models.tenant import Category, Source, Tenant
from tenants.rules import SOURCE_NAME_CHARS_MAX


class BackupType(models.TextChoices):
    FULL = "full", "full"
    INCREMENTAL = "incremental", "incremental"


class BackupState(models.TextChoices):
    RUNNING = "running", "running"
    SUCCEEDED = "succeeded", "succeeded"
    WARNED = "warned", "warned"
    FAILED = "failed", "failed"
    EXPIRED = "expired", "expired"
    DELETED = "deleted", "deleted"


GOOD_STATES = (BackupState.SUCCEEDED, BackupState.WARNED)
ENDED_STATES = (BackupState.EXPIRED, BackupState.DELETED)


class Origin(models.TextChoices):
    RUN = "run", "taken here"
    ADOPTED = "adopted", "found committed in the store"
    IMPORTED = "imported", "read from a portable package"


class Backup(Record):
    """One recovery point of a tenant."""

    id_prefix: ClassVar[str] = "bkp"

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="backups")
    number = models.PositiveBigIntegerField(null=True)
    """Its manifest's sequence number; null until a worker has reserved one."""
    state = models.CharField(max_length=10, choices=BackupState.choices, default=BackupState.RUNNING)
    requested_type = models.CharField(max_length=12, choices=BackupType.choices)
    type = models.CharField(max_length=12, choices=BackupType.choices)
    """What it became: an incremental without a parent is a full backup, and `note` says so."""
    origin = models.CharField(max_length=10, choices=Origin.choices, default=Origin.RUN)
    trigger = models.CharField(max_length=20, default="manual")
    created_by = models.CharField(max_length=200, blank=True)
    tags = models.JSONField(default=list)
    since = models.DateTimeField(null=True)
    encrypt = models.BooleanField(default=True)
    compress = models.BooleanField(default=True)
    parent = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="children")
    operation_id = models.CharField(max_length=40, blank=True, db_index=True)

    started_at = models.DateTimeField(null=True)
    taken_at = models.DateTimeField(null=True)
    """The manifest's timestamp: the barrier at which all sources were opened."""
    finished_at = models.DateTimeField(null=True)
    duration_ms = models.PositiveBigIntegerField(default=0)
    size_bytes = models.PositiveBigIntegerField(default=0)
    stored_bytes = models.PositiveBigIntegerField(default=0)
    new_bytes = models.PositiveBigIntegerField(default=0)
    """Content that no earlier backup held, plain; `new_packed_bytes` as it was packed: how well new data compresses."""
    new_packed_bytes = models.PositiveBigIntegerField(default=0)
    judged = models.BooleanField(default=False)
    """Held against the backups before it (tenants.alerting.judging)."""
    platform_version = models.CharField(max_length=50, blank=True)
    schema_version = models.CharField(max_length=200, blank=True)
    key_id = models.CharField(max_length=100, blank=True)
    checksums = models.JSONField(default=dict)
    """SHA-256 in hex: database, assets, configurations, manifest."""
    manifest_sha256 = models.CharField(max_length=64, blank=True)
    missed = models.PositiveBigIntegerField(default=0)
    """Differences a full read found that an incremental would have overlooked: anything but 0 is an alarm."""
    note = models.CharField(max_length=500, blank=True)
    warnings = models.JSONField(default=list)
    error_code = models.CharField(max_length=100, blank=True)
    error = models.TextField(blank=True)
    error_hint = models.TextField(blank=True)

    held = models.BooleanField(default=False)
    held_reason = models.CharField(max_length=500, blank=True)
    expires_at = models.DateTimeField(null=True)
    """When retention lets go of it, as last worked out; None: not known or never."""
    trashed_at = models.DateTimeField(null=True)
    """Since when it is in the trash, with a state of `expired` or `deleted`: ended for lists and parents, still in the
    store, restorable, and can be taken back; None again when its term is over and the store may forget it."""
    left_at = models.DateTimeField(null=True)
    """Since when the primary store no longer keeps it, while the rules of a copy do."""
    locked_until = models.DateTimeField(null=True)
    """Up to when every object that it needs is known to be locked in the primary store."""
    verified_at = models.DateTimeField(null=True)
    verified_deep = models.BooleanField(default=False)
    damaged = models.BooleanField(default=False)
    """A verification found stored bytes of this backup altered or missing."""

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["tenant", "number"], condition=models.Q(number__isnull=False), name="backup_number_unique"
            ),
            models.CheckConstraint(
                condition=~models.Q(state__in=GOOD_STATES) | models.Q(number__isnull=False, manifest_sha256__gt=""),
                name="backup_good_has_manifest",
            ),
        ]
        indexes = [
            models.Index(fields=["tenant", "-number"], name="backup_tenant_number"),
            models.Index(fields=["tenant", "state", "-taken_at"], name="backup_tenant_state"),
            models.Index(fields=["tenant", "-id"], name="backup_tenant_newest"),
            models.Index(fields=["state", "-id"], name="backup_state_newest"),
            models.Index(fields=["state", "finished_at"], name="backup_state_finished"),
            models.Index(fields=["expires_at"], name="backup_expires"),
            models.Index(
                fields=["id"], condition=models.Q(judged=False, state__in=GOOD_STATES), name="backup_unjudged"
            ),
            models.Index(fields=["tenant"], condition=models.Q(damaged=True), name="backup_damaged"),
            models.Index(fields=["trashed_at"], condition=models.Q(trashed_at__isnull=False), name="backup_trashed"),
        ]

    def __str__(self) -> str:
        return self.id


class BackupSource(models.Model):
    """One source in one backup: where it was consistent and what of it was kept."""

    class State(models.TextChoices):
        PENDING = "pending", "pending"
        KEPT = "kept", "kept"
        MISSING = "missing", "missing"

    backup = models.ForeignKey(Backup, on_delete=models.CASCADE, related_name="sources")
    source = models.ForeignKey(Source, null=True, on_delete=models.SET_NULL, related_name="backups")
    name = models.CharField(max_length=SOURCE_NAME_CHARS_MAX)
    kind = models.CharField(max_length=30)
    category = models.CharField(max_length=20, choices=Category.choices)
    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING)
    position = models.JSONField(default=dict)
    schema_version = models.CharField(max_length=200, blank=True)
    rows = models.PositiveBigIntegerField(default=0)
    files = models.PositiveBigIntegerField(default=0)
    size_bytes = models.PositiveBigIntegerField(default=0)
    sha256 = models.CharField(max_length=64, blank=True)
    error_code = models.CharField(max_length=100, blank=True)
    error = models.TextField(blank=True)

    class Meta:
        ordering = ["backup", "name"]
        constraints = [models.UniqueConstraint(fields=["backup", "name"], name="backup_source_unique")]
        indexes = [models.Index(fields=["source", "state", "-backup"], name="backup_source_newest")]

    def __str__(self) -> str:
        return f"{self.backup_id}/{self.name}"
