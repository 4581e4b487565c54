"""What a worker writes down about a restore while it runs and when it ends."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction

from audit.services import record
from core import clock
from engine.errors import LastroError
from engine.keys import Keyring
from engine.ports import CHECK_NAMES, Check, RestoreReport
from operations.context import OperationContext
from tenants.models import (
    Restore,
    RestoreKind,
    RestoreSource,
    RestoreSourceState,
    RestoreState,
    Validation,
    ValidationStatus,
)
from tenants.services.plans import plan_give_back
from tenants.tenant_sealing import document_open, document_seal, json_opened, json_sealed, keyring_of
from tenants.transitions import restore_open_states, restore_transition

UNDO_BY_IMAGE, UNDO_BY_SAFETY_BACKUP = "image", "safety backup"
_ERROR_CHARS_MAX = 2_000
_SOURCE_FIELDS = ("state", "report", "saved", "image", "journal", "error_code", "error")


def restore_source_put(
    context: OperationContext,
    row: RestoreSource,
    state: RestoreSourceState,
    *,
    report: RestoreReport | None = None,
    error: LastroError | None = None,
) -> None:
    """Write down which data a source's target holds now, with the row's journal, under the lease."""
    with transaction.atomic():
        context.fence()
        row.state = state
        if report is not None:
            row.report = json_sealed(keyring_of(row.restore.tenant), _context("report", row), report_json(row, report))
        if error is not None:
            row.error_code, row.error = error.code, error.message[:_ERROR_CHARS_MAX]
        elif state == RestoreSourceState.NEW:
            row.error_code = row.error = ""
        row.save(update_fields=_SOURCE_FIELDS)


def journal_write(keyring: Keyring, row: RestoreSource, document: Mapping[str, Any]) -> None:
    """Seal what settles this source later into the row, which is not saved yet."""
    row.journal = document_seal(keyring, _context("journal", row), document)


def journal_read(keyring: Keyring, row: RestoreSource) -> dict[str, Any]:
    """What `journal_write` sealed; empty when it never came to that."""
    if not row.journal:
        return {}
    document: dict[str, Any] = document_open(keyring, _context("journal", row), bytes(row.journal))
    return document


def report_of(row: RestoreSource) -> dict[str, Any]:
    """What was done to this source, opened by the tenant's key; empty for one that was not changed."""
    report: dict[str, Any] = json_opened(keyring_of(row.restore.tenant), _context("report", row), row.report)
    return report


def _context(what: str, row: RestoreSource) -> str:
    return f"{what}:{row.restore_id}:{row.name}"


def checks_json(source: str, checks: Sequence[Check]) -> list[dict[str, Any]]:
    """The checks of one source, each with its name."""
    return [{"source": source, **dataclasses.asdict(check)} for check in checks]


def report_json(row: RestoreSource, report: RestoreReport) -> dict[str, Any]:
    """The report without its digest, which the journal keeps sealed; `undo` says by what it can be undone."""
    return {
        "checks": checks_json(row.name, report.checks),
        "undo": UNDO_BY_IMAGE if row.image else UNDO_BY_SAFETY_BACKUP,
        "tables": [dataclasses.asdict(table) for table in report.tables],
        "files": dataclasses.asdict(report.files) if report.files else None,
        "neighbours": dict(report.neighbours) if report.neighbours is not None else None,
        "warnings": list(report.warnings),
    }


