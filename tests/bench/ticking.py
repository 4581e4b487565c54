"""The planner over many tenants, in an installation of its own: run as `python -m tests.bench.ticking COUNT` in its environment.

Prints one JSON object: milliseconds of ticks by situation, and how many rows each made. The clock is held; the tenants are
rows alone, so nothing is backed up: what begins waits as a queued operation, as it would for a worker.
"""

import datetime
import json
import os
import sys
import time
from typing import Any

from tests.bench.programs import ROOT

sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

DAY = datetime.timedelta(days=1)
HOUR = datetime.timedelta(hours=1)
SATURDAY = datetime.datetime(2026, 11, 21, 12, 0, tzinfo=datetime.UTC)
CATEGORIES = ("database", "assets", "configurations")


def main(count: str) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    import django

    django.setup()
    from core import clock

    with clock.held(SATURDAY) as advance:
        _fill(int(count))
        print(json.dumps(_measure(advance)))


def _fill(count: int) -> None:
    from core.ids import new_id
    from operations.scheduling.services import ScheduleWish, schedule_add
    from tenants.models import Source, StoreConfig, Tenant

    store = StoreConfig.objects.create(name="main", kind="local", is_default=True)
    tenants = [
        Tenant(slug=f"t{number:05}", name=f"Tenant {number}", store=store, repository_id=new_id("rep"), keyring=b"k")
        for number in range(count)
    ]
    Tenant.objects.bulk_create(tenants, batch_size=1_000)
    Source.objects.bulk_create(
        [Source(tenant=each, name=name, kind="files", category=name) for each in tenants for name in CATEGORIES],
        batch_size=1_000,
    )
    for name, cron, category in (
        ("db", "0 */4 * * *", "database"),
        ("assets", "0 0 * * *", "assets"),
        ("conf", "0 0 * * 0", "configurations"),
    ):
        wish = ScheduleWish("backup", cron, full="sun", jitter_seconds=900, selection={"categories": [category]})
        schedule_add(name, wish, actor="bench")


def _measure(advance: Any) -> dict[str, Any]:
    from operations.models import ExpectedRun, Operation
    from tenants.objective_selectors import objectives_breached

    found: dict[str, Any] = {}

    def tick(name: str) -> None:
        from operations.scheduling.ticking import scheduler_tick

        began, used = time.perf_counter(), time.process_time()
        ticked = scheduler_tick()
        found.setdefault(name, []).append(
            {
                "s": time.perf_counter() - began,
                "cpu_s": time.process_time() - used,
                "planned": ticked.planned,
                "missed": ticked.missed,
                "released": ticked.released,
            }
        )

    tick("first")
    for _ in range(5):
        advance(datetime.timedelta(minutes=1))
        tick("nothing to do")
    for hours in (3, 7):  # The databases' times before midnight are planned, and begin, as they come.
        advance(SATURDAY + hours * HOUR - _now())
        tick("one schedule planned for all")
    advance(SATURDAY + 11 * HOUR - _now())
    for _ in range(4):
        tick("three schedules to be planned for all")
        advance(datetime.timedelta(minutes=1))
    advance(HOUR + datetime.timedelta(minutes=16))
    for _ in range(6):
        tick("all due, the unserved of before given up")
        advance(datetime.timedelta(minutes=1))
    for _ in range(5):
        tick("all due, none may begin")
        advance(datetime.timedelta(minutes=1))
    ended = Operation.objects.filter(state="queued").update(state="succeeded", finished_at=_now())
    tick("as many end, as many begin")
    Operation.objects.filter(state="queued").update(state="succeeded", finished_at=_now())
    advance(3 * DAY)
    for _ in range(5):
        tick("after three days without a planner")
        advance(datetime.timedelta(minutes=1))
    rows = ExpectedRun.objects.count()
    began = time.perf_counter()
    breached = len(objectives_breached(now=_now()))
    took = time.perf_counter() - began
    return {"ticks": found, "ended": ended, "rows": rows, "sources": breached, "breached_s": took}


def _now() -> datetime.datetime:
    from core import clock

    return clock.now()


if __name__ == "__main__":
    main(*sys.argv[1:])
