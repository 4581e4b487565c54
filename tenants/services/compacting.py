"""The catalogue's own file: what was deleted from it must not be found in it."""

from django.db import DatabaseError, connection

BUSY_SECONDS = 20
TABLES = (
    "tenants_tenant", "tenants_source", "tenants_storeconfig", "tenants_installation", "tenants_restore",
    "tenants_restoreplan", "tenants_module", "tenants_drillcheck", "operations_operation", "operations_hook", "core_fact",
)  # fmt: skip
"""PostgreSQL: the tables that held keyrings, passwords or what people typed about data; written anew."""


_POSTGRESQL_NOTE = (
    "The catalogue lies in PostgreSQL: its write-ahead log archive, its replicas and its base backups keep what the "
    "tables held until their own retention is over. What they hold of keys is wrapped by the root key of then."
)


def catalogue_compact() -> str:
    """Write the catalogue's storage anew without what was deleted; "" when that was done, else why it could not be.

    SQLite: every page is written anew (VACUUM) and the write-ahead log emptied. PostgreSQL: the tables are written anew;
    what its own log, replicas and base backups keep is the business of that server. Outside of transactions only.
    """
    try:
        return _sqlite() if connection.vendor == "sqlite" else _postgresql()
    except DatabaseError as error:
        return f"others were using it ({str(error).strip()[:120]})"


def catalogue_notes() -> list[str]:
    """What stays true of this kind of catalogue whatever is compacted."""
    if connection.vendor == "sqlite":
        return []
    return [_POSTGRESQL_NOTE]


def _sqlite() -> str:
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA secure_delete = ON")
        cursor.execute("VACUUM")
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        busy, _, _ = cursor.fetchone()
    return "others were reading it, so that its write-ahead log could not be emptied" if busy else ""


def _postgresql() -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{BUSY_SECONDS}s'")
        try:
            for table in TABLES:
                cursor.execute(f"VACUUM (FULL) {table}")
        finally:
            cursor.execute("RESET lock_timeout")
    return ""
