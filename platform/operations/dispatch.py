"""Handing ids of queued operations to the workers, again when need be."""

import datetime

from django.db import transaction
from django.db.models import F

from core import clock
from operations.models import Operation, OperationState

DISPATCH_AGAIN_MIN = datetime.timedelta(minutes=2)
DISPATCH_AGAIN_MAX = datetime.timedelta(hours=1)
BUSY_DELAY = datetime.timedelta(seconds=60)
BATCH_MAX = 100

RUN_TASK = "operations.tasks.run"


def dispatch(operation: Operation) -> None:
    """Enqueue the operation's id when the caller's transaction commits; the claim makes repeats harmless."""
    # A task can be lost with the worker that had fetched it. The pause doubles, so that a long queue does not
    # fill with repeats.
    pause = min(DISPATCH_AGAIN_MIN * 2 ** min(operation.dispatches, 10), DISPATCH_AGAIN_MAX)
    Operation.objects.filter(pk=operation.pk, state=OperationState.QUEUED).update(
        dispatch_after=clock.catalogue_now() + pause, dispatches=F("dispatches") + 1
    )
    operation_id, kind = operation.pk, operation.kind

    def enqueue() -> None:
        from django_q.tasks import async_task

        async_task(RUN_TASK, operation_id, task_name=f"{kind} {operation_id}"[:100])

    # Robust: the operation stands in the catalogue already, and the reaper dispatches it if this fails.
    transaction.on_commit(enqueue, robust=True)


def dispatch_next(resource: str) -> None:
    """Hand out the oldest operation that waits for a resource which has just become free."""
    if not resource:
        return
    waiting = Operation.objects.filter(resource=resource, state=OperationState.QUEUED, here=False).order_by("id")
    if (operation := waiting.first()) is not None:
        dispatch(operation)


def dispatch_overdue() -> None:
    """Hand out again what has been queued for too long."""
    overdue = Operation.objects.filter(
        state=OperationState.QUEUED, here=False, dispatch_after__lt=clock.catalogue_now()
    ).order_by("id")[:BATCH_MAX]
    for operation in overdue:
        dispatch(operation)


def put_off(operation_id: str) -> None:
    """The resource is busy: look again after a while, should nobody hand it out when it becomes free."""
    Operation.objects.filter(pk=operation_id, state=OperationState.QUEUED).update(
        dispatch_after=clock.catalogue_now() + BUSY_DELAY
    )
