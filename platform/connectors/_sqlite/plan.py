"""How the rows of one table are selected: its key, its columns, and the order the engine sorts by.

| key mode | when | kinds |
|---|---|---|
| `alias` | INTEGER PRIMARY KEY | int |
| `rowid` | a whole database, any other table with rowids; the rowid is kept and restored | int, synthetic |
| `primary` | shared tables, and WITHOUT ROWID: the primary key's columns | int or text where all values are, else hash |
| `content` | shared tables without a usable key: SHA-256 of the row, ordinal among equals | text, int, synthetic |

Integers sort as numbers, text under BINARY (UTF-8 databases; all its fields begin with `'`), anything
else by the SHA-256 of its field, which a function computes inside SQLite.
"""

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any, Literal

from connectors._sqlite.catalog import Catalog, Table, quote
from connectors._sqlite.lines import field_of, rows_of
from engine.errors import SourceUnsupported
from engine.ports import KeyKind, KeySpec, unescape_field

BATCH_BYTES = 2 << 20
BATCH_ROWS_MAX = 4096
FUNCTION_COLUMNS_MAX = 40
KeyMode = Literal["alias", "rowid", "primary", "content"]


@dataclass(frozen=True, slots=True)
class TablePlan:
    """What is selected; `columns` are real columns, the key's first."""

    table: Table
    mode: KeyMode
    key: KeySpec
    columns: tuple[str, ...]
    where: str | None
    leading: tuple[str, ...]
    """Expressions of the synthetic fields."""
    order: tuple[str, ...]
    place: str = ""
    """Where the rows lie when not in the table itself: a temporary table with columns of the same names."""

    def select(self, where: str | None = None, *, handle: bool = False) -> str:
        """The statement; with `handle` the rowid comes as one more column behind all others."""
        wanted = [*self.leading, *map(quote, self.columns)]
        if handle:
            wanted.append((self.table.rowid or "NULL") if not self.place else "NULL")
        order = [*self.order]
        if handle and self.mode == "content" and self.table.rowid:
            order.append(self.table.rowid)  # Of equal rows always the same ones go.
        condition = " AND ".join(f"({each})" for each in (self.where, where) if each)
        return (
            f"SELECT {', '.join(wanted)} FROM {self.place or 'main.' + quote(self.table.name)}"
            f"{' WHERE ' + condition if condition else ''} ORDER BY {', '.join(order)}"
        )


def functions_register(connection: sqlite3.Connection, encoding: str) -> None:
    """Give the connection `lastro_hash(typeof, value, …)`: SHA-256 over the fields of the values.

    A single field is unescaped first, as KeySpec does for the kind `hash`.
    """
    codec = {"UTF-8": "utf-8", "UTF-16le": "utf-16-le", "UTF-16be": "utf-16-be"}[encoding]

    def digest(*pairs: Any) -> bytes:
        fields = []
        for kind, value in zip(pairs[::2], pairs[1::2], strict=True):
            if kind == "text":
                raw = bytes(value) if codec == "utf-8" else bytes(value).decode(codec, "replace").encode()
                fields.append(field_of(bytearray(raw)))
            else:
                fields.append(field_of(value))
        return hashlib.sha256(unescape_field(fields[0]) if len(fields) == 1 else b"\t".join(fields)).digest()

    connection.create_function("lastro_hash", -1, digest, deterministic=True)


def _hash_sql(columns: Sequence[str]) -> str:
    """Hash of any number of columns: SQLite passes 127 arguments at the most, so they are chained."""
    pairs = [
        f"typeof({name}), CASE typeof({name}) WHEN 'text' THEN CAST({name} AS BLOB) ELSE {name} END" for name in columns
    ]
    sql = f"lastro_hash({', '.join(pairs[:FUNCTION_COLUMNS_MAX])})"
    for at in range(FUNCTION_COLUMNS_MAX, len(pairs), FUNCTION_COLUMNS_MAX):
        sql = f"lastro_hash('blob', {sql}, {', '.join(pairs[at : at + FUNCTION_COLUMNS_MAX])})"
    return sql


