"""`restore`: the way back."""

from collections.abc import Mapping
from typing import Any, ClassVar

from access.management.commands.approval import MASTER_ARGUMENTS, master_of
from core.cli import Answer, Call, NounCommand, Verb, argument


def _wish(options: Any, *, mode: str, **more: Any) -> Any:
    from tenants.services.restores import RestoreWish

    return RestoreWish(
        mode=mode,
        sources=tuple(options.source or ()),
        modules=tuple(options.module or ()),
        policies=tuple(options.policy or ()),
        clocks=tuple(options.clock or ()),
        base=options.base or "",
        targets=tuple(options.target or ()),
        **more,
    )


def _plan(call: Call) -> Answer:
    from tenants.selectors import backup_usable
    from tenants.services.plans import plan_start

    options = call.options
    if options.backup.startswith((_PLAN_IDS, _RESTORE_IDS)):
        return _plan_again(call)
    backup = backup_usable(options.backup)
    wish = _wish(options, mode=options.mode or "full")
    here = _here_unless_asked(call)
    plan, operation = plan_start(backup, wish, wish.targets, actor=call.actor, reason=options.reason, here=here)
    return _planned(call, plan.pk, operation)


def _plan_again(call: Call) -> Answer:
    """The same once more: what is said beside it could only contradict it."""
    from engine.errors import UsageError
    from tenants.plan_selectors import plan_get
    from tenants.selectors import restore_get
    from tenants.services.replans import plan_again_start

    options = call.options
    what = options.backup
    chosen = [name for name in _CHOSEN if getattr(options, name)]
    if chosen:
        raise UsageError(
            f"--{chosen[0]} does not go with {what}, which says it all",
            hint=f"leave it out, or plan from a backup: restore plan BACKUP --{chosen[0]} …",
        )
    of: Any = plan_get(what) if what.startswith(_PLAN_IDS) else restore_get(what)
    here = _here_unless_asked(call)
    plan, operation = plan_again_start(of, actor=call.actor, reason=options.reason, here=here)
    return _planned(call, plan.pk, operation)


_CHOSEN = ("mode", "source", "module", "policy", "clock", "base", "target")


def _here_unless_asked(call: Call) -> bool:
    """A plan changes nothing and somebody waits for it: without --wait or --detach no worker is needed."""
    if not (call.options.wait or call.options.detach):
        call.options.here = True
    return bool(call.options.here)


def _planned(call: Call, plan_id: str, operation: Any) -> Answer:
    from tenants.commanding import followed
    from tenants.plan_text import plan_text

    return followed(call, operation, data=lambda ended: _plan_of(plan_id), text=plan_text)


def _plan_of(plan_id: str) -> Mapping[str, Any]:
    from tenants import plan_outputs, plan_selectors

    return plan_outputs.plan(plan_selectors.plan_get(plan_id))


def _run(call: Call) -> Answer:
    from tenants.commanding import followed
    from tenants.services.restores import restore_start, restore_start_planned

    options = call.options
    row: Any
    start: Any
    if options.what.startswith(_PLAN_IDS):
        from tenants.plan_selectors import plan_get

        row = plan_get(options.what)
        in_place, start, mode = row.in_place, restore_start_planned, options.mode or ""
    else:
        from tenants.selectors import backup_usable

        row = backup_usable(options.what)
        in_place, start, mode = not options.target, restore_start, options.mode or "full"
    slug = row.tenant.slug
    confirmed = in_place or options.confirm is not None
    if confirmed:
        where = "in place" if in_place else "at the targets"
        call.confirm(slug, what=f"change the data of {slug} {where}, as {row.pk} says")
    wish = _wish(
        options,
        mode=mode,
        confirmed=slug if confirmed else None,
        validate=not options.no_validate,
        safety_backup=not options.no_safety_backup,
        prove=options.prove,
    )
    restore, operation = start(row, wish, actor=_actor(call), reason=options.reason, here=options.here)
    return followed(call, operation, data=lambda ended: _of(restore.pk), text=_restored)


def _actor(call: Call) -> str:
    """The master who has shown a password, where restores need two; else who is at the keyboard."""
    return master_of(call) or call.actor


_PLAN_IDS, _RESTORE_IDS = "pln_", "rst_"


