"""The planner on a held clock: what is expected, what begins, what is missed, and that nothing is lost or done twice."""

import datetime
import itertools
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from django.db import connection
from django.db.models import Count

from audit.models import Entry
from core import clock
from core.errors import Conflict, NotFound
from core.models import StateChange
from engine.errors import UsageError
from operations.history import history_forget
from operations.models import ExpectedRun, Operation, Schedule
from operations.quotas import quota_set
from operations.scheduling import services
from operations.scheduling.releasing import runs_release
from operations.scheduling.selectors import (
    run_counts,
    run_list,
    runs_missed,
    runs_overdue,
    schedule_get,
    scheduler_last_tick,
    scheduler_stalled,
    schedules_unplanned,
)
from operations.scheduling.services import ScheduleWish
from operations.scheduling.ticking import scheduler_tick, scheduler_tick_due
from tests.apps.clockwork import ACTOR, MINUTE, Clockwork
from tests.apps.work import handlers, works  # noqa: F401 - register the made-up work
from tests.conftest import scale

pytestmark = pytest.mark.django_db(transaction=True)

EVENING = datetime.datetime(2026, 11, 21, 22, 0, tzinfo=datetime.UTC)
"""A Saturday."""
HOUR, DAY = datetime.timedelta(hours=1), datetime.timedelta(days=1)


@pytest.fixture
def house() -> Iterator[Clockwork]:
    with clock.held(EVENING) as advance:
        yield Clockwork(advance)


def _states(**expected: int) -> Counter[str]:
    return Counter(expected)


def test_a_run_is_there_before_it_happens_and_ends_once(house: Clockwork) -> None:
    """Goal: what is to come can be seen, and how it went; three tenants, one night."""
    house.tenants(3)
    row = house.schedule(full="sun", jitter_seconds=600)
    house.tick()
    assert house.states() == _states(), "midnight lies beyond the horizon"
    house.advance(HOUR)
    house.tick()
    assert house.states() == _states(expected=3)
    runs = run_list(schedule=row)
    assert {run.planned_for for run in runs} == {EVENING + 2 * HOUR}
    assert len({run.due_at for run in runs}) == 3 and all(run.full for run in runs)
    house.go(HOUR + 12 * MINUTE)
    assert house.states() == _states(ok=3)
    assert [run.note for run in run_list(schedule=row, states=["missed"])] == []
    for run in run_list(schedule=row):
        steps = StateChange.objects.filter(subject_id=run.pk).values_list("from_state", "to_state")
        assert list(steps) == [("expected", "running"), ("running", "ok")]
        assert run.released_at is not None and run.released_at >= run.due_at
        assert Operation.objects.get(pk=run.operation_id).params["full"] is True
    house.go(DAY + HOUR, step=30 * MINUTE)
    assert house.states() == _states(ok=6)
    assert Operation.objects.filter(params__full=False).count() == 3, "incremental on Monday"
    assert run_counts(now=clock.now(), since=EVENING).ended == {"ok": 6}


def test_an_outage_is_made_up_for_once_the_stalest_first(house: Clockwork) -> None:
    """Goal: after days without a planner each tenant runs once, missed ones say so; one tenant had its turn later."""
    house.tenants(4)
    row = house.schedule()
    house.go(3 * HOUR, step=10 * MINUTE)
    assert house.states() == _states(ok=4)
    services.schedule_run(row, tenants=["t00002"], actor=ACTOR)
    house.go(10 * MINUTE)
    house.begun.clear()
    house.order.clear()
    house.workers = 1
    house.advance(5 * DAY)
    house.tick()
    house.go(10 * MINUTE)
    assert house.begun == {f"t{number:05}": 1 for number in range(4)}
    assert house.order[-1] == "t00002", "whose turn was last comes last"
    assert house.states() == _states(ok=9, missed=16)
    assert {(run.occurrences, run.error_code) for run in runs_missed(since=EVENING + DAY)} == {(4, "schedule.outage")}
    assert all(run.catch_up for run in run_list(schedule=row)[:4])
    entry = Entry.objects.get(type="schedule.missed")
    assert entry.data["count"] == 4 and entry.data["code"] == "schedule.outage"


def test_a_full_backup_that_was_missed_is_made_up_for(house: Clockwork) -> None:
    """Goal: a Sunday in an outage still has its full backup; be away from Saturday to Tuesday."""
    house.tenants(1)
    house.schedule(full="sun")
    house.tick()
    house.advance(3 * DAY)
    house.tick()
    assert [each.params["full"] for each in Operation.objects.all()] == [True]


