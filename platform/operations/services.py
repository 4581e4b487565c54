"""Asking for long work, stopping it, doing it again. Running and reaping are in files of their own."""

from collections.abc import Mapping
from typing import Any

from django.db import transaction
from django.db.models import Max

import audit.services
from core import clock
from core.errors import Conflict, StateConflict
from core.tenancy import tenant_store
from core.text import REASON_CHARS_MAX, reason_checked
from operations.dispatch import announce
from operations.handlers import handler_get
from operations.models import ACTIVE_STATES, Operation, OperationState
from operations.priorities import priority_of, priority_set
from operations.reaping import operations_reap
from operations.running import operation_run
from operations.selectors import operation_get
from operations.transitions import operation_to

__all__ = [
    "operation_cancel",
    "operation_enqueue",
    "operation_retry",
    "operation_run",
    "operation_withdraw",
    "operations_reap",
]

RETRYABLE_STATES = (OperationState.LOST, OperationState.FAILED, OperationState.CANCELLED)


def operation_enqueue(
    *,
    kind: str,
    tenant: str,
    params: Mapping[str, Any],
    actor: str,
    reason: str = "",
    subject_id: str = "",
    here: bool = False,
    attempt: int = 1,
    retry_of: str = "",
) -> Operation:
    """Queue an operation in the caller's transaction; workers see it when that commits.

    With `here` no worker gets it: the caller runs it with `operation_run(id, here=True)`, and when its process
    dies before that, the operation is reaped. `params` is JSON without secrets.
    """
    handler = handler_get(kind)
    reason = reason_checked(reason)
    now = clock.catalogue_now()
    operation = Operation(
        kind=kind,
        tenant=tenant,
        params=dict(params),
        actor=actor,
        reason=reason,
        subject_id=subject_id,
        here=here,
        phases=list(handler.phases),
        cancellable=handler.cancellable,
        requested_at=now,
        heartbeat_at=now if here else None,
        attempt=attempt,
        retry_of=retry_of,
    )
    operation.resource = handler.resource(operation)
    operation.lane = tenant_store(tenant)
    operation.priority = priority_of(kind)
    with transaction.atomic():
        operation.turn = _turn(operation)
        operation.save(force_insert=True)
        audit.services.record(
            "operation.requested",
            message=f"{kind} requested",
            actor=actor,
            tenant=tenant,
            data={"operation": operation.pk, "kind": kind, "subject": subject_id, "reason": reason},
        )
        if not here:
            announce()
    return operation


def _turn(operation: Operation) -> int:
    """Where the operation stands in the line of its priority: behind those of its tenant that wait, among those in front of
    the others (start-time fair queueing). So a tenant that asks for a thousand things keeps nobody waiting."""
    waiting = Operation.objects.filter(state=OperationState.QUEUED, here=False, priority=operation.priority)
    front = waiting.order_by("turn", "id").values_list("turn", flat=True).first()
    own = waiting.filter(tenant=operation.tenant).aggregate(last=Max("turn"))["last"]
    return max(front or 0, own + 1 if own is not None else 0)


def operation_cancel(operation_id: str, *, actor: str, reason: str = "") -> Operation:
    """End a queued operation, or ask a running one to stop at its next check.

    Asking twice is no error. Raises Conflict when it has ended or cannot be stopped.
    """
    operation = operation_get(operation_id)
    reason = reason_checked(reason)
    now = clock.catalogue_now()
    with transaction.atomic():
        if operation.state == OperationState.QUEUED:
            operation_to(operation, OperationState.CANCELLED, actor=actor, reason=reason, finished_at=now)
            handler_get(operation.kind).on_dropped(operation)
        elif operation.state == OperationState.CANCELLING:
            return operation
        elif operation.state not in ACTIVE_STATES:
            raise Conflict(f"operation {operation.pk} has already {operation.state}")
        elif not operation.cancellable:
            raise Conflict(f"a {operation.kind} cannot be stopped once it runs", hint="wait for its end")
        else:
            operation_to(operation, OperationState.CANCELLING, actor=actor, reason=reason, cancel_requested_at=now)
        audit.services.record(
            "operation.cancel_requested",
            message=f"{operation.kind} to be stopped",
            actor=actor,
            tenant=operation.tenant,
            data={"operation": operation.pk, "kind": operation.kind, "reason": reason},
        )
    return operation


def operation_withdraw(operation_id: str, *, actor: str, reason: str) -> bool:
    """End an operation that is still queued; False when somebody has begun it, which leaves it alone."""
    with transaction.atomic():
        operation = operation_get(operation_id)
        if operation.state != OperationState.QUEUED:
            return False
        try:
            operation_to(
                operation, OperationState.CANCELLED, actor=actor, reason=reason, finished_at=clock.catalogue_now()
            )
        except StateConflict:
            return False
        handler_get(operation.kind).on_dropped(operation)
        audit.services.record(
            "operation.withdrawn",
            message=f"{operation.kind} withdrawn: {reason}",
            actor=actor,
            tenant=operation.tenant,
            data={"operation": operation.pk, "kind": operation.kind, "reason": reason},
        )
    return True


def operation_retry(operation_id: str, *, actor: str, reason: str = "", here: bool = False) -> Operation:
    """Queue a new operation that does again what a lost, failed or cancelled one should have done."""
    old = operation_get(operation_id)
    if old.state not in RETRYABLE_STATES:
        raise Conflict(f"operation {old.pk} is {old.state}", hint="only a lost, failed or cancelled one is run again")
    with transaction.atomic(), priority_set(old.priority):
        changes = handler_get(old.kind).on_retry(old)
        return operation_enqueue(
            kind=old.kind,
            tenant=old.tenant,
            params=changes.get("params", old.params),
            subject_id=changes.get("subject_id", old.subject_id),
            actor=actor,
            reason=reason or f"again: {(old.reason or old.pk).removeprefix('again: ')}"[:REASON_CHARS_MAX],
            here=here,
            attempt=old.attempt + 1,
            retry_of=old.pk,
        )
