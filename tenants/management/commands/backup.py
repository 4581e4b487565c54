"""`backup`: recovery points."""

from collections.abc import Mapping
from typing import Any, ClassVar

from access.management.commands.approval import MASTER_ARGUMENTS, agreed
from core.cli import Answer, Call, NounCommand, Verb, argument, count
from core.cli_output import size_text
from core.errors import Exit, NotFound
from engine.errors import UsageError
from tenants.lookout import VERBS
from tenants.models import BackupState

_BACKUP = argument("backup", metavar="BACKUP")
_TENANT = argument("tenant", metavar="TENANT")


def _create(call: Call) -> Answer:
    from tenants.commanding import followed, time_of
    from tenants.selectors import tenant_get
    from tenants.services.backups import BackupWish, backup_start

    options = call.options
    wish = BackupWish(
        type=options.type,
        sources=tuple(options.source or ()),
        since=time_of(options.since),
        tags=tuple(options.tag or ()),
        encrypt=not options.no_encrypt,
        compress=not options.no_compress,
    )
    backup, operation = backup_start(
        tenant_get(options.tenant), wish, actor=call.actor, reason=options.reason, here=options.here
    )
    return followed(call, operation, data=lambda ended: _of(backup.pk), text=_created)


def _of(backup_id: str) -> Mapping[str, Any]:
    from tenants import outputs, selectors

    return outputs.backup(selectors.backup_get(backup_id))


def _created(data: Mapping[str, Any]) -> list[str]:
    size, stored = size_text(data["size_bytes"]), size_text(data["stored_bytes"])
    lines = [f"{data['id']} {data['state']}: {data['type']}, {size}, stored {stored}, {data['duration_ms']} ms"]
    return [*lines, data["note"]] if data["note"] else lines


_TIME_CHARS = len("2026-11-22T08:00:00")


def _list(call: Call) -> Mapping[str, Any]:
    from tenants import outputs, selectors

    options = call.options
    tenant = selectors.tenant_get(options.tenant) if options.tenant else None
    if options.before:
        selectors.backup_get(options.before)
    rows = selectors.backup_list(
        tenant,
        states=tuple(options.state or ()),
        tag=options.tag,
        before=options.before,
        limit=options.limit,
        trashed=options.trash,
    )
    if options.json:
        return {"data": [{**outputs.backup(row), "until": _until(row)} for row in rows]}
    return {"data": [{**_line(outputs.backup(row)), **_end_of(row, trash=options.trash)} for row in rows]}


def _until(row: Any) -> str | None:
    """Until when a backup in the trash can be taken back."""
    from tenants.outputs import moment
    from tenants.retention_selectors import trash_ends

    return moment(trash_ends(row.trashed_at))


def _end_of(row: Any, *, trash: bool) -> dict[str, Any]:
    return {"back until": f"{(_until(row) or '')[:_TIME_CHARS]}Z"} if trash else {}


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "tenant": row["tenant"],
        "type": row["type"],
        "timestamp": f"{row['timestamp'][:_TIME_CHARS]}Z",
        "state": row["state"],
        "size": size_text(row["size_bytes"]),
        "stored": size_text(row["stored_bytes"]),
        "tags": ",".join(row["tags"]),
        "in": ",".join(_place(each) for each in row["copies"]),
    }


def _place(copy: Mapping[str, Any]) -> str:
    return copy["store"] if copy["state"] in ("present", "locked") else f"{copy['store']} ({copy['state']})"


def _show(call: Call) -> Mapping[str, Any]:
    return _of(call.options.backup)


def _verify(call: Call) -> Answer:
    from tenants.commanding import followed, result_of
    from tenants.selectors import backup_usable
    from tenants.services.backups import backup_verify_start

    options = call.options
    operation = backup_verify_start(
        backup_usable(options.backup), deep=options.deep, actor=call.actor, here=options.here
    )
    return followed(call, operation, data=result_of, text=_verified, exit=_verify_exit)


def _verified(data: Mapping[str, Any]) -> list[str]:
    if not data["findings"]:
        return [f"{data['id']} is whole ({'every byte read' if data['deep'] else 'structure'})"]
    lines = [f"{each['code']}: {_finding(each['key'], each['message'])}" for each in data["findings"]]
    return [*lines, f"what is still whole of it is said by: restore plan {data['id']}"]