def plan_make(
    connection: sqlite3.Connection, catalog: Catalog, table: Table, *, whole: bool, where: str | None = None
) -> TablePlan:
    """Choose the key of a table to be backed up; `whole` for a database that is the tenant's alone."""
    stored = tuple(each.name for each in table.stored)
    if table.alias:
        return plan_by(table, "alias", ("int",), (table.alias,), stored, where)
    if whole and table.rowid:
        return plan_by(table, "rowid", ("int",), (), stored, where)
    if table.primary:
        kinds = key_kinds(connection, catalog, table, where, table.primary)
        if kinds is not None:
            return plan_by(table, "primary", kinds, table.primary, stored, where)
    if table.rowid is None:
        raise SourceUnsupported(f"table {table.name} has neither a rowid nor a usable key")
    return plan_by(table, "content", ("text", "int"), (), stored, where)


def key_kinds(
    connection: sqlite3.Connection,
    catalog: Catalog,
    table: Table,
    where: str | None,
    columns: Sequence[str],
    *,
    empty: Mapping[str, KeyKind] | None = None,
    place: str = "",
) -> tuple[KeyKind, ...] | None:
    """Kinds by what key columns really hold, in the table or in `place`; None when a NULL makes the key unusable.

    Without rows a column's kind is that of `empty`, or what the column is declared to hold.
    """
    parts = []
    for name in map(quote, columns):
        parts += [f"min(typeof({name}) = 'integer')", f"min(typeof({name}) = 'text')", f"max({name} IS NULL)"]
    condition = f" WHERE {where}" if where else ""
    source = place or f"main.{quote(table.name)}"
    found = connection.execute(f"SELECT {', '.join(parts)} FROM {source}{condition}").fetchone()
    kinds: list[KeyKind] = []
    for at, column in enumerate(columns):
        integer, text, null = found[3 * at : 3 * at + 3]
        if null:
            return None
        if integer is None and empty and column in empty:
            kinds.append(empty[column])
            continue
        if integer is None:
            declared = table.column(column)
            integer = declared is not None and "INT" in declared.type.upper()
            text = not integer
        kinds.append("int" if integer else "text" if text and catalog.utf8 else "hash")
    return tuple(kinds)


def plan_by(
    table: Table,
    mode: KeyMode,
    kinds: tuple[KeyKind, ...],
    own: Sequence[str],
    stored: Sequence[str],
    where: str | None,
) -> TablePlan:
    """The plan of a mode that is known: `own` are the key's columns, `stored` all that are read."""
    columns = (*own, *(name for name in stored if name not in own))
    leading: tuple[str, ...] = ()
    order: tuple[str, ...]
    if mode == "rowid":
        assert table.rowid is not None
        leading = (table.rowid,)
        order = leading
    elif mode == "content":
        leading = (f"CAST(lower(hex({_hash_sql([quote(each) for each in sorted(columns)])})) AS BLOB)", "0")
        order = (leading[0],)
    else:
        by_kind = {"int": "{0}", "text": "{0} COLLATE BINARY"}
        order = tuple(
            by_kind[kind].format(quote(name)) if kind in by_kind else _hash_sql([quote(name)])
            for kind, name in zip(kinds, own, strict=True)
        )
    return TablePlan(table, mode, KeySpec(kinds, synthetic=len(leading)), columns, where, leading, order)


def rows_select(
    connection: sqlite3.Connection, lock: RLock, plan: TablePlan, *, where: str | None = None, handle: bool = False
) -> Iterator[tuple[list[bytes], list[Any]]]:
    """Row lines in key order, and with `handle` their rowids; the lock is held per batch only."""
    with lock:
        cursor = connection.execute(plan.select(where, handle=handle))
    size, previous, ordinal = 64, b"", 0
    try:
        while True:
            with lock:
                tuples = cursor.fetchmany(size)
            if not tuples:
                return
            handles: list[Any] = []
            if handle:
                handles = [row[-1] for row in tuples]
                tuples = [row[:-1] for row in tuples]
            if plan.mode == "content":
                tuples, previous, ordinal = _ordinals(tuples, previous, ordinal)
            rows = rows_of(tuples)
            width = sum(map(len, rows)) // len(rows) + 1
            size = max(1, min(BATCH_ROWS_MAX, BATCH_BYTES // width))
            yield rows, handles
    finally:
        with lock:
            cursor.close()


def _ordinals(
    tuples: Sequence[tuple[Any, ...]], previous: bytes, ordinal: int
) -> tuple[list[tuple[Any, ...]], bytes, int]:
    out = []
    for digest, _, *rest in tuples:
        ordinal = ordinal + 1 if digest == previous else 0
        previous = digest
        out.append((bytearray(digest), ordinal, *rest))
    return out, previous, ordinal
