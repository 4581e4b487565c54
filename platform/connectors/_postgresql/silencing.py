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
    """Let the application's code that runs for our statements find unqualified names as it does in the role's own sessions.

    Our own statements inside name every table with its schema. After an error the caller rolls back, and with that the
    search path is the pinned one again.
    """
    own = value(connection, "SELECT reset_val FROM pg_settings WHERE name = 'search_path'")
    run(connection, f"SELECT set_config('search_path', {literal(own)}, true)")
    yield
    run(connection, "SET LOCAL search_path = ''")


@contextmanager
def as_the_application_unless_superuser(connection: Connection) -> Iterator[None]:
    """The same for constraints, domains and index expressions, which cannot be silenced; not where a superuser restores.

    What somebody put into a schema of the path would be found by others' functions, and run with every right there is.
    """
    if value(connection, "SELECT current_setting('is_superuser')") == "on":
        yield
        return
    with as_the_application(connection):
        yield
