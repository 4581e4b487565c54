"""A house full of made-up tenants on a held clock: the planner ticks, made-up workers take what is queued."""

import datetime
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from core import clock
from core.models import Fact
from operations.dispatch import operation_pick
from operations.models import ExpectedRun, Operation, Schedule
from operations.scheduling.following import run_ended
from operations.scheduling.services import ScheduleWish, schedule_add
from operations.scheduling.ticking import Ticked, scheduler_tick
from operations.transitions import operation_to

ACTOR = "test:operator"
CLUSTER = "host:1/"
MINUTE = datetime.timedelta(minutes=1)


@dataclass
class Clockwork:
    """Its workers are as many as `workers`; each operation takes `takes` of the held clock's time."""

    advance: clock.Advance
    workers: int = 8
    takes: datetime.timedelta = 2 * MINUTE
    busiest: int = 0
    running: dict[str, datetime.datetime] = field(default_factory=dict)
    begun: Counter[str] = field(default_factory=Counter)
    order: list[str] = field(default_factory=list)

    def tenants(self, count: int) -> None:
        """So many tenants, t00000 and on, in four stores."""
        Fact.objects.update_or_create(pk="clock.tenants", defaults={"value": str(count)})

    def schedule(self, cron: str = "0 0 * * *", *, name: str = "nightly", **wish: Any) -> Schedule:
        return schedule_add(name, ScheduleWish("test.clock", cron, zone=wish.pop("zone", "UTC"), **wish), actor=ACTOR)

    def tick(self) -> Ticked:
        """Let workers finish and begin what they can, and the planner tick."""
        self.work()
        ticked = scheduler_tick()
        self.work()
        return ticked

    def work(self) -> None:
        """End what has run long enough, then take what waits."""
        now = clock.now()
        for operation_id in [key for key, until in self.running.items() if until <= now]:
            del self.running[operation_id]
            operation = Operation.objects.get(pk=operation_id)
            operation_to(operation, str(operation.params.get("ends", "succeeded")), finished_at=now)
            run_ended(operation_id)
        while len(self.running) < self.workers and (operation := operation_pick(CLUSTER)) is not None:
            operation_to(operation, "running", worker=f"{CLUSTER}9", heartbeat_at=now, started_at=now)
            self.running[operation.pk] = now + self.takes
            self.begun[operation.tenant] += 1
            self.order.append(operation.tenant)
        self.busiest = max(self.busiest, len(self.running))

    def go(self, length: datetime.timedelta, *, step: datetime.timedelta = MINUTE) -> None:
        """Let time pass, with a tick at every step."""
        for _ in range(length // step):
            self.advance(step)
            self.tick()

    def states(self) -> Counter[str]:
        """How many runs are in each state, each counted as often as the times that it stands for."""
        rows = ExpectedRun.objects.values_list("state", "occurrences")
        counts: Counter[str] = Counter()
        for state, occurrences in rows:
            counts[state] += occurrences
        return counts