def _finding(key: str, message: str) -> str:
    return message if message.startswith(key[:12]) else f"{key}: {message}"


def _verify_exit(operation: Any) -> int:
    from operations.following import operation_exit

    if (operation.result or {}).get("findings"):
        return int(Exit.INTEGRITY)
    return operation_exit(operation)


def _export(call: Call) -> Answer:
    import os

    from tenants.commanding import followed, result_of
    from tenants.selectors import backup_usable
    from tenants.services.backups import backup_export_start

    options = call.options
    operation = backup_export_start(
        backup_usable(options.backup), os.path.abspath(options.output), actor=call.actor, here=not _by_worker(options)
    )
    return followed(call, operation, data=result_of, text=lambda data: [f"{data['folder']}/{f}" for f in data["files"]])


def _by_worker(options: Any) -> bool:
    """An export goes to a folder of this host, so it runs here unless a worker is asked for."""
    options.here = not (options.wait or options.detach)
    return not options.here


def _import(call: Call) -> Answer:
    import os

    from tenants.commanding import followed
    from tenants.selectors import source_get, tenant_get
    from tenants.services.backups import backup_import_start

    options = call.options
    source = source_get(tenant_get(options.tenant), options.source)
    if not os.path.isfile(options.file):
        raise NotFound(f"there is no file {options.file}", hint="name a backup-eventlog-….tar.gz")
    backup, operation = backup_import_start(
        source, os.path.abspath(options.file), tags=tuple(options.tag or ()), actor=call.actor, here=options.here
    )
    return followed(call, operation, data=lambda ended: _of(backup.pk), text=_created)


def _prune(call: Call) -> Answer:
    from tenants.commanding import followed, result_of
    from tenants.selectors import tenant_get
    from tenants.services.backups import prune_start

    options = call.options
    operation = prune_start(
        tenant_get(options.tenant), dry_run=options.dry_run, actor=call.actor, here=not _by_worker(options)
    )
    return followed(call, operation, data=result_of, text=_pruned)


def _pruned(data: Mapping[str, Any]) -> list[str]:
    from tenants.space_text import space_lines

    if data["frozen"]:
        return [f"nothing was deleted: {data['frozen']}", *space_lines(data)]
    return space_lines(data)


def _delete(call: Call) -> Answer:
    from tenants.commanding import followed, result_of
    from tenants.selectors import backup_get
    from tenants.services.backups import backup_delete_start

    options = call.options
    backup = backup_get(options.backup)
    if options.lost:
        return _give_up(call, backup)
    ending = "end backup {} of {} for good" if options.now else "put backup {} of {} into the trash"
    call.confirm(backup.tenant.slug, what=ending.format(backup.pk, backup.tenant.slug))
    operation = backup_delete_start(
        backup, actor=call.actor, reason=options.reason, here=not _by_worker(options), now=options.now
    )
    return followed(call, operation, data=result_of, text=_deleted)


def _give_up(call: Call, backup: Any) -> Answer:
    from tenants.commanding import followed, result_of
    from tenants.services.losses import loss_accept_start

    options = call.options
    if options.now:
        raise UsageError("--lost and --now exclude each other", hint="--lost is for what no store holds any more")
    call.confirm(backup.tenant.slug, what=f"give up backup {backup.pk} of {backup.tenant.slug} as lost in every store")
    operation = loss_accept_start(backup, actor=call.actor, reason=options.reason, here=not _by_worker(options))
    said = "{} is given up: a signed record says so, and prune goes on without it"
    return followed(call, operation, data=result_of, text=lambda data: [said.format(data["id"])])


def _deleted(data: Mapping[str, Any]) -> list[str]:
    if data["trashed_at"] is None:
        return [f"{data['id']} is ended for good; backup prune TENANT frees what only it needed"]
    lines = [f"{data['id']} is in the trash until {data['until']}; back: backup undelete {data['id']}"]
    return [*lines, f"it stays there: {data['frozen']}"] if data["frozen"] else lines