def test_who_waits_in_vain_is_missed_and_goes_first_next_time(house: Clockwork) -> None:
    """Goal: nobody starves where too little may run; eight tenants, one slot, every run an hour, a schedule of four hours."""
    house.tenants(8)
    house.workers, house.takes = 1, HOUR
    house.schedule("0 */4 * * *", concurrency=1)
    house.go(DAY, step=20 * MINUTE)
    counts = house.begun
    assert max(counts.values()) - min(counts.values()) <= 1 and len(counts) == 8, counts
    missed = ExpectedRun.objects.filter(state="missed")
    assert {run.error_code for run in missed} == {"schedule.superseded"} and missed.count() > 8
    assert house.busiest == 1


def test_two_runs_of_one_tenant_never_overlap(house: Clockwork) -> None:
    """Goal: a backup longer than its interval is not doubled; runs of five hours, expected every hour."""
    house.tenants(1)
    house.takes = 5 * HOUR
    house.schedule("0 * * * *")
    house.go(DAY, step=10 * MINUTE)
    assert ExpectedRun.objects.filter(state="running").count() <= 1
    assert house.begun["t00000"] == 5
    spans = list(ExpectedRun.objects.filter(state="ok").order_by("released_at").values_list("released_at", "ended_at"))
    assert all(ended <= begun for (_, ended), (begun, _) in itertools.pairwise(spans))


def test_what_is_late_is_left_out_where_asked(house: Clockwork) -> None:
    """Goal: a nightly job does not run at noon; an outage over midnight with `skip`."""
    house.tenants(2)
    row = house.schedule(catch_up="skip", late_seconds=3_600)
    house.go(HOUR, step=10 * MINUTE)
    house.advance(12 * HOUR)
    house.tick()
    assert house.states() == _states(missed=2)
    assert {run.error_code for run in run_list(schedule=row)} == {"schedule.late"}


def test_limits_hold_and_hide_nobody(house: Clockwork) -> None:
    """Goal: a full store does not stop tenants of another; quotas of stores, of all, and of the schedule."""
    house.tenants(40)
    house.workers, house.takes = 100, 30 * MINUTE
    row = house.schedule(concurrency=7)
    quota_set("store", "", 3, actor=ACTOR)
    quota_set("store", "s1", 1, actor=ACTOR)
    house.go(2 * HOUR + MINUTE)
    running = ExpectedRun.objects.filter(state="running")
    lanes = dict(running.order_by().values_list("lane").annotate(Count("pk")))
    assert running.count() == 7 and max(lanes.values()) <= 3 and lanes.get("s1", 0) <= 1
    services.schedule_set(row, {"concurrency": 0}, actor=ACTOR)
    house.go(2 * MINUTE)
    lanes = dict(running.order_by().values_list("lane").annotate(Count("pk")))
    assert lanes == {"s0": 3, "s1": 1, "s2": 3, "s3": 3}
    quota_set("store", "s1", 0, actor=ACTOR)
    house.go(10 * HOUR, step=10 * MINUTE)
    waiting = ExpectedRun.objects.filter(state="expected", due_at__lte=clock.now())
    assert {run.lane for run in waiting} == {"s1"}, "a store that may take nothing keeps its own tenants only"


def test_at_most_so_many_are_handed_out(house: Clockwork, settings: pytest.FixtureRequest) -> None:
    """Goal: the night's work does not become a queue of ten thousand; the limit over all schedules."""
    settings.LASTRO_SCHEDULE_RUNS_MAX = 5
    house.tenants(30)
    house.workers = 0
    house.schedule()
    house.go(2 * HOUR + MINUTE, step=MINUTE * 11)
    assert Operation.objects.count() == 5
    assert runs_overdue(now=clock.now(), by=datetime.timedelta())[0].state == "expected"


def test_pause_change_and_removal(house: Clockwork) -> None:
    """Goal: the operator's word counts at once; pause with an end, change, remove, and look at what was expected."""
    house.tenants(2)
    row = house.schedule()
    house.go(HOUR, step=30 * MINUTE)
    assert house.states() == _states(expected=2)
    services.schedule_pause(row, until=EVENING + 2 * DAY, actor=ACTOR, reason="migration")
    assert house.states() == _states(), "what lay ahead is taken back"
    house.go(2 * DAY - HOUR, step=HOUR)
    assert house.states() == _states() and schedule_get("nightly").paused_at is None
    house.go(3 * HOUR, step=10 * MINUTE)
    assert house.states() == _states(ok=2), "after the pause the next time counts, and no other"
    row = services.schedule_set(schedule_get("nightly"), {"cron": "30 2 * * *"}, actor=ACTOR)
    house.go(HOUR, step=10 * MINUTE)
    assert {run.planned_for.minute for run in run_list(states=["expected"])} == {30}
    house.workers = 0
    house.go(HOUR, step=10 * MINUTE)
    assert house.states() == _states(ok=2, running=2)
    services.schedule_remove(schedule_get("nightly"), actor=ACTOR)
    with pytest.raises(NotFound):
        schedule_get("nightly")
    house.workers = 2
    house.go(DAY, step=HOUR)
    assert house.states() == _states(ok=4), "what ran went on, nothing new came"
    told = set(Entry.objects.filter(type__startswith="schedule.").values_list("type", flat=True))
    assert told >= {"schedule.added", "schedule.paused", "schedule.resumed", "schedule.changed", "schedule.removed"}
    house.schedule()  # Its name is free again.


