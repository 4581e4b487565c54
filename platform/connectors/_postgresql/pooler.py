"""Connection poolers between us and the server: one that shares sessions among clients is refused.

A backup holds a snapshot over several connections, and every session of ours is set up so that names resolve and
values print alike for everybody; pg_dump and psql do the same. A pooler that hands out another session for each
transaction (pgbouncer's pool_mode transaction or statement) would lose these settings and, worse, leave them to the
application's queries, whose names would no longer be found. Nothing is set before this is known.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable
from typing import Any

import psycopg

Connection = psycopg.Connection[tuple[Any, ...]]

ROUNDS_MAX = 10
KNOWN_SECONDS_MAX = 600

_keeping: dict[str, float] = {}
"""Poolers that were seen to keep a client's session, by digest of the DSN, with the time when."""


def shares_sessions(connection: Connection, dsn: str, reconnect: Callable[[], Connection]) -> bool:
    """Whether the connection's transactions may run in other sessions than its own; `reconnect` opens one like it."""
    if _session(connection) == connection.info.backend_pid:
        return False  # What the server said on connecting: nothing stands in between.
    name = hashlib.sha256(dsn.encode()).hexdigest()
    if time.monotonic() - _keeping.get(name, -KNOWN_SECONDS_MAX) < KNOWN_SECONDS_MAX:
        return False
    with contextlib.closing(reconnect()) as other:
        try:
            shared = any(_meet(connection, other) for _ in range(ROUNDS_MAX))
        except psycopg.errors.ProtocolViolation:
            return True  # pgbouncer's answer to BEGIN when it pools statements
    if not shared:
        _keeping[name] = time.monotonic()
    return shared


def _meet(connection: Connection, other: Connection) -> bool:
    """Whether two clients get into one session, or one of them into another than before."""
    before = _session(connection)
    other.execute("BEGIN")
    try:
        # When the two share the pool's only session, asking the first again would wait for the other.
        return _session(other) == before or _session(connection) != before
    finally:
        other.execute("ROLLBACK")


def _session(connection: Connection) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None, "a query for one value gives a row"
    return int(row[0])
