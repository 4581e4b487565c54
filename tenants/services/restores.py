"""Restores asked for, and what a worker writes down about them."""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from audit.services import record
from core import clock
from core.errors import ConfirmationNeeded
from core.rootkey import root_key
from engine.errors import LastroError, UsageError
from engine.ports import RestoreReport
from operations.context import OperationContext
from operations.models import Operation
from operations.services import operation_enqueue
from tenants import wiring
from tenants.models import (
    Backup,
    BackupSource,
    Restore,
    RestoreSource,
    RestoreSourceState,
    RestoreState,
    Source,
    Tenant,
    Validation,
    ValidationStatus,
)
from tenants.selectors import source_get
from tenants.targets import Targets, targets_parse
from tenants.transitions import restore_open_states, restore_transition

MODES = ("full",)
_ERROR_CHARS_MAX = 2_000


@dataclass(frozen=True)
class RestoreWish:
    """What was asked for. `confirmed` is what the operator typed, compared with the tenant's slug here."""

    mode: str = "full"
    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    confirmed: str | None = None
    validate: bool = True
    safety_backup: bool = True
    prove: bool = False


def restore_start(
    backup: Backup, wish: RestoreWish, *, actor: str, reason: str = "", here: bool = False
) -> tuple[Restore, Operation]:
    """Queue a restore. Nothing is touched when any of this is raised.

    ConfirmationNeeded unless the tenant's slug confirms it (for an alternative target it may be left out, and
    what exists there is then not overwritten), NotFound for a source that is gone, UsageError for a target
    that cannot be right.
    """
    if wish.mode not in MODES:
        raise UsageError(f"mode {wish.mode!r} is not known", hint=f"one of: {', '.join(MODES)}")
    tenant = backup.tenant
    sources = _chosen(backup, wish.sources)
    targets = targets_parse(wish.targets, sources)
    for name, source in sources.items():
        if targets:
            wiring.connector_open(source).at(targets.of(name))
    _confirm(tenant, wish, targets)
    if not wish.safety_backup and not targets:
        raise UsageError(
            "a restore in place always takes a safety backup first",
            hint="leave out --no-safety-backup, or give --target",
        )
    with transaction.atomic():
        restore = _create(backup, wish, sources, targets, actor=actor, reason=reason)
        params = {"overwrite": wish.confirmed is not None}
        operation = operation_enqueue(
            kind="restore",
            tenant=tenant.slug,
            params=params,
            subject_id=restore.pk,
            actor=actor,
            reason=reason,
            here=here,
        )
        Restore.objects.filter(pk=restore.pk).update(operation_id=operation.pk)
        restore_transition(restore, to=RestoreState.APPROVED, actor=actor, reason="confirmed" if wish.confirmed else "")
        record(
            "restore.requested",
            message=f"{wish.mode} restore of {tenant.slug} from {backup.pk}"
            + ("" if targets else f" in place: {', '.join(sources)}"),
            actor=actor,
            tenant=tenant.slug,
            level="warning",
            data={"restore": restore.pk, "backup": backup.pk, "in_place": not targets, "sources": sorted(sources)},
        )
    return restore, operation


def _chosen(backup: Backup, names: Sequence[str]) -> dict[str, Source]:
    kept = list(
        BackupSource.objects.filter(backup=backup, state=BackupSource.State.KEPT)
        .order_by("name")
        .values_list("name", flat=True)
    )
    unknown = [name for name in names if name not in kept]
    if unknown:
        raise UsageError(
            f"backup {backup.pk} does not hold source {unknown[0]!r}", hint=f"it holds: {', '.join(kept) or 'nothing'}"
        )
    return {name: source_get(backup.tenant, name) for name in kept if not names or name in names}


def _confirm(tenant: Tenant, wish: RestoreWish, targets: Targets) -> None:
    if wish.confirmed is None and not targets:
        raise ConfirmationNeeded(
            f"this would change the data of {tenant.slug} in place", hint=f"confirm with --confirm {tenant.slug}"
        )
    if wish.confirmed is not None and wish.confirmed != tenant.slug:
        raise ConfirmationNeeded(
            f"{wish.confirmed[:60]!r} does not confirm {tenant.slug!r}; nothing was done",
            hint=f"--confirm {tenant.slug}",
        )


