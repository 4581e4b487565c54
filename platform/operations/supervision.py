"""Running a cluster of workers as one child process in a session of its own.

django-q2 stops cleanly only when its parent process alone gets SIGTERM, and a terminal's Ctrl-C reaches the
whole foreground group. So the command stays in front: it turns Ctrl-C and SIGTERM into one SIGTERM to the
cluster's parent, and meanwhile looks for operations that were lost. It holds the writing end of a pipe whose
other end the cluster watches; when the command itself is killed the pipe closes and the cluster stops too.
The watch (operations.alerting.watching) runs here as well: it must look also when every worker is busy or none lives.
"""

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import time
from types import FrameType

from django.conf import settings
from django.db import DatabaseError, connection

from operations.alerting.watching import Watch
from operations.reaping import operations_reap

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
STARTS_MAX = 20
"""Then the command ends with an error, for the service manager to see."""
RESTART_SECONDS = 2.0
TICK_SECONDS = 20
"""How often the command looks whether somebody has planned within the last minute."""


class Supervisor:
    """Starts the cluster, stands by, stops it; `run` returns the exit code."""

    def __init__(self, argv: list[str]) -> None:
        self._argv = argv
        self._stop_at: float | None = None

    def run(self) -> int:
        """Stand by until told to stop; a cluster that ends by itself is started anew, a few times."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask_to_stop)
        watch = Watch()
        watch.start()
        try:
            for _ in range(STARTS_MAX):
                code = self._one_cluster()
                if self._stop_at is not None:
                    return code
                log.error("the cluster of workers ended by itself, code %s", code)
                time.sleep(RESTART_SECONDS)
            return code or 1
        finally:
            watch.stop()
            connection.close()

    def _one_cluster(self) -> int:
        reading, writing = os.pipe()
        child = subprocess.Popen(
            [*self._argv, "--cluster", str(reading)], pass_fds=(reading,), start_new_session=True, close_fds=True
        )
        os.close(reading)
        try:
            return self._stand_by(child)
        finally:
            os.close(writing)
            # Whatever is left of the session after its leader has gone: workers of a killed cluster.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        # A second signal means: now.
        self._stop_at = time.monotonic() + settings.LASTRO_STOP_SECONDS if self._stop_at is None else 0.0

    def _stand_by(self, child: "subprocess.Popen[bytes]") -> int:
        told, reap_at, tick_at = False, time.monotonic(), time.monotonic()
        while (code := child.poll()) is None:
            now = time.monotonic()
            if self._stop_at is not None:
                if not told:
                    child.send_signal(signal.SIGTERM)
                    told = True
                if now > self._stop_at:
                    log.error("the workers did not stop within %d seconds and are killed", settings.LASTRO_STOP_SECONDS)
                    return 1
            elif now >= reap_at:
                _reap()
                reap_at = now + settings.LASTRO_HEARTBEAT_SECONDS
            elif now >= tick_at:
                # Here too, and not only as a task of the queue: when every worker is busy for hours, or none is left,
                # time goes on, and what is missed has to be seen.
                _tick()
                tick_at = now + TICK_SECONDS
            time.sleep(POLL_SECONDS)
        return 0 if self._stop_at is not None else code


def _reap() -> None:
    try:
        operations_reap()
    except DatabaseError:
        log.exception("looking for lost operations failed")
        connection.close()


def _tick() -> None:
    from operations.scheduling.ticking import scheduler_tick_due

    try:
        scheduler_tick_due()
    except DatabaseError:
        log.exception("planning failed; it is tried again within a minute")
        connection.close()
    except Exception:
        log.exception("planning failed")


def run_cluster(pipe: int) -> None:
    """Run the cluster in this process until SIGTERM, or until the other end of the pipe is closed."""
    from django_q.cluster import Cluster

    cluster = Cluster()
    cluster.start()
    # A signal stops the cluster in its handler; a read of the pipe would simply be taken up again after it.
    while cluster.sentinel.is_alive():
        if select.select([pipe], [], [], POLL_SECONDS)[0]:
            cluster.stop()


def command_line() -> list[str]:
    """How this process was started, to start another one like it."""
    return [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]
