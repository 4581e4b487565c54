"""What a role needs at the target, asked before anything is written."""

from collections.abc import Sequence

from connectors._postgresql.connection import Connection, rows, value
from connectors._postgresql.scope import Scope
from engine.errors import TargetDenied

NAMES_SHOWN_MAX = 5

_MAY = """
SELECT o::int8, has_schema_privilege(c.relnamespace, 'USAGE'), has_table_privilege(o, 'SELECT'), has_table_privilege(o, 'INSERT'),
       has_table_privilege(o, 'UPDATE'), has_table_privilege(o, 'DELETE'), row_security_active(o)
  FROM unnest(ARRAY[{oids}]::oid[]) o JOIN pg_class c ON c.oid = o
"""
_NAMES = ("USAGE on the schema", "SELECT", "INSERT", "UPDATE", "DELETE")


def require_rights(connection: Connection, scopes: Sequence[Scope]) -> None:
    """Raise TargetDenied with what is to be granted, unless the role may read and change these tables."""
    if not value(connection, "SELECT has_database_privilege(current_database(), 'TEMPORARY')"):
        raise TargetDenied(
            "the role may not create temporary tables", hint="GRANT TEMPORARY ON DATABASE … TO the restoring role"
        )
    names = {scope.table.oid: scope.table.display for scope in scopes}
    if not names:
        return
    denied, hidden, lacking = [], [], set()
    for oid, *may, secured in rows(connection, _MAY.format(oids=", ".join(map(str, names)))):
        if not all(may):
            denied.append(names[oid])
            lacking |= {name for name, allowed in zip(_NAMES, may, strict=True) if not allowed}
        if secured:
            hidden.append(names[oid])
    if denied:
        missing = ", ".join(name for name in _NAMES if name in lacking)
        raise TargetDenied(
            f"the role may not restore {_some(denied)}: it lacks {missing}",
            hint="GRANT SELECT, INSERT, UPDATE, DELETE on these tables and USAGE on their schema",
        )
    if hidden:
        raise TargetDenied(
            f"row security would hide rows of {_some(hidden)}", hint="grant the role BYPASSRLS: ALTER ROLE … BYPASSRLS"
        )


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN_MAX
    return ", ".join(sorted(names)[:NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
