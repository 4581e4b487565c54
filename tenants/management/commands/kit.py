"""`kit`: the recovery kit."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from access.management.commands.approval import MASTER_ARGUMENTS, agreed
from core.cli import Answer, Call, NounCommand, Verb, argument, count
from core.errors import Exit, NotFound
from engine.errors import TargetDenied, TargetOccupied, UsageError

KIT_BYTES_MAX = 64 << 20


def _export(call: Call) -> Mapping[str, Any]:
    from tenants.services.kits import kit_action, kit_make, kit_printed

    path = os.path.abspath(call.options.output)
    if os.path.lexists(path):
        raise TargetOccupied(f"{path} exists", hint="give a new file: an old kit may still be needed")
    action = kit_action(path, printable=call.options.printable)
    actor, approval = agreed(call, action)
    if call.options.printable:
        html = path.endswith((".html", ".htm"))
        kit = kit_printed(_passphrase(call), actor=actor, html=html, action=action, approval=approval)
    else:
        kit = kit_make(_passphrase(call), actor=actor, action=action, approval=approval)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(kit)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise TargetDenied(f"cannot write {path}: {error.strerror}") from error
    call.terminal.note("Keep the kit and its passphrase apart, and both away from this host and its stores.")
    return {"path": path, "bytes": len(kit)}


def _import(call: Call) -> Answer:
    from tenants.services.kits import kit_take

    key_id, put = kit_take(kit_read(call.options.file), _passphrase(call, again=False), actor=call.actor)
    return Answer(
        {"root_key_id": key_id, "put": put},
        [f"The root key {key_id} {'is in its place again' if put else 'was in its place already'}. Next: doctor"],
    )


def _list(call: Call) -> Mapping[str, Any]:
    from tenants.services.kits import kit_list

    return {"data": kit_list(limit=call.options.limit)}


def _check(call: Call) -> Answer:
    from tenants.services.kits import kit_check

    found = kit_check(kit_read(call.options.file), _passphrase(call, again=False))
    lines = [f"It opens; it holds the root key {found.root_key_id}."]
    if found.current:
        lines.append("That is the root key of this installation.")
    else:
        lines.append("That is not the root key by which this installation works now.")
    if found.current and not found.newest:
        lines.append("It is not the newest kit that was made here; it is as good as long as the root key stays.")
    if found.repositories:
        lines.append(f"It names {found.repositories} repositories: {_some(found.named)}.")
    if found.unnamed:
        lines.append(f"It serves those made since, too: {_some(found.unnamed)}.")
    return Answer(found.answer(), lines, exit=Exit.OK if found.current else Exit.WARNED)


_NAMED_MAX = 10


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return (", ".join(names[:_NAMED_MAX]) or "none that is known here") + more


def kit_read(path: str) -> bytes:
    """The kit's file. Raises NotFound."""
    from engine.bounded import read_bounded

    try:
        return read_bounded(path, bytes_max=KIT_BYTES_MAX)
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}", hint="name the kit's file") from error


def _passphrase(call: Call, *, again: bool = True) -> str:
    return passphrase_asked(call, again=again)


def passphrase_asked(call: Call, *, again: bool) -> str:
    """The passphrase from where --passphrase says, or asked for on a terminal. Raises UsageError."""
    from engine.adapters import resolve_secret

    given = call.options.passphrase
    if given is not None:
        # A literal would be seen by everyone who lists the processes of this host.
        if not given.startswith(("@", "env:")):
            raise UsageError("a passphrase does not belong on a command line", hint="--passphrase @FILE or env:NAME")
        return resolve_secret(given)
    if not call.interactive:
        raise UsageError("the kit needs a passphrase", hint="--passphrase @FILE or env:NAME")
    import getpass

    first = getpass.getpass("Passphrase of the kit: ")
    if again and first != getpass.getpass("Once more: "):
        raise UsageError("the two are not the same", hint="nothing was written; try again")
    return first


PASSPHRASE = argument("--passphrase", metavar="@FILE|env:NAME", help="where the passphrase is read")
_FILE = argument("file", metavar="FILE", help="the kit: its file, its page, or lines typed from that")


class Command(NounCommand):
    help = "Write the recovery kit, check it; take a lost root key from it."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "export",
            _export,
            "write the root key under a passphrase, with the public keys of all repositories",
            (
                argument("--output", required=True, metavar="FILE", help="a file that does not exist yet"),
                argument(
                    "--printable",
                    action="store_true",
                    help="a page to print (HTML when FILE ends so), to be typed again",
                ),
                PASSPHRASE,
                *MASTER_ARGUMENTS,
            ),
        ),
        Verb(
            "list",
            _list,
            "kits that were made, newest first, and which of them are outdated; the kits themselves are with you",
            (argument("--limit", type=count(200), default=200, help="at most 200"),),
        ),
        Verb("check", _check, "try whether a kit opens, and say what it covers", (_FILE, PASSPHRASE)),
        Verb("import", _import, "put the root key of a kit in the place of a lost one", (_FILE, PASSPHRASE)),
    )
