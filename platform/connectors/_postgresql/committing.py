"""The end of a transaction: a COMMIT that is durable when it is answered, and whose answer may be lost."""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import psycopg

from connectors._postgresql.connection import Connection, rows, run, value
from engine.errors import CommitUnknown, TargetUnreachable

SETTLE_SECONDS_MAX = 60
SETTLE_PAUSE_SECONDS = 0.5
DURABLE = "SELECT CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', {local}) END"
"""A server, database or role may be set to answer before the disk has the commit; what is stricter is left as it is."""


def transaction_token(connection: Connection) -> dict[str, str]:
    """What identifies the open transaction later on, for `settle`."""
    transaction, system, database = rows(
        connection,
        "SELECT pg_current_xact_id()::text, (SELECT system_identifier::text FROM pg_control_system()), current_database()",
    )[0]
    return {"transaction": transaction, "system_identifier": system, "database": database}


def commit(connection: Connection, reconnect: Callable[[], Connection]) -> None:
    """Commit to disk; when the answer is lost, ask the server what became of the transaction.

    Raises TargetUnreachable when it was rolled back, CommitUnknown when nobody can say yet.
    """
    token = transaction_token(connection)
    run(connection, DURABLE.format(local="true"))
    try:
        run(connection, "COMMIT")
    except psycopg.OperationalError as error:
        if not connection.closed:
            raise
        committed = settle(token, reconnect)
        if committed is None:
            raise CommitUnknown(
                "the connection was lost at the commit, and the server cannot be asked what became of it",
                hint=f"when it is back: SELECT pg_xact_status('{token['transaction']}')",
            ) from error
        if not committed:
            raise TargetUnreachable(
                "the connection was lost and the server rolled back", hint="nothing was changed; run the restore again"
            ) from error


def settle(
    token: Mapping[str, Any], reconnect: Callable[[], Connection], *, seconds_max: float = SETTLE_SECONDS_MAX
) -> bool | None:
    """Whether the transaction of a token was committed; None when the server cannot be asked, or has forgotten."""
    deadline = time.monotonic() + seconds_max
    while True:
        with contextlib.suppress(TargetUnreachable, psycopg.OperationalError), contextlib.closing(reconnect()) as fresh:
            system, database = rows(
                fresh, "SELECT (SELECT system_identifier::text FROM pg_control_system()), current_database()"
            )[0]
            if (system, database) != (token["system_identifier"], token["database"]):
                return None
            try:
                status = value(fresh, f"SELECT pg_xact_status('{int(token['transaction'])}')")
            except psycopg.errors.InvalidParameterValue:
                return None  # A number from the future: the server was set back since.
            if status in ("committed", "aborted"):
                return bool(status == "committed")
            if status is None:
                return None
        if time.monotonic() > deadline:
            return None
        time.sleep(SETTLE_PAUSE_SECONDS)
