"""The operation `restore`: safety backup, then source by source, then the checks."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, cast

from core import clock
from core.errors import InternalError
from engine.errors import (
    CancelledError,
    DamageError,
    LastroError,
    SourceChanged,
    SourceDenied,
    SourceError,
    TargetError,
)
from engine.faults import kill_point
from engine.ports import RestoreRequest, SourceView
from engine.views import source_views
from operations.context import OperationContext
from operations.handlers import register
from operations.models import Operation
from tenants import outputs, wiring
from tenants.handlers.backup import backup_perform, tenant_resource
from tenants.models import BackupType, Restore, RestoreSource, RestoreSourceState, RestoreState
from tenants.selectors import restore_get, source_get
from tenants.services.backups import BackupWish, backup_create
from tenants.services.restores import (
    restore_checks_failed,
    restore_failed,
    restore_finished,
    restore_source_put,
)
from tenants.transitions import restore_transition

SAFETY_TAG = "safety"


class RestoreIncomplete(TargetError):
    """Some targets hold the backup's data and some do not; the message names them."""

    code = "restore.incomplete"


class RestoreUnproven(DamageError):
    """What was restored is not what the backup holds."""

    code = "restore.checks_failed"


def _lost(operation: Operation) -> None:
    restore = Restore.objects.filter(pk=operation.subject_id).first()
    if restore is not None:
        standing = _standing(restore)
        ended = LastroError(
            f"its worker ended without a word; {standing}", hint=f"run it again: operation retry {operation.pk}"
        )
        ended.code = "operation.lost"
        restore_failed(restore, ended, actor="system:reaper")


def _dropped(operation: Operation) -> None:
    restore = Restore.objects.filter(pk=operation.subject_id).first()
    if restore is not None:
        ended = LastroError(f"it never ran: the operation {operation.state}; nothing was touched")
        ended.code = "operation.not_run"
        restore_failed(restore, ended, actor=operation.actor, to=RestoreState.CANCELLED)


def _retry(operation: Operation) -> Mapping[str, Any]:
    """Under the same id, so that the connectors find and clear what the lost run left behind."""
    restore = restore_get(operation.subject_id)
    restore_transition(
        restore, to=RestoreState.APPROVED, actor=operation.actor, reason="run again", error_code="", error=""
    )
    RestoreSource.objects.filter(restore=restore, state=RestoreSourceState.APPLYING).update(
        state=RestoreSourceState.UNKNOWN
    )
    return {}


@register(
    "restore",
    resource=tenant_resource,
    phases=("safety backup", "apply", "check"),
    on_lost=_lost,
    on_dropped=_dropped,
    on_retry=_retry,
)
def run(context: OperationContext) -> Mapping[str, Any]:
    """Make the targets what the backup holds."""
    restore, started = restore_get(context.operation.subject_id), time.monotonic()
    try:
        _perform(context, restore, started)
    except LastroError as error:
        told = _told(restore, error)
        untouched = not restore.sources.exclude(state=RestoreSourceState.OLD).exists()
        to = RestoreState.CANCELLED if isinstance(error, CancelledError) and untouched else RestoreState.FAILED
        restore_failed(restore, told, actor=context.operation.actor, to=to, duration_ms=_since(started))
        raise told from error
    except BaseException as error:
        unforeseen = InternalError(f"ended by {type(error).__name__}; {_standing(restore)}")
        restore_failed(restore, unforeseen, actor=context.operation.actor, duration_ms=_since(started))
        raise
    return outputs.restore(restore_get(restore.pk))


def _perform(context: OperationContext, restore: Restore, started: float) -> None:
    restore_transition(
        restore,
        to=RestoreState.STAGING,
        actor=context.operation.actor,
        started_at=clock.now(),
        operation_id=context.operation.pk,
    )
    with wiring.repository_open(restore.tenant) as repository:
        manifest = wiring.manifest_of(repository, restore.backup)
        views = source_views(repository, manifest)
        if restore.safety_wanted and restore.safety_backup_id is None:
            _safety_backup(context, restore)
        restore_transition(restore, to=RestoreState.APPLYING, actor=context.operation.actor)
        checks: list[dict[str, Any]] = []
        for row in restore.sources.order_by("name"):
            context.check()
            checks += _apply(context, restore, row, cast(SourceView, views[row.name]))
    restore_transition(restore, to=RestoreState.CHECKING, actor=context.operation.actor)
    _judge(context, restore, checks, _since(started))


