"""Reading schedules and expected runs; what alerts and screens are made from."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from django.db.models import Count, Q

from core.errors import NotFound
from operations.models import RUN_FINAL_STATES, ExpectedRun, RunState, Schedule, Scheduler

LIST_MAX = 200
STALLED_AFTER = datetime.timedelta(minutes=5)
"""A tick comes every minute: without one for so long nobody plans."""
SCHEDULER_ROW = 1


def schedule_get(name: str) -> Schedule:
    """Find a schedule by name or id. Raises NotFound."""
    row = Schedule.objects.filter(Q(name__iexact=name) | Q(pk=name), removed_at=None).first()
    if row is None:
        raise NotFound(f"there is no schedule {name[:80]!r}", hint="schedule list shows them")
    return row


def schedule_list(*, work: str = "", tenant: str = "") -> list[Schedule]:
    """Schedules by name; with `tenant` those that name it or are for all."""
    rows = Schedule.objects.filter(removed_at=None).order_by("name")
    if work:
        rows = rows.filter(work=work)
    found = list(rows)
    if tenant:
        found = [row for row in found if not row.selection.get("tenants") or tenant in row.selection["tenants"]]
    return found


def scheduler_last_tick() -> datetime.datetime | None:
    """When the planner last ended a tick well; None when it never did."""
    return Scheduler.objects.filter(pk=SCHEDULER_ROW).values_list("last_tick_at", flat=True).first()


def scheduler_stalled(*, now: datetime.datetime) -> bool:
    """Whether there is something to plan and nobody has planned for longer than five ticks."""
    last = scheduler_last_tick()
    return Schedule.objects.filter(removed_at=None).exists() and (last is None or now - last > STALLED_AFTER)


def schedules_unplanned(*, now: datetime.datetime) -> list[Schedule]:
    """Schedules whose time has passed without rows although somebody plans: what they are for cannot be found out."""
    rows = Schedule.objects.filter(removed_at=None, paused_at=None, next_at__lt=now - STALLED_AFTER)
    return list(rows.order_by("name")[:LIST_MAX])


def run_list(
    *,
    schedule: Schedule | None = None,
    tenant: str = "",
    states: Sequence[str] = (),
    work: str = "",
    before: str = "",
    limit: int = LIST_MAX,
) -> list[ExpectedRun]:
    """Expected runs, the one planned last first; `before` is the id after which the page goes on."""
    rows = ExpectedRun.objects.select_related("schedule").order_by("-planned_for", "-id")
    if schedule is not None:
        rows = rows.filter(schedule=schedule)
    if tenant:
        rows = rows.filter(tenant=tenant)
    if states:
        rows = rows.filter(state__in=states)
    if work:
        rows = rows.filter(work=work)
    if before:
        last = ExpectedRun.objects.filter(pk=before).first()
        if last is None:
            raise NotFound(f"there is no run {before[:60]!r}", hint="schedule runs shows them")
        rows = rows.filter(Q(planned_for__lt=last.planned_for) | Q(planned_for=last.planned_for, pk__lt=last.pk))
    return list(rows[: min(limit, LIST_MAX)])


def runs_ended(
    *, since: datetime.datetime, states: Sequence[str] = RUN_FINAL_STATES, limit: int = 1_000
) -> list[ExpectedRun]:
    """Runs that came to one of these final states at or after `since`, oldest first."""
    rows = ExpectedRun.objects.filter(state__in=states, ended_at__gte=since)
    return list(rows.select_related("schedule").order_by("ended_at", "pk")[:limit])


def runs_missed(*, since: datetime.datetime, limit: int = 1_000) -> list[ExpectedRun]:
    """Runs that were given up as missed at or after `since`, oldest first; `note` says why."""
    return runs_ended(since=since, states=(RunState.MISSED,), limit=limit)


def runs_overdue(*, now: datetime.datetime, by: datetime.timedelta, limit: int = 1_000) -> list[ExpectedRun]:
    """Runs that should have begun longer than `by` ago and still wait, the most overdue first."""
    rows = ExpectedRun.objects.filter(state=RunState.EXPECTED, due_at__lt=now - by)
    return list(rows.select_related("schedule").order_by("due_at")[:limit])


@dataclass(frozen=True)
class RunCounts:
    """How many runs stand where."""

    waiting: int
    """Due and not yet begun."""
    running: int
    ended: dict[str, int]
    """By final state, since the time asked for."""


def run_counts(*, now: datetime.datetime, since: datetime.datetime) -> RunCounts:
    """Count runs for overviews and metrics: two queries, both along an index."""
    ended = ExpectedRun.objects.filter(ended_at__gte=since).order_by().values_list("state").annotate(Count("pk"))
    live = ExpectedRun.objects.filter(state__in=(RunState.EXPECTED, RunState.RUNNING), due_at__lte=now)
    counts = dict(live.order_by().values_list("state").annotate(Count("pk")))
    return RunCounts(counts.get(RunState.EXPECTED, 0), counts.get(RunState.RUNNING, 0), dict(ended))
