"""Copies: the stores that hold a tenant's repository, and which backups each of them holds."""

from typing import ClassVar

from django.db import models

from core.models import Record
from tenants.models.backup import Backup
from tenants.models.tenant import StoreConfig, Tenant


class CopyHealth(models.TextChoices):
    """What the last look at a copy found; observed, not decided, so that any look may replace it."""

    NEW = "new", "nothing was copied yet"
    WHOLE = "whole", "holds what it should"
    BEHIND = "behind", "lacks backups that it should hold"
    DAMAGED = "damaged", "holds objects that are lost or altered"
    AWAY = "away", "could not be reached"


class Copy(Record):
    """One store that holds the repository of one tenant; position 0 is the primary, in which backups are taken."""

    id_prefix: ClassVar[str] = "cpy"

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="copies")
    store = models.ForeignKey(StoreConfig, on_delete=models.PROTECT, related_name="copies")
    position = models.PositiveSmallIntegerField(default=1)
    enabled = models.BooleanField(default=True)
    afterwards = models.BooleanField(default=True)
    """Every backup queues its copy when it is done; otherwise a schedule or `copy run` does."""
    images = models.BooleanField(default=False)
    """Change images of restores are copied, too."""
    rules = models.JSONField(null=True)
    """Retention of its own, as the retention rules have it; None: what the primary keeps."""

    health = models.CharField(max_length=10, choices=CopyHealth.choices, default=CopyHealth.NEW)
    selection = models.PositiveBigIntegerField(default=0)
    """The newest selection record known here: a store that shows an older one was rolled back."""
    objects_count = models.PositiveBigIntegerField(default=0)
    stored_bytes = models.PositiveBigIntegerField(default=0)
    """Packs of the repository in this store, as last counted."""
    run_at = models.DateTimeField(null=True)
    """When a copy run last ended well."""
    ran = models.JSONField(default=dict)
    """What that run did, as `copy run` prints it."""
    error_code = models.CharField(max_length=100, blank=True)
    error = models.TextField(blank=True)
    error_hint = models.TextField(blank=True)

    structure_verified_at = models.DateTimeField(null=True)
    deep_verified_at = models.DateTimeField(null=True)
    sampled_at = models.DateTimeField(null=True)
    """Up to when the share of objects that was due has been read."""
    sample_cursor = models.PositiveBigIntegerField(default=0)
    """Where the next sample begins, as the first 32 bits of a pack's name."""
    sample_turn_at = models.DateTimeField(null=True)
    """When the cursor last began anew: every object was read since the turn before."""

    read_ms = models.FloatField(null=True)
    """Time to the first byte of a small object, a moving average: nearer stores are read first."""
    read_bytes_per_second = models.FloatField(null=True)

    class Meta:
        ordering = ["tenant", "position", "id"]
        constraints = [models.UniqueConstraint(fields=["tenant", "store"], name="copy_tenant_store")]
        indexes = [
            models.Index(fields=["enabled", "run_at", "id"], name="copy_due"),
            models.Index(fields=["sampled_at", "id"], name="copy_sample_due"),
        ]

    def __str__(self) -> str:
        return f"{self.tenant_id}/{self.store_id}"

    @property
    def is_primary(self) -> bool:
        """Whether backups are taken into this store: by the tenant's row, whatever the position was given for."""
        return self.store_id == self.tenant.store_id


class BackupPresence(models.TextChoices):
    PRESENT = "present", "present"
    MISSING = "missing", "missing"
    DAMAGED = "damaged", "damaged"


class BackupCopy(models.Model):
    """One backup in one copy, the primary excepted: what that holds stands in the backup's own row."""

    copy = models.ForeignKey(Copy, on_delete=models.CASCADE, related_name="backups")
    backup = models.ForeignKey(Backup, on_delete=models.CASCADE, related_name="copies")
    presence = models.CharField(max_length=10, choices=BackupPresence.choices)
    locked_until = models.DateTimeField(null=True)
    """Its manifest cannot be deleted from the store before; None: not locked, or not known to be."""
    bytes = models.PositiveBigIntegerField(default=0)
    """What was transferred for it: objects that an earlier backup had brought along are not counted again."""
    copied_at = models.DateTimeField(null=True)
    verified_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["copy", "backup"], name="backup_copy_unique")]
        indexes = [models.Index(fields=["copy", "presence", "-backup"], name="backup_copy_presence")]

    def __str__(self) -> str:
        return f"{self.copy_id}/{self.backup_id}"


class CopyFinding(Record):
    """One object of one store that was found lost or altered, until it is mended."""

    id_prefix: ClassVar[str] = "cfd"

    copy = models.ForeignKey(Copy, on_delete=models.CASCADE, related_name="findings")
    code = models.CharField(max_length=100)
    key = models.CharField(max_length=300)
    """The object, without the repository's prefix."""
    message = models.TextField(blank=True)
    by = models.CharField(max_length=20)
    """What came upon it: verify, read, copy, repair."""
    mended_at = models.DateTimeField(null=True)
    mended_from = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["copy", "key"], condition=models.Q(mended_at=None), name="copy_finding_open"
            ),
        ]
        indexes = [models.Index(fields=["mended_at", "-id"], name="copy_finding_newest")]

    def __str__(self) -> str:
        return f"{self.copy_id}: {self.key}"
