"""Drills of one tenant by the clock: a schedule `drill-<slug>` of its own, in the place of the one for all tenants."""

import datetime
from typing import Any

from audit.services import record
from operations.models import Schedule
from operations.scheduling.outputs import next_of
from operations.scheduling.selectors import schedule_list
from operations.scheduling.services import ScheduleWish, schedule_add, schedule_remove, schedule_set
from tenants.models import Tenant

DEFAULT_CRON = "0 2 * * 0"
"""Sundays at 02:00 UTC."""
WORK = "drill"


def _row(tenant: Tenant) -> Schedule | None:
    return next((row for row in schedule_list(work=WORK) if row.name == f"drill-{tenant.slug}"), None)


def drill_schedule_put(tenant: Tenant, cron: str, *, actor: str) -> datetime.datetime:
    """Rehearse the tenant's restore whenever the cron expression (five fields, UTC) says; the first time it will be.

    Replaces an earlier schedule. A worker must run. Raises UsageError for what is no cron expression.
    """
    row = _row(tenant)
    wish = ScheduleWish(WORK, cron, zone="UTC", selection={"tenants": [tenant.slug]})
    if row is None:
        row = schedule_add(f"drill-{tenant.slug}", wish, actor=actor)
    else:
        row = schedule_set(row, {"cron": cron, "zone": "UTC"}, actor=actor)
    record(
        "drill.scheduled",
        message=f"drills of {tenant.slug}: {cron}",
        actor=actor,
        tenant=tenant.slug,
        data={"cron": cron},
    )
    return next_of(row, count=1)[0]


def drill_schedule_drop(tenant: Tenant, *, actor: str) -> bool:
    """Rehearse by a clock of its own no more; False when there was no such schedule."""
    row = _row(tenant)
    if row is None:
        return False
    schedule_remove(row, actor=actor)
    record(
        "drill.unscheduled", message=f"no schedule of its own: drills of {tenant.slug}", actor=actor, tenant=tenant.slug
    )
    return True


def drill_schedules() -> list[dict[str, Any]]:
    """Every tenant's own schedule of drills, the next first."""
    rows = [(slug, row) for row in schedule_list(work=WORK) for slug in row.selection.get("tenants", ())]
    found = [{"tenant": slug, "cron": row.cron, "next_run": next_of(row, count=1)[0]} for slug, row in rows]
    return sorted(found, key=lambda each: each["next_run"])
