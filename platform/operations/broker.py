"""The queue as the workers see it: they take an operation only when one of them is free to run it.

django-q2 runs the workers; what they run comes from the catalogue itself (operations.dispatch). Its own table carries only
the ticks of its schedules.
"""

import logging
import os
import signal
import time
import uuid
from typing import Any

from django.conf import settings
from django.utils import timezone
from django_q.brokers.orm import ORM
from django_q.signing import SignedPackage

from operations.dispatch import RUN_TASK, hand_back, operation_pick, reserved_by
from operations.models import ACTIVE_STATES, Operation
from operations.uptime import uptime
from operations.waking import Waker
from operations.workers import cluster_name

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.2
"""Between two tasks: the time in which a free worker claims the first, so that the second look counts it."""
BUSY_SECONDS = 0.5
STUCK_SECONDS = 10.0
"""What was picked is claimed within moments, while a worker is free."""
_OPERATION = "opr_"


class IdleBroker(ORM):
    """Asked only while fewer operations run in this cluster than it has workers; gives the one whose turn it is.

    It also sees when the workers are deaf: one that is killed while it waits takes the lock of their common pipe
    with it, and no other ever gets a task again. The cluster's guard is ended then, and the supervisor starts a
    new cluster.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deaf_since: float | None = None
        self._waker = Waker()

    def dequeue(self) -> Any:
        """Fetch the next task; None after a pause while there is nothing to do or nobody to do it."""
        cluster = cluster_name()
        running = Operation.objects.filter(state__in=ACTIVE_STATES, worker__startswith=cluster).count()
        if running >= settings.LASTRO_WORKERS or self._unclaimed(cluster, running):
            time.sleep(BUSY_SECONDS)
            return None
        ticks = self.get_connection().filter(key=self.list_key, lock__lt=timezone.now())
        if ticks.exists() and (tasks := super().dequeue()):
            return tasks
        picked = operation_pick(cluster)
        if picked is None:
            self.rest()
            return None
        time.sleep(SETTLE_SECONDS)
        return [(picked.pk, _task(picked))]

    def rest(self) -> None:
        """Wait until it is worth looking again."""
        if not self._waker.wait():
            time.sleep(BUSY_SECONDS)

    def acknowledge(self, task_id: Any) -> Any:
        """Done: the row of a tick goes; an operation says itself how it ended."""
        return None if str(task_id).startswith(_OPERATION) else super().acknowledge(task_id)

    def fail(self, task_id: Any) -> Any:
        """The same for a task that could not even be read."""
        return self.acknowledge(task_id)

    def _unclaimed(self, cluster: str, running: int) -> bool:
        """Whether what was picked waits although a worker is free; for too long means that nobody hears."""
        if not reserved_by(cluster).exists():
            self._deaf_since = None
            return False
        if self._deaf_since is None:
            self._deaf_since = uptime()
        elif running == 0 and uptime() - self._deaf_since > STUCK_SECONDS:
            self._give_up(cluster)
        return True

    def _give_up(self, cluster: str) -> None:
        log.error("the workers of this cluster take no task any more; it is started anew")
        hand_back(cluster)
        os.kill(os.getppid(), signal.SIGKILL)


def _task(operation: Operation) -> str:
    """The task that runs it, as django-q2 packs one."""
    task = {
        "id": uuid.uuid4().hex,
        "name": f"{operation.kind} {operation.pk}"[:100],
        "func": RUN_TASK,
        "args": (operation.pk,),
        "kwargs": {},
        "ack_failure": True,
        "started": timezone.now(),
    }
    return str(SignedPackage.dumps(task))
