"""Letting due runs begin, as many as may: by priority, whose turn was longest ago first, within every limit."""

import datetime
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from django.conf import settings
from django.db import DatabaseError, transaction

from audit.services import record
from core import clock
from core.errors import Busy, StateConflict
from engine.errors import LastroError
from engine.faults import kill_point
from operations.models import ExpectedRun, RunState, Scheduler
from operations.priorities import priority_set
from operations.quotas import Quotas
from operations.scheduling.expecting import older_missed, turn_taken
from operations.scheduling.selectors import SCHEDULER_ROW
from operations.scheduling.settling import ACTOR
from operations.scheduling.works import Begun, Order, Withdrawn, works
from operations.transitions import run_to

log = logging.getLogger(__name__)

BATCH_MAX = 20
"""Runs that begin in one transaction: a kill or a failover takes back so many at the most."""
LOOKED_AT_MAX = 200
"""Candidates fetched for a batch; limits that stop more of them are part of the query of the next."""
NOTE_CHARS_MAX = 500


def scheduler_lock() -> Scheduler:
    """Hold the planner's row for the rest of the transaction: one plans and releases at a time, on whichever machine."""
    row = Scheduler.objects.select_for_update().filter(pk=SCHEDULER_ROW).first()
    if row is None:
        Scheduler.objects.get_or_create(pk=SCHEDULER_ROW)
        row = Scheduler.objects.select_for_update().get(pk=SCHEDULER_ROW)
    return row


@dataclass
class _Room:
    """What may still begin: filled from the rows at the start of each batch, counted down while it lasts."""

    free: int
    quotas: Quotas
    schedules: Counter[str]
    full: set[str]
    """Schedules that run as many as they may."""
    running: Mapping[str, set[str]]
    """Tenants that each schedule runs for."""
    put_off: set[str] = field(default_factory=set)
    """Runs whose work said that it is busy; asked again at the next tick."""

    @classmethod
    def now(cls) -> "_Room":
        quotas, schedules, full = Quotas.load(), Counter[str](), set[str]()
        tenants: dict[str, set[str]] = defaultdict(set)
        running = ExpectedRun.objects.filter(state=RunState.RUNNING).order_by()
        for schedule, most, tenant, lane in running.values_list("schedule", "schedule__concurrency", "tenant", "lane"):
            quotas.count(tenant=tenant, lane=lane)
            schedules[schedule] += 1
            tenants[schedule].add(tenant)
            if most and schedules[schedule] >= most:
                full.add(schedule)
        return cls(settings.LASTRO_SCHEDULE_RUNS_MAX - schedules.total(), quotas, schedules, full, tenants)

    def takes(self, run: ExpectedRun) -> bool:
        most = run.schedule.concurrency
        if self.free <= 0 or (most and self.schedules[run.schedule_id] >= most):
            return False
        return self.quotas.free(tenant=run.tenant, lane=run.lane)

    def take(self, run: ExpectedRun) -> None:
        self.free -= 1
        self.schedules[run.schedule_id] += 1
        self.quotas.count(tenant=run.tenant, lane=run.lane, by=1)


