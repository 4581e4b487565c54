"""Which operation a worker gets next. The catalogue is the queue: an operation waits in its row, and nowhere else.

So nothing can be lost between a queue and the catalogue, an order is a query, and a restore passes whatever waits. A
cluster that picks an operation has it reserved for a moment, until one of its workers claims it; a reservation that runs
out (the cluster died) leaves the operation to the next. The claim decides, as ever, who runs it.
"""

import datetime
from collections.abc import Iterator

from django.db import transaction
from django.db.models import F, Q, QuerySet

from core import clock
from core.models import Fact
from operations.models import ACTIVE_STATES, Operation, OperationState
from operations.quotas import Quotas
from operations.waking import wake

RESERVED = datetime.timedelta(seconds=30)
"""A picked operation is claimed within moments; after this its cluster is taken for dead."""
BUSY_DELAY = datetime.timedelta(seconds=60)
LOCK_FACT = "dispatch"

RUN_TASK = "operations.tasks.run"


def announce() -> None:
    """Tell a resting worker, when the caller's transaction commits, that something waits."""
    # Robust: nobody depends on it, workers look for themselves a little later.
    transaction.on_commit(wake, robust=True)


def waiting() -> "QuerySet[Operation]":
    """Queued operations that no cluster has reserved."""
    free = Q(dispatch_after=None) | Q(dispatch_after__lt=clock.catalogue_now())
    return Operation.objects.filter(free, state=OperationState.QUEUED, here=False)


def operation_pick(cluster: str) -> Operation | None:
    """Reserve for the cluster the operation whose turn it is, within every quota; None when there is none to run now."""
    if not waiting().exists():
        return None
    with transaction.atomic():
        # One picks at a time, so that a quota is kept exactly, however many clusters there are.
        if Fact.objects.select_for_update().filter(pk=LOCK_FACT).first() is None:
            Fact.objects.get_or_create(pk=LOCK_FACT, defaults={"value": ""})
            Fact.objects.select_for_update().get(pk=LOCK_FACT)
        picked = _first()
        if picked is not None:
            Operation.objects.filter(pk=picked.pk).update(
                dispatch_after=clock.catalogue_now() + RESERVED, worker=cluster, dispatches=F("dispatches") + 1
            )
    return picked


def _first() -> Operation | None:
    quotas, resources = Quotas.load(), set[str]()
    for tenant, lane, resource in _taken():
        quotas.count(tenant=tenant, lane=lane)
        resources.add(resource)
    if quotas.all_taken:
        return None
    rows = waiting().exclude(resource__in=resources - {""})
    rows = rows.exclude(lane__in=lanes) if (lanes := quotas.full_lanes()) else rows
    rows = rows.exclude(tenant__in=tenants) if (tenants := quotas.full_tenants()) else rows
    return rows.order_by("priority", "turn", "id").first()


def _taken() -> Iterator[tuple[str, str, str]]:
    """Tenant, lane and resource of every operation that runs or is about to."""
    reserved = Q(state=OperationState.QUEUED, dispatch_after__gte=clock.catalogue_now()) & ~Q(worker="")
    rows = Operation.objects.filter(Q(state__in=ACTIVE_STATES) | reserved)
    return rows.values_list("tenant", "lane", "resource").iterator(chunk_size=1_000)


def reserved_by(cluster: str) -> "QuerySet[Operation]":
    """What the cluster has picked and none of its workers has claimed yet."""
    rows = Operation.objects.filter(state=OperationState.QUEUED, worker=cluster)
    return rows.filter(dispatch_after__gte=clock.catalogue_now())


def hand_back(cluster: str) -> int:
    """Leave to others what the cluster has picked and not claimed; how many."""
    return reserved_by(cluster).update(dispatch_after=None, worker="")


def dispatch_next(resource: str) -> None:
    """Let what was put off because of this resource be picked at once: it has just become free."""
    if resource:
        queued = Operation.objects.filter(resource=resource, state=OperationState.QUEUED, here=False, worker="")
        if queued.update(dispatch_after=None):
            announce()


def put_off(operation_id: str) -> None:
    """The resource is busy: look again after a while, should nobody hand it out when it becomes free."""
    Operation.objects.filter(pk=operation_id, state=OperationState.QUEUED).update(
        dispatch_after=clock.catalogue_now() + BUSY_DELAY, worker=""
    )
