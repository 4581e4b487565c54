"""`quota`: how many operations may run at once."""

import argparse
from collections.abc import Mapping
from typing import Any, ClassVar

from core.cli import Answer, Call, NounCommand, Verb, argument
from engine.errors import UsageError
from operations.models import Quota, QuotaScope
from operations.quotas import quota_list, quota_remove, quota_set


def _place(call: Call) -> tuple[str, str]:
    options = call.options
    chosen = [
        (scope, name)
        for scope, name in (
            (QuotaScope.ALL, "" if options.everything else None),
            (QuotaScope.TENANT, options.tenant),
            (QuotaScope.STORE, options.store),
        )
        if name is not None
    ]
    if len(chosen) != 1:
        raise UsageError("a quota of what?", hint="one of --all, --tenant [SLUG], --store [NAME]")
    scope, name = chosen[0]
    return str(scope), name


def _json(row: Quota) -> dict[str, Any]:
    return {"scope": row.scope, "name": row.name or None, "most": row.running_max}


def _set(call: Call) -> Answer:
    row = quota_set(*_place(call), call.options.most, actor=call.actor)
    what = {"all": "in all", "tenant": "for a tenant", "store": "on a store"}[row.scope]
    return Answer(
        _json(row), [f"At most {row.running_max} operations run at once {what}{f' ({row.name})' if row.name else ''}."]
    )


def _list(call: Call) -> Mapping[str, Any]:
    return {"data": [_json(row) for row in quota_list()]}


def _remove(call: Call) -> Answer:
    scope, name = _place(call)
    quota_remove(scope, name, actor=call.actor)
    return Answer({"scope": scope, "name": name or None, "removed": True}, ["The quota is lifted."])


def _most(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 6:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a whole number")


_PLACE = (
    argument("--all", dest="everything", action="store_true", help="all operations on all workers"),
    argument("--tenant", nargs="?", const="", metavar="SLUG", help="one tenant; without a name each one"),
    argument("--store", nargs="?", const="", metavar="NAME", help="tenants of one store; without a name each one"),
)


class Command(NounCommand):
    help = "Limit what runs at once, over all workers and machines."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "set",
            _set,
            "let at most so many run at once",
            (*_PLACE, argument("--most", type=_most, required=True, metavar="N")),
        ),
        Verb("list", _list, "every quota"),
        Verb("remove", _remove, "lift a quota", _PLACE),
    )
