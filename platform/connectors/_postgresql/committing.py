"""The end of a transaction: a COMMIT that is durable when it is answered, and whose answer may be lost."""

import contextlib
import time
from collections.abc import Callable

import psycopg

from connectors._postgresql.connection import Connection, run, value
from engine.errors import TargetUnreachable

SETTLE_SECONDS_MAX = 60
DURABLE = "SELECT CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', {local}) END"
"""A server, database or role may be set to answer before the disk has the commit; what is stricter is left as it is."""


def commit(connection: Connection, reconnect: Callable[[], Connection]) -> None:
    """Commit to disk; when the answer is lost, ask the server what became of the transaction.

    Raises TargetUnreachable when it was rolled back, or when nobody can say.
    """
    transaction = value(connection, "SELECT pg_current_xact_id_if_assigned()::text")
    run(connection, DURABLE.format(local="true"))
    try:
        run(connection, "COMMIT")
    except psycopg.OperationalError as error:
        if transaction is None or not connection.closed:
            raise
        if not _was_committed(transaction, reconnect):
            raise TargetUnreachable(
                "the connection was lost and the server rolled back", hint="nothing was changed; run the restore again"
            ) from error


def _was_committed(transaction: str, reconnect: Callable[[], Connection]) -> bool:
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while True:
        with contextlib.suppress(TargetUnreachable, psycopg.OperationalError), contextlib.closing(reconnect()) as fresh:
            status = value(fresh, f"SELECT pg_xact_status('{transaction}')")
            if status in ("committed", "aborted"):
                return bool(status == "committed")
        if time.monotonic() > deadline:
            raise TargetUnreachable(
                "the connection was lost at the commit, and the server cannot be asked what became of it",
                hint=f"when it is back: SELECT pg_xact_status('{transaction}')",
            )
        time.sleep(0.5)
