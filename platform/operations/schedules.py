"""What a worker's start makes sure of: the ticks that django-q2 gives, and once the schedules of a new installation."""

from django.db import transaction

from core.models import Fact
from operations.scheduling.services import schedule_add
from operations.scheduling.works import defaults

REAPER_NAME = "lastro: find lost operations"
TICK_NAME = "lastro: plan and release"
MINUTE_NAME = "lastro: once a minute"
HISTORY_NAME = "lastro: forget old history"
EVERY_MINUTES = 1
LOCK_FACT = "schedules"
MADE_FACT = "schedule made: "
ACTOR = "system:start"


def ensure() -> None:
    """Make our rows in django-q2's table where they are missing, and schedules that were never made.

    A heartbeat of any worker reaps, and its supervisor ticks too: django-q2's schedules are the last net. Raises what a
    schedule of the environment is wrong with (BACKUP_SCHEDULE); nothing is made then.
    """
    from django_q.models import Schedule as Standing

    with transaction.atomic():
        # Names of django-q2's schedules are not unique: two workers that start together take turns at this row.
        Fact.objects.get_or_create(pk=LOCK_FACT, defaults={"value": ""})
        Fact.objects.select_for_update().get(pk=LOCK_FACT)
        ticks = {
            REAPER_NAME: "operations.tasks.reap", TICK_NAME: "operations.tasks.tick", MINUTE_NAME: "operations.tasks.minute",
        }  # fmt: skip
        for name, func in ticks.items():
            Standing.objects.get_or_create(
                name=name, defaults={"func": func, "schedule_type": Standing.MINUTES, "minutes": EVERY_MINUTES}
            )
        Standing.objects.get_or_create(
            name=HISTORY_NAME, defaults={"func": "operations.tasks.history", "schedule_type": Standing.DAILY}
        )
        _defaults_make()


def _defaults_make() -> None:
    made = set(Fact.objects.filter(name__startswith=MADE_FACT).values_list("name", flat=True))
    for name, wish in defaults().items():
        if MADE_FACT + name not in made:
            schedule_add(name, wish(), actor=ACTOR, standing=True)
            Fact.objects.create(name=MADE_FACT + name, value="")
