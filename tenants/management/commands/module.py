"""`module`: the parts of sources that can be restored alone."""

from collections.abc import Mapping
from typing import Any, ClassVar

from core.cli import Call, NounCommand, Verb, argument


def _list(call: Call) -> Mapping[str, Any]:
    from tenants import selectors

    rows = selectors.module_list(selectors.tenant_get(call.options.tenant), source=call.options.source)
    return {
        "data": [
            {
                "source": row.source.name,
                "name": row.name,
                "items": row.items,
                "size_bytes": row.size_bytes,
                **({"contents": row.contents} if call.options.json else {}),
            }
            for row in rows
        ]
    }


class Command(NounCommand):
    help = "List modules, as the newest backups saw them."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "list",
            _list,
            "list a tenant's modules",
            (
                argument("tenant", metavar="TENANT"),
                argument("--source", default="", metavar="S", help="of this source only"),
            ),
        ),
    )
