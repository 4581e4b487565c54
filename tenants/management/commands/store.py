"""`store`: where backups are kept."""

from collections.abc import Mapping
from typing import Any, ClassVar

from core.cli import Answer, Call, NounCommand, Verb, argument


def _add(call: Call) -> Answer:
    from tenants import outputs
    from tenants.commanding import settings_of
    from tenants.services.stores import store_add

    options = call.options
    row = store_add(
        options.name, kind=options.kind, values=settings_of(options.set), actor=call.actor, test=not options.no_test
    )
    return Answer(outputs.store(row), [f"Store {row.name} ({row.kind}) is there."])


def _list(call: Call) -> Mapping[str, Any]:
    from tenants import outputs, selectors
    from tenants.services.stores import store_default

    store_default()
    return {"data": [outputs.store(row) for row in selectors.store_list()]}


def _test(call: Call) -> Mapping[str, Any]:
    from tenants.services.stores import store_get, store_test

    row = store_get(call.options.name)
    probe = store_test(row)
    return {"name": row.name, "status": "ok", "conditional": probe.conditional, "free_bytes": probe.free_bytes}


def _kinds(call: Call) -> Answer:
    import stores
    from tenants.commanding import kinds_answer
    from tenants.outputs import kind

    return kinds_answer([kind(adapter) for adapter in stores.load_all()])


class Command(NounCommand):
    help = "Add, list and test stores."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "add",
            _add,
            "add a store after testing it",
            (
                argument("name", metavar="NAME"),
                argument("--kind", required=True, help="local, …; store kinds lists them"),
                argument(
                    "--set", action="append", metavar="KEY=VALUE", help="a setting; a secret may be @FILE or env:NAME"
                ),
                argument("--no-test", action="store_true", help="save it untested"),
            ),
        ),
        Verb("list", _list, "list stores"),
        Verb("test", _test, "write, read back and delete a probe", (argument("name", metavar="NAME"),)),
        Verb("kinds", _kinds, "list the kinds of stores and their settings"),
    )