def _safety_backup(context: OperationContext, restore: Restore) -> None:
    """Keep the present state of what will be changed.

    A source that cannot be read any more does not stop its own recovery: there is nothing left to save then,
    and the restore says so.
    """
    context.phase("safety backup")
    sources = [source_get(restore.tenant, name) for name in restore.sources.values_list("name", flat=True)]
    wish = BackupWish(type=BackupType.INCREMENTAL, tags=(SAFETY_TAG,), trigger="safety")
    backup = backup_create(restore.tenant, wish, sources, actor=restore.created_by, operation_id=context.operation.pk)
    try:
        failed = backup_perform(context, backup).document["failed_sources"]
    except (SourceChanged, SourceDenied):
        raise  # The data is there, only not readable now: without a safety backup it must not be overwritten.
    except SourceError as error:
        context.warn("restore.nothing_saved", f"no safety backup: the present data cannot be read ({error})")
    else:
        Restore.objects.filter(pk=restore.pk).update(safety_backup=backup)
        restore.safety_backup = backup
        for each in failed:
            if each["code"] in (SourceChanged.code, SourceDenied.code):
                raise SourceDenied(f"source {each['name']} could not be saved: {each['message']}", hint=each["hint"])
    kill_point("restore.safety_backup_taken")


def _apply(context: OperationContext, restore: Restore, row: RestoreSource, view: SourceView) -> list[dict[str, Any]]:
    context.phase(f"apply {row.name}")
    connector = wiring.connector_at(source_get(restore.tenant, row.name), restore)
    request = RestoreRequest(
        label=restore.pk,
        in_place=restore.in_place,
        overwrite=bool(context.params.get("overwrite")),
        prove=restore.prove,
        validate=restore.validate_after,
    )
    restore_source_put(context, row, RestoreSourceState.APPLYING)
    kill_point("restore.before_source")
    try:
        report = connector.restore(view, request, context)
    except LastroError as error:
        # The port's promise: a restore that raises has left its target as it was.
        restore_source_put(context, row, RestoreSourceState.OLD, error=error)
        raise
    kill_point("restore.source_applied")
    restore_source_put(context, row, RestoreSourceState.NEW, report=report)
    for warning in report.warnings:
        context.warn("restore.warning", f"source {row.name}: {warning}")
    return [{"source": row.name, **dataclasses.asdict(check)} for check in report.checks]


def _judge(context: OperationContext, restore: Restore, checks: list[dict[str, Any]], duration_ms: int) -> None:
    context.phase("check")
    failed = [check for check in checks if not check["passed"]]
    if failed and restore.validate_after:
        restore_checks_failed(context, restore, checks, duration_ms=duration_ms)
        first = failed[0]
        raise RestoreUnproven(
            f"source {first['source']}: {first['name']} did not pass: {first['detail'] or first['actual']}",
            hint="the safety backup holds the state before this restore",
        )
    for check in failed:
        context.warn("restore.check_failed", f"source {check['source']}: {check['name']}: {check['detail']}")
    restore_finished(context, restore, checks, duration_ms=duration_ms)


def _standing(restore: Restore) -> str:
    """Say exactly which sources hold which data."""
    by_state: dict[str, list[str]] = {}
    for row in restore.sources.order_by("name"):
        by_state.setdefault(row.state, []).append(row.name)
    words = {
        RestoreSourceState.NEW: "restored",
        RestoreSourceState.OLD: "as before",
        RestoreSourceState.APPLYING: "to be looked at",
        RestoreSourceState.UNKNOWN: "to be looked at",
    }
    return "; ".join(f"{words[RestoreSourceState(state)]}: {', '.join(names)}" for state, names in by_state.items())


def _told(restore: Restore, error: LastroError) -> LastroError:
    """With several sources an error says where each one stands; its class and exit code stay when none changed."""
    states = set(restore.sources.values_list("state", flat=True))
    if states <= {RestoreSourceState.OLD} or restore.sources.count() < 2 or isinstance(error, RestoreUnproven):
        return error
    saved = f"the safety backup is {restore.safety_backup_id}" if restore.safety_backup_id else "run it again"
    return RestoreIncomplete(
        f"{error.message}; {_standing(restore)}", hint="; ".join(filter(None, (error.hint, saved)))
    )


def _since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