def _create(
    backup: Backup, wish: RestoreWish, sources: Mapping[str, Source], targets: Targets, *, actor: str, reason: str
) -> Restore:
    restore = Restore(
        tenant=backup.tenant,
        backup=backup,
        mode=wish.mode,
        in_place=not targets,
        targets=targets.plain,
        validate_after=wish.validate,
        safety_wanted=wish.safety_backup and not targets,
        prove=wish.prove,
        reason=reason,
        created_by=actor,
    )
    root = root_key()
    restore.sealed = {
        name: {
            key: base64.b64encode(root.seal(value.encode(), f"restore:{restore.pk}:{name}:{key}")).decode()
            for key, value in settings.items()
        }
        for name, settings in targets.secret.items()
    }
    restore.save(force_insert=True)
    RestoreSource.objects.bulk_create(
        RestoreSource(restore=restore, name=name, kind=source.kind) for name, source in sources.items()
    )
    return restore


def restore_source_put(
    context: OperationContext,
    row: RestoreSource,
    state: RestoreSourceState,
    *,
    report: RestoreReport | None = None,
    error: LastroError | None = None,
) -> None:
    """Write down which data a source's target holds now, under the lease."""
    with transaction.atomic():
        context.fence()
        row.state = state
        if report is not None:
            row.report = report_json(report)
        if error is not None:
            row.error_code, row.error = error.code, str(error)[:_ERROR_CHARS_MAX]
        row.save(update_fields=["state", "report", "error_code", "error"])


def report_json(report: RestoreReport) -> dict[str, Any]:
    """The report without its checks, which are kept in the validation record."""
    return {
        "tables": [dataclasses.asdict(table) for table in report.tables],
        "files": dataclasses.asdict(report.files) if report.files else None,
        "neighbours": dict(report.neighbours) if report.neighbours is not None else None,
        "warnings": list(report.warnings),
    }


def restore_finished(
    context: OperationContext, restore: Restore, checks: Sequence[Mapping[str, Any]], *, duration_ms: int
) -> None:
    """Record a restore that came to its end, with the validation record that proves it."""
    passed = all(check["passed"] for check in checks)
    with transaction.atomic():
        context.fence()
        if restore.validate_after:
            Validation.objects.create(
                tenant=restore.tenant,
                backup=restore.backup,
                restore=restore,
                status=ValidationStatus.PASSED if passed else ValidationStatus.FAILED,
                duration_ms=duration_ms,
                checks=[dict(check) for check in checks],
                report={"sources": sorted(restore.sources.values_list("name", flat=True))},
            )
        restore_transition(
            restore,
            to=RestoreState.SUCCEEDED,
            actor=context.operation.actor,
            finished_at=clock.now(),
            duration_ms=duration_ms,
            warnings=context.warnings,
        )
        record(
            "restore.finished",
            message=f"restore {restore.pk} of {restore.tenant.slug} succeeded",
            actor=context.operation.actor,
            tenant=restore.tenant.slug,
            data={"restore": restore.pk, "backup": restore.backup_id, "duration_ms": duration_ms},
        )


def restore_failed(
    restore: Restore, error: LastroError, *, actor: str, to: RestoreState = RestoreState.FAILED, duration_ms: int = 0
) -> None:
    """Record the end of a restore that did not succeed; a settled one stays."""
    with transaction.atomic():
        restore.refresh_from_db()
        if restore.state not in restore_open_states():
            return
        restore_transition(
            restore,
            to=to,
            actor=actor,
            reason=error.code,
            finished_at=clock.now(),
            duration_ms=duration_ms,
            error_code=error.code,
            error=error.message[:_ERROR_CHARS_MAX],
            error_hint=error.hint[:_ERROR_CHARS_MAX],
        )
        record(
            f"restore.{to}",
            message=f"restore {restore.pk} of {restore.tenant.slug}: {error.message}"[:_ERROR_CHARS_MAX],
            actor=actor,
            tenant=restore.tenant.slug,
            level="error",
            data={"restore": restore.pk, "code": error.code},
        )


def restore_checks_failed(
    context: OperationContext, restore: Restore, checks: Sequence[Mapping[str, Any]], *, duration_ms: int
) -> None:
    """Keep the checks of a restore whose result is not what the backup holds."""
    with transaction.atomic():
        context.fence()
        Validation.objects.create(
            tenant=restore.tenant,
            backup=restore.backup,
            restore=restore,
            status=ValidationStatus.FAILED,
            duration_ms=duration_ms,
            checks=[dict(check) for check in checks],
            report={"sources": sorted(restore.sources.values_list("name", flat=True))},
        )
