"""`kit`: the recovery kit."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from core.cli import Answer, Call, NounCommand, Verb, argument
from core.errors import NotFound
from engine.errors import TargetDenied, TargetOccupied, UsageError

KIT_BYTES_MAX = 64 << 20


def _export(call: Call) -> Mapping[str, Any]:
    from tenants.services.kits import kit_make

    path = os.path.abspath(call.options.output)
    if os.path.lexists(path):
        raise TargetOccupied(f"{path} exists", hint="give a new file: an old kit may still be needed")
    kit = kit_make(_passphrase(call), actor=call.actor)
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
    from engine.bounded import read_bounded
    from tenants.services.kits import kit_take

    try:
        kit = read_bounded(call.options.file, bytes_max=KIT_BYTES_MAX)
    except OSError as error:
        raise NotFound(f"cannot read {call.options.file}: {error.strerror}", hint="name the kit's file") from error
    key_id, put = kit_take(kit, _passphrase(call, again=False), actor=call.actor)
    return Answer(
        {"root_key_id": key_id, "put": put},
        [f"The root key {key_id} {'is in its place again' if put else 'was in its place already'}. Next: doctor"],
    )


def _passphrase(call: Call, *, again: bool = True) -> str:
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


_PASSPHRASE = argument("--passphrase", metavar="@FILE|env:NAME", help="where the passphrase is read")


class Command(NounCommand):
    help = "Write the recovery kit; take a lost root key from it."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "export",
            _export,
            "write the root key under a passphrase, with the public keys of all repositories",
            (argument("--output", required=True, metavar="FILE", help="a file that does not exist yet"), _PASSPHRASE),
        ),
        Verb(
            "import",
            _import,
            "put the root key of a kit in the place of a lost one",
            (argument("file", metavar="FILE", help="the kit"), _PASSPHRASE),
        ),
    )
