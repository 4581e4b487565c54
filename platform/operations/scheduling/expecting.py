"""Turning the times of schedules into rows, and giving up what the clock has passed by."""

import datetime
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.db import DatabaseError, transaction
from django.db.models import Count, Max, Q, QuerySet

from audit.services import record
from core import clock
from core.ids import new_id
from core.inserting import rows_insert
from core.transitions import MANY_MAX
from engine.faults import kill_point
from operations.models import NEVER, CatchUp, ExpectedRun, RunState, Schedule
from operations.scheduling.planning import HORIZON, Plan, Rule, Slot, jitter, plan
from operations.scheduling.settling import ACTOR
from operations.scheduling.works import Target, Work, works
from operations.transitions import runs_to

log = logging.getLogger(__name__)

SCHEDULES_MAX = 2_000
"""Planned in one tick; the others a minute later."""
ROWS_MAX = 10_000
"""Once a tick has made so many rows it leaves the other schedules to the next."""
MISSED_MAX = 5_000
"""Given up in one tick; release passes over the others, which the next tick gives up."""
NAMED_MAX = 20
"""Tenants that an audit entry about many names."""

OUTAGE = "nothing planned or released at its time; one run makes up for all that was missed"
SUPERSEDED = "its turn did not come before the next one's time: too little may run at once for all that is asked"
LATE = "it could not begin in time, and its schedule does not catch up"


def rule_of(schedule: Schedule) -> Rule:
    """What of the schedule decides its times."""
    return Rule(schedule.cron, schedule.zone, schedule.full)


def runs_plan(*, now: datetime.datetime) -> int:
    """Make the rows of every time up to the horizon that has none; how many. Inside the planner's transaction."""
    active = Schedule.objects.filter(removed_at=None, paused_at=None)
    due = active.filter(next_at__lte=now + HORIZON).order_by("next_at")[:SCHEDULES_MAX]
    count, kinds = 0, works()
    for schedule in due:
        work = kinds.get(schedule.work)
        if work is not None:
            count += _apart(_plan_one, schedule, work, now)
        if count >= ROWS_MAX:
            break
    for schedule in active.filter(topup_at__lte=now)[:SCHEDULES_MAX]:
        if (work := kinds.get(schedule.work)) is not None:
            count += _apart(_top_up, schedule, work, now)
    kill_point("schedule.planned")
    return count


def _apart(
    step: Callable[[Schedule, Work, datetime.datetime], int], schedule: Schedule, work: Work, now: datetime.datetime
) -> int:
    """One schedule that cannot be planned stops no other; it is tried again, and `schedules_unplanned` tells of it."""
    try:
        with transaction.atomic():
            return step(schedule, work, now)
    except DatabaseError:
        raise
    except Exception:
        log.exception("schedule %s cannot be planned", schedule.name)
        return 0


def _plan_one(schedule: Schedule, work: Work, now: datetime.datetime) -> int:
    planned = plan(rule_of(schedule), next_at=schedule.next_at, now=now)
    count = 0
    if planned.slots:
        targets = targets_of(schedule, work)
        ranks = _ranks(schedule)
        for slot in planned.slots:
            count += _insert(schedule, slot, targets, ranks)
    _cursor_move(schedule, planned, now)
    return count


def _cursor_move(schedule: Schedule, planned: Plan, now: datetime.datetime) -> None:
    fields: dict[str, Any] = {"next_at": planned.next_at}
    if planned.slots:
        fields["planned_last"] = planned.slots[-1].planned_for
        ahead = [slot.planned_for for slot in planned.slots if slot.planned_for > now]
        if ahead and schedule.topup_at is None:
            fields["topup_at"] = ahead[0]
    Schedule.objects.filter(pk=schedule.pk).update(**fields)


def targets_of(schedule: Schedule, work: Work) -> list[Target]:
    """For whom it is done now; work that is done once per tenant leaves those to the schedules that name them."""
    targets = work.targets(schedule)
    if not work.exclusive or schedule.selection.get("tenants"):
        return targets
    others = Schedule.objects.filter(work=schedule.work, removed_at=None).exclude(pk=schedule.pk)
    named = {slug for selection in others.values_list("selection", flat=True) for slug in selection.get("tenants", ())}
    return [target for target in targets if target.tenant not in named]


