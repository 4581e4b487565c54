"""COPY read off the connection's socket: a block of the server's messages at a time, taken apart by one expression.

The driver takes 0.3 microseconds a row under the interpreter's lock, psql 0.25 in a process of its own and as much
again for the pipe between us. COPY's text ends every row with a newline and holds no other, so that each row ends where a
newline and the head of the next message follow: one `split` gives all rows of a block, and with the same pass what we
want to know of each (its key, its version), in a third of the time that taking row by row apart would need.

A message is a letter, its length in four bytes that count themselves, and its content (PostgreSQL, "Message Formats",
protocol 3.0). Encrypted connections are left to libpq and those who use it: see `readable`.
"""

import os
import re
import socket
import struct
import time
from collections.abc import Generator, Iterator
from functools import cache

import psycopg

from connectors._postgresql.connection import Connection, value
from engine.ports import RowBatch

BLOCK_BYTES = 256 << 10
"""What is gone through several times fits in a core's second cache."""
SILENCE_SECONDS_MAX = 24 * 3600.0
"""Sorting a large table takes long; the statement timeout of a source and the keep-alive of its DSN are what counts."""
PACE_BYTES, PACE_SECONDS = 64 << 10, 0.0003
"""The server sends 8 KiB at a time. After less than this we wait a moment, or every one of them would wake us."""

NEWLINE = b"\n"
_HEAD = struct.Struct(">cI")
_LINES = re.compile(rb"\n(?:[d-d]()....|.*+)", re.DOTALL)
"""What lies between two lines: a newline and a message's head. Where it is no row's head, all that is left is no line.

`[d-d]` is `d` where the search looks for the newline alone, which takes half as long.
"""
_SILENT = (b"H", b"c", b"C", b"Z", b"N", b"S", b"A")
"""COPY's beginning and its end, the command's tag, ready again; notices, parameters, notifications."""
_READY_HEAD = b"Z\0\0\0\5"
"""No row holds these bytes: text has no zeros."""


def readable(connection: Connection) -> bool:
    """Whether messages lie open on the connection's socket: neither TLS nor GSSAPI encrypts them."""
    if connection.pgconn.ssl_in_use:
        return False
    encrypted = "SELECT encrypted FROM pg_catalog.pg_stat_gssapi WHERE pid = pg_catalog.pg_backend_pid()"
    return not value(connection, f"SELECT coalesce(({encrypted}), false)")


def wire_lines(connection: Connection, query: str) -> Generator[list[bytes], None, None]:
    """Run COPY (query) TO STDOUT; yield lists of lines without their newlines, a block at a time.

    The driver knows nothing of it and may use the connection again once all lines were given; a reader that stops
    before that ends the query and the connection. Raises the driver's errors.
    """
    for lines, _ in _answered(connection, query, _LINES):
        yield lines


def wire_rows(connection: Connection, query: str, *, key_fields: int, alone: bool) -> Generator[RowBatch, None, None]:
    """As `wire_lines` for lines `version TAB row`, taken apart; `alone` says that a row has no fields but its key's."""
    for rows, heads, keys in _answered(connection, query, _rows_split(key_fields, alone)):
        yield RowBatch(rows, keys, heads)


def wire_keyed(
    connection: Connection, query: str, *, key_fields: int, alone: bool
) -> Generator[tuple[list[bytes], list[bytes]], None, None]:
    """As `wire_lines` for rows without a version: rows, and their keys."""
    for columns in _answered(connection, query, _rows_split(key_fields, alone, versions=False)):
        yield columns[0], columns[1]


@cache
def _rows_split(key_fields: int, alone: bool, *, versions: bool = True) -> re.Pattern[bytes]:
    """What lies between two rows: as `_LINES`, and the row's version. The groups are `version TAB key` and the key.

    Without `versions` there are none, and only the key is a group.
    """
    field = rb"[^\t\n]*+" if alone else rb"[^\t]*+"
    key = rb"\t".join([rb"[^\t]*+"] * (key_fields - 1) + [field])
    found = rb"(?=([^\t]*+\t(" + key + rb")))[^\t]*+\t" if versions else rb"(?=(" + key + rb"))"
    return re.compile(rb"\n(?:[d-d]...." + found + rb"|.*+)", re.DOTALL)