def _undo(call: Call) -> Answer:
    from tenants.commanding import followed
    from tenants.selectors import restore_get
    from tenants.services.undos import undo_plan_start, undo_start

    options = call.options
    restore = restore_get(options.restore)
    if options.plan:
        here = _here_unless_asked(call)
        plan, planning = undo_plan_start(
            restore, sources=tuple(options.source or ()), actor=call.actor, reason=options.reason, here=here
        )
        return _planned(call, plan.pk, planning)
    slug = restore.tenant.slug
    chosen = f" ({', '.join(options.source)})" if options.source else ""
    call.confirm(slug, what=f"put the data of {slug}{chosen} back to what it was before {restore.pk}")
    undo, operation = undo_start(
        restore,
        confirmed=slug,
        sources=tuple(options.source or ()),
        actor=_actor(call),
        reason=options.reason,
        here=options.here,
        prove=options.prove,
    )
    return followed(call, operation, data=lambda ended: _of(undo.pk), text=_restored)


def _of(restore_id: str) -> Mapping[str, Any]:
    from tenants import restore_outputs, selectors

    return restore_outputs.restore(selectors.restore_get(restore_id))


_TOLD = (
    ("insert", "inserted"),
    ("update", "updated"),
    ("delete", "deleted"),
    ("unchanged", "unchanged"),
    ("kept", "kept"),
    ("conflicts", "changed on both sides"),
    ("collisions", "left out, as their keys are other rows' now"),
    ("withheld", "withheld"),
    ("stays", "left where they are"),
)


def _restored(data: Mapping[str, Any]) -> list[str]:
    lines = [f"{data['id']} {data['state']} in {data['duration_ms']} ms"]
    for source in data["sources"]:
        files, tables = source.get("files"), source.get("tables") or []
        if files:
            kept = f", {files['kept']} kept" if files["kept"] else ""
            lines.append(
                f"  {source['name']}: {files['created']} files created, {files['replaced']} replaced,"
                f" {files['removed']} removed, {files['unchanged']} unchanged{kept}"
            )
        for table in tables:
            told = [f"{table[count]} {word}" for at, (count, word) in enumerate(_TOLD) if at < 4 or table[count]]
            lines.append(f"  {source['name']}.{table['name']}: {', '.join(told)}")
    if data["not_in_backup"]:
        lines.append(f"  not in this backup, and left as it is: {', '.join(data['not_in_backup'])}")
    passed = sum(1 for check in data["checks"] if check["passed"])
    lines.append(f"  checks: {passed} of {len(data['checks'])} passed")
    if data["safety_backup"]:
        lines.append(f"  the state before is kept in {data['safety_backup']}")
    lines += [f"  {name} was put back to before, by {by}" for name, by in data["undone"].items()]
    if data["undo_until"] and data["undoable"]:
        until = data["undo_until"][:16].replace("T", " ")
        lines.append(f"  to go back, until {until} UTC: restore undo {data['id']} --confirm {data['tenant']}")
    if data["left_of_undone"]:
        lines.append(f"  still as {data['undoes']} made them: {', '.join(data['left_of_undone'])}")
        lines.append(f"  to undo these too: restore undo {data['undoes']} --confirm {data['tenant']}")
    return lines


def _list(call: Call) -> Mapping[str, Any]:
    from tenants import restore_outputs, selectors

    rows = [
        restore_outputs.restore_head(row) for row in selectors.restore_list(selectors.tenant_get(call.options.tenant))
    ]
    fields = ("id", "backup", "state", "mode", "in_place", "started_at", "duration_ms")
    return {"data": rows if call.options.json else [{field: row[field] for field in fields} for row in rows]}


def _plans(call: Call) -> Mapping[str, Any]:
    from tenants import plan_outputs, plan_selectors, selectors

    rows = [plan_outputs.plan_head(row) for row in plan_selectors.plan_list(selectors.tenant_get(call.options.tenant))]
    fields = ("plan", "kind", "mode", "backup", "state", "made_at", "expires_at", "created_by")
    return {"data": rows if call.options.json else [{field: row[field] for field in fields} for row in rows]}


def _show(call: Call) -> Answer:
    if call.options.what.startswith(_PLAN_IDS):
        from tenants.plan_text import plan_text

        plan = _plan_of(call.options.what)
        return Answer(plan, plan_text(plan))
    data = _of(call.options.what)
    return Answer(data, [*_head(data), *_restored(data)])


