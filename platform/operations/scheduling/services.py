"""Schedules made, changed, paused, taken away, and run at once: rows and audit entry in one transaction."""

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import IntegrityError, transaction

from audit.services import record
from core import clock
from core.errors import Conflict, NotFound
from core.tenancy import tenants_unknown
from core.text import reason_checked
from engine.errors import UsageError
from operations import priorities
from operations.models import CatchUp, ExpectedRun, RunState, Schedule
from operations.scheduling.cron import INTERVAL_MIN, cron_read, interval_min, time_next
from operations.scheduling.days import days_read
from operations.scheduling.expecting import runs_withdraw, targets_of
from operations.scheduling.releasing import scheduler_lock
from operations.scheduling.works import Work, work_get

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
JITTER_SECONDS_MAX = 86_400
CONCURRENCY_MAX = 10_000
LATE_SECONDS_MAX = 31 * 86_400
PAUSE_MAX = datetime.timedelta(days=366)
LISTED_MAX = 10_000
KEYS = ("tenants", "classes", "categories", "sources")


@dataclass(frozen=True, slots=True)
class ScheduleWish:
    """What a schedule is to be; see `operations.models.Schedule` for each field."""

    work: str
    cron: str
    zone: str = ""
    full: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    selection: Mapping[str, Sequence[str]] = field(default_factory=dict)
    jitter_seconds: int = 0
    concurrency: int = 0
    priority: int | None = None
    catch_up: str = CatchUp.ONCE
    late_seconds: int = 3_600