def test_what_waits_at_a_pause_is_missed(house: Clockwork) -> None:
    """Goal: no run is lost in silence; pause while runs are due and cannot begin."""
    house.tenants(2)
    row = house.schedule(concurrency=1)
    house.workers = 0
    house.go(2 * HOUR + MINUTE, step=MINUTE * 11)
    services.schedule_pause(row, until=None, actor=ACTOR)
    assert house.states() == _states(running=1, missed=1)
    with pytest.raises(UsageError, match="no end of a pause"):
        services.schedule_pause(row, until=EVENING - DAY, actor=ACTOR)
    services.schedule_resume(row, actor=ACTOR)
    with pytest.raises(Conflict, match="not paused"):
        services.schedule_resume(schedule_get("nightly"), actor=ACTOR)


def test_tenants_that_come_late_are_expected_too(house: Clockwork) -> None:
    """Goal: a tenant added within the horizon has its run tonight; add one at half past eleven."""
    house.tenants(2)
    house.schedule()
    house.go(90 * MINUTE, step=10 * MINUTE)
    house.tenants(3)
    house.go(HOUR, step=10 * MINUTE)
    assert house.states() == _states(ok=3)


def test_work_that_fails_or_finds_nothing(house: Clockwork) -> None:
    """Goal: each end is told apart; nothing to do, an operation that fails, a work that cannot begin."""
    house.tenants(1)
    nothing = house.schedule(name="nothing", params={"how": "nothing"})
    burst = house.schedule(name="burst", params={"how": "burst"})
    house.schedule(name="broken")
    Schedule.objects.filter(name="broken").update(selection={"tenants": ["broken"]})
    house.go(2 * HOUR + MINUTE, step=MINUTE * 11)
    assert [(run.state, run.note) for run in run_list(schedule=nothing)] == [("ok", "nothing to do")]
    (run,) = run_list(schedule=burst)
    assert (run.state, run.error_code) == ("failed", "internal.error") and "hunter2" not in run.note
    assert [row.name for row in schedules_unplanned(now=clock.now() + HOUR)] == ["broken"], "and it stops no other"


def test_a_lost_worker_is_made_up_for_and_given_up_at_last(house: Clockwork) -> None:
    """Goal: a killed worker costs a tenant nothing, and a poisoned one does not go on for ever; lose every worker."""
    house.tenants(1)
    row = house.schedule()
    house.go(2 * HOUR + MINUTE, step=MINUTE * 11)
    for attempt in range(1, 4):
        run = run_list(schedule=row)[0]
        assert (run.state, run.attempts) == ("running", attempt)
        house.running.clear()
        Operation.objects.filter(pk=run.operation_id).update(state="lost", finished_at=clock.now())
        house.advance(MINUTE)
        house.tick()
    run = run_list(schedule=row)[0]
    assert (run.state, run.note) == ("failed", "its worker was lost")
    assert Operation.objects.count() == 3


def test_a_clock_that_jumps(house: Clockwork) -> None:
    """Goal: no night is lost by a clock that was wrong for an hour; set it a month ahead, then back."""
    house.tenants(3)
    house.schedule()
    house.tick()
    house.advance(30 * DAY, step=True)
    house.tick()
    assert house.begun.total() == 3, "it looks like an outage: each once"
    house.advance(-30 * DAY, step=True)
    house.go(10 * MINUTE)
    house.running.clear()
    Operation.objects.filter(state="running").update(state="succeeded", finished_at=clock.now())
    house.begun.clear()
    house.go(3 * HOUR, step=10 * MINUTE)
    assert house.begun == {"t00000": 1, "t00001": 1, "t00002": 1}, "tonight comes all the same"
    house.go(3 * DAY, step=HOUR)
    assert set(house.begun.values()) == {4}
    assert not ExpectedRun.objects.filter(state="missed").exists(), "what never passed was never missed"
    assert Entry.objects.filter(type="schedule.clock_jumped").count() == 2


def test_two_planners_at_once_do_the_work_of_one(house: Clockwork) -> None:
    """Goal: two machines plan without doubling; four threads tick and release together at midnight."""
    house.tenants(30)
    house.schedule()
    house.go(2 * HOUR, step=30 * MINUTE)
    ExpectedRun.objects.all().delete()
    Operation.objects.all().delete()
    Schedule.objects.update(next_at=EVENING + 2 * HOUR)
    errors: list[BaseException] = []

    def planner() -> None:
        try:
            scheduler_tick()
            runs_release()
        except BaseException as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=planner) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert house.states() == _states(running=30)
    per_tenant = Counter(Operation.objects.values_list("tenant", flat=True))
    assert set(per_tenant.values()) == {1} and len(per_tenant) == 30


