"""Reading operations."""

from collections.abc import Sequence

from core.errors import NotFound
from core.tenancy import tenant_checked
from engine.errors import NameUnknown
from operations.handlers import kinds
from operations.models import ACTIVE_STATES, Operation, OperationState

LIST_MAX = 200


def operation_get(operation_id: str) -> Operation:
    """Raise NotFound when there is none."""
    try:
        return Operation.objects.get(pk=operation_id)
    except Operation.DoesNotExist:
        raise NotFound(f"no operation {operation_id[:60]!r}", hint="operation list shows them") from None


def operation_list(
    *, tenant: str = "", states: Sequence[str] = (), kind: str = "", before: str = "", limit: int = LIST_MAX
) -> list[Operation]:
    """Newest first; `before` is the id after which the page goes on.

    Raises NotFound for a tenant or a `before`, NameUnknown for a kind, that there is not.
    """
    if before:
        operation_get(before)
    rows = Operation.objects.order_by("-id")
    if tenant:
        rows = rows.filter(tenant=tenant)
    if states:
        rows = rows.filter(state__in=states)
    if kind:
        rows = rows.filter(kind=kind)
    if before:
        rows = rows.filter(pk__lt=before)
    found = list(rows[: min(limit, LIST_MAX)])
    if not found:
        _named_checked(tenant, kind)
    return found


def _named_checked(tenant: str, kind: str) -> None:
    """An empty list must not hide a typing error."""
    tenant_checked(tenant)
    if kind and kind not in kinds():
        raise NameUnknown(f"unknown kind of operation {kind[:40]!r}", hint=f"one of: {', '.join(kinds())}")


def operations_active(*, tenant: str) -> list[Operation]:
    """What is queued or runs for the tenant, oldest first."""
    states = (OperationState.QUEUED, *ACTIVE_STATES)
    return list(Operation.objects.filter(tenant=tenant, state__in=states).order_by("id")[:LIST_MAX])
