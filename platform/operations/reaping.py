"""Finding operations whose worker is gone."""

import logging
from functools import partial

from django.db import transaction

import audit.services
from core import clock
from core.errors import StateConflict
from engine.faults import kill_point
from operations import leases
from operations.dispatch import dispatch_next
from operations.handlers import handler_get
from operations.models import ACTIVE_STATES, Operation, OperationState
from operations.scheduling.following import run_ended
from operations.transitions import operation_to

log = logging.getLogger(__name__)

REAPER = "system:reaper"
BATCH_MAX = 100


def operations_reap() -> list[str]:
    """Mark operations without a heartbeat for two intervals as lost, free their leases, return their ids.

    Safe to call from anywhere at any time outside a transaction; it is called at every claim, by every heartbeat, by the worker and by a schedule.
    """
    cutoff = clock.catalogue_now() - leases.lease_duration()
    silent = Operation.objects.filter(state__in=ACTIVE_STATES, heartbeat_at__lt=cutoff)
    orphaned = Operation.objects.filter(state=OperationState.QUEUED, here=True, heartbeat_at__lt=cutoff)
    lost = [operation.pk for operation in (*silent[:BATCH_MAX], *orphaned[:BATCH_MAX]) if _lose(operation)]
    return lost


def _lose(operation: Operation) -> bool:
    was_running = operation.state in ACTIVE_STATES
    reason = f"no heartbeat since {operation.heartbeat_at:%Y-%m-%d %H:%M:%S} UTC"
    problem = {
        "code": "operation.lost",
        "detail": f"its process ended without a word: {reason}",
        "hint": f"run it again: operation retry {operation.pk}",
        "retryable": True,
        "title": "Lost",
        "status": 500,
        "exit": 1,
    }
    try:
        with transaction.atomic():
            # A heartbeat that comes between the look and the update keeps the operation alive.
            operation_to(
                operation,
                OperationState.LOST,
                actor=REAPER,
                reason=reason,
                expected={"heartbeat_at": operation.heartbeat_at},
                finished_at=clock.catalogue_now(),
                error=problem,
            )
            if operation.resource:
                leases.lease_release(operation.resource, holder=operation.pk)
            _settle(operation, was_running=was_running)
            audit.services.record(
                "operation.lost",
                message=f"{operation.kind} was lost",
                actor=REAPER,
                tenant=operation.tenant,
                level="error",
                data={"operation": operation.pk, "kind": operation.kind, "worker": operation.worker},
            )
            dispatch_next(operation.resource)
            transaction.on_commit(partial(run_ended, operation.pk), robust=True)
            kill_point("operation.reaped")
    except StateConflict:
        return False
    log.error("operation %s (%s) lost: %s", operation.pk, operation.kind, reason)
    return True


def _settle(operation: Operation, *, was_running: bool) -> None:
    # A hook that fails must not keep the operation, and with it the tenant, blocked for ever.
    try:
        with transaction.atomic():
            handler = handler_get(operation.kind)
            (handler.on_lost if was_running else handler.on_dropped)(operation)
    except Exception:
        log.exception("settling lost operation %s (%s) failed", operation.pk, operation.kind)
