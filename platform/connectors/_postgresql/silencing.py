"""Keep the target's own code from running while a restore writes."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from connectors._postgresql.connection import Connection, run, value
from connectors._postgresql.quoting import literal


def silence(connection: Connection) -> bool:
    """Silence triggers, rules, event triggers and cascades for the transaction; False where the role may not."""
    run(connection, "SAVEPOINT lastro_quiet")
    try:
        run(connection, "SET LOCAL session_replication_role = replica")
    except psycopg.errors.InsufficientPrivilege:
        run(connection, "ROLLBACK TO SAVEPOINT lastro_quiet")
        return False
    return True


@contextmanager
def as_the_application(connection: Connection) -> Iterator[None]:
    """Let triggers that cannot be silenced find unqualified names as they do in the role's own sessions.

    Our own statements inside name every table with its schema. After an error the caller rolls back, and with that the
    search path is the pinned one again.
    """
    own = value(connection, "SELECT reset_val FROM pg_settings WHERE name = 'search_path'")
    run(connection, f"SELECT set_config('search_path', {literal(own)}, true)")
    yield
    run(connection, "SET LOCAL search_path = ''")
