"""Work that dies at a labelled point in a child process, and the operation it leaves behind given up for lost."""

import datetime
import os
import signal
import traceback
from collections.abc import Callable

from django.db import connections

from core import clock
from engine import faults
from operations.models import ACTIVE_STATES, Lease, Operation
from operations.services import operations_reap


def killed(work: Callable[[], object], *, label: str) -> None:
    """Run work in a child that SIGKILL ends at the label; afterwards whatever it was doing is lost, as the reaper sees it."""
    connections.close_all()
    child = os.fork()
    if child == 0:
        try:
            faults._wanted, _, nth = label.partition(":")
            faults._nth, faults._passages = nth, 0
            work()
        except BaseException:  # The child ends here, whatever it was.
            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"{label} was not reached"
    long_ago = clock.now() - datetime.timedelta(hours=1)
    Operation.objects.filter(state__in=(*ACTIVE_STATES, "queued")).update(heartbeat_at=long_ago)
    Lease.objects.update(expires_at=long_ago)
    operations_reap()