def _ranks(schedule: Schedule) -> dict[str, datetime.datetime]:
    """When each tenant's turn last was, as the rows of the newest planned time, and later ones, know it."""
    if schedule.planned_last is None:
        return {}
    rows = ExpectedRun.objects.filter(schedule=schedule, planned_for__gte=schedule.planned_last)
    ranks: dict[str, datetime.datetime] = {}
    for tenant, rank, released in rows.order_by().values_list("tenant", "rank_at", "released_at"):
        ranks[tenant] = max(ranks.get(tenant, NEVER), rank, released or NEVER)
    return ranks


def _insert(schedule: Schedule, slot: Slot, targets: Sequence[Target], ranks: Mapping[str, datetime.datetime]) -> int:
    """Make a slot's rows; one of times that nobody planned is missed from the beginning."""
    missed = slot.occurrences > 1 or slot.given_up
    now = clock.now()
    common = {
        "schedule_id": schedule.pk,
        "schedule_name": schedule.name,
        "work": schedule.work,
        "state": RunState.MISSED if missed else RunState.EXPECTED,
        "planned_for": slot.planned_for,
        "occurrences": slot.occurrences,
        "full": slot.full,
        "catch_up": slot.catch_up,
        "priority": schedule.priority,
        "operation_id": "",
        "attempts": 0,
        "released_at": None,
        "ended_at": now if missed else None,
        "error_code": "schedule.outage" if missed else "",
        "note": OUTAGE if missed else "",
        "created_at": now,
    }
    rows_insert(
        ExpectedRun,
        common,
        ("id", "tenant", "lane", "due_at", "rank_at"),
        (
            (
                new_id("run"),
                target.tenant,
                target.lane,
                slot.planned_for + jitter(schedule.pk, target.tenant, schedule.jitter_seconds),
                ranks.get(target.tenant, NEVER),
            )
            for target in targets
        ),
    )
    if missed and targets:
        missed_recorded(schedule.name, [target.tenant for target in targets], OUTAGE, "schedule.outage", actor=ACTOR)
    return len(targets)


def _top_up(schedule: Schedule, work: Work, now: datetime.datetime) -> int:
    """Expect a run of tenants that came after the time was planned; once, when it comes."""
    at = schedule.topup_at
    assert at is not None
    there = set(ExpectedRun.objects.filter(schedule=schedule, planned_for=at).values_list("tenant", flat=True))
    new = [target for target in targets_of(schedule, work) if target.tenant not in there]
    later = ExpectedRun.objects.filter(schedule=schedule, planned_for__gt=now, occurrences=1)
    following = later.order_by("planned_for").values_list("planned_for", flat=True).first()
    Schedule.objects.filter(pk=schedule.pk).update(topup_at=following)
    if not new:
        return 0
    full = ExpectedRun.objects.filter(schedule=schedule, planned_for=at, full=True).exists()
    return _insert(schedule, Slot(at, full=full), new, {})


# ---------------------------------------------------------------- what is given up


def runs_miss(*, now: datetime.datetime, ticked_at: datetime.datetime | None) -> int:
    """Give up every run whose schedule's next time has come for the same tenant, and what begins too late; how many."""
    waiting = ExpectedRun.objects.filter(state=RunState.EXPECTED, due_at__lte=now)
    passed, made_up = _passed(waiting)
    _pass_on_full(passed, now)
    unseen = {run.pk for run in passed if run.pk in made_up or (ticked_at is not None and run.due_at > ticked_at)}
    outage, crowded = ([run for run in passed if (run.pk in unseen) is wanted] for wanted in (True, False))
    count = runs_missed(outage, OUTAGE, "schedule.outage", now=now)
    count += runs_missed(crowded, SUPERSEDED, "schedule.superseded", now=now)
    for schedule in Schedule.objects.filter(catch_up=CatchUp.SKIP, removed_at=None):
        limit = now - datetime.timedelta(seconds=schedule.late_seconds)
        late = waiting.filter(schedule=schedule, due_at__lt=limit)
        count += runs_missed(list(late[:MISSED_MAX]), LATE, "schedule.late", now=now)
    return count