def schedule_add(name: str, wish: ScheduleWish, *, actor: str, standing: bool = False) -> Schedule:
    """Make a schedule; its first run is the next time that its expression names.

    Raises UsageError for whatever is wrong with the wish, NotFound for an unknown tenant, Conflict for a taken name.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} is no name for a schedule", hint="letters, digits, . _ -; for example nightly-db"
        )
    fields = _checked(wish)
    try:
        with transaction.atomic():
            row = Schedule(name=name, created_by=actor, standing=standing, next_at=_first(fields), **fields)
            row.save(force_insert=True)
            record(
                "schedule.added",
                message=f"schedule {name}: {row.work} at {row.cron} ({row.zone})",
                actor=actor,
                data={"schedule": row.pk, "name": name, **_told(row)},
            )
    except IntegrityError:
        raise Conflict(f"there is a schedule {name!r} already", hint=f"schedule set {name} changes it") from None
    return row


def schedule_set(row: Schedule, changes: Mapping[str, Any], *, actor: str) -> Schedule:
    """Change fields of a schedule (names of ScheduleWish). What was planned ahead is planned anew; what waits goes on.

    Raises as `schedule_add` does.
    """
    fields = _checked(replace(wish_of(row), **changes))
    before = _told(row)
    now = clock.now()
    with transaction.atomic():
        scheduler_lock()
        ahead = ExpectedRun.objects.filter(schedule=row, state=RunState.EXPECTED, planned_for__gt=now)
        ahead.delete()
        Schedule.objects.filter(pk=row.pk).update(
            **fields, next_at=_first(fields), topup_at=None, standing=False, changed_at=now
        )
        row.refresh_from_db()
        record(
            "schedule.changed",
            message=f"schedule {row.name} changed: {', '.join(sorted(changes)) or 'nothing'}",
            actor=actor,
            data={"schedule": row.pk, "name": row.name, "before": before, "after": _told(row)},
        )
    return row


def schedule_remove(row: Schedule, *, actor: str, reason: str = "") -> int:
    """Expect nothing more of it; how many planned runs were taken back. What runs goes on, what ran stays listed."""
    reason = reason_checked(reason)
    now = clock.now()
    with transaction.atomic():
        scheduler_lock()
        taken, missed = runs_withdraw(row, now=now, why="the schedule was removed", actor=actor)
        Schedule.objects.filter(pk=row.pk).update(removed_at=now)
        record(
            "schedule.removed",
            message=f"schedule {row.name} removed" + (f": {reason}" if reason else ""),
            actor=actor,
            level="warning",
            data={"schedule": row.pk, "name": row.name, "taken_back": taken, "missed": missed, **_told(row)},
        )
    return taken


def schedules_without(tenant: str, *, actor: str) -> int:
    """Take a tenant that is gone out of every schedule that names it; one for it alone is removed. How many named it."""
    named = [row for row in Schedule.objects.filter(removed_at=None) if tenant in row.selection.get("tenants", ())]
    for row in named:
        left = [slug for slug in row.selection["tenants"] if slug != tenant]
        if left:
            Schedule.objects.filter(pk=row.pk).update(selection={**row.selection, "tenants": left})
        else:
            schedule_remove(row, actor=actor, reason="its only tenant is gone")
    return len(named)


def schedule_pause(row: Schedule, *, until: datetime.datetime | None, actor: str, reason: str = "") -> Schedule:
    """Expect nothing of it until a time, or until it is resumed. Runs that wait are given up, those that run go on.

    Raises UsageError for a time that has passed or lies more than a year ahead.
    """
    reason = reason_checked(reason)
    now = clock.now()
    if until is not None and not now < until <= now + PAUSE_MAX:
        raise UsageError(
            f"{until:%Y-%m-%d %H:%M} UTC is no end of a pause",
            hint="a time within the next year, for example 2 days ahead",
        )
    with transaction.atomic():
        scheduler_lock()
        taken, missed = runs_withdraw(row, now=now, why="the schedule was paused", actor=actor)
        Schedule.objects.filter(pk=row.pk).update(
            paused_at=now, paused_until=until, paused_by=actor, paused_reason=reason
        )
        record(
            "schedule.paused",
            message=f"schedule {row.name} paused {f'until {until:%Y-%m-%d %H:%M} UTC' if until else 'until resumed'}",
            actor=actor,
            level="warning",
            data={"schedule": row.pk, "until": until and until.isoformat(), "reason": reason, "taken_back": taken,
                  "missed": missed},
        )  # fmt: skip
    row.refresh_from_db()
    return row


def schedule_resume(row: Schedule, *, actor: str) -> Schedule:
    """End a pause now. Raises Conflict when it is not paused."""
    if row.paused_at is None:
        raise Conflict(f"schedule {row.name} is not paused", hint=f"schedule show {row.name}")
    with transaction.atomic():
        scheduler_lock()
        schedule_resumed(row, at=clock.now(), actor=actor)
    row.refresh_from_db()
    return row


def schedule_resumed(row: Schedule, *, at: datetime.datetime, actor: str) -> None:
    """Expect its times after `at` again; inside the planner's transaction."""
    first = time_next(cron_read(row.cron), ZoneInfo(row.zone), at)
    Schedule.objects.filter(pk=row.pk).update(
        paused_at=None, paused_until=None, paused_by="", paused_reason="", next_at=first, topup_at=None
    )
    record("schedule.resumed", message=f"schedule {row.name} goes on", actor=actor, data={"schedule": row.pk})


def schedule_run(row: Schedule, *, tenants: Sequence[str] = (), actor: str, reason: str = "") -> int:
    """Expect a run now, of all its tenants or of these; the planner lets them begin as limits allow. How many.

    Raises NotFound for a tenant that the schedule is not for, Conflict when there is nobody to run it for.
    """
    reason = reason_checked(reason)
    targets = targets_of(row, work_get(row.work))
    known = {target.tenant for target in targets}
    strangers = [slug for slug in tenants if slug not in known]
    if strangers:
        raise NotFound(
            f"schedule {row.name} is not for {strangers[0][:60]!r}",
            hint=f"schedule show {row.name} tells whom it is for",
        )
    if not targets:
        raise Conflict(f"there is nobody to run {row.name} for", hint="source add gives a tenant something to back up")
    now = clock.now()
    with transaction.atomic():
        scheduler_lock()
        rows = [
            ExpectedRun(
                schedule=row, schedule_name=row.name, work=row.work, tenant=target.tenant, lane=target.lane,
                planned_for=now, due_at=now, priority=min(row.priority, priorities.ASKED),
            )
            for target in targets if not tenants or target.tenant in tenants
        ]  # fmt: skip
        ExpectedRun.objects.bulk_create(rows, batch_size=1_000)
        record(
            "schedule.run",
            message=f"schedule {row.name} to be run now for {len(rows)}",
            actor=actor,
            tenant=rows[0].tenant if len(rows) == 1 else "",
            data={"schedule": row.pk, "count": len(rows), "reason": reason},
        )
    return len(rows)