def restore_finished(
    context: OperationContext,
    restore: Restore,
    checks: Sequence[Mapping[str, Any]],
    *,
    duration_ms: int,
    undone_whole: bool = False,
) -> None:
    """Record a restore that came to its end, with the validation record that proves it.

    The restore that it undid becomes undone when `undone_whole`; with sources left it stays as it is.
    """
    actor, tenant = context.operation.actor, restore.tenant.slug
    with transaction.atomic():
        context.fence()
        if restore.validate_after:
            _validation_put(restore, checks, duration_ms=duration_ms)
        restore_transition(
            restore,
            to=RestoreState.SUCCEEDED,
            actor=actor,
            finished_at=clock.now(),
            duration_ms=duration_ms,
            warnings=context.warnings,
        )
        if restore.undoes is not None:
            if undone_whole:
                restore_transition(restore.undoes, to=RestoreState.UNDONE, actor=actor, reason=f"by {restore.pk}")
            names = sorted(restore.sources.values_list("name", flat=True))
            record(
                "restore.undone",
                message=f"restore {restore.undoes_id} of {tenant} was undone by {restore.pk}"
                + ("" if undone_whole else f" in part: {', '.join(names)}"),
                actor=actor,
                tenant=tenant,
                level="warning",
                data={
                    "restore": restore.undoes_id,
                    "undo": restore.pk,
                    "sources": names,
                    "whole": undone_whole,
                    "reason": restore.reason,
                },
            )
        record(
            "restore.finished",
            message=f"{RestoreKind(restore.kind).value} {restore.pk} of {tenant} succeeded",
            actor=actor,
            tenant=tenant,
            data={"restore": restore.pk, "backup": restore.backup_id, "duration_ms": duration_ms},
        )


def restore_failed(
    restore: Restore, error: LastroError, *, actor: str, to: RestoreState = RestoreState.FAILED, duration_ms: int = 0
) -> None:
    """Record the end of a restore that did not succeed; a settled one stays. One that never ran gives its plan back."""
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
        if to == RestoreState.CANCELLED and restore.plan is not None:
            plan_give_back(restore.plan, actor=actor)
        record(
            f"restore.{to}",
            message=f"restore {restore.pk} of {restore.tenant.slug} ended: {error.code}",
            actor=actor,
            tenant=restore.tenant.slug,
            level="error",
            data={"restore": restore.pk, "code": error.code},
        )


def restore_checks_failed(
    context: OperationContext, restore: Restore, checks: Sequence[Mapping[str, Any]], *, duration_ms: int
) -> None:
    """Keep the checks of a restore whose result is not what it should be."""
    with transaction.atomic():
        context.fence()
        _validation_put(restore, checks, duration_ms=duration_ms)


def _validation_put(restore: Restore, checks: Sequence[Mapping[str, Any]], *, duration_ms: int) -> None:
    passed = all(check["passed"] for check in checks)
    validation = Validation(
        tenant=restore.tenant,
        backup=restore.backup,
        restore=restore,
        status=ValidationStatus.PASSED if passed else ValidationStatus.FAILED,
        duration_ms=duration_ms,
        report={"sources": sorted(restore.sources.values_list("name", flat=True)), "mode": restore.mode},
    )
    document = {"checks": [dict(check) for check in checks]}
    validation.checks = json_sealed(keyring_of(restore.tenant), f"validation:{validation.pk}", document)
    validation.save(force_insert=True)


def checks_of(validation: Validation) -> list[dict[str, Any]]:
    """Every check of every source, opened by the tenant's key."""
    if isinstance(validation.checks, list):
        return validation.checks
    opened = json_opened(keyring_of(validation.tenant), f"validation:{validation.pk}", validation.checks)
    checks: list[dict[str, Any]] = opened.get("checks", [])
    return checks


def validation_record(validation: Validation) -> dict[str, Any]:
    """The record of DESIGN: the four checks by name, each with what was expected and found per source."""
    checks = checks_of(validation)
    by_name = {name: [check for check in checks if check["name"] == name] for name in CHECK_NAMES}
    return {
        "id": validation.pk,
        "tenant_id": validation.tenant_id,
        "backup_id": validation.backup_id,
        "timestamp": validation.created_at,
        "duration_ms": validation.duration_ms,
        "checks": {
            name: {
                "passed": all(check["passed"] for check in own),
                "applicable": bool(own),
                "expected": {check["source"]: check["expected"] for check in own},
                "actual": {check["source"]: check["actual"] for check in own},
                "detail": "; ".join(f"{check['source']}: {check['detail']}" for check in own if check["detail"]),
            }
            for name, own in by_name.items()
        },
        "status": validation.status,
        "report": {**validation.report, "time_to_restore_ms": validation.duration_ms},
    }