def test_the_last_tick_tells_whether_anybody_plans(house: Clockwork) -> None:
    """Goal: an alarm that does not depend on the planner has something to look at; tick, stop, look."""
    assert scheduler_last_tick() is None and not scheduler_stalled(now=clock.now()), "nothing to plan"
    house.schedule()
    assert scheduler_stalled(now=clock.now())
    scheduler_tick()
    assert scheduler_tick_due() is None, "somebody just did"
    assert scheduler_last_tick() == EVENING and not scheduler_stalled(now=clock.now())
    house.advance(6 * MINUTE)
    assert scheduler_stalled(now=clock.now()) and scheduler_tick_due() is not None


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"cron": "* * * * *"}, "more often than every five minutes"),
        ({"zone": "Europe/Atlantis"}, "there is no time zone 'Europe/Atlantis'"),
        ({"work": "nothing"}, "there is no work 'nothing'"),
        ({"jitter_seconds": 86_401}, "jitter is 86401"),
        ({"priority": 100}, "priority is 100"),
        ({"selection": {"classes": ["critical"]}}, "cannot be chosen by classes"),
        ({"catch_up": "twice"}, "no way to catch up"),
        ({"full": "sunday"}, "is no day"),
    ],
)
def test_a_bad_wish_is_refused(house: Clockwork, wish: dict[str, object], said: str) -> None:
    """Goal: every door is checked; wishes with one thing wrong."""
    with pytest.raises(UsageError, match=said):
        services.schedule_add("x", ScheduleWish(**{"work": "test.clock", "cron": "0 0 * * *", **wish}), actor=ACTOR)  # type: ignore[arg-type]
    assert not Schedule.objects.exists()


def test_names_are_unique_and_plain(house: Clockwork) -> None:
    """Goal: a schedule can be typed; bad names, and one that is taken."""
    house.schedule()
    with pytest.raises(Conflict, match="already"):
        house.schedule(name="NIGHTLY")
    for bad in ("", "-x", "a b", "x" * 81, "a/b"):
        with pytest.raises(UsageError, match="no name for a schedule"):
            house.schedule(name=bad)


def test_old_runs_are_forgotten(house: Clockwork) -> None:
    """Goal: rows stay bounded; run for a while, be past the term, forget."""
    house.tenants(2)
    house.schedule()
    house.go(3 * DAY, step=HOUR)
    kept = ExpectedRun.objects.filter(ended_at__gte=clock.now() - DAY).count()
    house.advance(89 * DAY)
    gone = history_forget(actor=ACTOR)
    assert gone["expected runs"] == 4 and ExpectedRun.objects.count() == kept


def test_a_month(house: Clockwork, settings: pytest.FixtureRequest) -> None:
    """Goal: every run ends in exactly one final state and nobody starves; a month of tenants, with outages and jitter.

    LASTRO_TEST_SCALE=80 makes it a thousand tenants.
    """
    tenants, days = max(6, min(1_000, 12 * scale() - 6)), 30
    house.tenants(tenants)
    settings.LASTRO_SCHEDULE_RUNS_MAX = tenants
    house.workers, house.takes = max(3, tenants // 3), 20 * MINUTE
    row = house.schedule(full="sun", jitter_seconds=1_800, zone="Europe/Lisbon", concurrency=house.workers)
    began = clock.now()
    for day in range(days):
        if day % 7 == 3:
            house.advance(30 * HOUR)  # Nobody plans for more than a day.
            house.tick()
            house.go(DAY - 6 * HOUR, step=6 * HOUR)
        else:
            house.go(DAY, step=6 * HOUR)
    house.go(DAY - 2 * HOUR, step=2 * HOUR)
    passed = (clock.now() - began + 22 * HOUR).days
    ended = StateChange.objects.filter(to_state__in=("ok", "missed", "failed", "warned"))
    assert set(Counter(ended.values_list("subject_id", flat=True)).values()) == {1}
    runs = ExpectedRun.objects.filter(schedule=row)
    assert not runs.filter(state__in=("running", "expected"), due_at__lte=clock.now()).exists()
    per_tenant: Counter[str] = Counter()
    for tenant, occurrences in runs.filter(due_at__lte=clock.now()).values_list("tenant", "occurrences"):
        per_tenant[tenant] += occurrences
    assert len(per_tenant) == tenants and set(per_tenant.values()) == {passed}, "each night stands in one row"
    done = Counter(runs.filter(state="ok").values_list("tenant", flat=True))
    assert min(done.values()) >= passed - 1 - len(range(3, days, 7)), "nobody starved"
    assert house.busiest <= house.workers
