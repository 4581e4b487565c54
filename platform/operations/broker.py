"""The queue as the workers see it: they take a task only when one of them is free to run it.

django-q2's clusters fetch ahead, two tasks or more beyond what runs. With work that takes hours that would tie
an operation to a busy host while another one idles.
"""

import time
from typing import Any

from django.conf import settings
from django_q.brokers.orm import ORM

from operations.models import ACTIVE_STATES, Operation
from operations.workers import cluster_name

SETTLE_SECONDS = 0.2
"""Between two tasks: the time in which a free worker claims the first, so that the second look counts it."""
BUSY_SECONDS = 0.5


class IdleBroker(ORM):
    """django-q2's database queue, asked only while fewer operations run in this cluster than it has workers."""

    def dequeue(self) -> Any:
        running = Operation.objects.filter(state__in=ACTIVE_STATES, worker__startswith=cluster_name()).count()
        if running >= settings.LASTRO_WORKERS:
            time.sleep(BUSY_SECONDS)
            return None
        tasks = super().dequeue()
        if tasks:
            time.sleep(SETTLE_SECONDS)
        return tasks
