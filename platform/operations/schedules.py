"""The schedules of Lastro itself."""

import datetime
from typing import Any

from croniter import croniter
from django.db import transaction

from core import clock
from core.models import Fact

REAPER_NAME = "lastro: find lost operations"
REAPER_MINUTES = 1
HISTORY_NAME = "lastro: forget old history"
LOCK_FACT = "schedules"

_standing: dict[str, tuple[str, int, str]] = {}


def standing_add(name: str, func: str, *, minutes: int = 0, cron: str = "") -> None:
    """Have `func` (its dotted name, without arguments) called every so many minutes, or as a cron expression in UTC says.

    For apps above, when they start.
    """
    assert bool(minutes) != bool(cron)
    _standing[name] = (func, minutes, cron)


def ensure() -> None:
    """Make our schedules where they are missing. As to the reaper's: a heartbeat of any worker reaps too: this is the last net."""
    from django_q.models import Schedule

    with transaction.atomic():
        # Names of schedules are not unique: two workers that start together take turns at this row.
        Fact.objects.get_or_create(pk=LOCK_FACT, defaults={"value": ""})
        Fact.objects.select_for_update().get(pk=LOCK_FACT)
        Schedule.objects.get_or_create(
            name=REAPER_NAME,
            defaults={"func": "operations.tasks.reap", "schedule_type": Schedule.MINUTES, "minutes": REAPER_MINUTES},
        )
        for name, (func, minutes, cron) in _standing.items():
            when: dict[str, Any] = {"schedule_type": Schedule.MINUTES, "minutes": minutes}
            if cron:
                first = croniter(cron, clock.now()).get_next(datetime.datetime)
                when = {"schedule_type": Schedule.CRON, "cron": cron, "next_run": first}
            Schedule.objects.get_or_create(name=name, defaults={"func": func, **when})
        Schedule.objects.get_or_create(
            name=HISTORY_NAME, defaults={"func": "operations.tasks.history", "schedule_type": Schedule.DAILY}
        )
