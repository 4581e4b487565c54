"""The operation `drill`: restore into throw-away targets, ask questions of them, remove them."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from core import clock
from core.errors import InternalError
from engine.errors import CancelledError, DamageError, LastroError, TargetError
from engine.faults import kill_point
from engine.ports import Connector, RestoreRequest, SourceView
from operations.context import OperationContext
from operations.handlers import register
from operations.hook_actions import CommandHook, perform
from operations.models import Operation
from tenants import outputs, reading, wiring
from tenants.handlers.backup import tenant_resource
from tenants.models import Drill, DrillCheck, Source
from tenants.models.drill import CheckKind
from tenants.services import drills


class DrillFailed(DamageError):
    """What a drill restored is not what it must be."""

    code = "drill.failed"


def _lost(operation: Operation) -> None:
    drill = Drill.objects.filter(pk=operation.subject_id).first()
    if drill is not None:
        ended = LastroError("its worker ended without a word", hint=f"run it again: drill run {operation.tenant}")
        ended.code = "operation.lost"
        drills.drill_failed(drill, ended, actor="system:reaper")


def _dropped(operation: Operation) -> None:
    drill = Drill.objects.filter(pk=operation.subject_id).first()
    if drill is not None:
        ended = LastroError(f"it never ran: the operation {operation.state}")
        ended.code = "operation.not_run"
        drills.drill_failed(drill, ended, actor=operation.actor)
        Drill.objects.filter(pk=drill.pk).update(cleared=True)


def _again(operation: Operation) -> Mapping[str, Any]:
    old = drills.drill_get(operation.subject_id)
    new = Drill.objects.create(tenant=old.tenant, backup=old.backup, sources=old.sources, created_by=operation.actor)
    return {"subject_id": new.pk}


@register(
    "drill",
    resource=tenant_resource,
    phases=("clear", "restore", "ask"),
    on_lost=_lost,
    on_dropped=_dropped,
    on_retry=_again,
)
def run(context: OperationContext) -> Mapping[str, Any]:
    """Run the drill; a check that does not pass ends it as DrillFailed, with all of it recorded.

    The result says how it went and no more, as it may be read by anyone: evidence is sealed under the tenant's key.
    """
    began = time.monotonic()
    drill = drills.drill_get(context.operation.subject_id)
    Drill.objects.filter(pk=drill.pk).update(started_at=clock.now(), operation_id=context.operation.pk)
    try:
        _clear_earlier(context, drill)
        evidence, restore_ms, size = _rehearse(context, drill)
        drill = drills.drill_finished(
            context, drill, evidence, restore_ms=restore_ms, restored_bytes=size, duration_ms=_since(began)
        )
    except LastroError as error:
        drills.drill_failed(drill, error, actor=context.operation.actor, duration_ms=_since(began))
        raise
    except BaseException as error:
        stopped: LastroError = InternalError(f"ended by {type(error).__name__}", hint="the log has the rest")
        if isinstance(error, KeyboardInterrupt | SystemExit):
            stopped = CancelledError("interrupted")
        drills.drill_failed(drill, stopped, actor=context.operation.actor, duration_ms=_since(began))
        raise
    failed = [check for check in evidence["checks"] if not check["passed"]]
    if failed:
        raise DrillFailed(
            f"{len(failed)} of {len(evidence['checks'])} checks did not pass; the first: {failed[0]['source']},"
            f" {failed[0]['name']}",
            hint=f"see them: drill show {drill.pk}",
        )
    return outputs.drill_line(drills.drill_get(drill.pk))


def _since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)


def _clear_earlier(context: OperationContext, drill: Drill) -> None:
    context.phase("clear")
    for earlier in drills.drills_uncleared(drill.tenant, but=drill):
        try:
            drills.scratch_clear(earlier)
        except LastroError as error:
            context.warn("drill.not_cleared", f"drill {earlier.pk} left something behind: {error}")


def _rehearse(context: OperationContext, drill: Drill) -> tuple[dict[str, Any], int, int]:
    """Evidence, milliseconds of the restores alone, bytes restored."""
    evidence: dict[str, Any] = {"sources": [], "checks": []}
    total_ms = size = 0
    try:
        with reading.backups_open(drill.tenant, [drill.backup]) as repository:
            views = reading.views_of(repository, drill.backup)
            for number, source in enumerate(drills.sources_of(drill)):
                context.check()
                connector = wiring.connector_open(source)
                name = drills.scratch_name(drill, number)
                view = views[source.name]
                took, report = _restore(context, connector, name, view, label=drill.pk)
                kill_point("drill.restored")
                total_ms += took
                size += _size(view)
                evidence["sources"].append(
                    {"source": source.name, "kind": source.kind, "restore_ms": took, **_counts(view)}
                )
                evidence["checks"] += [{"source": source.name, **dataclasses.asdict(each)} for each in report.checks]
                evidence["checks"] += _own_checks(context, connector, name, source)
    finally:
        _clear(context, drill)
    return evidence, total_ms, size


def _restore(
    context: OperationContext, connector: Connector, name: str, view: SourceView, *, label: str
) -> tuple[int, Any]:
    context.phase(f"restore {view.name}"[:60])
    site = wiring.scratch_site()
    connector.scratch_drop(name, site)
    target = connector.scratch(name, site)
    began = time.monotonic()
    report = target.restore(view, RestoreRequest(label=label, in_place=False), context)
    return _since(began), report


def _size(view: SourceView) -> int:
    return sum(table.byte_count for table in view.tables) + sum(tree.byte_count for tree in view.trees)


def _counts(view: SourceView) -> dict[str, Any]:
    return {
        "rows": sum(each.row_count for each in view.tables),
        "files": sum(each.file_count for each in view.trees),
        "bytes": _size(view),
    }


def _own_checks(context: OperationContext, connector: Connector, name: str, source: Source) -> list[dict[str, Any]]:
    rows = list(DrillCheck.objects.filter(source=source).order_by("name"))
    if rows:
        context.phase(f"ask {source.name}"[:60])
    return [{"source": source.name, **_own_check(context, connector, name, source, row)} for row in rows]


def _own_check(
    context: OperationContext, connector: Connector, name: str, source: Source, row: DrillCheck
) -> dict[str, Any]:
    context.check()
    site, detail, expected = wiring.scratch_site(), "", row.expected.strip()
    if row.kind == CheckKind.SQL:
        try:
            actual = connector.scratch_ask(name, site, row.ask, seconds=row.timeout_seconds).strip()
            passed = actual == expected
        except LastroError as error:
            actual, passed, detail = error.code, False, str(error)
    else:
        about = {"tenant": source.tenant.slug, "source": source.name, **connector.scratch_place(name, site)}
        outcome = perform(CommandHook(row.ask), about, seconds=row.timeout_seconds, check=context.check)
        actual, passed, detail, expected = outcome.status, outcome.passed, outcome.reason or outcome.output, "0"
    return {"name": row.name, "passed": passed, "expected": expected, "actual": actual, "detail": detail, "own": True}


def _clear(context: OperationContext, drill: Drill) -> None:
    try:
        drills.scratch_clear(drill)
    except TargetError as error:
        context.warn("drill.not_cleared", f"something is left behind, the next drill removes it: {error}")
