"""The planner's tick: settle what ended, plan what is ahead, give up what passed, release what is due."""

import datetime
import logging
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from django.db import transaction

from audit.services import record
from core import clock
from core.models import StateChange
from engine.faults import kill_point
from operations.models import ExpectedRun, RunState, Schedule, Scheduler
from operations.scheduling.cron import cron_read, time_next
from operations.scheduling.expecting import ROWS_MAX, runs_miss, runs_plan
from operations.scheduling.releasing import runs_release, scheduler_lock
from operations.scheduling.selectors import SCHEDULER_ROW, scheduler_last_tick
from operations.scheduling.settling import ACTOR, runs_settle
from operations.uptime import uptime

log = logging.getLogger(__name__)

EVERY = datetime.timedelta(minutes=1)
DELETED_ROWS = 500
JUMP = datetime.timedelta(minutes=5)
"""A wall clock that went so much further than the machine ran was set, not slow."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """What one tick did."""

    settled: int
    planned: int
    missed: int
    released: int
    ms: int


def scheduler_tick() -> Ticked:
    """Plan and release. Safe at any time, from any process, by several at once: outside a transaction.

    Each step is a transaction of its own and starts from the rows alone, so that a kill or a lost database between or
    within them leaves to the next tick what was not committed, and nothing twice.
    """
    began = uptime()
    settled = runs_settle(now=clock.catalogue_now())
    with transaction.atomic():
        row = scheduler_lock()
        now = clock.catalogue_now()
        _clock_followed(row, now)
        _pauses_end(now)
        planned = runs_plan(now=now)
        # A tick that made many rows leaves giving up to the next; until then release passes over what makes way.
        missed = runs_miss(now=now, ticked_at=row.last_tick_at) if planned < ROWS_MAX else 0
        kill_point("schedule.expected")
        # With the plan, not after the release: an outage is what passed between two plans.
        _seen(now)
    released = runs_release()
    ms = round((uptime() - began) * 1000)
    Scheduler.objects.filter(pk=SCHEDULER_ROW).update(last_tick_ms=ms)
    return Ticked(settled, planned, missed, released, ms)


def scheduler_tick_due() -> Ticked | None:
    """Tick if nobody else did within the last minute."""
    last = scheduler_last_tick()
    now = clock.catalogue_now()
    return scheduler_tick() if last is None or not datetime.timedelta() <= now - last < EVERY else None


def _seen(now: datetime.datetime) -> None:
    machine = clock.machine()
    Scheduler.objects.filter(pk=SCHEDULER_ROW).update(
        last_tick_at=now, boot_id=machine.boot_id, running_seconds=machine.running.total_seconds()
    )


def _clock_followed(row: Scheduler, now: datetime.datetime) -> None:
    """Plan on from a clock that was set back, and put a jump on record."""
    if row.last_tick_at is None:
        return
    passed = now - row.last_tick_at
    if passed < -EVERY:
        _future_undone(now)
    machine = clock.machine()
    ran = datetime.timedelta(seconds=machine.running.total_seconds() - row.running_seconds)
    if machine.boot_id == row.boot_id and abs(passed - ran) > JUMP:
        record(
            "schedule.clock_jumped",
            message=f"the clock went {passed} while the machine ran {ran}",
            actor=ACTOR,
            level="warning",
            data={"passed_seconds": passed.total_seconds(), "ran_seconds": ran.total_seconds()},
        )
        log.warning("the clock went %s while the machine ran %s", passed, ran)


def _future_undone(now: datetime.datetime) -> None:
    """The clock was ahead: what was planned or given up there has its time still to come; what ran then, ran now."""
    ahead = ExpectedRun.objects.filter(planned_for__gt=now)
    early = list(ahead.filter(state__in=(RunState.EXPECTED, RunState.MISSED)).values_list("pk", flat=True))
    for begin in range(0, len(early), DELETED_ROWS):
        StateChange.objects.filter(subject_id__in=early[begin : begin + DELETED_ROWS]).delete()
        ExpectedRun.objects.filter(pk__in=early[begin : begin + DELETED_ROWS]).delete()
    # Out of the way of the real run of that time, each to an instant of its own.
    for number, pk in enumerate(ahead.order_by("planned_for", "pk").values_list("pk", flat=True)):
        ExpectedRun.objects.filter(pk=pk).update(planned_for=now - datetime.timedelta(microseconds=number + 1))
    for schedule in Schedule.objects.filter(removed_at=None, paused_at=None):
        first = time_next(cron_read(schedule.cron), ZoneInfo(schedule.zone), now)
        Schedule.objects.filter(pk=schedule.pk).update(next_at=first, planned_last=None, topup_at=None)


def _pauses_end(now: datetime.datetime) -> None:
    from operations.scheduling.services import schedule_resumed

    for schedule in Schedule.objects.filter(removed_at=None, paused_at__isnull=False, paused_until__lte=now):
        assert schedule.paused_until is not None
        schedule_resumed(schedule, at=schedule.paused_until, actor=ACTOR)
