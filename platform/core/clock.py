"""The one source of time for rows and rules; tests hold it still."""

import datetime
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from django.db import DEFAULT_DB_ALIAS, connections


def _system() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


_source: Callable[[], datetime.datetime] = _system


@dataclass(frozen=True, slots=True)
class Machine:
    """What the running system says of the time, whatever its wall clock is set to."""

    boot_id: str
    """Another one after every start."""
    running: datetime.timedelta
    """Since the start, sleep included."""


_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_RUNNING = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _system_machine() -> Machine:
    try:
        boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:  # Not Linux: the start is told by what runs since it.
        boot_id = "unknown"
    return Machine(boot_id[:64], datetime.timedelta(seconds=time.clock_gettime(_RUNNING)))


_machine_source: Callable[[], Machine] = _system_machine


def machine() -> Machine:
    """The clock that nobody can set, to hold the wall clock against."""
    return _machine_source()


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


class Advance(Protocol):
    """Moves a held clock on: time passes, and with `step` only the wall clock is set, by somebody or something."""

    def __call__(self, by: datetime.timedelta, *, step: bool = False) -> None: ...


@contextmanager
def held(at: datetime.datetime) -> Iterator[Advance]:
    """Hold the clock at a time, for tests; the value yielded moves it on."""
    global _source, _machine_source
    current, running = at, datetime.timedelta(hours=1)

    def advance(by: datetime.timedelta, *, step: bool = False) -> None:
        nonlocal current, running
        current += by
        if not step:
            running += by

    before = _source, _machine_source
    _source, _machine_source = lambda: current, lambda: Machine("held", running)
    try:
        yield advance
    finally:
        _source, _machine_source = before
