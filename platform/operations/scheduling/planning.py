"""Which runs are to be expected of a schedule, and when each tenant's begins. Pure: no queries, no clock."""

import datetime
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from operations.scheduling.cron import cron_read, times_from
from operations.scheduling.days import days_rule

HORIZON = datetime.timedelta(hours=1)
"""So far ahead runs are rows before they happen."""
AHEAD_MAX = 2
"""Times of one schedule that are planned ahead: one every five minutes must not fill the hour for every tenant."""
PAST_MAX = 110_000
"""Times passed over in one outage that are counted: a year of one every five minutes."""
LATE_AFTER = datetime.timedelta(minutes=5)
"""A time that passed unplanned for less than this was met by a tick that was a little late."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What of a schedule decides its times."""

    cron: str
    zone: str
    full: str = ""


@dataclass(frozen=True, slots=True)
class Slot:
    """One time for which every tenant of the schedule gets a row."""

    planned_for: datetime.datetime
    occurrences: int = 1
    full: bool = False
    catch_up: bool = False
    given_up: bool = False
    """Nobody planned it in time, and the next one makes up for it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The slots to be made into rows, in order, and the first time that has none yet."""

    slots: tuple[Slot, ...]
    next_at: datetime.datetime


def plan(rule: Rule, *, next_at: datetime.datetime, now: datetime.datetime) -> Plan:
    """Plan the times from `next_at` to the horizon.

    Of the times that have passed without being planned the newest is caught up with; those before it become one slot that
    counts them, and is missed. If any of them was to be full, so is the one that catches up.
    """
    zone, is_full = ZoneInfo(rule.zone), days_rule(rule.full)

    def full(at: datetime.datetime) -> bool:
        return is_full(at.astimezone(zone).date())

    past: list[datetime.datetime] = []
    ahead: list[datetime.datetime] = []
    following = next_at
    until = min(now + HORIZON, next_times(rule, after=now, count=AHEAD_MAX)[-1])
    for at in times_from(cron_read(rule.cron), zone, next_at):
        following = at
        if at <= now and len(past) < PAST_MAX:
            past.append(at)
        elif at > until:
            break
        else:
            ahead.append(at)
    slots = []
    if len(past) > 1:
        slots.append(Slot(past[0], len(past) - 1, any(map(full, past[:-1])), catch_up=True, given_up=True))
    if past:
        late = len(past) > 1 or now - past[-1] > LATE_AFTER
        slots.append(Slot(past[-1], 1, any(map(full, past)), catch_up=late))
    slots += [Slot(at, 1, full(at)) for at in ahead]
    return Plan(tuple(slots), following)


def jitter(schedule_id: str, tenant: str, seconds: int) -> datetime.timedelta:
    """How long after the schedule's time this tenant's run begins: below `seconds`, whole seconds, always the same."""
    digest = hashlib.sha256(f"{schedule_id}:{tenant}".encode()).digest()
    return datetime.timedelta(seconds=int.from_bytes(digest[:8], "big") * seconds >> 64)


def next_times(rule: Rule, *, after: datetime.datetime, count: int) -> list[datetime.datetime]:
    """The next `count` times, in UTC."""
    times: Iterable[datetime.datetime] = times_from(
        cron_read(rule.cron), ZoneInfo(rule.zone), after + datetime.timedelta(microseconds=1)
    )
    return [at for _, at in zip(range(count), times, strict=False)]
