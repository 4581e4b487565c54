"""`restore`: the way back."""

from collections.abc import Mapping
from typing import Any, ClassVar

from core.cli import Answer, Call, NounCommand, Verb, argument


def _run(call: Call) -> Answer:
    from tenants.commanding import followed
    from tenants.selectors import backup_usable
    from tenants.services.restores import RestoreWish, restore_start

    options = call.options
    backup = backup_usable(options.backup)
    slug = backup.tenant.slug
    if not options.target or options.confirm is not None:
        where = "at the targets" if options.target else "in place"
        call.confirm(slug, what=f"make the data of {slug} {where} what it was in {backup.pk}")
    wish = RestoreWish(
        mode=options.mode,
        sources=tuple(options.source or ()),
        targets=tuple(options.target or ()),
        confirmed=slug if not options.target or options.confirm is not None else None,
        validate=not options.no_validate,
        safety_backup=not options.no_safety_backup,
        prove=options.prove,
    )
    restore, operation = restore_start(backup, wish, actor=call.actor, reason=options.reason, here=options.here)
    return followed(call, operation, data=lambda ended: _of(restore.pk), text=_restored)


def _of(restore_id: str) -> Mapping[str, Any]:
    from tenants import outputs, selectors

    return outputs.restore(selectors.restore_get(restore_id))


def _restored(data: Mapping[str, Any]) -> list[str]:
    lines = [f"{data['id']} {data['state']} in {data['duration_ms']} ms"]
    for source in data["sources"]:
        files, tables = source.get("files"), source.get("tables") or []
        if files:
            lines.append(
                f"  {source['name']}: {files['created']} files created, {files['replaced']} replaced,"
                f" {files['removed']} removed, {files['unchanged']} unchanged"
            )
        lines += [
            f"  {source['name']}.{table['name']}: {table['insert']} inserted, {table['update']} updated,"
            f" {table['delete']} deleted, {table['unchanged']} unchanged"
            for table in tables
        ]
    passed = sum(1 for check in data["checks"] if check["passed"])
    lines.append(f"  checks: {passed} of {len(data['checks'])} passed")
    if data["safety_backup"]:
        lines.append(f"  the state before is kept in {data['safety_backup']}")
    return lines


def _list(call: Call) -> Mapping[str, Any]:
    from tenants import outputs, selectors

    rows = [outputs.restore(row) for row in selectors.restore_list(selectors.tenant_get(call.options.tenant))]
    fields = ("id", "backup", "state", "mode", "in_place", "started_at", "duration_ms")
    return {"data": rows if call.options.json else [{field: row[field] for field in fields} for row in rows]}


def _show(call: Call) -> Answer:
    data = _of(call.options.restore)
    return Answer(data, [*_head(data), *_restored(data)])


def _head(data: Mapping[str, Any]) -> list[str]:
    where = "in place" if data["in_place"] else "at other targets"
    error = data["error"] or {}
    return [
        f"backup: {data['backup']} of {data['tenant']}, {data['mode']}, {where}",
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


class Command(NounCommand):
    help = "Restore a tenant from a backup."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "run",
            _run,
            "restore in place, or to another place with --target",
            (
                argument("backup", metavar="BACKUP"),
                argument("--mode", choices=("full",), default="full", help="the tenant becomes what it was"),
                argument("--source", action="append", metavar="S", help="only this source (repeatable)"),
                argument("--target", action="append", metavar="[SOURCE.]KEY=VALUE", help="another place (repeatable)"),
                argument("--no-validate", action="store_true", help="do not judge by the checks"),
                argument("--no-safety-backup", action="store_true", help="other targets only"),
                argument("--prove", action="store_true", help="fingerprint all neighbouring rows, too"),
                argument("--reason", default="", help="why; kept in the audit log"),
            ),
            long=True,
            confirm=True,
        ),
        Verb("list", _list, "list a tenant's restores, newest first", (argument("tenant", metavar="TENANT"),)),
        Verb("show", _show, "show a restore", (argument("restore", metavar="RESTORE"),)),
    )
