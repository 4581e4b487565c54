"""`store`: where backups are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from access.management.commands.approval import MASTER_ARGUMENTS, agreed
from core.cli import Answer, Argument, Call, NounCommand, Verb, argument
from core.errors import Exit
from tenants.store_adoption import VERBS

_PLACE = ("endpoint", "host", "account", "bucket", "container", "path", "folder", "prefix")
_ABOUT = ("offsite", "medium", "paid", "keeps_keys", "bandwidth")


def _add(call: Call) -> Answer:
    from tenants import outputs
    from tenants.commanding import settings_of
    from tenants.services.stores import line_step, store_add

    options = call.options
    row = store_add(
        options.name,
        kind=options.kind,
        values=settings_of(options.set),
        about=_about(call),
        actor=call.actor,
        test=not options.no_test,
    )
    if options.no_test and (line := line_step(row)):
        call.terminal.note(f"{line.said}; {line.hint}")
    return Answer(outputs.store(row), [f"Store {row.name} ({row.kind}) is there.", *_steps(row.tested)])


def _set(call: Call) -> Answer:
    from tenants import outputs
    from tenants.commanding import settings_of
    from tenants.services.stores import redirect_action, store_get, store_update

    options = call.options
    row, values = store_get(options.name), settings_of(options.set)
    actor, approval = agreed(call, redirect_action(row, values)) if values else (call.actor, None)
    row = store_update(row, values=values, about=_about(call), actor=actor, test=not options.no_test, approval=approval)
    return Answer(outputs.store(row), [f"Store {row.name} is changed.", *(_steps(row.tested) if options.set else [])])


def _list(call: Call) -> Answer:
    from core.cli_output import table
    from tenants import outputs, selectors
    from tenants.services.stores import store_default

    store_default()
    rows = [outputs.store(row) for row in selectors.store_list()]
    return Answer({"data": rows}, table([{"name": row["name"], "place": _place(row), **_shown(row)} for row in rows]))


def _place(row: Mapping[str, Any]) -> str:
    """Where a store is, in a few signs: what its settings name first."""
    settings = row["settings"]
    named = [str(settings[key]) for key in _PLACE if settings.get(key)]
    return f"{row['kind']}:{'/'.join(named)}"


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("default", "offsite", "medium", "keeps_keys", "tested", "tested_at")}


def _show(call: Call) -> Mapping[str, Any]:
    from tenants import outputs
    from tenants.selectors import store_usage
    from tenants.services.stores import store_get

    row = store_get(call.options.name)
    return {**outputs.store(row), **store_usage(row), "test": row.tested}


def _test(call: Call) -> Answer:
    from tenants.services.stores import probe_output, store_get, store_probe

    row = store_get(call.options.name)
    found = probe_output(store_probe(row))
    exits = {"ok": Exit.OK, "limited": Exit.WARNED, "failed": Exit.FAILED}
    return Answer({"name": row.name, **found}, _steps(found), exit=exits[found["status"]])


def _remove(call: Call) -> Answer:
    from engine.errors import StoreError, UsageError
    from tenants.services.stores import store_get, store_objects_present, store_remove

    row = store_get(call.options.name)
    if call.options.to and not call.options.lost:
        raise UsageError("--to goes with --lost", hint="tenant set SLUG --store NAME moves a tenant's primary")
    if call.options.lost:
        return _give_up(call, row)
    try:
        left = "; the repositories in it stay as they are" if store_objects_present(row) else ""
    except StoreError:
        left = "; it cannot be reached, and whatever is in it stays"
    if left:
        call.confirm(row.name, what=f"forget store {row.name}{left}")
    store_remove(row, actor=call.actor)
    return Answer({"name": row.name, "removed": True}, [f"Store {row.name} is forgotten{left}."])


def _give_up(call: Call, row: Any) -> Answer:
    from tenants.services.lost_stores import give_up_action, primaries_move, store_give_up, store_loss
    from tenants.services.stores import store_get

    options, moved = call.options, list[str]()
    to = store_get(options.to) if options.to else None
    further = f"; its tenants go on in their copies, or begin anew in {to.name}" if to is not None else ""
    call.confirm(
        row.name, what=f"give up store {row.name} as lost for good, and with it {store_loss(row).words()}{further}"
    )
    actor, approval = agreed(call, give_up_action(row, options.reason))
    if to is not None:
        moved = primaries_move(row, to, actor=actor, reason=options.reason, note=call.terminal.note)
    loss = store_give_up(row, actor=actor, reason=options.reason, approval=approval)
    lines = [f"Store {row.name} is given up: {loss.words()}."]
    if moved:
        lines.append(
            f"The primaries of {len(moved)} tenants lie elsewhere now: {', '.join(moved[:10])}; backup create each"
        )
    if loss.nowhere:
        lines.append(f"{loss.nowhere} keyrings lie in the catalogue alone now; run: key repair")
    return Answer({"name": row.name, "removed": True, "lost": True, "moved": moved, **asdict(loss)}, lines)


def _kinds(call: Call) -> Answer:
    import stores
    from tenants.commanding import kinds_answer
    from tenants.outputs import kind

    return kinds_answer([kind(adapter) for adapter in stores.load_all()])


def _about(call: Call) -> dict[str, str | None]:
    return {name: getattr(call.options, name) for name in _ABOUT}


def _steps(found: Mapping[str, Any]) -> Sequence[str]:
    lines = []
    for step in found.get("steps", ()):
        lines.append(f"  {step['step']:<7} {step['state']:<8} {step['said']}")
        if step["state"] != "ok" and step["hint"]:
            lines.append(f"{'':<19}{step['hint']}")
    return lines


_NAME = argument("name", metavar="NAME")
_SETTINGS: tuple[Argument, ...] = (
    argument("--set", action="append", metavar="KEY=VALUE", help="a setting; a secret may be @FILE or env:NAME"),
    argument("--offsite", metavar="yes|no", help="it stands elsewhere than the data and the other stores (no)"),
    argument("--medium", metavar="WORDS", help="what it is kept on, for the 2 of 3-2-1 (its kind)"),
    argument("--paid", metavar="yes|no|auto", help="reading costs money: verified by samples over 30 days (by kind)"),
    argument("--keeps-keys", metavar="yes|no", help="keyrings of tenants may lie in it (yes; no with locks)"),
    argument(
        "--bandwidth", metavar="RATE", help="bytes per second of this process to and from it: 20M; 0 for no limit"
    ),
    argument("--no-test", action="store_true", help="save it untested"),
)


class Command(NounCommand):
    help = "Add, test, change and remove stores."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "add",
            _add,
            "add a store after testing it",
            (_NAME, argument("--kind", required=True, help="local, s3, …; store kinds lists them"), *_SETTINGS),
        ),
        Verb(
            "set",
            _set,
            "change settings; an empty value takes one back to its default",
            (_NAME, *_SETTINGS, *MASTER_ARGUMENTS),
        ),
        Verb("list", _list, "list stores"),
        Verb("show", _show, "show a store, who counts on it, and what its last test found", (_NAME,)),
        Verb("test", _test, "write, read, list, lock and delete a probe, and say what is missing", (_NAME,)),
        Verb(
            "remove",
            _remove,
            "forget a store that nothing counts on; its objects stay",
            (
                _NAME,
                argument(
                    "--lost", action="store_true", help="it is gone for good: copies and keyrings in it are given up"
                ),
                argument(
                    "--to", default="", metavar="NAME", help="with --lost: where tenants without a copy begin anew"
                ),
                argument("--reason", default="", help="why; kept in the audit log"),
                *MASTER_ARGUMENTS,
            ),
            confirm=True,
        ),
        Verb("kinds", _kinds, "list the kinds of stores and their settings"),
        *VERBS,
    )
