"""The schedules of Lastro itself."""

REAPER_NAME = "lastro: find lost operations"
REAPER_MINUTES = 1


def ensure() -> None:
    """Make the reaper's schedule where it is missing. A heartbeat of any worker reaps too: this is the last net."""
    from django_q.models import Schedule

    Schedule.objects.get_or_create(
        name=REAPER_NAME,
        defaults={"func": "operations.tasks.reap", "schedule_type": Schedule.MINUTES, "minutes": REAPER_MINUTES},
    )
