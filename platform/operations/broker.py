"""The queue as the workers see it: they take a task only when one of them is free to run it.

django-q2's clusters fetch ahead, two tasks or more beyond what runs. With work that takes hours that would tie
an operation to a busy host while another one idles.
"""

import logging
import os
import signal
import time
from typing import Any

from django.conf import settings
from django.utils import timezone
from django_q.brokers.orm import ORM

from operations.models import ACTIVE_STATES, Operation
from operations.uptime import uptime
from operations.workers import cluster_name

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.2
"""Between two tasks: the time in which a free worker claims the first, so that the second look counts it."""
BUSY_SECONDS = 0.5
STUCK_SECONDS = 10.0
"""A task that was fetched is claimed within moments, while a worker is free."""


class IdleBroker(ORM):
    """django-q2's database queue, asked only while fewer operations run in this cluster than it has workers.

    It also sees when the workers are deaf: one that is killed while it waits takes the lock of their common pipe
    with it, and no other ever gets a task again. The cluster's guard is ended then, and the supervisor starts a
    new cluster.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fetched: set[int] = set()
        self._deaf_since: float | None = None

    def dequeue(self) -> Any:
        """Fetch the next task; None after a pause while there is nothing to do or nobody to do it."""
        running = Operation.objects.filter(state__in=ACTIVE_STATES, worker__startswith=cluster_name()).count()
        if self._unclaimed(running) or running >= settings.LASTRO_WORKERS:
            time.sleep(BUSY_SECONDS)
            return None
        tasks = super().dequeue()
        if tasks:
            self._fetched.update(key for key, _ in tasks)
            time.sleep(SETTLE_SECONDS)
        return tasks

    def _unclaimed(self, running: int) -> bool:
        """Whether a fetched task waits although a worker is free; for too long means that nobody hears."""
        if self._fetched:
            # A row lives until its task has ended.
            self._fetched = set(self.get_connection().filter(pk__in=self._fetched).values_list("pk", flat=True))
        if len(self._fetched) <= running or running >= settings.LASTRO_WORKERS:
            self._deaf_since = None
            return False
        if self._deaf_since is None:
            self._deaf_since = uptime()
        elif running == 0 and uptime() - self._deaf_since > STUCK_SECONDS:
            self._give_up()
        return True

    def _give_up(self) -> None:
        log.error("the workers of this cluster take no task any more; it is started anew")
        self.get_connection().filter(pk__in=self._fetched).update(lock=timezone.now())
        self._fetched.clear()
        os.kill(os.getppid(), signal.SIGKILL)
