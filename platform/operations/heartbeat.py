"""The thread that keeps a running operation alive in the catalogue."""

import datetime
import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from django.db import DatabaseError, connection

from core import clock
from core.logs import operation_named
from operations import leases
from operations.context import OperationContext, Snapshot
from operations.models import ACTIVE_STATES, Operation
from operations.reaping import operations_reap
from operations.uptime import uptime

log = logging.getLogger(__name__)

TICK_SECONDS_MAX = 1.0
"""Progress reaches the row, and a wish to stop the handler, within this time."""
BUSY_SECONDS_MAX = 5
JOIN_SECONDS_MAX = 2 * BUSY_SECONDS_MAX

Watch = Callable[[Snapshot], None]


class Heartbeat:
    """Context manager around a handler's run; has a thread and a database connection of its own.

    Every tick it carries changed progress to the row and the wish to stop back; every interval it renews
    heartbeat and lease together, and looks for other operations that have died.
    """

    def __init__(self, context: OperationContext, *, watch: Watch | None = None) -> None:
        self._context = context
        self._watch = watch
        self._stop = threading.Event()
        self._interval = leases.heartbeat_interval().total_seconds()
        self._beat_at = uptime()
        self._written = 0
        self._warned = 0
        self._thread = threading.Thread(target=self._run, name=f"heartbeat {context.operation.pk}", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(JOIN_SECONDS_MAX)

    def _run(self) -> None:
        tick = min(TICK_SECONDS_MAX, self._interval / 3)
        try:
            with operation_named(self._context.operation.pk):
                while not self._stop.wait(tick):
                    self._tick()
        finally:
            connection.close()

    def _tick(self) -> None:
        changes, snapshot = self._context.snapshot()
        try:
            self._carry(changes, snapshot)
        except DatabaseError:
            # Not fatal while the lease lives: the context itself refuses to go on when it may have ended.
            log.warning("heartbeat of %s did not reach the catalogue", self._context.operation.pk, exc_info=True)
            connection.close()
        if self._watch is not None:
            self._watch(snapshot)

    def _carry(self, changes: int, snapshot: Snapshot) -> None:
        self._be_impatient()
        operation, sent_at = self._context.operation, uptime()
        rows = Operation.objects.filter(pk=operation.pk)
        present = rows.values_list("state", "cancel_requested_at").first()
        if present is None or present[0] not in ACTIVE_STATES:
            self._context.set_fenced()
            return
        if present[1] is not None:
            self._context.cancel()
        beat_due = sent_at - self._beat_at >= self._interval
        if beat_due and operation.resource and not self._renew():
            self._context.set_fenced()
            return
        fields: dict[str, Any] = self._progress(snapshot) if changes != self._written else {}
        if beat_due:
            fields["heartbeat_at"] = clock.catalogue_now()
        if fields and not rows.filter(state__in=ACTIVE_STATES).update(**fields):
            self._context.set_fenced()
            return
        self._written = changes
        if beat_due:
            self._beat_at = sent_at
            self._context.prolong(sent_at)
            operations_reap()

    def _renew(self) -> bool:
        holder = self._context.operation.pk
        return all(leases.lease_renew(name, holder=holder, token=token) for name, token in self._context.held())

    def _progress(self, snapshot: Snapshot) -> dict[str, Any]:
        fields = progress_fields(snapshot)
        if len(snapshot.warnings) == self._warned:
            del fields["warnings"]
        self._warned = len(snapshot.warnings)
        return fields

    def _be_impatient(self) -> None:
        # The catalogue's usual patience is longer than a lease: better to miss a tick than to hang in one.
        if connection.connection is None and connection.vendor == "sqlite":
            with connection.cursor() as cursor:
                cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS_MAX * 1000}")


def progress_fields(snapshot: Snapshot) -> dict[str, Any]:
    """The columns of Operation that hold a snapshot."""
    began = clock.now() - datetime.timedelta(seconds=uptime() - snapshot.phase_began) if snapshot.phase else None
    return {
        "phase": snapshot.phase,
        "phase_started_at": began,
        "bytes_done": snapshot.bytes_done,
        "bytes_total": snapshot.bytes_total,
        "items_done": snapshot.items_done,
        "items_total": snapshot.items_total,
        "warnings": snapshot.warnings,
    }
