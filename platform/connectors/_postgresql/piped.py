"""COPY read through psql: what the client library does for every row is done beside us, and we get 1 MiB at a time.

The driver costs 0.3 microseconds a row under the interpreter's lock; psql 0.2 in a process of its own and nothing
under the lock (measured on 625,000 rows: 0.65 s of one core against 0.20 s here and 0.23 s there). Starting one
takes 15 ms, so it is for tables that are large.
"""

import contextlib
import fcntl
import os
import re
import subprocess
import tempfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import psycopg
from psycopg.conninfo import make_conninfo

from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import complete, parse_dsn
from connectors._postgresql.tools import client_call, find_psql

PIPE_BYTES = 1 << 20
QUERY_CHARACTERS_MAX = 100_000
"""Linux refuses arguments of more than 128 KiB; psql would interpret a script's colons and backslashes."""
COMPLAINT_BYTES_MAX = 1 << 16

_SERVER_SAID = re.compile(r"^[^\s:]+:\s+([0-9A-Z]{5}): (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Psql:
    """The program and how it reaches the server."""

    program: str
    conninfo: str
    connect_timeout_seconds: int

    @classmethod
    def find(cls, config: PostgresqlConfig, *, server_version: int) -> "Psql | None":
        """The psql beside the pg_dump for that server; None where there is none."""
        program = find_psql(server_version // 10000, folder=config.tools)
        return cls(program, config.conninfo, config.connect_timeout_seconds) if program else None

    def takes(self, query: str) -> bool:
        """Whether the query can be given to it."""
        return len(query) < QUERY_CHARACTERS_MAX and not parse_dsn(self.conninfo).get("sslpassword")

    def blocks(self, before: Sequence[str], query: str) -> Generator[bytes, None, None]:
        """Run statements and then COPY (query) TO STDOUT; yield its output as it comes.

        Raises the driver's errors. A reader that stops early ends the program and with it the query.
        """
        parts = parse_dsn(self.conninfo)
        complete(parts, connect_timeout=self.connect_timeout_seconds)
        arguments, environment = client_call(self.program, make_conninfo("", **parts))
        arguments += ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--set=VERBOSITY=verbose"]
        for statement in (*before, f"COPY ({query}) TO STDOUT"):
            arguments += ["--command", statement]
        with tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, env=environment
            )
            assert process.stdout is not None
            try:
                yield from _read(process.stdout.fileno())
                if process.wait() != 0:
                    raise _error(complaints)
            finally:
                process.stdout.close()
                if process.poll() is None:
                    process.kill()
                    process.wait()

    def lines(self, before: Sequence[str], query: str) -> Generator[list[bytes], None, None]:
        """Like `blocks`, as lists of lines without their newlines."""
        rest = b""
        with contextlib.closing(self.blocks(before, query)) as blocks:
            for block in blocks:
                lines = (rest + block).split(b"\n")
                rest = lines.pop()
                if lines:
                    yield lines
        if rest:
            raise psycopg.OperationalError("psql ended in the middle of a row")


def _read(pipe: int) -> Iterator[bytes]:
    """Blocks of about 1 MiB: a pipe gives what it holds, which may be little."""
    with contextlib.suppress(OSError):  # Pipes may be limited; a small one only wakes us more often.
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    got: list[bytes] = []
    size = 0
    while data := os.read(pipe, PIPE_BYTES):
        got.append(data)
        size += len(data)
        if size >= PIPE_BYTES:
            yield b"".join(got)
            got, size = [], 0
    if got:
        yield b"".join(got)


def _error(complaints: IO[bytes]) -> psycopg.Error:
    """What psql said, as the driver would have raised it."""
    complaints.seek(0)
    said = complaints.read(COMPLAINT_BYTES_MAX).decode(errors="replace")
    found = _SERVER_SAID.search(said)
    if found is None:
        return psycopg.OperationalError(" ".join(said.split()) or "psql ended without a word")
    try:
        kind: type[psycopg.Error] = psycopg.errors.lookup(found[1])
    except KeyError:
        kind = psycopg.DatabaseError
    return kind(found[2])
