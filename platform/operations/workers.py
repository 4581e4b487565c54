"""Names of workers, and whether any is alive."""

import datetime
import os
import socket

from core import clock
from operations import leases
from operations.models import ACTIVE_STATES, Operation

WORKER_SILENCE_MAX = datetime.timedelta(minutes=3)
"""Workers show themselves every minute (operations.schedules)."""
REAP_FUNC = "operations.tasks.reap"
REAP_EVERY = datetime.timedelta(minutes=1)


def cluster_name() -> str:
    """Names the cluster in its workers and in the process that fetches for them: both are children of its guard."""
    return f"{socket.gethostname()[:80]}:{os.getppid()}/"


def worker_seen_at() -> datetime.datetime | None:
    """When a worker gave its last sign of life, by the task that the least busy of them gives itself each minute."""
    from django_q.models import Schedule

    due: datetime.datetime | None = (
        Schedule.objects.filter(func=REAP_FUNC).values_list("next_run", flat=True).order_by("-next_run").first()
    )
    return None if due is None else due - REAP_EVERY


def worker_alive() -> bool:
    """Whether a worker has shown itself lately, or is at work on something."""
    seen = worker_seen_at()
    if seen is not None and seen > clock.now() - WORKER_SILENCE_MAX:
        return True
    fresh = clock.catalogue_now() - leases.lease_duration()
    return Operation.objects.filter(state__in=ACTIVE_STATES, here=False, heartbeat_at__gt=fresh).exists()
