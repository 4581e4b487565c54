"""Claiming a queued operation, running its handler, recording how it ended."""

import contextlib
import logging
import os
import signal
import threading
import uuid
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from django.db import transaction

import audit.services
from core import clock
from core.errors import Busy, Conflict, InternalError, StateConflict, problem
from core.logs import operation_named, redact
from engine.errors import CancelledError, LastroError
from engine.faults import kill_point
from operations import leases
from operations.context import OperationContext, working_on
from operations.dispatch import dispatch_next, put_off
from operations.handlers import handler_get
from operations.heartbeat import Heartbeat, Watch, progress_fields
from operations.hooks import run_hooked
from operations.models import Operation, OperationState
from operations.reaping import operations_reap
from operations.scheduling.following import run_ended
from operations.selectors import operation_get
from operations.transitions import operation_to
from operations.workers import cluster_name

log = logging.getLogger(__name__)

FINISH_ATTEMPTS_MAX = 3


def operation_run(operation_id: str, *, here: bool = False, watch: Watch | None = None) -> Operation:
    """Run a queued operation in this process and return it as it ended; what its handler raises is recorded.

    Safe to call twice: an operation that is not queued any more is returned as it is. When its resource is
    taken, a worker puts it off (it stays queued); with `here` it fails and Busy is raised, naming the operation
    that holds the resource. `watch` is called about once a second with the progress. With `here`, the first
    Ctrl-C asks the handler to stop, a second one interrupts it.
    """
    operations_reap()
    try:
        operation = _claim(operation_id, here=here)
    except Busy as busy:
        if here:
            _refuse(operation_id, busy)
            raise
        put_off(operation_id)
        return operation_get(operation_id)
    if operation is None:
        return operation_get(operation_id)
    context = OperationContext(operation)
    # From the claim to the recorded end, so that a Ctrl-C anywhere leaves no operation to be reaped.
    with operation_named(operation.pk), _stoppable(context, here=here):
        kill_point("operation.claimed")
        return _work(context, watch=watch)


def worker_name() -> str:
    """Host, parent process (a cluster's guard, where it is a worker) and process."""
    return f"{cluster_name()}{os.getpid()}"


def _claim(operation_id: str, *, here: bool) -> Operation | None:
    """Take lease and operation in one transaction: neither is ever held without the other."""
    with transaction.atomic():
        operation = operation_get(operation_id)
        if operation.state != OperationState.QUEUED or (operation.here and not here):
            return None
        token = leases.lease_take(operation.resource, holder=operation.pk) if operation.resource else 0
        now = clock.catalogue_now()
        try:
            operation_to(
                operation,
                OperationState.RUNNING,
                actor=operation.actor,
                token=token,
                worker=worker_name(),
                heartbeat_at=now,
                started_at=now,
            )
        except StateConflict:
            transaction.set_rollback(True)
            return None
    return operation


def _refuse(operation_id: str, busy: Busy) -> None:
    operation = operation_get(operation_id)
    with transaction.atomic():
        operation_to(
            operation,
            OperationState.FAILED,
            actor=operation.actor,
            reason=busy.message,
            finished_at=clock.catalogue_now(),
            error=problem(busy),
        )
        handler_get(operation.kind).on_dropped(operation)
        _record(operation)


def _work(context: OperationContext, *, watch: Watch | None) -> Operation:
    try:
        with Heartbeat(context, watch=watch), working_on(context):
            handler = handler_get(context.operation.kind)
            result = run_hooked(context, handler.run) if handler.hooks else handler.run(context)
    except CancelledError as error:
        return _finish(context, OperationState.CANCELLED, error=problem(error))
    except LastroError as error:
        log.warning("operation %s failed: %s: %s", context.operation.pk, error.code, error)
        return _finish(context, OperationState.FAILED, error=problem(error))
    except Exception as error:  # noqa: BLE001 - whatever it was, the row must say that it ended
        return _finish(context, OperationState.FAILED, error=problem(_unforeseen(error)))
    except BaseException as error:
        # A second Ctrl-C or a worker that is told to go: recorded, so that nobody has to wait for the reaper.
        interrupted = Conflict(f"interrupted by {type(error).__name__}", hint="run it again")
        _finish(context, OperationState.FAILED, error=problem(interrupted))
        raise
    kill_point("operation.worked")
    state = OperationState.WARNED if context.warnings else OperationState.SUCCEEDED
    return _finish(context, state, result={**(result or {}), "phases_ms": context.phases_ms()})


def _unforeseen(error: Exception) -> InternalError:
    reference = uuid.uuid4().hex[:12]
    log.error("unforeseen error %s", reference, exc_info=error, extra={"reference": reference})
    return InternalError(
        f"unforeseen {type(error).__name__}: {redact(str(error))[:300]}", hint=f"the log has the rest under {reference}"
    )


@contextlib.contextmanager
def _stoppable(context: OperationContext, *, here: bool) -> Iterator[None]:
    if not here or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, before[number])
        context.cancel()

    before: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)


def _finish(
    context: OperationContext, to: OperationState, *, result: Mapping[str, Any] | None = None, error: Any = None
) -> Operation:
    """Record the end; an operation that was reaped in the meantime stays lost."""
    operation = context.operation
    for _ in range(FINISH_ATTEMPTS_MAX):
        operation.refresh_from_db()
        if operation.is_final:
            log.error("operation %s ended as %s, but is %s", operation.pk, to, operation.state)
            return operation
        try:
            _record_end(context, to, result=result or {}, error=error)
        except StateConflict:
            continue  # a wish to stop came in between
        return operation
    raise Conflict(f"operation {operation.pk} could not be ended", hint="the reaper will")


def _record_end(context: OperationContext, to: OperationState, *, result: Mapping[str, Any], error: Any) -> None:
    operation = context.operation
    _, snapshot = context.snapshot()
    with transaction.atomic():
        if to == OperationState.CANCELLED and operation.state == OperationState.RUNNING:
            operation_to(operation, OperationState.CANCELLING, actor=operation.actor, reason="stopped where it ran")
        operation_to(
            operation,
            to,
            actor=operation.actor,
            finished_at=clock.catalogue_now(),
            result=dict(result),
            error=error,
            **progress_fields(snapshot),
        )
        for resource, _ in context.held():
            leases.lease_release(resource, holder=operation.pk)
        _record(operation)
        kill_point("operation.recorded")
        # After the commit, so that an operation which found the resource taken until now is seen.
        for resource in [operation.resource, *context.also]:
            transaction.on_commit(partial(dispatch_next, resource), robust=True)
        # Robust: the planner's next tick sees the end, too.
        transaction.on_commit(partial(run_ended, operation.pk), robust=True)


def _record(operation: Operation) -> None:
    levels = {OperationState.WARNED: "warning", OperationState.FAILED: "error"}
    audit.services.record(
        f"operation.{operation.state}",
        message=f"{operation.kind} {operation.state}",
        actor=operation.actor,
        tenant=operation.tenant,
        level=levels.get(OperationState(operation.state), "info"),
        data={
            "operation": operation.pk,
            "kind": operation.kind,
            "subject": operation.subject_id,
            "error": (operation.error or {}).get("code", ""),
        },
    )