def _undelete(call: Call) -> Answer:
    from tenants import outputs
    from tenants.selectors import backup_get
    from tenants.services.trash import backup_undelete

    backup = backup_undelete(backup_get(call.options.backup), actor=call.actor, reason=call.options.reason)
    text = f"{backup.pk} is back, and held so that retention does not end it again; let go: backup release {backup.pk}"
    return Answer(outputs.backup(backup), [text])


def _hold(call: Call) -> Answer:
    return _held(call, held=True)


def _release(call: Call) -> Answer:
    return _held(call, held=False)


def _held(call: Call, *, held: bool) -> Answer:
    from tenants import outputs
    from tenants.selectors import backup_get
    from tenants.services.backups import backup_hold
    from tenants.services.holds import release_action

    backup, reason = backup_get(call.options.backup), call.options.reason
    actor, approval = agreed(call, release_action(backup, reason)) if backup.held and not held else (call.actor, None)
    data = outputs.backup(backup_hold(backup, held=held, reason=reason, actor=actor, approval=approval))
    return Answer(data, [f"{backup.pk} is {'held' if held else 'not held'}"])


_REASON = argument("--reason", default="", help="why; kept in the audit log")


class Command(NounCommand):
    help = "Take, list, verify, export and end backups."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "create",
            _create,
            "take a backup",
            (
                _TENANT,
                argument(
                    "--type",
                    choices=("full", "incremental"),
                    default="incremental",
                    help="full reads all content again",
                ),
                argument("--source", action="append", metavar="S", help="only this source (repeatable)"),
                argument("--since", metavar="TIME", help="compare with the newest backup at or before this time"),
                argument("--tag", action="append", metavar="T", help="a tag (repeatable)"),
                argument("--no-encrypt", action="store_true", help="store it readable, in a domain of its own"),
                argument("--no-compress", action="store_true", help="store it as it is read"),
                _REASON,
            ),
            long=True,
        ),
        Verb(
            "list",
            _list,
            "list backups, newest first",
            (
                argument("tenant", metavar="TENANT", nargs="?"),
                argument(
                    "--state", action="append", choices=BackupState.values, help="only in this state (repeatable)"
                ),
                argument("--tag", default="", help="only with this tag"),
                argument("--before", default="", metavar="BACKUP", help="go on after this one"),
                argument("--limit", type=count(200), default=200, help="at most 200"),
                argument("--trash", action="store_true", help="those that can still be taken back"),
            ),
        ),
        Verb("show", _show, "show a backup", (_BACKUP,)),
        Verb(
            "verify",
            _verify,
            "check that a backup is whole",
            (_BACKUP, argument("--deep", action="store_true", help="read every byte")),
            long=True,
        ),
        Verb(
            "export",
            _export,
            "write a backup as files that standard tools read",
            (_BACKUP, argument("--output", required=True, metavar="FOLDER", help="a folder that does not exist yet")),
            long=True,
        ),
        Verb(
            "import",
            _import,
            "take in a portable package as a backup",
            (
                argument("file", metavar="FILE", help="backup-eventlog-….tar.gz"),
                argument("--tenant", required=True, metavar="TENANT"),
                argument("--source", required=True, metavar="S", help="the source that it is a backup of"),
                argument("--tag", action="append", metavar="T", help="a tag (repeatable)"),
            ),
            long=True,
        ),
        Verb(
            "prune",
            _prune,
            "free what no kept backup needs",
            (_TENANT, argument("--dry-run", action="store_true", help="only say what would be done")),
            long=True,
        ),
        Verb(
            "delete",
            _delete,
            "put a backup into the trash",
            (
                _BACKUP,
                argument("--now", action="store_true", help="not into the trash: for good, and out of it"),
                argument("--lost", action="store_true", help="accept the loss of one that no store holds any more"),
                _REASON,
            ),
            long=True,
            confirm=True,
        ),
        Verb("undelete", _undelete, "take a backup back from the trash, and hold it", (_BACKUP, _REASON)),
        Verb("hold", _hold, "keep a backup whatever retention says", (_BACKUP, _REASON)),
        Verb("release", _release, "take the hold off", (_BACKUP, _REASON, *MASTER_ARGUMENTS)),
        *VERBS,
    )
