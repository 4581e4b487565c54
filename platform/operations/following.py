"""How a command stands by an operation: runs it here, follows it, or leaves it to a worker."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from core.cli import Call
from core.cli_output import ProgressLines
from core.errors import Exit, NoWorker
from operations.context import Snapshot
from operations.models import Operation, OperationState
from operations.running import operation_run
from operations.selectors import operation_get
from operations.services import operation_withdraw
from operations.uptime import uptime
from operations.workers import worker_alive, worker_seen_at

POLL_SECONDS = 0.5
LOOK_SECONDS = 5
UNCLAIMED_SECONDS = 15
"""A worker that has just been started takes its first operation within this time."""
WORKER_HINT = (
    "--here does it in this process, `worker` starts a worker, --wait waits for one, --detach leaves it queued"
)

_EXITS = {
    OperationState.SUCCEEDED: Exit.OK,
    OperationState.WARNED: Exit.WARNED,
    OperationState.CANCELLED: Exit.INTERRUPTED,
    OperationState.FAILED: Exit.FAILED,
    OperationState.LOST: Exit.FAILED,
}


def operation_follow(call: Call, operation: Operation) -> Operation:
    """See the operation to its end as the verb's options say, and return it as it then is.

    With --here it runs in this process (Busy when its resource is taken; enqueue it with `here`), with --detach
    it is returned as it is, otherwise it is watched; Ctrl-C then stops the watching, not the operation.
    """
    options = call.options
    if getattr(options, "here", False):
        with _shown(operation) as progress:
            return operation_run(operation.pk, here=True, watch=lambda snapshot: _show(progress, snapshot))
    if getattr(options, "detach", False):
        return operation
    try:
        return _watch(call, operation)
    except KeyboardInterrupt:
        call.terminal.note(f"{operation.pk} goes on without this terminal; operation show {operation.pk}")
        return operation_get(operation.pk)


def operation_exit(operation: Operation) -> int:
    """The exit code that an operation's end means; 0 while it has not ended."""
    if operation.state == OperationState.FAILED and operation.error:
        return int(operation.error.get("exit", Exit.FAILED))
    return int(_EXITS.get(OperationState(operation.state), Exit.OK))


def operation_complain(call: Call, operation: Operation) -> None:
    """Print on stderr what the operator must read: warnings, and what ended it."""
    for warning in operation.warnings:
        call.terminal.note(f"warning: {warning['message']}")
    if operation.error:
        call.terminal.note(f"error: {operation.error['detail']}")
        if operation.error.get("hint"):
            call.terminal.note(f"hint: {operation.error['hint']}")


def _watch(call: Call, operation: Operation) -> Operation:
    looked, alone = uptime(), _Alone(call, operation)
    with _shown(operation) as progress:
        while not operation.is_final:
            time.sleep(POLL_SECONDS)
            operation.refresh_from_db()
            if operation.state != OperationState.QUEUED:
                alone.since = None
            elif alone.since is None or uptime() - looked > LOOK_SECONDS:
                looked = uptime()
                alone.look()
            _show(progress, operation)
    return operation


class _Alone:
    """Whether a command waits for a worker that is not there, and for how long it has."""

    def __init__(self, call: Call, operation: Operation) -> None:
        self._call, self._operation, self._said = call, operation, False
        self.since: float | None = None

    def look(self) -> None:
        """Say so at once; after UNCLAIMED_SECONDS withdraw the operation (NoWorker), unless --wait was given."""
        if worker_alive():
            self.since = None
            return
        patient = bool(getattr(self._call.options, "wait", False))
        if not self._said:
            self._said = True
            seen = worker_seen_at()
            last = f"the last one was seen at {seen:%Y-%m-%d %H:%M} UTC" if seen is not None else "none has ever run"
            until = "waiting for one" if patient else f"waiting {UNCLAIMED_SECONDS} s for one"
            self._call.terminal.note(f"no worker is running ({last}); {until}. {WORKER_HINT}")
        self.since = uptime() if self.since is None else self.since
        if patient or uptime() - self.since < UNCLAIMED_SECONDS:
            return
        if operation_withdraw(self._operation.pk, actor=self._call.actor, reason="no worker is running"):
            raise NoWorker(
                f"no worker is running that would do the {self._operation.kind.replace('_', ' ')}; nothing was done, and "
                f"{self._operation.pk} is withdrawn",
                hint=WORKER_HINT,
            )


@contextlib.contextmanager
def _shown(operation: Operation) -> Iterator[ProgressLines]:
    progress = ProgressLines(operation.kind)
    try:
        yield progress
    finally:
        progress.close()


def _show(progress: ProgressLines, state: Snapshot | Operation) -> None:
    unit: Any = "bytes" if state.bytes_done or state.bytes_total else "items"
    done, total = getattr(state, f"{unit}_done"), getattr(state, f"{unit}_total")
    progress.show(phase=state.phase, done=done, total=total, unit=unit)
