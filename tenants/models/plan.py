"""Previews of restores, kept until they are run or expire."""

from typing import ClassVar

from django.db import models

from core.models import Record
from tenants.models.backup import Backup
from tenants.models.restore import Restore, RestoreKind
from tenants.models.tenant import Tenant


class PlanState(models.TextChoices):
    MAKING = "making", "being made"
    READY = "ready", "ready"
    FAILED = "failed", "failed"
    USED = "used", "used by a restore"


class RestorePlan(Record):
    """What a restore would do: asked for, previewed, and bound by the digests in `previews`."""

    id_prefix: ClassVar[str] = "pln"

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="plans")
    backup = models.ForeignKey(Backup, on_delete=models.PROTECT, related_name="plans")
    base = models.ForeignKey(Backup, null=True, on_delete=models.PROTECT, related_name="+")
    undoes = models.ForeignKey(Restore, null=True, on_delete=models.PROTECT, related_name="undo_plans")
    state = models.CharField(max_length=10, choices=PlanState.choices, default=PlanState.MAKING)
    kind = models.CharField(max_length=10, choices=RestoreKind.choices, default=RestoreKind.RESTORE)
    mode = models.CharField(max_length=10, default="full")
    in_place = models.BooleanField(default=True)
    sources = models.JSONField(default=list)
    """Names of the sources concerned."""
    wishes = models.JSONField(default=dict)
    targets = models.JSONField(default=dict)
    sealed = models.JSONField(default=dict)
    """Per source its secret target settings under the context `restore:<id>:<source>:<key>`, base64."""
    previews = models.BinaryField(default=b"")
    """The previews with samples and digests, sealed under the tenant's key."""
    totals = models.JSONField(default=dict)
    """Rows and files to be inserted, updated, deleted …, over everything: figures only."""
    reason = models.CharField(max_length=500, blank=True)
    created_by = models.CharField(max_length=200, blank=True)
    operation_id = models.CharField(max_length=40, blank=True, db_index=True)
    made_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)
    error_code = models.CharField(max_length=100, blank=True)
    error = models.TextField(blank=True)
    error_hint = models.TextField(blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["tenant", "-id"], name="plan_tenant_newest")]

    def __str__(self) -> str:
        return self.id