# ---------------------------------------------------------------- what a schedule may be


def wish_of(row: Schedule) -> ScheduleWish:
    """The schedule as it would be asked for."""
    return ScheduleWish(
        row.work, row.cron, row.zone, row.full, row.params, row.selection, row.jitter_seconds, row.concurrency, row.priority,
        row.catch_up, row.late_seconds,
    )  # fmt: skip


def _told(row: Schedule) -> dict[str, Any]:
    return asdict(wish_of(row))


def _checked(wish: ScheduleWish) -> dict[str, Any]:
    work = work_get(wish.work)
    cron, zone = cron_read(wish.cron), wish.zone or settings.LASTRO_RETENTION_ZONE
    zone_checked(zone)
    if interval_min(cron, ZoneInfo(zone), clock.now()) < INTERVAL_MIN:
        raise UsageError(
            f"{cron.text!r} comes more often than every five minutes", hint='every five minutes is "*/5 * * * *"'
        )
    full = days_read(wish.full)
    if full and not work.fulls:
        raise UsageError(f"{work.name} is never full", hint="leave --full out")
    if wish.catch_up not in CatchUp.values:
        raise UsageError(f"{wish.catch_up[:20]!r} is no way to catch up", hint="once or skip")
    return {
        "work": work.name,
        "cron": cron.text,
        "zone": zone,
        "full": full,
        "params": work.params(wish.params),
        "selection": _selection_checked(work, wish.selection),
        "jitter_seconds": _within("jitter", wish.jitter_seconds, JITTER_SECONDS_MAX),
        "concurrency": _within("concurrency", wish.concurrency, CONCURRENCY_MAX),
        "priority": _within("priority", work.priority if wish.priority is None else wish.priority, priorities.MOST),
        "catch_up": wish.catch_up,
        "late_seconds": _within("late", wish.late_seconds, LATE_SECONDS_MAX),
    }


def _within(name: str, value: int, most: int) -> int:
    if not 0 <= value <= most:
        raise UsageError(f"{name} is {value}, and can be 0 to {most}")
    return value


def zone_checked(zone: str) -> None:
    """Raise UsageError when there is no such time zone."""
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError):
        raise UsageError(
            f"there is no time zone {zone[:60]!r}",
            hint="a name of the IANA data base, for example Europe/Lisbon or UTC",
        ) from None


def _selection_checked(work: Work, selection: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    chosen = {key: list(dict.fromkeys(values)) for key, values in selection.items() if values}
    wrong = sorted(set(chosen) - work.selects)
    if wrong:
        raise UsageError(f"{work.name} cannot be chosen by {wrong[0]}", hint=_selects_hint(work))
    if any(len(values) > LISTED_MAX for values in chosen.values()):
        raise UsageError(f"a schedule names {LISTED_MAX} at the most", hint="leave the list out: it is then for all")
    unknown = tenants_unknown(chosen.get("tenants", []))
    if unknown:
        raise NotFound(f"there is no tenant {unknown[0][:60]!r}", hint="tenant list shows them")
    return chosen


def _selects_hint(work: Work) -> str:
    if not work.selects:
        return "it is done for the whole installation at once"
    return f"it can be chosen by {', '.join(key for key in KEYS if key in work.selects)}"


def _first(fields: Mapping[str, Any]) -> datetime.datetime:
    return time_next(cron_read(fields["cron"]), ZoneInfo(fields["zone"]), clock.now())
