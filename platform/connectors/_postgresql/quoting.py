"""SQL text from untrusted names and values: the one place where either is quoted."""

import re
from collections.abc import Iterable

from engine.errors import UsageError


def ident(*names: str) -> str:
    """Quote a (qualified) identifier: `"schema"."table"`."""
    for name in names:
        if "\0" in name or not name:
            raise UsageError(f"{name!r} cannot be the name of anything in PostgreSQL")
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def idents(names: Iterable[str], *, of: str = "") -> str:
    """Quote a list of columns, each qualified by the alias `of` when given."""
    prefix = f"{of}." if of else ""
    return ", ".join(prefix + ident(name) for name in names)


_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
"""A byte that is no UTF-8, see `unencoded`."""


def literal(value: str) -> str:
    """Quote a string; `standard_conforming_strings` is pinned on, so a backslash is only a backslash."""
    if "\0" in value:
        raise UsageError("a NUL character cannot be stored in PostgreSQL")
    if _ESCAPED_BYTE.search(value):
        doubled = value.replace("\\", "\\\\").replace("'", "''")
        return "E'" + _ESCAPED_BYTE.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", doubled) + "'"
    return "'" + value.replace("'", "''") + "'"


def display_name(schema: str, table: str) -> str:
    """Name a table for manifests and people: `schema.table`, quoted only where a dot would mislead."""
    return ".".join(ident(part) if "." in part else part for part in (schema, table))