def runs_release(*, now: datetime.datetime | None = None) -> int:
    """Let due runs begin until a limit is reached or none is left; how many. Outside any transaction."""
    released, put_off = 0, set[str]()
    for _ in range(1 + settings.LASTRO_SCHEDULE_RUNS_MAX // BATCH_MAX):
        with transaction.atomic():
            scheduler_lock()
            begun = _batch(now or clock.catalogue_now(), put_off)
        kill_point("schedule.released")
        released += begun
        if begun < BATCH_MAX:
            break
    return released


def _batch(now: datetime.datetime, put_off: set[str]) -> int:
    room = _Room.now()
    room.put_off = put_off
    begun = 0
    if room.free <= 0 or room.quotas.all_taken:
        return begun
    for run in _candidates(now, room):
        if begun == BATCH_MAX or room.free <= 0:
            break
        if room.takes(run) and _begin(run, now, room):
            begun += 1
    return begun


def _candidates(now: datetime.datetime, room: _Room) -> list[ExpectedRun]:
    """Who waits, in order; without those that a limit stops already, so that they hide nobody behind them.

    Of several times that wait for one tenant the newest; the others are given up when it begins.
    """
    waiting = ExpectedRun.objects.filter(state=RunState.EXPECTED, due_at__lte=now)
    rows = waiting.exclude(schedule__in=room.full) if room.full else waiting
    # Plain lists instead of subqueries: a database that does not know yet how its tables have grown plans these well, too.
    for schedule_id, tenants in room.running.items():
        rows = rows.exclude(schedule=schedule_id, tenant__in=tenants)
    rows = rows.exclude(lane__in=lanes) if (lanes := room.quotas.full_lanes()) else rows
    rows = rows.exclude(tenant__in=tenants) if (tenants := set(room.quotas.full_tenants())) else rows
    rows = rows.exclude(pk__in=room.put_off) if room.put_off else rows
    found = rows.select_related("schedule").order_by("priority", "rank_at", "due_at", "pk")[:LOOKED_AT_MAX]
    first: dict[tuple[str, str], ExpectedRun] = {}
    for run in found:
        first.setdefault((run.schedule_id, run.tenant), run)
    same = waiting.filter(tenant__in={tenant for _, tenant in first}, schedule__in={schedule for schedule, _ in first})
    for run in same.select_related("schedule"):
        known = first.get((run.schedule_id, run.tenant))
        if known is not None and run.planned_for > known.planned_for:
            first[run.schedule_id, run.tenant] = run
    return list(first.values())


def _begin(run: ExpectedRun, now: datetime.datetime, room: _Room) -> bool:
    """Begin one run; False when it stays expected. Whatever its work raises ends this run and no other."""
    try:
        with transaction.atomic():
            older_missed(run, now=now)
            run_to(run, RunState.RUNNING, actor=ACTOR, released_at=now, attempts=1)
            begun = _asked(run)
            if begun.operation_id:
                ExpectedRun.objects.filter(pk=run.pk).update(operation_id=begun.operation_id)
            else:
                run_to(run, RunState.OK, actor=ACTOR, reason=begun.note, ended_at=now, note=begun.note[:NOTE_CHARS_MAX])
            turn_taken(run, now)
            kill_point("schedule.begun")
    except Busy:
        room.put_off.add(run.pk)
        return False
    except StateConflict:
        return False
    except Withdrawn:
        ExpectedRun.objects.filter(pk=run.pk, state=RunState.EXPECTED).delete()
        return False
    except DatabaseError:
        raise
    except LastroError as error:
        _failed(run, error.code, error.message, now)
        return True
    except Exception as error:
        log.exception("run %s of %s could not begin", run.pk, run.schedule_name)
        _failed(run, "internal.error", f"unforeseen {type(error).__name__}; the log has the rest", now)
        return True
    if begun.operation_id:
        room.take(run)
    return True


def _asked(run: ExpectedRun) -> Begun:
    schedule = run.schedule
    work = works().get(run.work)
    if work is None:
        raise Withdrawn(f"nothing here knows the work {run.work}")
    said = f"schedule {schedule.name}, {run.planned_for:%Y-%m-%d %H:%M} UTC{', made up for' if run.catch_up else ''}"
    with priority_set(run.priority):
        return work.begin(Order(run.tenant, schedule.params, schedule.selection, run.full, ACTOR, said))


def _failed(run: ExpectedRun, code: str, message: str, now: datetime.datetime) -> None:
    with transaction.atomic():
        run.refresh_from_db()
        note = f"it could not begin: {message}"[:NOTE_CHARS_MAX]
        run_to(
            run, RunState.FAILED, actor=ACTOR, reason=code, released_at=now, ended_at=now, error_code=code, note=note
        )
        turn_taken(run, now)
        record(
            "schedule.failed",
            message=f"a run of {run.schedule_name} could not begin: {code}",
            actor=ACTOR,
            tenant=run.tenant,
            level="error",
            data={"schedule": run.schedule_name, "run": run.pk, "error": code},
        )
