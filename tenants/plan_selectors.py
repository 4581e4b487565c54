"""Reading plans, and what an undo may still ask for."""

import datetime

from django.conf import settings

from core import clock
from core.errors import NotFound
from tenants.models import Backup, Restore, RestorePlan, RestoreSourceState, RestoreState, Tenant
from tenants.selectors import LIST_MAX


def plan_get(plan_id: str) -> RestorePlan:
    """Find a plan. Raises NotFound."""
    try:
        return RestorePlan.objects.select_related("tenant__store", "backup__tenant__store", "base", "undoes").get(
            pk=plan_id
        )
    except RestorePlan.DoesNotExist:
        raise NotFound(f"there is no plan {plan_id[:60]!r}", hint="restore plans TENANT shows them") from None


def plan_list(tenant: Tenant, *, limit: int = LIST_MAX) -> list[RestorePlan]:
    """Plans of the tenant, newest first."""
    rows = RestorePlan.objects.filter(tenant=tenant).select_related("tenant", "backup", "base", "undoes")
    return list(rows.order_by("-id")[: min(limit, LIST_MAX)])


def restore_saved_by(backup: Backup) -> Restore | None:
    """A restore that could not be undone any more without this safety backup; None when its terms are over."""
    begun = clock.now() - datetime.timedelta(days=settings.LASTRO_UNDO_DAYS)
    rows = Restore.objects.filter(
        sources__saved=backup,
        sources__state=RestoreSourceState.NEW,
        state__in=(RestoreState.SUCCEEDED, RestoreState.FAILED),
        finished_at__gt=begun,
    )
    return rows.order_by("id").first()
