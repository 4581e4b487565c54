r"""Values of SQLite as fields of row lines, typed and exact, and back.

| storage class | field |
|---|---|
| NULL | `\N` |
| INTEGER | decimal |
| REAL | `r` and the shortest decimal that gives the same double (`r0.1`, `r-0.0`, `rinf`) |
| TEXT | `'` and its bytes as UTF-8; backslash, tab, newline, carriage return escaped as `\\ \t \n \r` |
| BLOB | `x` and lower-case hexadecimal |

Text may hold NUL and invalid UTF-8: it is read as bytes (`text_factory = bytearray`, which also tells it
from a BLOB) and written by CAST where it is not valid.
"""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from engine.errors import DamageError
from engine.ports import KeyKind, unescape_field

TAB = b"\t"
_SPECIAL = b"\\\t\n\r"


class RawText(bytes):
    """Text that is no valid UTF-8."""


def _text(value: bytes) -> bytes:
    return b"'" + value.replace(b"\\", b"\\\\").replace(b"\t", b"\\t").replace(b"\n", b"\\n").replace(b"\r", b"\\r")


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    int: lambda value: b"%d" % value,
    float: lambda value: b"r" + repr(value).encode(),
    bytearray: _text,
    bytes: lambda value: b"x" + value.hex().encode(),
    type(None): lambda _: b"\\N",
}


def field_of(value: Any) -> bytes:
    """One value as a field."""
    return _ENCODERS[type(value)](value)


def _column(values: Sequence[Any]) -> list[bytes]:
    kinds = set(map(type, values))
    if kinds == {int}:
        return [b"%d" % value for value in values]
    if kinds == {bytearray}:
        joined = b"".join(values)
        if len(joined.translate(None, _SPECIAL)) == len(joined):
            return [b"'" + value for value in values]
    return [_ENCODERS[type(value)](value) for value in values]


def rows_of(tuples: Sequence[Sequence[Any]]) -> list[bytes]:
    """Row lines of fetched tuples; column by column, which is several times quicker than by value."""
    return [*map(TAB.join, zip(*map(_column, zip(*tuples, strict=True)), strict=True))]


def field_shown(field: bytes) -> str | None:
    """A field for people, None for NULL; bytes that are no UTF-8 as `\\xHH`."""
    if field == b"\\N":
        return None
    mark = field[:1]
    if mark == b"'":
        return unescape_field(field[1:]).decode("utf-8", "backslashreplace")
    if mark == b"x":
        return f"x'{field[1:].decode()}'"
    return field.removeprefix(b"r").decode()


def key_field(kind: KeyKind, text: str) -> bytes:
    """A key's value as people type it; a `hash` key may hold any class, and what looks like a number is one.

    Raises ValueError for what is no integer in an integer's place.
    """
    if kind == "int":
        return b"%d" % int(text)
    if kind == "hash":
        for number in (int, float):
            try:
                return field_of(number(text))
            except ValueError:
                continue
    return field_of(bytearray(text.encode()))


def value_of(field: bytes) -> Any:
    """The value of a field, ready to be bound. Raises DamageError for what is none."""
    mark = field[:1]
    try:
        if mark == b"'":
            raw = unescape_field(field[1:])
            try:
                return raw.decode()
            except UnicodeDecodeError:
                return RawText(raw)
        if field == b"\\N":
            return None
        if mark == b"x":
            return bytes.fromhex(field[1:].decode("ascii"))
        if mark == b"r":
            return float(field[1:])
        return int(field)
    except ValueError:
        raise DamageError("a stored field is no SQLite value", hint="run a deep verify of the backup") from None


def _values(fields: Sequence[bytes]) -> Sequence[Any]:
    marks = {field[:1] for field in fields}
    if marks == {b"'"} and b"\\" not in b"".join(fields):
        try:
            return [field[1:].decode() for field in fields]
        except UnicodeDecodeError:
            pass
    elif marks <= {b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9", b"-"}:
        return [*map(int, fields)]
    return [*map(value_of, fields)]


def columns_of(rows: Sequence[bytes], *, skip: int = 0) -> list[Sequence[Any]]:
    """Values of row lines without their first `skip` fields, column by column."""
    columns = [*zip(*[row.split(TAB) for row in rows], strict=True)][skip:]
    return [*map(_values, columns)]


def tuples_of(rows: Sequence[bytes], *, skip: int = 0) -> list[tuple[Any, ...]]:
    """Values of row lines without their first `skip` fields."""
    return [*zip(*columns_of(rows, skip=skip), strict=True)]


def insert_all(connection: sqlite3.Connection, into: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """INSERT `into` (a table with its columns) each tuple; text that is not valid UTF-8 goes through CAST."""
    plain: list[tuple[Any, ...]] = []
    odd: list[tuple[Any, ...]] = []
    for row in rows:
        (odd if RawText in map(type, row) else plain).append(row)
    if plain:
        places = ",".join("?" * len(plain[0]))
        connection.executemany(f"INSERT OR ABORT INTO {into} VALUES ({places})", plain)
    for row in odd:
        places = ",".join("CAST(? AS TEXT)" if type(value) is RawText else "?" for value in row)
        connection.execute(f"INSERT OR ABORT INTO {into} VALUES ({places})", row)
