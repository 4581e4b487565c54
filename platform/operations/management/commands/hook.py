"""`hook add|list|show|test|remove|runs`."""

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


def _run(run: Any) -> dict[str, Any]:
    return {
        "hook": run.hook_name,
        "event": run.event,
        "operation": run.operation_id or None,
        "tenant": run.tenant,
        "started_at": run.started_at.isoformat().replace("+00:00", "Z"),
        "duration_ms": run.duration_ms,
        "passed": run.passed,
        "status": run.status,
        "output": run.output,
    }


def add(call: Call) -> Answer:
    """Save a hook; --tenant is not looked up, because operations know tenants by their slugs alone."""
    from operations.hooks import hook_add

    options = call.options
    row = hook_add(
        options.name,
        event=options.event,
        operation_kind=options.operation,
        kind=options.kind,
        values=_settings(options.set),
        actor=call.actor,
        tenant=options.tenant,
        timeout_seconds=options.timeout,
        on_failure=options.on_failure,
        position=options.position,
    )
    return Answer(
        _row(row), [f"Hook {row.name} runs {row.event} each {row.operation_kind}. Try it: hook test {row.name}"]
    )


def list_(call: Call) -> Mapping[str, Any]:
    """Hooks in the order in which they run."""
    from operations.hooks import hook_list

    return {"data": [_row(row) for row in hook_list(call.options.tenant)]}


def test(call: Call) -> Answer:
    """Run one now; exit 1 when it fails."""
    from operations.hooks import hook_test

    run = hook_test(call.options.name, actor=call.actor)
    text = [f"{run.hook_name}: {'passed' if run.passed else 'failed'} ({run.status}) in {run.duration_ms} ms"]
    return Answer(_run(run), [*text, *run.output.splitlines()], exit=Exit.OK if run.passed else Exit.FAILED)


def remove(call: Call) -> Answer:
    """Remove one."""
    from operations.hooks import hook_remove

    hook_remove(call.options.name, actor=call.actor)
    return Answer({"name": call.options.name, "removed": True}, [f"Hook {call.options.name} is gone."])


def runs(call: Call) -> Mapping[str, Any]:
    """What hooks did, newest first."""
    from operations.models import HookRun

    options = call.options
    rows = HookRun.objects.order_by("-id")
    if options.operation:
        rows = rows.filter(operation_id=options.operation)
    if options.hook:
        rows = rows.filter(hook_name__iexact=options.hook)
    return {"data": [_run(run) for run in rows[: options.limit]]}


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
                argument(
                    "--set", action="append", metavar="KEY=VALUE", help="a setting; headers may be @FILE or env:NAME"
                ),
                argument("--tenant", default="", metavar="SLUG", help="only for this tenant; all without it"),
                argument("--timeout", type=int, default=60, metavar="SECONDS"),
                argument("--on-failure", choices=("stop", "warn"), default="stop"),
                argument("--position", type=int, default=0, help="lower ones run first"),
            ),
        ),
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
