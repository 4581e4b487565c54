"""`erasure`: subjects that no restore may bring back."""

from collections.abc import Mapping
from typing import Any, ClassVar

from core.cli import Answer, Call, NounCommand, Verb, argument


def _add(call: Call) -> Answer:
    from tenants import selectors
    from tenants.services.erasures import erasure_add

    options = call.options
    call.confirm(options.tenant, what="keep that row out of every restore for good, which nothing takes back")
    source = selectors.source_get(selectors.tenant_get(options.tenant), options.source)
    done = erasure_add(source, options.table, options.key, actor=call.actor, reason=options.reason)
    data = {"table": done.table, "record": done.number, "found_in": list(done.found_in)}
    held = len(done.found_in)
    if held:
        said = f"{held} backup{'s hold' if held > 1 else ' holds'} that row; no restore brings it back any more."
    elif not done.is_new:
        said = "It was recorded before: no restore brings it back."
    else:
        said = "No backup holds that row. It is recorded all the same: is the key right?"
    return Answer(data, [said, "The live row, if there still is one, is yours to delete."])


def _list(call: Call) -> Mapping[str, Any]:
    from tenants import selectors
    from tenants.services.erasures import erasure_list

    rows = erasure_list(selectors.tenant_get(call.options.tenant))
    return {"data": [{"source": each.source, "table": each.table, "hash": each.key, "at": each.at} for each in rows]}


class Command(NounCommand):
    help = "Record erased subjects, so that no later restore brings them back."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "add",
            _add,
            "record that a row was erased for good",
            (
                argument("tenant", metavar="TENANT"),
                argument("--source", required=True, metavar="S"),
                argument("--table", required=True, metavar="TABLE"),
                argument(
                    "--key",
                    action="append",
                    required=True,
                    metavar="VALUE",
                    help="a value of its key, in the key's order",
                ),
                argument("--reason", default="", help="why, without saying who; kept in the audit log"),
            ),
            confirm=True,
        ),
        Verb("list", _list, "what was recorded, as hashes", (argument("tenant", metavar="TENANT"),)),
    )
