"""The only place where the state of an alert or of a delivery changes."""

from collections.abc import Sequence
from typing import Any

from core.transitions import Allowed, transition, transition_many
from operations.models import Alert, AlertDelivery, AlertState, DeliveryState

_A = AlertState
_ALERT: Allowed = {
    _A.OPEN: frozenset({_A.ACKNOWLEDGED, _A.RESOLVED}),
    _A.ACKNOWLEDGED: frozenset({_A.RESOLVED}),
    _A.RESOLVED: frozenset(),
}
_D = DeliveryState
_DELIVERY: Allowed = {_D.QUEUED: frozenset({_D.DELIVERED, _D.FAILED, _D.DROPPED})}


def alert_to(alert: Alert, to: AlertState, *, actor: str, reason: str = "", **fields: Any) -> None:
    """Move an alert on; StateConflict when somebody else did."""
    transition(alert, to=to, allowed=_ALERT, actor=actor, reason=reason, **fields)


def alerts_acknowledge(ids: Sequence[str], *, actor: str, reason: str, **fields: Any) -> list[str]:
    """Acknowledge many alerts; the ids of those that were open."""
    return transition_many(Alert, ids, to=_A.ACKNOWLEDGED, allowed=_ALERT, actor=actor, reason=reason, **fields)


def alerts_resolve(ids: Sequence[str], *, actor: str, reason: str, **fields: Any) -> list[str]:
    """End many alerts; the ids of those that still lived."""
    return transition_many(Alert, ids, to=_A.RESOLVED, allowed=_ALERT, actor=actor, reason=reason, **fields)


def delivery_to(delivery: AlertDelivery, to: DeliveryState, *, reason: str = "", **fields: Any) -> None:
    """End a delivery; StateConflict when somebody else did."""
    transition(delivery, to=to, allowed=_DELIVERY, actor="system:alerts", reason=reason[:200], **fields)