def _answered(connection: Connection, query: str, split: re.Pattern[bytes]) -> Generator[list[list[bytes]], None, None]:
    text = f"COPY ({query}) TO STDOUT".encode() + b"\0"
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as wire:
        wire.settimeout(SILENCE_SECONDS_MAX)  # The socket stays one that does not block, as the driver needs it.
        whole = False
        try:
            wire.sendall(_HEAD.pack(b"Q", len(text) + 4) + text)
            yield from _Answer(split).rows(_received(wire))
            whole = True
        except OSError as error:
            raise psycopg.OperationalError(f"the connection to the server was lost: {error}") from None
        finally:
            if not whole:
                connection.close()


def _received(wire: socket.socket) -> Iterator[bytes]:
    """What the server sends, a block at a time, up to the message that says it is ready."""
    got: list[bytes] = []
    size, tail = 0, b""
    while True:
        data = wire.recv(BLOCK_BYTES)
        if not data:
            yield b"".join(got)  # It may have said why.
            raise psycopg.OperationalError("the server closed the connection unexpectedly")
        got.append(data)
        size += len(data)
        tail = (tail + data[-6:])[-6:]
        if tail[:-1] == _READY_HEAD:
            break
        if size >= BLOCK_BYTES:
            yield b"".join(got)
            got, size = [], 0
        elif len(data) < PACE_BYTES:
            time.sleep(PACE_SECONDS)
    yield b"".join(got)


class _Answer:
    """The server's answer to COPY, taken apart: rows, and what the groups of the expression found before each."""

    def __init__(self, split: re.Pattern[bytes]) -> None:
        self._split = split
        self._ended = False

    def rows(self, blocks: Iterator[bytes]) -> Iterator[list[list[bytes]]]:
        """Lists of rows and of every group. Raises psycopg.OperationalError unless the server says that these are all."""
        waiting: list[bytes] = []
        size, wanted = 0, _HEAD.size
        for block in blocks:
            waiting.append(block)
            size += len(block)
            if size < wanted:
                continue  # In the middle of a row that is larger than a block.
            data = b"".join(waiting)
            while (wanted := _wanted(data)) <= len(data):
                if data[:1] == b"d":
                    found, data = self._rows(data)
                    if found[0]:
                        yield found
                else:
                    self._message(data[:1], data[_HEAD.size : wanted])
                    data = data[wanted:]
            waiting, size = [data], len(data)
        if size or not self._ended:
            raise psycopg.OperationalError("the server's answer ended in the middle of a message")

    def _rows(self, data: bytes) -> tuple[list[list[bytes]], bytes]:
        """Take apart the messages of rows that data begin with; the rest may begin with an unfinished one."""
        pieces = self._split.split(NEWLINE + data)
        width = self._split.groups + 1
        columns = [pieces[width::width], *(pieces[at::width] for at in range(1, width))]
        last = [column.pop() for column in columns]
        if last[1] is None:  # All of these rows are whole, and what follows is no row or has not even a head.
            return columns, data[_bytes_of(columns) :]
        unfinished = _bytes_of([[each] for each in last]) - len(NEWLINE)
        return columns, data[len(data) - unfinished :]

    def _message(self, kind: bytes, content: bytes) -> None:
        if kind == b"E":
            raise _error(content)
        if kind not in _SILENT:
            raise psycopg.OperationalError(f"the server sent a message of kind {kind!r} in the middle of COPY")
        self._ended = self._ended or kind == b"c"


def _bytes_of(columns: list[list[bytes]]) -> int:
    """How long the messages of some rows were; of what the groups found, a key is in its row, too."""
    rows, *named = columns
    versions = [sum(map(len, named[0])) - sum(map(len, named[1]))] if len(named) > 1 else []
    return sum((len(rows) * (_HEAD.size + len(NEWLINE)), *map(len, rows), *versions))


def _wanted(data: bytes) -> int:
    """Bytes of the message that data begin with."""
    return int(_HEAD.unpack_from(data)[1]) + 1 if len(data) >= _HEAD.size else _HEAD.size


def _error(content: bytes) -> psycopg.Error:
    """The server's ErrorResponse as the driver raises it."""
    fields = {field[:1]: field[1:].decode(errors="replace") for field in content.split(b"\0") if field}
    try:
        kind: type[psycopg.Error] = psycopg.errors.lookup(fields.get(b"C", ""))
    except KeyError:
        kind = psycopg.DatabaseError
    return kind(fields.get(b"M", "the server said nothing"))
