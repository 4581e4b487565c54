"""Drills by the clock: rows of django-q2's own table, one for a tenant."""

import datetime
from typing import Any

from croniter import croniter
from django.db import transaction

from audit.services import record
from core import clock
from engine.errors import UsageError
from tenants.models import Tenant

DEFAULT_CRON = "0 2 * * 0"
"""Sundays at 02:00 UTC."""
_FUNC = "tenants.tasks.drill_scheduled"


def _name(tenant: Tenant) -> str:
    return f"drill:{tenant.slug}"


def drill_schedule_put(tenant: Tenant, cron: str, *, actor: str) -> datetime.datetime:
    """Rehearse the tenant's restore whenever the cron expression (five fields, UTC) says; the first time it will be.

    Replaces an earlier schedule. A worker must run. Raises UsageError for what is no cron expression.
    """
    from django_q.models import Schedule

    if len(cron.split()) != 5 or not croniter.is_valid(cron):
        raise UsageError(
            f"{cron[:60]!r} is no cron expression", hint=f'five fields in UTC, for example "{DEFAULT_CRON}"'
        )
    first: datetime.datetime = croniter(cron, clock.now()).get_next(datetime.datetime)
    with transaction.atomic():
        Schedule.objects.update_or_create(
            name=_name(tenant),
            defaults={
                "func": _FUNC,
                "args": repr((tenant.slug,)),
                "schedule_type": Schedule.CRON,
                "cron": cron,
                "repeats": -1,
                "next_run": first,
            },
        )
        record(
            "drill.scheduled",
            message=f"drills of {tenant.slug}: {cron}",
            actor=actor,
            tenant=tenant.slug,
            data={"cron": cron},
        )
    return first


def drill_schedule_drop(tenant: Tenant, *, actor: str) -> bool:
    """Rehearse by the clock no more; False when there was no schedule."""
    from django_q.models import Schedule

    with transaction.atomic():
        dropped = bool(Schedule.objects.filter(name=_name(tenant), func=_FUNC).delete()[0])
        if dropped:
            record(
                "drill.unscheduled", message=f"drills of {tenant.slug} by hand only", actor=actor, tenant=tenant.slug
            )
    return dropped


def drill_schedules() -> list[dict[str, Any]]:
    """Every schedule of drills, the next first."""
    from django_q.models import Schedule

    rows = Schedule.objects.filter(func=_FUNC).order_by("next_run")
    return [{"tenant": row.name.partition(":")[2], "cron": row.cron, "next_run": row.next_run} for row in rows]
