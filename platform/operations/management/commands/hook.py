"""`hook add|set|enable|disable|list|show|test|remove|runs`."""

from collections.abc import Mapping
from typing import Any

from core.cli import Answer, Call, NounCommand, Verb, argument, count
from core.errors import Exit

_NAME = argument("name", metavar="NAME")
_RUNS_MAX = 200


def _settings(given: list[str] | None) -> dict[str, str]:
    from engine.errors import UsageError

    values: dict[str, str] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set takes KEY=VALUE, not {key[:40]!r}", hint="for example --set url=https://…")
        values[key] = f"{values[key]}\n{value}" if key in values else value
    return values


def _row(row: Any) -> dict[str, Any]:
    from core.sealing import shown

    return {
        "name": row.name,
        "operation": row.operation_kind,
        "event": row.event,
        "tenant": row.tenant or None,
        "kind": row.kind,
        "settings": shown(row.config, row.sealed),
        "timeout_seconds": row.timeout_seconds,
        "on_failure": row.on_failure,
        "position": row.position,
        "enabled": row.enabled,
    }


def _run(said: Any) -> dict[str, Any]:
    run = said.run
    return {
        "hook": run.hook_name,
        "event": run.event,
        "operation": run.operation_id or None,
        "tenant": run.tenant,
        "started_at": run.started_at.isoformat().replace("+00:00", "Z"),
        "duration_ms": run.duration_ms,
        "passed": run.passed,
        "status": run.status,
        "output": said.output,
    }


def add(call: Call) -> Answer:
    """Save a hook."""
    from operations.hook_settings import hook_add

    options = call.options
    row = hook_add(
        options.name,
        event=options.event,
        operation_kind=options.operation,
        kind=options.kind,
        values=_settings(options.set),
        actor=call.actor,
        tenant=options.tenant,
        timeout_seconds=60 if options.timeout is None else options.timeout,
        on_failure=options.on_failure or "stop",
        position=options.position or 0,
    )
    return Answer(
        _row(row), [f"Hook {row.name} runs {row.event} each {row.operation_kind}. Try it: hook test {row.name}"]
    )


def set_(call: Call) -> Answer:
    """Change what is named."""
    from operations.hook_settings import hook_update

    options = call.options
    row = hook_update(
        options.name,
        actor=call.actor,
        values=_settings(options.set),
        timeout_seconds=options.timeout,
        on_failure=options.on_failure,
        position=options.position,
    )
    return Answer(_row(row), [f"Hook {row.name} is changed. Try it: hook test {row.name}"])


def enable(call: Call) -> Answer:
    """Have it run again."""
    return _switch(call, enabled=True)


def disable(call: Call) -> Answer:
    """Leave it out."""
    return _switch(call, enabled=False)


def _switch(call: Call, *, enabled: bool) -> Answer:
    from operations.hook_settings import hook_enable

    row = hook_enable(call.options.name, enabled=enabled, actor=call.actor)
    said = f"runs {row.event} each {row.operation_kind}" if enabled else "is left out until it is enabled again"
    return Answer(_row(row), [f"Hook {row.name} {said}."])


def show(call: Call) -> Mapping[str, Any]:
    """Show one; secrets are only said to be set."""
    from operations.hook_settings import hook_get

    return _row(hook_get(call.options.name))


def list_(call: Call) -> Mapping[str, Any]:
    """Hooks in the order in which they run."""
    from operations.hook_settings import hook_list

    return {"data": [_row(row) for row in hook_list(call.options.tenant)]}


def test(call: Call) -> Answer:
    """Run one now; exit 1 when it fails."""
    from operations.hooks import hook_test

    said = hook_test(call.options.name, actor=call.actor)
    return Answer(_run(said), _told(said), exit=Exit.OK if said.run.passed else Exit.FAILED)


def _told(said: Any) -> list[str]:
    run = said.run
    head = f"{run.hook_name}: {'passed' if run.passed else 'failed'} ({run.status}) in {run.duration_ms} ms"
    return [head, *(f"  {line}" for line in (said.output or "").splitlines())]


def remove(call: Call) -> Answer:
    """Remove one."""
    from operations.hook_settings import hook_remove

    hook_remove(call.options.name, actor=call.actor)
    return Answer({"name": call.options.name, "removed": True}, [f"Hook {call.options.name} is gone."])


def runs(call: Call) -> Answer:
    """What hooks did, newest first."""
    from operations.hook_runs import hook_runs

    options = call.options
    rows = hook_runs(actor=call.actor, operation=options.operation, hook=options.hook, limit=options.limit)
    lines = [line for said in rows for line in _run_text(said)]
    return Answer({"data": [_run(said) for said in rows]}, lines or ["none"])


def _run_text(said: Any) -> list[str]:
    run = said.run
    gone = ["  what it said cannot be read any more: its key is gone"] if said.output is None else []
    where = f"{run.tenant} {run.operation_id}".strip()
    return [f"{run.started_at:%Y-%m-%d %H:%M:%S}  {run.event} {where}", *(f"  {line}" for line in _told(said)), *gone]


_COMMON = (
    argument("--set", action="append", metavar="KEY=VALUE", help="a setting; headers may be @FILE or env:NAME"),
    argument("--on-failure", choices=("stop", "warn"), help="stop (at first) or warn"),
    argument("--timeout", type=int, metavar="SECONDS", help="60 at first"),
    argument("--position", type=int, help="lower ones run first; 0 at first"),
)


class Command(NounCommand):
    help = "Calls and commands before and after backups and restores."
    verbs = (
        Verb(
            "add",
            add,
            "add a hook",
            (
                _NAME,
                argument("--event", required=True, choices=("before", "after")),
                argument("--operation", required=True, metavar="KIND", help="backup, restore"),
                argument("--kind", required=True, help="http (url, method, headers, until_ok) or command (command)"),
                argument("--tenant", default="", metavar="SLUG", help="only for this tenant; all without it"),
                *_COMMON,
            ),
        ),
        Verb("set", set_, "change settings; the others stay", (_NAME, *_COMMON)),
        Verb("enable", enable, "have a hook run again", (_NAME,)),
        Verb("disable", disable, "leave a hook out until it is enabled again", (_NAME,)),
        Verb("show", show, "show a hook; secrets are only said to be set", (_NAME,)),
        Verb("list", list_, "list hooks", (argument("--tenant", default="", metavar="SLUG"),)),
        Verb("test", test, "run a hook now", (_NAME,)),
        Verb("remove", remove, "remove a hook", (_NAME,)),
        Verb(
            "runs",
            runs,
            "what hooks did, newest first",
            (
                argument("--operation", default="", metavar="ID"),
                argument("--hook", default="", metavar="NAME"),
                argument("--limit", type=count(_RUNS_MAX), default=50),
            ),
        ),
    )
