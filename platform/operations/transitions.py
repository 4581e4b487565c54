"""States of operations and of the runs that schedules expect."""

from collections.abc import Sequence
from typing import Any

from core.transitions import Allowed, transition, transition_many
from operations.models import ExpectedRun, Operation, OperationState, RunState

_S = OperationState
_ENDED = {_S.SUCCEEDED, _S.WARNED, _S.FAILED, _S.LOST}

ALLOWED: Allowed = {
    # A queued one fails when it finds its resource taken and may not wait, and is lost with the process that
    # wanted to run it itself.
    _S.QUEUED: frozenset({_S.RUNNING, _S.CANCELLED, _S.FAILED, _S.LOST}),
    _S.RUNNING: frozenset({*_ENDED, _S.CANCELLING}),
    # Work that was past its last check when the wish came still ends as what it is.
    _S.CANCELLING: frozenset({*_ENDED, _S.CANCELLED}),
}


def operation_to(operation: Operation, to: str, *, actor: str = "", reason: str = "", **fields: Any) -> None:
    """Move an operation on; StateConflict when somebody else did."""
    transition(operation, to=to, allowed=ALLOWED, actor=actor, reason=reason, **fields)


_R = RunState
RUNS_ALLOWED: Allowed = {
    # What has nothing to do, or cannot begin, ends without an operation.
    _R.EXPECTED: frozenset({_R.RUNNING, _R.OK, _R.FAILED, _R.MISSED}),
    _R.RUNNING: frozenset({_R.OK, _R.WARNED, _R.FAILED}),
}


def run_to(run: ExpectedRun, to: str, *, actor: str, reason: str = "", **fields: Any) -> None:
    """Move an expected run on; StateConflict when somebody else did."""
    transition(run, to=to, allowed=RUNS_ALLOWED, actor=actor, reason=reason, **fields)


def runs_to(ids: Sequence[str], to: str, *, actor: str, reason: str = "", **fields: Any) -> list[str]:
    """Move many expected runs at once; the ids of those that were moved."""
    return transition_many(ExpectedRun, ids, to=to, allowed=RUNS_ALLOWED, actor=actor, reason=reason, **fields)
