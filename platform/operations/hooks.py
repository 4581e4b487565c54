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

from django.db import IntegrityError, models, transaction

from audit.services import record
from core import clock, sealing
from core.errors import CatalogueError, Conflict, NotFound
from engine.adapters import parse_config
from engine.errors import CancelledError, LastroError, UsageError
from operations.context import OperationContext
from operations.handlers import Run, handler_get, hooked_kinds
from operations.models import Hook, HookEvent, HookFailure, HookRun, Operation

TIMEOUT_SECONDS_MAX = 3600
NAME_CHARS_MAX = 60
_SHOWN_CHARS = 300


class HookFailed(CatalogueError):
    """A before-hook failed that was to stop the operation; nothing was done."""

    code = "hook.failed"


def hook_add(
    name: str,
    *,
    event: str,
    operation_kind: str,
    kind: str,
    values: Mapping[str, str],
    actor: str,
    tenant: str = "",
    timeout_seconds: int = 60,
    on_failure: str = HookFailure.STOP,
    position: int = 0,
) -> Hook:
    """Save a hook. Raises UsageError, Conflict for a name that is taken."""
    if not name or len(name) > NAME_CHARS_MAX or not name.isprintable():
        raise UsageError(f"{name[:80]!r} cannot be the name of a hook", hint="1 to 60 printable characters")
    if operation_kind not in hooked_kinds():
        raise UsageError(
            f"there are no hooks around {operation_kind[:40]!r}", hint=f"one of: {', '.join(hooked_kinds())}"
        )
    from operations.hook_actions import KINDS

    if kind not in KINDS:
        raise UsageError(f"unknown kind of hook {kind[:40]!r}", hint=f"one of: {', '.join(sorted(KINDS))}")
    if not 1 <= timeout_seconds <= TIMEOUT_SECONDS_MAX:
        raise UsageError(f"a time limit is 1 to {TIMEOUT_SECONDS_MAX} seconds")
    config_class = KINDS[kind]
    config = parse_config(config_class, sealing.resolved(config_class, values))
    config.validate()
    row = Hook(
        name=name,
        operation_kind=operation_kind,
        event=HookEvent(event),
        tenant=tenant,
        kind=kind,
        timeout_seconds=timeout_seconds,
        on_failure=HookFailure(on_failure),
        position=position,
    )
    resolved = sealing.resolved(config_class, values)
    kept = sealing.seal(config_class, sealing.given(config_class, config, resolved), owner=f"hook:{row.pk}")
    row.config, row.sealed = kept.plain, kept.sealed
    try:
        with transaction.atomic():
            row.save(force_insert=True)
            record(
                "hook.added",
                message=f"hook {name}: {event} {operation_kind}, {kind}",
                actor=actor,
                tenant=tenant,
                level="warning",
                data={"hook": row.pk, "name": name, "config": row.config, "on_failure": on_failure},
            )
    except IntegrityError:
        raise Conflict(f"a hook named {name!r} exists already", hint="choose another name") from None
    return row


def hook_get(name: str) -> Hook:
    """Find a hook by name. Raises NotFound."""
    found = Hook.objects.filter(name__iexact=name).first()
    if found is None:
        raise NotFound(f"there is no hook {name[:60]!r}", hint="hook list shows them")
    return found


def hook_list(tenant: str = "") -> "models.QuerySet[Hook]":
    """All hooks, or those that run for a tenant."""
    rows = Hook.objects.order_by("operation_kind", "-event", "position", "name")
    return rows.filter(tenant__in=("", tenant)) if tenant else rows


def hook_remove(name: str, *, actor: str) -> None:
    """Remove a hook; what its runs left stays. Raises NotFound."""
    row = hook_get(name)
    with transaction.atomic():
        record("hook.removed", message=f"hook {row.name}", actor=actor, tenant=row.tenant, level="warning")
        Hook.objects.filter(pk=row.pk).delete()


def hook_test(name: str, *, actor: str) -> HookRun:
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
    run = _run_for(context, row, state="", check=context.check)
    if run.passed:
        return
    if row.on_failure == HookFailure.STOP:
        raise HookFailed(
            f"hook {row.name} {_how(run)}; the {context.operation.kind} was not begun",
            hint=f"put it right and try it: hook test {row.name}; or take it away: hook remove {row.name}",
        )
    context.warn("hook.failed", f"hook {row.name} {_how(run)}")


def _after(context: OperationContext, rows: list[Hook], state: str) -> None:
    for row in rows:
        run = _run_for(context, row, state=state, check=lambda: None)
        if run.passed:
            continue
        context.warn("hook.failed", f"hook {row.name} {_how(run)}")
        if row.on_failure == HookFailure.STOP:
            return


def _how(run: HookRun) -> str:
    first = next((line for line in run.output.splitlines() if line.strip()), "")
    return f"failed ({run.status})" + (f": {first[:_SHOWN_CHARS]}" if first else "")


def _run_for(context: OperationContext, row: Hook, *, state: str, check: Callable[[], None]) -> HookRun:
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


def _run_one(row: Hook, about: Mapping[str, str], *, operation_id: str, check: Callable[[], None]) -> HookRun:
    # Here: an operation without hooks does not pay for what calling them takes.
    from operations.hook_actions import KINDS, Outcome, perform

    began, started_at = time.monotonic(), clock.now()
    try:
        config = sealing.config_of(KINDS[row.kind], row.config, row.sealed, owner=f"hook:{row.pk}")
        outcome = perform(config, about, seconds=row.timeout_seconds, check=check)
    except CancelledError:
        raise
    except LastroError as error:
        outcome = Outcome(False, error.code, str(error))
    return HookRun.objects.create(
        hook=row,
        hook_name=row.name,
        operation_id=operation_id,
        tenant=about["tenant"],
        event=row.event,
        started_at=started_at,
        duration_ms=round((time.monotonic() - began) * 1000),
        passed=outcome.passed,
        status=outcome.status[:40],
        output=outcome.output,
    )
