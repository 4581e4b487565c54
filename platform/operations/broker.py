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
from django_q.signing import BadSignature, SignedPackage

from operations.dispatch import RUN_TASK
from operations.models import ACTIVE_STATES, Operation, OperationState
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
        self._fetched: dict[int, str] = {}
        """Rows of the queue handed to the workers, with the operation that each is about."""
        self._deaf_since: float | None = None

    def dequeue(self) -> Any:
        """Fetch the next task; None after a pause while there is nothing to do or nobody to do it."""
        running = Operation.objects.filter(state__in=ACTIVE_STATES, worker__startswith=cluster_name()).count()
        if running >= settings.LASTRO_WORKERS or self._unclaimed(running):
            time.sleep(BUSY_SECONDS)
            return None
        tasks = super().dequeue()
        if tasks:
            self._fetched.update((key, operation) for key, payload in tasks if (operation := _operation_of(payload)))
            time.sleep(SETTLE_SECONDS)
        return tasks

    def _unclaimed(self, running: int) -> bool:
        """Whether a fetched operation waits although a worker is free; for too long means that nobody hears."""
        if self._fetched:
            # A row lives until its task has ended, also when the worker found the operation's tenant taken.
            waiting = Operation.objects.filter(pk__in=self._fetched.values(), state=OperationState.QUEUED)
            queued = set(waiting.values_list("pk", flat=True))
            present = self.get_connection().filter(pk__in=self._fetched).values_list("pk", flat=True)
            self._fetched = {key: self._fetched[key] for key in present if self._fetched[key] in queued}
        if not self._fetched:
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


def _operation_of(payload: str) -> str:
    """The operation's id in a task that runs one; empty for other tasks and for what cannot be read."""
    try:
        task = SignedPackage.loads(payload)
    except (BadSignature, TypeError):
        return ""
    return str(task["args"][0]) if task["func"] == RUN_TASK else ""