def _passed(waiting: "QuerySet[ExpectedRun]") -> tuple[list[ExpectedRun], set[str]]:
    """Runs that wait although the next time of the same schedule for the same tenant waits, too; and which of them make
    way for one that makes up for an outage."""
    several = (
        waiting.order_by().values_list("schedule_id", "tenant").annotate(newest=Max("planned_for"), count=Count("pk"))
    )
    tenants: dict[tuple[str, datetime.datetime], list[str]] = defaultdict(list)
    for schedule_id, tenant, newest, _ in several.filter(count__gt=1)[:MISSED_MAX]:
        tenants[schedule_id, newest].append(tenant)
    found: list[ExpectedRun] = []
    made_up: set[str] = set()
    for (schedule_id, newest), slugs in tenants.items():
        same = waiting.filter(schedule=schedule_id)
        catches_up = same.filter(planned_for=newest, catch_up=True).exists()
        for begin in range(0, len(slugs), MANY_MAX):
            older = same.filter(planned_for__lt=newest, tenant__in=slugs[begin : begin + MANY_MAX])
            some = list(older.only("pk", "schedule_id", "tenant", "due_at", "full", "schedule_name"))
            found += some
            made_up |= {run.pk for run in some} if catches_up else set()
    return found[:MISSED_MAX], made_up


def _pass_on_full(passed: Sequence[ExpectedRun], now: datetime.datetime) -> None:
    by_schedule: dict[str, list[str]] = defaultdict(list)
    for run in passed:
        if run.full:
            by_schedule[run.schedule_id].append(run.tenant)
    for schedule_id, tenants in by_schedule.items():
        for begin in range(0, len(tenants), MANY_MAX):
            heirs = ExpectedRun.objects.filter(schedule=schedule_id, tenant__in=tenants[begin : begin + MANY_MAX])
            heirs.filter(state=RunState.EXPECTED, due_at__lte=now).update(full=True)


def older_missed(run: ExpectedRun, *, now: datetime.datetime) -> None:
    """Give up what is still expected of earlier times of a run that begins; it is full if one of them was to be."""
    same = ExpectedRun.objects.filter(schedule=run.schedule_id, tenant=run.tenant, state=RunState.EXPECTED)
    older = list(same.filter(planned_for__lt=run.planned_for))
    run.full = run.full or any(each.full for each in older)
    if older:
        ExpectedRun.objects.filter(pk=run.pk).update(full=run.full)
        why, code = (OUTAGE, "schedule.outage") if run.catch_up else (SUPERSEDED, "schedule.superseded")
        runs_missed(older, why, code, now=now)


def runs_missed(runs: Sequence[ExpectedRun], why: str, code: str, *, now: datetime.datetime, actor: str = ACTOR) -> int:
    """End expected runs as missed, with an audit entry for each schedule; how many."""
    moved = set(runs_to([run.pk for run in runs], RunState.MISSED, actor=actor, reason=why, ended_at=now,
                        note=why, error_code=code))  # fmt: skip
    by_schedule: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        if run.pk in moved:
            by_schedule[run.schedule_name].append(run.tenant)
    for name, tenants in by_schedule.items():
        missed_recorded(name, tenants, why, code, actor=actor)
    return len(moved)


def missed_recorded(name: str, tenants: Sequence[str], why: str, code: str, *, actor: str) -> None:
    """Put on record which runs of a schedule were missed."""
    record(
        "schedule.missed",
        message=f"{len(tenants)} run(s) of {name} missed: {why}",
        actor=actor,
        tenant=tenants[0] if len(tenants) == 1 else "",
        level="warning",
        data={"schedule": name, "count": len(tenants), "tenants": list(tenants[:NAMED_MAX]), "code": code},
    )


def runs_withdraw(schedule: Schedule, *, now: datetime.datetime, why: str, actor: str) -> tuple[int, int]:
    """Take back what is expected of a schedule from now on, and give up what waits already; how many of each."""
    ahead = ExpectedRun.objects.filter(schedule=schedule, state=RunState.EXPECTED).filter(
        Q(planned_for__gt=now) | Q(due_at__gt=now)
    )
    taken = ahead.delete()[0]
    waiting = list(ExpectedRun.objects.filter(schedule=schedule, state=RunState.EXPECTED))
    return taken, runs_missed(waiting, why, "schedule.withdrawn", now=now, actor=actor)


def turn_taken(run: ExpectedRun, at: datetime.datetime) -> None:
    """The tenant goes to the end of the line in its schedule: what else is expected of it there ranks from now."""
    rows = ExpectedRun.objects.filter(schedule=run.schedule_id, tenant=run.tenant, state=RunState.EXPECTED)
    rows.filter(planned_for__gt=run.planned_for).update(rank_at=at)
