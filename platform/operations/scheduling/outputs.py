"""Schedules and expected runs as the command line and the API give them."""

import datetime
from collections.abc import Mapping
from typing import Any
from zoneinfo import ZoneInfo

from core import clock
from operations.models import ExpectedRun, Schedule
from operations.scheduling.cron import cron_words
from operations.scheduling.days import days_words
from operations.scheduling.expecting import rule_of
from operations.scheduling.planning import next_times
from operations.scheduling.works import works

NEXT_COUNT = 5


def schedule_line(row: Schedule) -> dict[str, Any]:
    """A schedule in a list."""
    return {
        "name": row.name,
        "work": row.work,
        "cron": row.cron,
        "zone": row.zone,
        "for": _for(row.selection),
        "next_run": next_of(row, count=1)[0] if row.paused_at is None else None,
        "paused": row.paused_at is not None,
    }


def schedule_json(row: Schedule) -> dict[str, Any]:
    """All of a schedule, with its next five times."""
    return {
        "id": row.pk,
        "name": row.name,
        "work": row.work,
        "params": row.params,
        "selection": row.selection,
        "cron": row.cron,
        "zone": row.zone,
        "words": cron_words(row.cron),
        "full": row.full,
        "jitter_s": row.jitter_seconds,
        "concurrency": row.concurrency,
        "priority": row.priority,
        "catch_up": row.catch_up,
        "late_s": row.late_seconds,
        "paused": _paused(row),
        "standing": row.standing,
        "next_runs": next_of(row, count=NEXT_COUNT),
        "created_at": row.created_at,
        "created_by": row.created_by,
    }


def _paused(row: Schedule) -> dict[str, Any] | None:
    if row.paused_at is None:
        return None
    return {"since": row.paused_at, "until": row.paused_until, "by": row.paused_by, "reason": row.paused_reason}


def next_of(row: Schedule, *, count: int) -> list[datetime.datetime]:
    """The next times of a schedule, those of a paused one after its pause."""
    after = max(clock.now(), row.paused_until or clock.now())
    return next_times(rule_of(row), after=after, count=count)


def schedule_text(row: Schedule) -> list[str]:
    """A schedule for people."""
    zone = ZoneInfo(row.zone)
    fulls = row.work in works() and works()[row.work].fulls
    lines = [
        f"{row.name}: {row.work}{f', {days_words(row.full)}' if fulls else ''}",
        f"  {cron_words(row.cron)} ({row.cron}), time zone {row.zone}",
        f"  for {_for(row.selection)}",
    ]
    told = {
        "tenants begin up to that much later (s)": row.jitter_seconds,
        "at once at most": row.concurrency,
        "with": ", ".join(f"{key}={value}" for key, value in sorted(row.params.items())),
    }
    lines += [f"  {name}: {value}" for name, value in told.items() if value]
    if row.catch_up == "skip":
        lines.append(f"  what cannot begin within {row.late_seconds} s is left out")
    if row.paused_at is not None:
        until = f"until {row.paused_until:%Y-%m-%d %H:%M} UTC" if row.paused_until else "until resumed"
        lines.append(f"  paused {until} by {row.paused_by}{f': {row.paused_reason}' if row.paused_reason else ''}")
    if row.paused_at is None or row.paused_until is not None:
        lines.append("  next:")
        lines += [f"    {moment_words(at, zone)}" for at in next_of(row, count=NEXT_COUNT)]
    return lines


def moment_words(at: datetime.datetime, zone: ZoneInfo) -> str:
    """An instant in a zone, with the offset that tells apart what comes twice: `Sun 2026-10-25 01:30 +01:00`."""
    local = at.astimezone(zone)
    return f"{local:%a %Y-%m-%d %H:%M} {local.isoformat()[-6:]}"


def _for(selection: Mapping[str, Any]) -> str:
    parts = [
        f"{key} {', '.join(values[:5])}{' …' if len(values) > 5 else ''}" for key, values in selection.items() if values
    ]
    return "; ".join(parts) or "all"


def run_json(run: ExpectedRun) -> dict[str, Any]:
    """One expected run."""
    return {
        "id": run.pk,
        "schedule": run.schedule_name,
        "work": run.work,
        "tenant": run.tenant,
        "state": run.state,
        "planned_for": run.planned_for,
        "due_at": run.due_at,
        "occurrences": run.occurrences,
        "full": run.full,
        "catch_up": run.catch_up,
        "operation": run.operation_id or None,
        "attempts": run.attempts,
        "released_at": run.released_at,
        "ended_at": run.ended_at,
        "error_code": run.error_code,
        "note": run.note,
    }


def run_text(run: ExpectedRun) -> str:
    """One expected run on a line."""
    said = f"  {run.note}" if run.note else ""
    count = f" ({run.occurrences} times)" if run.occurrences > 1 else ""
    return f"{run.planned_for:%Y-%m-%d %H:%M}  {run.state:<8} {run.schedule_name:<16} {run.tenant:<20}{count}{said}".rstrip()
