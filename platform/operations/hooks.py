"""Hooks around operations: put the application into maintenance, stop it, start it, ask for its health.

A hook belongs to a kind of operation (those registered with `hooks=True`), before or after it, for one tenant or for all.
Before-hooks run in the order of their positions; one that fails stops the operation before it has done anything, or only warns, as
configured. After-hooks run whatever became of the work and of the before-hooks, and are told: an application that was
put into maintenance is always taken out of it. There is nothing left to stop then, so that a failing one warns, and one
that is to stop keeps those behind it from running. A worker that was killed runs none: `operation retry` does.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from django.db import transaction

from audit.services import record
from core import clock
from core.errors import CatalogueError
from engine.errors import CancelledError, LastroError
from operations.context import OperationContext
from operations.handlers import Run, handler_get
from operations.hook_runs import RunSaid, output_put
from operations.hook_settings import hook_config, hook_get
from operations.models import Hook, HookEvent, HookFailure, HookRun, Operation

_REASON_CHARS_MAX = 300


class HookFailed(CatalogueError):
    """A before-hook failed that was to stop the operation; nothing was done."""

    code = "hook.failed"


def hook_test(name: str, *, actor: str) -> RunSaid:
    """Run a hook now, as for an operation called `test`."""
    row = hook_get(name)
    about = {"event": row.event, "kind": row.operation_kind, "tenant": row.tenant or "test", "operation": "test"}
    record("hook.tested", message=f"hook {row.name}", actor=actor, tenant=row.tenant)
    return _run_one(row, {**about, "subject": "test", "state": "test"}, operation_id="", check=lambda: None)


# ---------------------------------------------------------------- around an operation


def run_hooked(context: OperationContext, work: Run) -> Mapping[str, Any] | None:
    """Run the handler's work between its hooks. Raises HookFailed, or what the work raises."""
    operation = context.operation
    rows = list(
        Hook.objects.filter(operation_kind=operation.kind, enabled=True, tenant__in=("", operation.tenant)).order_by(
            "position", "name"
        )
    )
    if not rows:
        return work(context)
    before = [row for row in rows if row.event == HookEvent.BEFORE]
    after = [row for row in rows if row.event == HookEvent.AFTER]
    state, is_begun = "failed", False
    try:
        for row in before:
            _before(context, row)
        is_begun = True
        result = work(context)
        state = "warned" if context.warnings else "succeeded"
        return result
    except CancelledError:
        state = "cancelled"
        raise
    finally:
        if not is_begun:
            # The rows that wait for this work must not wait for ever.
            with transaction.atomic():
                handler_get(operation.kind).on_dropped(operation)
        _after(context, after, state)


def _before(context: OperationContext, row: Hook) -> None:
    said = _run_for(context, row, state="", check=context.check)
    if said.run.passed:
        return
    if row.on_failure == HookFailure.STOP:
        operation = context.operation
        raise HookFailed(
            f"hook {row.name} {_how(said)}; the {operation.kind} was not begun",
            hint=f"what it said: hook runs --operation {operation.pk}; put it right and try it: hook test {row.name}; "
            f"or leave it out: hook disable {row.name}",
        )
    context.warn("hook.failed", f"hook {row.name} {_how(said)}")


def _after(context: OperationContext, rows: list[Hook], state: str) -> None:
    for row in rows:
        said = _run_for(context, row, state=state, check=lambda: None)
        if said.run.passed:
            continue
        context.warn(
            "hook.failed",
            f"hook {row.name} {_how(said)}; what it said: hook runs --operation {context.operation.pk}",
        )
        if row.on_failure == HookFailure.STOP:
            return


def _how(said: RunSaid) -> str:
    """The status and our own words; the application's are sealed, and shown by `hook runs` alone."""
    return f"failed ({said.run.status})" + (f": {said.reason}" if said.reason else "")


def _run_for(context: OperationContext, row: Hook, *, state: str, check: Callable[[], None]) -> RunSaid:
    operation: Operation = context.operation
    context.phase(f"hook {row.name}"[:60])
    about = {
        "event": row.event,
        "kind": operation.kind,
        "tenant": operation.tenant,
        "operation": operation.pk,
        "subject": operation.subject_id,
        "state": state,
    }
    return _run_one(row, about, operation_id=operation.pk, check=check)


def _run_one(row: Hook, about: Mapping[str, str], *, operation_id: str, check: Callable[[], None]) -> RunSaid:
    # Here: an operation without hooks does not pay for what calling them takes.
    from operations.hook_actions import Outcome, perform

    began, started_at = time.monotonic(), clock.now()
    try:
        outcome = perform(hook_config(row), about, seconds=row.timeout_seconds, check=check)
    except CancelledError:
        raise
    except LastroError as error:
        outcome = Outcome(False, error.code, reason=str(error))
    run = HookRun(
        hook=row,
        hook_name=row.name,
        operation_id=operation_id,
        tenant=about["tenant"],
        event=row.event,
        started_at=started_at,
        duration_ms=round((time.monotonic() - began) * 1000),
        passed=outcome.passed,
        status=outcome.status[:40],
    )
    text = "\n".join(filter(None, (outcome.reason, outcome.output)))
    output_put(run, text)
    run.save(force_insert=True)
    return RunSaid(run, text, outcome.reason[:_REASON_CHARS_MAX])
