"""How an approval comes about, and ends."""

from typing import Any

from access.models import Approval, ApprovalState
from core.transitions import transition

_ALLOWED: dict[str, frozenset[str]] = {
    ApprovalState.REQUESTED: frozenset({str(ApprovalState.APPROVED), str(ApprovalState.REJECTED)}),
    # One that was agreed to can still be taken back, and serves once.
    ApprovalState.APPROVED: frozenset({str(ApprovalState.USED), str(ApprovalState.REJECTED)}),
}


def approval_transition(approval: Approval, *, to: ApprovalState, actor: str, reason: str = "", **fields: Any) -> None:
    """Move an approval on; StateConflict when somebody else has."""
    transition(approval, to=to, allowed=_ALLOWED, actor=actor, reason=reason, **fields)
