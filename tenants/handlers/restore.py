"""The operation `restore`: safety backup, then all sources prepared and committed, then the checks. Undo runs here too."""

import time
from collections.abc import Mapping
from typing import Any

from core import clock
from core.errors import InternalError
from engine.errors import (
    CancelledError,
    LastroError,
    SourceChanged,
    SourceDenied,
    SourceError,
    StalePlan,
)
from engine.faults import kill_point
from engine.repository import Repository
from operations.context import OperationContext
from operations.handlers import register
from operations.models import ACTIVE_STATES, Operation
from tenants import reading
from tenants.handlers.backup import backup_perform, tenant_resource
from tenants.handlers.copying import copy_run
from tenants.handlers.courses import Backups, ToBackup, ToBefore
from tenants.handlers.saga import Course, RestoreIncomplete, RestoreUnproven, Saga
from tenants.handlers.whole import around_damage
from tenants.models import BackupType, Restore, RestoreSource, RestoreSourceState, RestoreState
from tenants.selectors import restore_get, source_get
from tenants.services.backups import BackupWish, backup_create
from tenants.services.plans import plan_command, plan_digests
from tenants.services.restore_recording import (
    report_of,
    restore_checks_failed,
    restore_failed,
    restore_finished,
)
from tenants.services.undos import sources_left
from tenants.transitions import restore_transition

SAFETY_TAG = "safety"


def _lost(operation: Operation) -> None:
    restore = Restore.objects.filter(pk=operation.subject_id).first()
    if restore is not None:
        ended = LastroError(
            f"its worker ended without a word; {_standing(restore)}",
            hint=f"run it again: operation retry {operation.pk}",
        )
        ended.code = "operation.lost"
        restore_failed(restore, ended, actor="system:reaper")


def _dropped(operation: Operation) -> None:
    restore = Restore.objects.filter(pk=operation.subject_id).first()
    if restore is not None:
        was = "was stopped before it began" if operation.state in ACTIVE_STATES else operation.state
        ended = LastroError(f"it never ran: the operation {was}; nothing was touched")
        ended.code = "operation.not_run"
        restore_failed(restore, ended, actor=operation.actor, to=RestoreState.CANCELLED)


def _retry(operation: Operation) -> Mapping[str, Any]:
    """Under the same id, so that the connectors find and clear what the lost run left behind."""
    restore = restore_get(operation.subject_id)
    restore_transition(
        restore,
        to=RestoreState.APPROVED,
        actor=operation.actor,
        reason="run again",
        error_code="",
        error="",
        error_hint="",
    )
    RestoreSource.objects.filter(restore=restore, state=RestoreSourceState.APPLYING).update(
        state=RestoreSourceState.UNKNOWN
    )
    return {}


@register(
    "restore",
    resource=tenant_resource,
    phases=("safety backup", "prepare", "apply", "check"),
    on_lost=_lost,
    on_dropped=_dropped,
    on_retry=_retry,
    hooks=True,
)
def run(context: OperationContext) -> Mapping[str, Any]:
    """Make the targets what the backup holds, or what they were before another restore."""
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
    return {"id": restore.pk, "tenant": restore.tenant.slug, "backup": restore.backup_id}


def _perform(context: OperationContext, restore: Restore, started: float) -> None:
    restore_transition(
        restore,
        to=RestoreState.STAGING,
        actor=context.operation.actor,
        started_at=clock.now(),
        operation_id=context.operation.pk,
    )
    with reading.backups_open(restore.tenant, [restore.backup]) as repository:
        try:
            if restore.in_place:
                _in_place(context, restore, repository)
            else:
                restore_transition(restore, to=RestoreState.APPLYING, actor=context.operation.actor)
                around_damage(context, repository, restore, lambda backups: copy_run(context, restore, backups))
        except RestoreUnproven as error:
            restore_checks_failed(context, restore, error.checks, duration_ms=_since(started))
            raise
    restore_transition(restore, to=RestoreState.CHECKING, actor=context.operation.actor)
    _judge(context, restore, _since(started))


def _in_place(context: OperationContext, restore: Restore, repository: Repository) -> None:
    def saga(backups: Backups) -> Saga:
        return Saga(context, restore, repository, _course(context, restore, backups))

    saga(Backups(repository)).settle()
    _safety_backup(context, restore)
    restore_transition(restore, to=RestoreState.APPLYING, actor=context.operation.actor)
    digests = plan_digests(restore.plan) if restore.plan is not None else {}
    around_damage(context, repository, restore, lambda backups: saga(backups).run(digests))


