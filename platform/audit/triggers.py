"""Triggers that refuse to change or delete audit entries and checkpoints.

They stop mistakes and careless hands. Who may drop a trigger can alter entries; that is what the tree and the
sealed head are for. The one deletion that they let pass is of what lies before `first` in the head: a truncation
moves that first, and the head's seal and a signed record in the log say that it did (`audit.truncation`).
"""

from collections.abc import Mapping

from django.db.backends.base.base import BaseDatabaseWrapper

TABLES: Mapping[str, str] = {"audit_entry": "sequence", "audit_checkpoint": "size"}
"""The column that says where in the log a row stands."""

_KEPT = "NOT EXISTS (SELECT 1 FROM audit_head WHERE id = 'head' AND OLD.{column} < audit_head.first)"
_SAYS = "audit entries are never changed or deleted"


def install(connection: BaseDatabaseWrapper) -> None:
    """Create the triggers; those that exist are replaced. Tables that are not made yet are passed over."""
    drop(connection)
    statements = _postgresql if connection.vendor == "postgresql" else _sqlite
    present = set(connection.introspection.table_names())
    with connection.cursor() as cursor:
        headed = "first" in _columns(connection, "audit_head")
        for table, column in TABLES.items():
            if table in present:
                kept = _KEPT.format(column=column) if headed else ""
                for statement in statements(table, kept).values():
                    cursor.execute(statement)


def drop(connection: BaseDatabaseWrapper) -> None:
    """Remove the triggers: for migrating backwards, for an adoption, and for tests that empty the tables."""
    present = connection.introspection.table_names()
    with connection.cursor() as cursor:
        for table in TABLES:
            suffix = f" ON {table}" if connection.vendor == "postgresql" else ""
            for name in ("no_update", "no_delete", "no_change", "no_truncate") if table in present else ():
                cursor.execute(f"DROP TRIGGER IF EXISTS {table}_{name}{suffix}")


def _columns(connection: BaseDatabaseWrapper, table: str) -> set[str]:
    with connection.cursor() as cursor:
        return {each.name for each in connection.introspection.get_table_description(cursor, table)}


def _sqlite(table: str, kept: str) -> dict[str, str]:
    when = f"WHEN {kept} " if kept else ""
    return {
        f"{table}_no_update": f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{_SAYS}'); END",
        f"{table}_no_delete": f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} {when}"
        f"BEGIN SELECT RAISE(ABORT, '{_SAYS}'); END",
    }


def _postgresql(table: str, kept: str) -> dict[str, str]:
    # A trigger's WHEN may hold no subquery, so the function asks.
    passes = f"IF TG_OP = 'DELETE' THEN IF NOT ({kept}) THEN RETURN OLD; END IF; END IF;" if kept else ""
    function = f"{table}_refuse()"
    return {
        function: f"CREATE OR REPLACE FUNCTION {function} RETURNS trigger LANGUAGE plpgsql AS $$ "
        f"BEGIN {passes} RAISE EXCEPTION '{_SAYS}'; END $$",
        f"{table}_no_change": f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION {function}",
        f"{table}_no_truncate": f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {function}",
    }
