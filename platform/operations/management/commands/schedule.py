"""`schedule`: what is done by the clock, for whom, and how it went."""

import argparse
import datetime
import re
from collections.abc import Mapping
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

from core import clock
from core.cli import Answer, Call, NounCommand, Verb, argument, count, moment
from engine.errors import UsageError
from operations.models import CatchUp, RunState
from operations.scheduling import selectors, services
from operations.scheduling.cron import cron_words
from operations.scheduling.outputs import (
    NEXT_COUNT,
    moment_words,
    next_of,
    run_json,
    run_text,
    schedule_json,
    schedule_line,
    schedule_text,
)
from operations.scheduling.planning import Rule, next_times

_LISTS = {"tenants": "tenant", "classes": "source_class", "categories": "category", "sources": "source"}
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _length(text: str) -> datetime.timedelta:
    """The type of a length of time: 90m, 12h, 3d, 2w."""
    found = re.fullmatch(r"(\d{1,4})([mhdw])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no length of time; write 90m, 12h, 3d or 2w")
    return datetime.timedelta(**{_UNITS[found[2]]: int(found[1])})


def _seconds(text: str) -> int:
    """The type of a number of seconds, or of a length of time."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else int(_length(text).total_seconds())


def _number(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 7:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a whole number")


def _params(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"{pair[:40]!r} is no setting", hint="--set NAME=VALUE")
        found[name] = value
    return found


def _wished(call: Call) -> dict[str, Any]:
    """The fields of ScheduleWish that were typed."""
    options = call.options
    plain = ("cron", "zone", "full", "jitter_seconds", "concurrency", "priority", "catch_up", "late_seconds")
    wished = {name: getattr(options, name) for name in plain if getattr(options, name) is not None}
    if options.set is not None:
        wished["params"] = _params(options.set)
    chosen = {key: getattr(options, name) for key, name in _LISTS.items() if getattr(options, name) is not None}
    if options.everything:
        if chosen:
            raise UsageError("--all and a choice contradict each other", hint="leave one of them out")
        wished["selection"] = {}
    elif chosen:
        wished["selection"] = chosen
    return wished


def _add(call: Call) -> Answer:
    wished = _wished(call)
    if "cron" not in wished:
        raise UsageError("when?", hint='--cron "0 2 * * 0": Sundays at 02:00')
    row = services.schedule_add(
        call.options.name, services.ScheduleWish(work=call.options.work, **wished), actor=call.actor
    )
    return Answer(schedule_json(row), schedule_text(row))


def _set(call: Call) -> Answer:
    row = selectors.schedule_get(call.options.name)
    wished = _wished(call)
    if not wished:
        raise UsageError("nothing to change was given", hint="schedule set --help lists what can be")
    row = services.schedule_set(row, wished, actor=call.actor)
    return Answer(schedule_json(row), schedule_text(row))


def _list(call: Call) -> Mapping[str, Any]:
    rows = selectors.schedule_list(work=call.options.work, tenant=call.options.tenant)
    return {"data": [schedule_line(row) for row in rows]}


def _show(call: Call) -> Answer:
    row = selectors.schedule_get(call.options.name)
    runs = selectors.run_list(schedule=row, limit=10)
    text = [*schedule_text(row), *(["  last runs:"] if runs else []), *(f"    {run_text(run)}" for run in runs)]
    return Answer({**schedule_json(row), "runs": [run_json(run) for run in runs]}, text)


def _remove(call: Call) -> Answer:
    row = selectors.schedule_get(call.options.name)
    taken = services.schedule_remove(row, actor=call.actor, reason=call.options.reason)
    return Answer(
        {"name": row.name, "removed": True, "runs_taken_back": taken},
        [f"{row.name} is removed; {taken} runs that were planned are taken back. What runs goes on."],
    )


def _pause(call: Call) -> Answer:
    options = call.options
    until = options.until if options.length is None else clock.now() + options.length
    row = services.schedule_pause(
        selectors.schedule_get(options.name), until=until, actor=call.actor, reason=options.reason
    )
    return Answer(schedule_json(row), schedule_text(row))


def _resume(call: Call) -> Answer:
    row = services.schedule_resume(selectors.schedule_get(call.options.name), actor=call.actor)
    return Answer(schedule_json(row), schedule_text(row))


def _run(call: Call) -> Answer:
    options = call.options
    row = selectors.schedule_get(options.name)
    asked = services.schedule_run(row, tenants=options.tenant or (), actor=call.actor, reason=options.reason)
    from operations.scheduling.releasing import runs_release

    begun = runs_release()
    text = [f"{asked} run(s) of {row.name} are due now; {begun} begun, the others as limits allow."]
    return Answer({"name": row.name, "runs": asked, "begun": begun}, [*text, f"See: schedule runs {row.name}"])


def _next(call: Call) -> Answer:
    options = call.options
    if options.cron:
        if options.name:
            raise UsageError("a name and --cron contradict each other", hint="leave one of them out")
        from django.conf import settings

        zone = options.zone or settings.LASTRO_RETENTION_ZONE
        services.zone_checked(zone)
        times = next_times(Rule(options.cron, zone), after=clock.now(), count=options.count)
        words = cron_words(options.cron)
    elif options.name:
        row = selectors.schedule_get(options.name)
        zone, times, words = row.zone, next_of(row, count=options.count), cron_words(row.cron)
    else:
        raise UsageError("the next runs of what?", hint='schedule next NAME, or schedule next --cron "0 2 * * 0"')
    lines = [f"{words}, time zone {zone}", *(f"  {moment_words(at, ZoneInfo(zone))}" for at in times)]
    return Answer({"words": words, "zone": zone, "next_runs": times}, lines)


def _runs(call: Call) -> Answer:
    options = call.options
    runs = selectors.run_list(
        schedule=selectors.schedule_get(options.name) if options.name else None,
        tenant=options.tenant,
        states=options.state or (),
        before=options.before,
        limit=options.limit,
    )
    return Answer({"data": [run_json(run) for run in runs]}, [run_text(run) for run in runs] or ["none"])


def _works(call: Call) -> Answer:
    from operations.scheduling.works import works

    rows = [
        {"work": work.name, "chosen_by": [*sorted(work.selects)] or ["the whole installation"], "summary": work.summary}
        for _, work in sorted(works().items())
    ]
    return Answer({"data": rows})


def _tick(call: Call) -> Mapping[str, Any]:
    from dataclasses import asdict

    from operations.scheduling.ticking import scheduler_tick

    return asdict(scheduler_tick())


_NAME = argument("name", metavar="NAME")
_REASON = argument("--reason", default="", help="why; kept in the audit log")
_FIELDS = (
    argument("--zone", metavar="ZONE", help="time zone of the expression (Europe/Lisbon); LASTRO_RETENTION_ZONE by default"),
    argument("--full", metavar="DAYS", help="on which days a backup is full: sun, 1, always, never"),
    argument("--tenant", action="append", metavar="T", help="only this tenant (repeatable)"),
    argument("--class", dest="source_class", action="append", metavar="C", choices=("critical", "important", "normal"),
             help="only sources of this class (repeatable)"),
    argument("--category", action="append", metavar="C", choices=("database", "assets", "configurations"),
             help="only sources of this category (repeatable)"),
    argument("--source", action="append", metavar="S", help="only sources of this name (repeatable)"),
    argument("--all", dest="everything", action="store_true", help="for all: takes back an earlier choice"),
    argument("--set", action="append", metavar="NAME=VALUE", help="a parameter of the work (repeatable)"),
    argument("--jitter", dest="jitter_seconds", type=_seconds, metavar="TIME",
             help="begin up to so much later, each tenant at a moment of its own (15m)"),
    argument("--concurrency", type=_number, metavar="N", help="at most so many of its runs at once; 0: no limit of its own"),
    argument("--priority", type=_number, metavar="N", help="lower goes first; 20 unless said otherwise, 30 for upkeep"),
    argument("--catch-up", choices=CatchUp.values, help="after an outage: once (the default), or skip what is late"),
    argument("--late", dest="late_seconds", type=_seconds, metavar="TIME", help="with --catch-up skip: how late is too late (1h)"),
)  # fmt: skip


class Command(NounCommand):
    help = "Have work done by the clock."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "add",
            _add,
            "have work done whenever a cron expression says",
            (
                _NAME,
                argument("--work", required=True, metavar="WORK", help="what is done; schedule works lists it"),
                argument("--cron", metavar="CRON", help='five fields, for example "0 */4 * * *"'),
                *_FIELDS,
            ),
        ),
        Verb("set", _set, "change a schedule", (_NAME, argument("--cron", metavar="CRON"), *_FIELDS)),
        Verb(
            "list",
            _list,
            "all schedules with their next time",
            (argument("--work", default="", metavar="WORK"), argument("--tenant", default="", metavar="T")),
        ),
        Verb("show", _show, "one schedule with its next and last runs", (_NAME,)),
        Verb("remove", _remove, "expect nothing of it any more", (_NAME, _REASON)),
        Verb(
            "pause",
            _pause,
            "expect nothing of it for a while",
            (
                _NAME,
                argument("--for", dest="length", type=_length, metavar="TIME", help="so long (90m, 12h, 3d)"),
                argument("--until", type=moment, metavar="TIME", help="until then; without both: until resumed"),
                _REASON,
            ),
        ),
        Verb("resume", _resume, "end a pause", (_NAME,)),
        Verb(
            "run",
            _run,
            "have it done now",
            (_NAME, argument("--tenant", action="append", metavar="T", help="only for this one (repeatable)"), _REASON),
        ),
        Verb(
            "next",
            _next,
            "the next times of a schedule, or of an expression on trial",
            (
                argument("name", metavar="NAME", nargs="?"),
                argument("--cron", default="", metavar="CRON"),
                argument("--zone", default="", metavar="ZONE"),
                argument("--count", type=count(100), default=NEXT_COUNT),
            ),
        ),
        Verb(
            "runs",
            _runs,
            "what was and is expected, and how it went",
            (
                argument("name", metavar="NAME", nargs="?"),
                argument("--tenant", default="", metavar="T"),
                argument("--state", action="append", choices=RunState.values),
                argument("--before", default="", metavar="ID", help="go on after this id"),
                argument("--limit", type=count(selectors.LIST_MAX), default=50),
            ),
        ),
        Verb("works", _works, "what can be scheduled"),
        Verb("tick", _tick, "plan and release now; a worker does it every minute"),
    )
