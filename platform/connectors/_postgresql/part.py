"""One table's rows read from the exported snapshot, in C-speed batches.

They come straight off the connection's socket (see `wire`); where that is encrypted, large tables come through psql
(see `piped`) and others through the driver.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import psycopg

from connectors._postgresql.connection import Connection, begin, begin_text, errors, run
from connectors._postgresql.piped import Psql
from connectors._postgresql.quoting import literal
from connectors._postgresql.rowtext import RowText
from connectors._postgresql.scope import Scope
from connectors._postgresql.wire import readable, wire_lines, wire_rows
from engine.errors import SourceError
from engine.ports import RowBatch
from engine.table_runs import lines_take_apart

Batch = TypeVar("Batch", list[bytes], RowBatch)
BATCH_BYTES = 1 << 20
BATCH_ROWS_MAX = 8192
KEYS_PER_QUERY = 5000
PIPED_BYTES_MIN = 4 << 20
IDLE_CONNECTIONS_MAX = 3
SERIAL = "max_parallel_workers_per_gather = 0"
"""A backup takes one of the server's cores per table. COPY itself is most of the work and nothing that workers share;
they would sort what comes in the order of an index anyway (40 % more of the server's time for a table of 430 MB)."""


def copy_lines(connection: Connection, query: str) -> Generator[list[bytes], None, None]:
    """Run COPY (query) TO STDOUT; yield lists of lines without their newlines, about 1 MiB at a time."""
    with connection.cursor() as cursor, cursor.copy(f"COPY ({query}) TO STDOUT".encode()) as copy:
        read = iter(copy.read, b"")
        count = 256
        while batch := b"".join(itertools.islice(read, count)):
            yield batch[:-1].split(b"\n")
            count = max(1, min(BATCH_ROWS_MAX, count * BATCH_BYTES // len(batch) + 1))


def read_lines(connection: Connection, query: str) -> Generator[list[bytes], None, None]:
    """As `copy_lines`, off the connection's socket where nothing encrypts it; for many rows.

    A reader that stops before the end may end the connection.
    """
    return wire_lines(connection, query) if readable(connection) else copy_lines(connection, query)


class SnapshotPool:
    """Connections that all see one exported snapshot; one per read at a time, few kept."""

    def __init__(
        self,
        open_connection: Callable[[], Connection],
        snapshot: str,
        *,
        age_seconds_max: int,
        wire: bool = False,
        psql: Psql | None = None,
        timeouts: Sequence[tuple[str, str]] = (),
    ) -> None:
        """`wire` says that connections are not encrypted, so that rows can be read off their sockets."""
        self._open, self._snapshot = open_connection, snapshot
        self.wire, self._psql, self._timeouts = wire, psql, timeouts
        self._age_max = age_seconds_max
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = False

    def check_age(self) -> None:
        """Raise SourceError when the snapshot holds back the server's vacuum for too long."""
        if time.monotonic() - self._began > self._age_max:
            raise SourceError(
                f"the backup has held its snapshot for more than {self._age_max} s",
                hint="raise snapshot_age_seconds_max, or back up in quieter hours",
            )

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection in the snapshot's transaction; one that failed is not lent again."""
        self.check_age()
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._begun()
        clean = False
        try:
            with errors("source"):
                yield connection
            clean = True
        finally:
            with self._lock:
                keep = clean and not self._closed and len(self._idle) < IDLE_CONNECTIONS_MAX
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    @contextmanager
    def outside(self) -> Iterator[Connection]:
        """Lend a connection that sees what is committed by now, and close it afterwards."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is not None:
            try:
                run(connection, "ROLLBACK")
            except psycopg.OperationalError:  # Lost since it was used last.
                connection.close()
                connection = None
        with contextlib.closing(connection or self._open()) as lent, errors("source"):
            yield lent

    def _begun(self) -> Connection:
        """A new connection in the snapshot's transaction."""
        connection = self._open()
        try:
            with errors("source"):
                begin(connection, "REPEATABLE READ", read_only=True)
                run(connection, f"SET LOCAL {SERIAL}; SET TRANSACTION SNAPSHOT {literal(self._snapshot)}")
        except BaseException:
            connection.close()
            raise
        return connection

    def lines(self, query: str, *, large: bool) -> Iterator[list[bytes]]:
        """Lines that a query gives in the snapshot; `large` when there may be many of them."""
        if large and not self.wire and self._psql and self._psql.takes(query):
            begun = begin_text("REPEATABLE READ", read_only=True, more=self._timeouts)
            before = (begun, f"SET LOCAL {SERIAL}; SET TRANSACTION SNAPSHOT {literal(self._snapshot)}")
            with errors("source", self._psql.conninfo):
                yield from self._aged(self._psql.lines(before, query))
            return
        read = wire_lines if self.wire else copy_lines
        with self.connection() as connection:
            yield from self._aged(read(connection, query))

    def rows(self, query: str, *, key_fields: int, alone: bool) -> Iterator[RowBatch]:
        """As wire.wire_rows, in the snapshot, where connections are not encrypted (`wire`)."""
        with self.connection() as connection:
            yield from self._aged(wire_rows(connection, query, key_fields=key_fields, alone=alone))

    def _aged(self, batches: Generator[Batch, None, None]) -> Iterator[Batch]:
        self.check_age()
        with contextlib.closing(batches):
            for lines in batches:
                yield lines
                self.check_age()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


class PostgresTablePart:
    """engine.ports.TablePart over one table and its scope."""

    def __init__(
        self,
        pool: SnapshotPool,
        scope: Scope,
        *,
        text: RowText,
        module: str,
        fingerprint: str,
        version_domain: str,
        facts: Mapping[str, Any],
        size: int = 0,
    ) -> None:
        self.name = scope.table.display
        self.module = module
        self.columns = text.port_columns
        self.key = text.key
        self.fingerprint = fingerprint
        self.version_domain = version_domain
        self.facts = facts
        self.size_hint = size
        """Bytes that the table takes on the server; nothing but speed depends on it."""
        self._pool, self._scope, self._text = pool, scope, text

    def rows(self) -> Iterator[list[bytes]]:
        """Every line `xmin TAB row` of the scope, in key order."""
        yield from self._lines(self._text.select(self._scope, version=bool(self.version_domain)))

    def versions(self) -> Iterator[list[bytes]]:
        """Every `xmin TAB key` of the scope, in key order."""
        yield from self._lines(self._text.select_versions(self._scope))

    def rows_for(self, keys: Sequence[bytes]) -> Iterator[list[bytes]]:
        """Lines of those keys that are in the scope, in key order."""
        for first in range(0, len(keys), KEYS_PER_QUERY):
            some = keys[first : first + KEYS_PER_QUERY]
            query = self._text.select_keys(self._scope, some, version=bool(self.version_domain))
            yield from self._pool.lines(query, large=False)

    def rows_apart(self) -> Iterator[RowBatch]:
        """engine.ports.RowsApart: what `rows` gives."""
        versioned, fields = bool(self.version_domain), len(self.key.kinds)
        query = self._text.select(self._scope, version=versioned)
        alone = fields == self.key.synthetic + len(self.columns)
        if self._pool.wire:
            yield from self._pool.rows(query, key_fields=fields, alone=alone)
        else:
            yield from map(partial(lines_take_apart, self.key, versioned), self._lines(query))

    def _lines(self, query: str) -> Iterator[list[bytes]]:
        yield from self._pool.lines(query, large=self.size_hint >= PIPED_BYTES_MIN)
