"""`drill`: rehearse a restore, and prove that it would work."""

from collections.abc import Mapping
from typing import Any, ClassVar

from core.cli import Answer, Call, NounCommand, Verb, argument, count

_TENANT = argument("tenant", metavar="TENANT")


def _run(call: Call) -> Answer:
    from tenants.commanding import followed
    from tenants.selectors import backup_usable, tenant_get
    from tenants.services.drills import drill_start

    options = call.options
    drill, operation = drill_start(
        tenant_get(options.tenant),
        actor=call.actor,
        backup=backup_usable(options.backup) if options.backup else None,
        sources=tuple(options.source or ()),
        reason=options.reason,
        here=options.here,
    )
    return followed(call, operation, data=lambda ended: _of(drill.pk), text=_text)


def _of(drill_id: str) -> Mapping[str, Any]:
    from tenants import outputs
    from tenants.services.drills import drill_get

    return outputs.drill(drill_get(drill_id))


def _text(data: Mapping[str, Any]) -> list[str]:
    lines = [f"{data['id']} {data['status']} with {data['backup']} in {data['duration_ms']} ms"]
    lines += [
        f"  {each['source']}: {each['rows']} rows, {each['files']} files, {each['bytes']} bytes in {each['restore_ms']} ms"
        for each in data["sources"]
    ]
    for check in data["checks"]:
        word = "passed" if check["passed"] else "FAILED"
        lines.append(f"  {word}  {check['source']}: {check['name']}")
        if not check["passed"]:
            lines += [f"          expected {_short(check['expected'])}, got {_short(check['actual'])}"]
            lines += [f"          {check['detail']}"] if check.get("detail") else []
    error = data["error"] or {}
    return [
        *lines,
        *(f"  {name}: {error[key]}" for name, key in (("error", "detail"), ("hint", "hint")) if error.get(key)),
    ]


def _short(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 200 else text[:199] + "…")


def _list(call: Call) -> Mapping[str, Any]:
    from tenants import outputs, selectors
    from tenants.services.drills import drill_list

    rows = drill_list(selectors.tenant_get(call.options.tenant), limit=call.options.limit)
    return {"data": [outputs.drill_line(row) for row in rows]}


def _show(call: Call) -> Answer:
    data = _of(call.options.drill)
    return Answer(data, _text(data))


def _schedule(call: Call) -> Answer:
    from core.cli_output import to_json
    from engine.errors import UsageError
    from tenants.selectors import tenant_get
    from tenants.services.drill_schedules import DEFAULT_CRON, drill_schedule_drop, drill_schedule_put, drill_schedules

    options = call.options
    if options.tenant is None:
        return Answer({"data": drill_schedules()})
    tenant = tenant_get(options.tenant)
    if options.off:
        if options.cron:
            raise UsageError("--off and --cron contradict each other")
        dropped = drill_schedule_drop(tenant, actor=call.actor)
        text = "is rehearsed by hand only now" if dropped else "had no schedule"
        return Answer({"tenant": tenant.slug, "cron": None}, [f"{tenant.slug} {text}."])
    cron = options.cron or DEFAULT_CRON
    first = drill_schedule_put(tenant, cron, actor=call.actor)
    said = f"{tenant.slug} is rehearsed by a worker ({cron}, UTC), first at {to_json(first)[1:-1]}."
    return Answer({"tenant": tenant.slug, "cron": cron, "next_run": first}, [said])


def _checks(call: Call) -> Mapping[str, Any]:
    from tenants import outputs, selectors
    from tenants.services.drills import checks_of

    return {"data": [outputs.drill_check(row) for row in checks_of(selectors.tenant_get(call.options.tenant))]}


def _check_add(call: Call) -> Answer:
    from engine.errors import UsageError
    from tenants import outputs, selectors
    from tenants.services.drills import check_add

    options = call.options
    if bool(options.sql) == bool(options.command):
        raise UsageError(
            "a check is either a question or a command", hint="--sql SELECT --expect ANSWER, or --command NAME"
        )
    if options.sql and options.expect is None:
        raise UsageError("what must the answer be?", hint="--expect ANSWER")
    source = selectors.source_get(selectors.tenant_get(options.tenant), options.source)
    row, answer = check_add(
        source,
        options.name,
        kind="sql" if options.sql else "command",
        ask=options.sql or options.command,
        expected=options.expect or "",
        timeout_seconds=options.timeout,
        actor=call.actor,
        tried=not options.no_try,
    )
    return Answer(
        {**outputs.drill_check(row), "answer_now": answer}, _check_text(row, answer, tried=not options.no_try)
    )


def _check_text(row: Any, answer: str | None, *, tried: bool) -> list[str]:
    lines = [f"Check {row.name} is asked in each drill: drill run {row.source.tenant.slug}"]
    if answer is not None and answer != row.expected.strip():
        lines.append(f"The live source answers {_short(answer)} now, not {_short(row.expected.strip())}.")
        lines.append("If that is not what the next backup should answer, remove the check and add it anew.")
    elif answer is not None:
        lines.append(f"The live source answers {_short(answer)} now, as it should.")
    elif tried and row.kind == "sql":
        lines.append("Its tables are shared by tenants, so that it was understood, but not asked of the live source.")
    return lines


def _check_remove(call: Call) -> Answer:
    from tenants import selectors
    from tenants.services.drills import check_remove

    options = call.options
    source = selectors.source_get(selectors.tenant_get(options.tenant), options.source)
    check_remove(source, options.name, actor=call.actor)
    return Answer({"name": options.name, "removed": True}, [f"Check {options.name} is gone."])


_SOURCE = argument("--source", required=True, metavar="S", help="the source whose restored copy is asked")
_NAME = argument("name", metavar="NAME")


class Command(NounCommand):
    help = "Rehearse restores into throw-away targets."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "run",
            _run,
            "restore the newest backup somewhere else, check it, remove it",
            (
                _TENANT,
                argument("--backup", metavar="BACKUP", help="another one than the newest good one"),
                argument("--source", action="append", metavar="S", help="only this source (repeatable)"),
                argument("--reason", default="", help="why; kept in the audit log"),
            ),
            long=True,
        ),
        Verb(
            "list",
            _list,
            "a tenant's drills, newest first",
            (_TENANT, argument("--limit", type=count(200), default=50)),
        ),
        Verb("show", _show, "one drill with its evidence", (argument("drill", metavar="DRILL"),)),
        Verb(
            "schedule",
            _schedule,
            "have a worker rehearse a tenant by the clock; without a tenant list the schedules",
            (
                argument("tenant", metavar="TENANT", nargs="?"),
                argument("--cron", default="", metavar="CRON", help="five fields in UTC (0 2 * * 0: Sundays at 02:00)"),
                argument("--off", action="store_true", help="no more"),
            ),
        ),
        Verb("checks", _checks, "a tenant's own checks", (_TENANT,)),
        Verb(
            "check-add",
            _check_add,
            "have a question answered in each drill",
            (
                _TENANT,
                _NAME,
                _SOURCE,
                argument("--sql", default="", metavar="SELECT", help="one SELECT, asked of the restored database"),
                argument("--expect", metavar="ANSWER", help="rows as lines, fields joined by tabs"),
                argument(
                    "--command", default="", metavar="NAME", help="a command of the allow-list that must exit with 0"
                ),
                argument("--timeout", type=int, default=60, metavar="SECONDS"),
                argument("--no-try", action="store_true", help="do not ask the live source once first"),
            ),
        ),
        Verb("check-remove", _check_remove, "ask no more", (_TENANT, _NAME, _SOURCE)),
    )
