"""States of an operation."""

from typing import Any

from core.transitions import Allowed, transition
from operations.models import Operation, OperationState

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
