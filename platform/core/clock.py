"""The one source of time for rows and rules; tests hold it still."""

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.db import DEFAULT_DB_ALIAS, connections


def _system() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


_source: Callable[[], datetime.datetime] = _system


def now() -> datetime.datetime:
    """Aware UTC."""
    return _source()


def catalogue_now() -> datetime.datetime:
    """Read the clock that all workers share, for leases and heartbeats.

    Workers on several machines meet in a PostgreSQL catalogue, and a lease must not be lost because one of
    them runs ahead: there the server's clock decides (one round trip). A SQLite catalogue has one machine.
    """
    connection = connections[DEFAULT_DB_ALIAS]
    if _source is not _system or connection.vendor != "postgresql":
        return now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        (at,) = cursor.fetchone()
    assert isinstance(at, datetime.datetime)
    return at.astimezone(datetime.UTC)


@contextmanager
def held(at: datetime.datetime) -> Iterator[Callable[[datetime.timedelta], None]]:
    """Hold the clock at a time, for tests; the value yielded moves it on."""
    global _source
    current = at

    def advance(by: datetime.timedelta) -> None:
        nonlocal current
        current += by

    before, _source = _source, lambda: current
    try:
        yield advance
    finally:
        _source = before
