"""What the catalogue holds in clear about a tenant's data goes when the tenant is shredded.

Rows stay as far as they say that something was done, when, and by whom: the account of a tenant that is gone. What was
sealed under its key says nothing any more and goes, too.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.db import models, transaction
from django.db.models import QuerySet

from core.models import Record, StateChange
from operations.models import Operation
from tenants import wiring
from tenants.models import Backup, BackupState, Tenant
from tenants.models.backup import GOOD_STATES
from tenants.transitions import backups_transition

REASON = "its keys were destroyed"
BATCH_ROWS = 500


@dataclass(frozen=True)
class Cleared:
    """One model: the way from its rows to the tenant, and what its fields become; no fields: its rows go."""

    model: str
    tenant: str
    """Look-up of the tenant's id, or of its slug where it ends in `=slug`."""
    fields: Mapping[str, Any] | None = None

    def rows(self, tenant: Tenant) -> QuerySet[models.Model]:
        """The tenant's rows."""
        lookup, _, by = self.tenant.partition("=")
        model: type[models.Model] = apps.get_model(self.model)
        return model._base_manager.filter(**{lookup: tenant.slug if by else tenant.pk})


_TOLD = {"error": "", "error_hint": ""}
CLEARED: tuple[Cleared, ...] = (
    Cleared("tenants.DrillCheck", "source__tenant"),
    Cleared("tenants.Module", "source__tenant"),
    Cleared("tenants.Objective", "tenant"),
    Cleared("tenants.RetentionPolicy", "tenant"),
    Cleared("tenants.RepositoryMirror", "tenant"),
    Cleared("tenants.Anomaly", "source__tenant"),
    Cleared("tenants.Baseline", "source__tenant"),
    Cleared("tenants.BackupCopy", "copy__tenant"),
    Cleared("tenants.CopyFinding", "copy__tenant"),
    Cleared("tenants.Copy", "tenant", {"enabled": False, "rules": None, "ran": {}, **_TOLD}),
    Cleared("tenants.Source", "tenant", {"config": {}, "sealed": {}, "tested_summary": "", "enabled": False}),
    Cleared(
        "tenants.Backup",
        "tenant",
        {"tags": [], "schema_version": "", "checksums": {}, "note": "", "warnings": [], "trashed_at": None, **_TOLD},
    ),
    Cleared(
        "tenants.BackupSource", "backup__tenant", {"position": {}, "schema_version": "", "sha256": "", "error": ""}
    ),
    Cleared("tenants.Restore", "tenant", {"wishes": {}, "targets": {}, "sealed": {}, "warnings": [], **_TOLD}),
    Cleared("tenants.RestoreSource", "restore__tenant", {"report": {}, "image": "", "journal": b"", "error": ""}),
    Cleared("tenants.Validation", "tenant", {"checks": [], "report": {}}),
    Cleared(
        "tenants.RestorePlan",
        "tenant",
        {"sources": [], "wishes": {}, "targets": {}, "sealed": {}, "previews": b"", "totals": {}, **_TOLD},
    ),
    Cleared("tenants.Drill", "tenant", {"evidence": b"", **_TOLD}),
    Cleared("api.Repeat", "tenant=slug"),
    Cleared("operations.HookRun", "tenant=slug", {"output": "", "sealed": b""}),
    Cleared("operations.Hook", "tenant=slug"),
    Cleared("operations.Alert", "tenant=slug", {"message": "", "hint": "", "subject": "", "cause": "", "note": ""}),
    Cleared("operations.RuleVersion", "tenant=slug"),
    Cleared("operations.Channel", "tenant=slug", {"enabled": False, "config": {}, "sealed": {}}),
    Cleared("operations.ExpectedRun", "tenant=slug", {"note": ""}),
    Cleared("operations.Operation", "tenant=slug", {"params": {}, "result": {}, "warnings": []}),
)


def catalogue_clear(tenant: Tenant, *, actor: str, operation_id: str) -> dict[str, int]:
    """Clear the tenant's rows; how many of what. `operation_id` is the work that asks, whose own row stays as it is.

    Safe to repeat, also after being stopped in the middle.
    """
    counts: dict[str, int] = {"backups ended": _backups_ended(tenant, actor)}
    _history_clear(tenant)
    for each in CLEARED:
        rows = each.rows(tenant)
        if each.model == "operations.Operation":
            _errors_clear(tenant, operation_id)
            rows = rows.exclude(pk=operation_id)
        with transaction.atomic():
            # `_raw_delete` and updates by the row's columns alone: no cascade may take along what is to stay.
            count = rows.delete()[0] if each.fields is None else rows.update(**each.fields)
        if count:
            counts[each.model.partition(".")[2]] = count
    _schedules_drop(tenant)
    return counts


def caches_clear(tenant: Tenant) -> int:
    """Remove what this host keeps near of the tenant's index; how many folders."""
    gone = 0
    for name in ("sealed", "plain"):
        folder = wiring.cache_folder() / f"{tenant.repository_id}-{name}"
        if folder.exists():
            shutil.rmtree(folder)
            gone += 1
    return gone


def _backups_ended(tenant: Tenant, actor: str) -> int:
    """No backup of it can be read: none may be shown as good."""
    count = 0
    while ids := list(
        Backup.objects.filter(tenant=tenant, state__in=GOOD_STATES).values_list("pk", flat=True)[:BATCH_ROWS]
    ):
        with transaction.atomic():
            count += len(backups_transition(ids, to=BackupState.DELETED, actor=actor, reason=REASON))
    return count


def _history_clear(tenant: Tenant) -> None:
    """Reasons of state changes repeat what errors said."""
    for each in CLEARED:
        model: type[models.Model] = apps.get_model(each.model)
        if issubclass(model, Record) and any(field.name == "state" for field in model._meta.get_fields()):
            subjects = each.rows(tenant).values("pk")
            changes = StateChange.objects.filter(subject_type=model._meta.model_name or "", subject_id__in=subjects)
            changes.exclude(reason=REASON).update(reason="")


def _errors_clear(tenant: Tenant, operation_id: str) -> None:
    """The code of an error stays; its words may name tables and rows."""
    failed = Operation.objects.filter(tenant=tenant.slug, error__isnull=False).exclude(pk=operation_id)
    for operation in failed.only("pk", "error").iterator(chunk_size=BATCH_ROWS):
        kept = {"code": (operation.error or {}).get("code", ""), "detail": "", "hint": "", "exit": 1}
        Operation.objects.filter(pk=operation.pk).update(error=kept)


def _schedules_drop(tenant: Tenant) -> None:
    from operations.scheduling.services import schedules_without

    schedules_without(tenant.slug, actor="system:shred")
