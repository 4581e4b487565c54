"""Keep the target's own code from running while a restore writes."""

import psycopg

from connectors._postgresql.connection import Connection, run


def silence(connection: Connection) -> bool:
    """Silence triggers, rules, event triggers and cascades for the transaction; False where the role may not."""
    run(connection, "SAVEPOINT lastro_quiet")
    try:
        run(connection, "SET LOCAL session_replication_role = replica")
    except psycopg.errors.InsufficientPrivilege:
        run(connection, "ROLLBACK TO SAVEPOINT lastro_quiet")
        return False
    return True
