"""`catalogue`: Lastro's own rows, kept in the stores."""

from collections.abc import Mapping
from typing import Any, ClassVar

from core.cli import Answer, Call, NounCommand, Verb, argument
from core.cli_output import size_text
from core.errors import Exit

_STORE = argument("--store", default="", metavar="NAME", help="only in this store")


def _backup(call: Call) -> Answer:
    from tenants.commanding import followed, result_of
    from tenants.services.catalogue_backups import catalogue_backup_start

    operation = catalogue_backup_start(actor=call.actor, reason=call.options.reason, here=call.options.here)
    return followed(call, operation, data=result_of, text=_kept)


def _kept(data: Mapping[str, Any]) -> list[str]:
    lines = []
    for each in data["stores"]:
        if each["error"]:
            lines.append(f"{each['store']}: not kept: {each['error']['detail']}")
            continue
        size, stored = size_text(each["size_bytes"]), size_text(each["stored_bytes"])
        ended = f", {each['ended']} old ones ended" if each["ended"] else ""
        lines.append(f"{each['store']}: {each['id']}, {size}, stored {stored}{ended}")
    return lines


def _list(call: Call) -> Answer:
    from tenants.services.catalogue_looking import catalogue_list

    found = catalogue_list(call.options.store)
    for each in found.failed:
        call.terminal.note(f"store {each['store']}: {each['detail']}")
    return Answer({"data": found.rows, "failed": found.failed}, _table(found.rows), exit=_exit(found.failed))


def _table(rows: list[dict[str, Any]]) -> list[str]:
    from core.cli_output import table

    lines = [{**row, "size": size_text(row["size"]), "stored": size_text(row["stored"])} for row in rows]
    return table(lines) if lines else ["there is none yet: catalogue backup --here"]


def _exit(failed: list[dict[str, str]]) -> int:
    return Exit.WARNED if failed else Exit.OK


def _show(call: Call) -> Mapping[str, Any]:
    from tenants.services.catalogue_looking import catalogue_show

    return catalogue_show(call.options.backup, store_name=call.options.store)


class Command(NounCommand):
    help = "Back up Lastro's own catalogue into the stores; see what they keep of it."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "backup",
            _backup,
            "keep the catalogue in every store now",
            (argument("--reason", default="", help="why; kept in the audit log"),),
            long=True,
        ),
        Verb("list", _list, "list backups of the catalogue, newest first", (_STORE,)),
        Verb(
            "show",
            _show,
            "say what one holds: rows per table, version, audit log",
            (argument("backup", metavar="BACKUP", nargs="?", default="", help="the newest when left out"), _STORE),
        ),
    )
