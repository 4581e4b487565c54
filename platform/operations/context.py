"""What a handler gets: the operation, its progress, and the question whether to go on."""

import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction

from engine.errors import CancelledError, SessionFenced
from operations import leases
from operations.models import Operation
from operations.uptime import uptime

WARNINGS_MAX = 1_000
"""More warnings than this are counted, not kept: a million unreadable files must not become a row of gigabytes."""


@dataclass
class Snapshot:
    """Where the work stands, at one moment."""

    phase: str = ""
    phase_began: float = 0.0
    bytes_done: int = 0
    bytes_total: int | None = None
    items_done: int = 0
    items_total: int | None = None
    warnings: list[dict[str, str]] = field(default_factory=list)


_current: contextvars.ContextVar["OperationContext | None"] = contextvars.ContextVar("operation_context", default=None)


def current_context() -> "OperationContext | None":
    """The operation that this thread works on; None outside of one (a command that only looks)."""
    return _current.get()


@contextmanager
def working_on(context: "OperationContext") -> Iterator[None]:
    """Make it the current one for the block, in this thread."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


class OperationContext:
    """Implements engine.progress.Progress; cheap and thread-safe.

    Nothing here touches the database except `fence`: one thread (operations.heartbeat) carries progress to the
    row and brings back the wish to stop and the loss of the lease.
    """

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.params: dict[str, Any] = operation.params
        self.token: int = operation.token
        self.also: dict[str, int] = {}
        """Further resources that the handler has taken for the rest of the operation, with their tokens."""
        self._lock = threading.Lock()
        self._now = Snapshot()
        self._took: dict[str, float] = {}
        self._warnings_beyond = 0
        self._changes = 0
        self._cancelled = threading.Event()
        self._fenced = threading.Event()
        self._alive_until = uptime() + leases.lease_duration().total_seconds()

    # ------------------------------------------------------------ engine.progress.Progress

    def phase(self, name: str) -> None:
        with self._lock:
            now = uptime()
            if self._now.phase:
                self._took[self._now.phase] = self._took.get(self._now.phase, 0.0) + now - self._now.phase_began
            self._now.phase, self._now.phase_began = name, now
            self._now.bytes_done = self._now.items_done = 0
            self._now.bytes_total = self._now.items_total = None
            self._changes += 1

    def total(self, *, bytes: int | None = None, items: int | None = None) -> None:
        with self._lock:
            if bytes is not None:
                self._now.bytes_total = bytes
            if items is not None:
                self._now.items_total = items
            self._changes += 1

    def advance(self, *, bytes: int = 0, items: int = 0) -> None:
        with self._lock:
            self._now.bytes_done += bytes
            self._now.items_done += items
            self._changes += 1

    def warn(self, code: str, message: str) -> None:
        with self._lock:
            if len(self._now.warnings) < WARNINGS_MAX:
                self._now.warnings.append({"code": code, "message": message})
            else:
                self._warnings_beyond += 1
            self._changes += 1

    def check(self) -> None:
        """Raise SessionFenced when the lease is lost or cannot be known to be held, CancelledError on a wish to stop."""
        # After SIGSTOP, a suspended laptop or a hung catalogue the heartbeat may not have run for longer than the
        # lease lives: somebody else may hold it by now, and only the clock tells.
        if self._fenced.is_set() or uptime() > self._alive_until:
            raise SessionFenced(
                f"operation {self.operation.pk} lost its lease on {self.operation.resource or 'its work'}",
                hint="it was silent for too long; run it again",
            )
        if self._cancelled.is_set():
            raise CancelledError(f"operation {self.operation.pk} was cancelled")

    # ------------------------------------------------------------ for handlers

    @property
    def warnings(self) -> list[dict[str, str]]:
        """What was warned of so far, with a last entry that counts what was not kept."""
        with self._lock:
            return self._warnings()

    def phases_ms(self) -> dict[str, int]:
        """How long each phase has taken so far, the present one included."""
        with self._lock:
            took = dict(self._took)
            if self._now.phase:
                took[self._now.phase] = took.get(self._now.phase, 0.0) + uptime() - self._now.phase_began
        return {name: round(seconds * 1000) for name, seconds in took.items()}

    def fence(self) -> None:
        """Call first in a transaction that records a result: SessionFenced unless every lease is still ours."""
        for resource, token in self.held():
            leases.lease_assert(resource, holder=self.operation.pk, token=token)

    def take_also(self, resource: str) -> None:
        """Take a further resource for the rest of the operation: renewed, asserted and released with its own.

        Raises Busy at once when somebody else holds it: whoever waits for one lease while holding another may wait for ever.
        """
        with transaction.atomic():
            token = leases.lease_take(resource, holder=self.operation.pk)
        self.also = {**self.also, resource: token}  # Another thread reads it.

    def held(self) -> list[tuple[str, int]]:
        """Every resource of the operation with its fencing token."""
        own = [(self.operation.resource, self.token)] if self.operation.resource else []
        return own + sorted(self.also.items())

    # ------------------------------------------------------------ for the heartbeat

    def snapshot(self) -> tuple[int, Snapshot]:
        """The number of changes so far and a copy of where the work stands."""
        with self._lock:
            now = self._now
            return self._changes, Snapshot(
                now.phase,
                now.phase_began,
                now.bytes_done,
                now.bytes_total,
                now.items_done,
                now.items_total,
                self._warnings(),
            )

    def prolong(self, sent_at: float) -> None:
        """The lease was renewed by a request sent at this uptime."""
        self._alive_until = sent_at + leases.lease_duration().total_seconds()

    def cancel(self) -> None:
        """Make the next check raise CancelledError."""
        self._cancelled.set()

    def set_fenced(self) -> None:
        """Make the next check raise SessionFenced."""
        self._fenced.set()

    def _warnings(self) -> list[dict[str, str]]:
        kept = list(self._now.warnings)
        if self._warnings_beyond:
            kept.append({"code": "warnings.beyond", "message": f"and {self._warnings_beyond} more"})
        return kept
