"""COPY read off the connection's socket: a megabyte of the server's messages at a time, and no row for itself.

The driver takes 0.3 microseconds a row under the interpreter's lock, psql 0.25 in a process of its own and as much
again for the pipe between us. Here messages are split where their rows end: COPY's text ends every row with a newline
and holds no other, so that each piece is a message's head and its row, and a message of another kind shows at the
beginning of a piece.

A message is a letter, its length in four bytes that count themselves, and its content (PostgreSQL, "Message Formats",
protocol 3.0). Encrypted connections are left to libpq and those who use it: see `readable`.
"""

import os
import socket
import struct
import time
from collections.abc import Generator, Iterator
from operator import itemgetter

import psycopg

from connectors._postgresql.connection import Connection, value

BLOCK_BYTES = 1 << 20
SILENCE_SECONDS_MAX = 24 * 3600.0
"""Sorting a large table takes long; the statement timeout of a source and the keep-alive of its DSN are what counts."""
PACE_BYTES, PACE_SECONDS = 64 << 10, 0.0003
"""The server sends 8 KiB at a time. After less than this we wait a moment, or every one of them would wake us."""

_HEAD = struct.Struct(">cI")
_ROW = ord("d")
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
    """Run COPY (query) TO STDOUT; yield lists of lines without their newlines, about 1 MiB at a time.

    The driver knows nothing of it and may use the connection again once all lines were given; a reader that stops
    before that ends the query and the connection. Raises the driver's errors.
    """
    text = f"COPY ({query}) TO STDOUT".encode() + b"\0"
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as wire:
        wire.settimeout(SILENCE_SECONDS_MAX)  # The socket stays one that does not block, as the driver needs it.
        whole = False
        try:
            wire.sendall(_HEAD.pack(b"Q", len(text) + 4) + text)
            yield from _Answer().lines(_received(wire))
            whole = True
        except OSError as error:
            raise psycopg.OperationalError(f"the connection to the server was lost: {error}") from None
        finally:
            if not whole:
                connection.close()


def _received(wire: socket.socket) -> Iterator[bytes]:
    """What the server sends, about 1 MiB at a time, up to the message that says it is ready."""
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
    """The server's answer to COPY, taken apart."""

    def __init__(self) -> None:
        self._ended = False

    def lines(self, blocks: Iterator[bytes]) -> Iterator[list[bytes]]:
        """The rows. Raises psycopg.OperationalError unless the server says at the end that these are all."""
        waiting: list[bytes] = []
        size, wanted = 0, _HEAD.size
        for block in blocks:
            waiting.append(block)
            size += len(block)
            if size < wanted:
                continue  # In the middle of a row that is larger than a block.
            lines, rest = self._messages(b"".join(waiting))
            if lines:
                yield lines
            waiting, size = [rest], len(rest)
            wanted = _HEAD.unpack_from(rest)[1] + 1 if size >= _HEAD.size else _HEAD.size
        if size or not self._ended:
            raise psycopg.OperationalError("the server's answer ended in the middle of a message")

    def _messages(self, data: bytes) -> tuple[list[bytes], bytes]:
        """The rows of the whole messages and what is left of an unfinished one."""
        lines: list[bytes] = []
        while True:
            if data[:1] == b"d":
                found, data = _rows(data)
                lines = lines + found if lines else found
            if data[:1] == b"d" or len(data) < _HEAD.size:
                return lines, data
            kind, length = _HEAD.unpack_from(data)
            if len(data) <= length:
                return lines, data
            self._message(kind, data[_HEAD.size : length])
            data = data[length + 1 :]

    def _message(self, kind: bytes, content: bytes) -> None:
        if kind == b"E":
            raise _error(content)
        if kind not in _SILENT:
            raise psycopg.OperationalError(f"the server sent a message of kind {kind!r} in the middle of COPY")
        self._ended = self._ended or kind == b"c"


def _rows(data: bytes) -> tuple[list[bytes], bytes]:
    """Take apart the messages of rows that data begin with; the rest may begin with an unfinished one."""
    pieces = data.split(b"\n")
    rest = pieces.pop()
    short = [at for at, size in enumerate(map(len, pieces)) if size < _HEAD.size]
    if short:
        pieces, rest = _mended(pieces, short, rest)
    if not set(map(itemgetter(0), pieces)) <= {_ROW}:
        other = next(at for at, piece in enumerate(pieces) if piece[0] != _ROW)
        rest = b"\n".join([*pieces[other:], rest])
        del pieces[other:]
    return [piece[5:] for piece in pieces], rest


def _mended(pieces: list[bytes], short: list[int], rest: bytes) -> tuple[list[bytes], bytes]:
    """Join again the messages whose length holds the byte of a newline: they begin with a piece shorter than a head."""
    whole: list[bytes] = []
    done = 0
    for begin in short:
        if begin < done:
            continue
        whole += pieces[done:begin]
        piece, done = pieces[begin], begin + 1
        while piece[:1] == b"d" and (len(piece) < _HEAD.size or len(piece) < _HEAD.unpack_from(piece)[1]):
            if done == len(pieces):
                return whole, piece + b"\n" + rest
            piece += b"\n" + pieces[done]
            done += 1
        if piece[:1] == b"d" and len(piece) != _HEAD.unpack_from(piece)[1]:
            raise psycopg.OperationalError("the server's rows do not end where its messages do")
        whole.append(piece)
    return whole + pieces[done:], rest


def _error(content: bytes) -> psycopg.Error:
    """The server's ErrorResponse as the driver raises it."""
    fields = {field[:1]: field[1:].decode(errors="replace") for field in content.split(b"\0") if field}
    try:
        kind: type[psycopg.Error] = psycopg.errors.lookup(fields.get(b"C", ""))
    except KeyError:
        kind = psycopg.DatabaseError
    return kind(fields.get(b"M", "the server said nothing"))