def _course(context: OperationContext, restore: Restore, backups: Backups) -> Course:
    if restore.undoes is None:
        return ToBackup(context, restore, backups)
    undoes = restore_get(restore.undoes.pk)
    return ToBefore(context, undoes, backups, label=restore.pk, prove=restore.prove, validate=restore.validate_after)


def _safety_backup(context: OperationContext, restore: Restore) -> None:
    """Keep the present state of what will be changed; what an earlier attempt has changed already was kept by it.

    A source that cannot be read any more does not stop its own recovery: there is nothing left to save then,
    and the restore says so.
    """
    rows = list(restore.sources.filter(state=RestoreSourceState.OLD).order_by("name"))
    if not rows or not restore.safety_wanted:
        return
    context.phase("safety backup")
    sources = [source_get(restore.tenant, row.name) for row in rows]
    wish = BackupWish(type=BackupType.INCREMENTAL, tags=(SAFETY_TAG,), trigger="safety")
    backup = backup_create(restore.tenant, wish, sources, actor=restore.created_by, operation_id=context.operation.pk)
    failed: Mapping[str, Any] = {}
    try:
        failed = {each["name"]: each for each in backup_perform(context, backup).document["failed_sources"]}
    except (SourceChanged, SourceDenied):
        raise  # The data is there, only not readable now: without a safety backup it must not be overwritten.
    except SourceError as error:
        context.warn("restore.nothing_saved", f"no safety backup: the present data cannot be read ({error})")
        restore.sources.filter(pk__in=[row.pk for row in rows]).update(saved=None)
        return
    for each in failed.values():
        if each["code"] in (SourceChanged.code, SourceDenied.code):
            raise SourceDenied(f"source {each['name']} could not be saved: {each['message']}", hint=each["hint"])
    restore.sources.filter(pk__in=[row.pk for row in rows if row.name not in failed]).update(saved=backup)
    Restore.objects.filter(pk=restore.pk).update(safety_backup=backup)
    restore.safety_backup = backup
    kill_point("restore.safety_backup_taken")


def _judge(context: OperationContext, restore: Restore, duration_ms: int) -> None:
    context.phase("check")
    checks = [check for row in restore.sources.order_by("name") for check in report_of(row).get("checks", ())]
    failed = [check for check in checks if not check["passed"]]
    if failed and restore.validate_after:
        restore_checks_failed(context, restore, checks, duration_ms=duration_ms)
        raise RestoreUnproven(checks, hint="the safety backup holds the state before this restore")
    for check in failed:
        context.warn("restore.check_failed", f"source {check['source']}: {check['name']}: {check['detail']}")
    is_whole = restore.undoes is not None and not sources_left(restore.undoes)
    restore_finished(context, restore, checks, duration_ms=duration_ms, undone_whole=is_whole)


def _standing(restore: Restore) -> str:
    """Say exactly which sources hold which data."""
    by_state: dict[str, list[str]] = {}
    for row in restore.sources.order_by("name"):
        by_state.setdefault(row.state, []).append(row.name)
    done = "taken back to before" if restore.undoes_id else "restored"
    words = {
        RestoreSourceState.NEW: done,
        RestoreSourceState.OLD: "as before",
        RestoreSourceState.APPLYING: "to be looked at",
        RestoreSourceState.UNKNOWN: "to be looked at",
    }
    return "; ".join(f"{words[RestoreSourceState(state)]}: {', '.join(names)}" for state, names in by_state.items())


def _told(restore: Restore, error: LastroError) -> LastroError:
    """Say where each source stands when they differ, and what to do; class and exit code stay when none changed."""
    if isinstance(error, StalePlan) and (restore.plan is not None or restore.undoes_id):
        error.hint = f"see what would be done now: {plan_command(restore)}"
    states = set(restore.sources.values_list("state", flat=True))
    if states <= {RestoreSourceState.OLD} or isinstance(error, RestoreUnproven):
        return error
    if restore.sources.count() < 2 and not isinstance(error, RestoreIncomplete):
        return error
    saved = f"the safety backup is {restore.safety_backup_id}" if restore.safety_backup_id else "run it again"
    return RestoreIncomplete(
        f"{error.message}; {_standing(restore)}", hint="; ".join(filter(None, (error.hint, saved)))
    )


def _since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