def _report(call: Call) -> Mapping[str, Any]:
    from pathlib import Path

    from engine.errors import UsageError
    from tenants.reports import restore_report_html
    from tenants.selectors import restore_get

    path = Path(call.options.output).absolute()
    if path.suffix.lower() == ".pdf":
        raise UsageError("the report is an HTML page", hint="name it FILE.html and print that to PDF from a browser")
    page = restore_report_html(restore_get(call.options.restore))
    try:
        # Never over something that exists: a report is evidence.
        with path.open("x", encoding="utf-8", errors="backslashreplace") as out:
            out.write(page)
    except FileExistsError:
        raise UsageError(f"{path} exists", hint="choose another name") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", hint="is there such a folder?") from error
    return {"report": str(path)}


def _head(data: Mapping[str, Any]) -> list[str]:
    where = "in place" if data["in_place"] else "at other targets"
    error = data["error"] or {}
    what = f"undo of {data['undoes']}" if data["undoes"] else f"backup: {data['backup']}"
    return [
        f"{what} of {data['tenant']}, {data['mode']}, {where}",
        f"started: {data['started_at'] or '-'}",
        *(f"warning: {each['message']}" for each in data["warnings"]),
        *(f"{name}: {error[key]}" for name, key in (("error", "detail"), ("hint", "hint")) if error.get(key)),
        *(f"  {each['name']}: {_STANDING[each['state']]}" for each in data["sources"] if error),
        *(f"  {each['source']}: {each['name']} did not pass" for each in data["checks"] if not each["passed"]),
    ]


_STANDING = {
    "old": "as before",
    "applying": "to be looked at",
    "new": "holds the backup's data",
    "unknown": "to be looked at",
}


_CHOICE = (
    argument("--mode", choices=("full", "selective", "merge"), help="full (the default): all becomes what it was"),
    argument("--source", action="append", metavar="S", help="only this source (repeatable)"),
    argument("--module", action="append", metavar="[SOURCE.]M", help="selective: only this module (repeatable)"),
    argument(
        "--policy",
        action="append",
        metavar="[SOURCE.]MODULE=POLICY",
        help="merge: only_missing (the default), newest_wins or take_backup; * means every module (repeatable)",
    ),
    argument(
        "--clock", action="append", metavar="TABLE=COLUMN", help="merge: what says when a row changed (repeatable)"
    ),
    argument("--base", metavar="BACKUP", help="merge: the backup from which both sides went apart"),
    argument("--target", action="append", metavar="[SOURCE.]KEY=VALUE", help="another place (repeatable)"),
    argument("--reason", default="", help="why; kept in the audit log"),
)
_PROVE = argument("--prove", action="store_true", help="fingerprint all neighbouring rows, too")


class Command(NounCommand):
    help = "Restore a tenant from a backup."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "plan",
            _plan,
            "say what a restore would do, and keep it to be run; changes nothing, and needs no worker: --here is the default",
            (
                argument("backup", metavar="BACKUP|PLAN|RESTORE", help="of a plan or a restore: the same again"),
                *_CHOICE,
            ),
            long=True,
        ),
        Verb(
            "run",
            _run,
            "restore as a plan says or from a backup: in place, or to another place with --target",
            (
                argument("what", metavar="BACKUP|PLAN"),
                *_CHOICE,
                argument("--no-validate", action="store_true", help="do not judge by the checks"),
                argument("--no-safety-backup", action="store_true", help="other targets only"),
                _PROVE,
                *MASTER_ARGUMENTS,
            ),
            long=True,
            confirm=True,
        ),
        Verb(
            "undo",
            _undo,
            "put back exactly what was there before a restore",
            (
                argument("restore", metavar="RESTORE"),
                argument("--plan", action="store_true", help="only say what that would do, and keep it to be run"),
                argument("--source", action="append", metavar="S", help="only this source (repeatable)"),
                _PROVE,
                argument("--reason", default="", help="why; kept in the audit log"),
                *MASTER_ARGUMENTS,
            ),
            long=True,
            confirm=True,
        ),
        Verb("list", _list, "list a tenant's restores, newest first", (argument("tenant", metavar="TENANT"),)),
        Verb("plans", _plans, "list a tenant's plans, newest first", (argument("tenant", metavar="TENANT"),)),
        Verb(
            "report",
            _report,
            "write the proof of a restore as a page to print",
            (
                argument("restore", metavar="RESTORE"),
                argument("--output", required=True, metavar="FILE.html", help="a file that is not there yet"),
            ),
        ),
        Verb("show", _show, "show a restore or a plan", (argument("what", metavar="RESTORE|PLAN"),)),
    )
