"""What a SQLite database consists of: tables, columns, keys, foreign keys, definitions."""

import re
import sqlite3
from dataclasses import dataclass, field
from typing import Any

from engine.errors import SourceUnsupported

SQLITE_MIN = (3, 37, 0)
_PRAGMAS = ("page_size", "encoding", "auto_vacuum", "application_id", "user_version", "journal_mode")
_ROWID_NAMES = ("rowid", "_rowid_", "oid")


def quote(name: str) -> str:
    """An identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class TableColumn:
    name: str
    type: str
    not_null: bool
    default: str | None
    key_position: int
    generated: bool


@dataclass(frozen=True, slots=True)
class ForeignKey:
    parent: str
    columns: tuple[str, ...]
    parent_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """A plain index (no expressions); `collations` belong to its columns."""

    columns: tuple[str, ...]
    collations: tuple[str, ...]
    unique: bool
    partial: bool


@dataclass(frozen=True, slots=True)
class SpecialUnique:
    """A unique index of expressions, or of some rows only."""

    expressions: tuple[str, ...]
    condition: str
    """TRUE for all rows."""


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    sql: str
    sort: str
    """table, shadow or virtual."""
    columns: tuple[TableColumn, ...]
    rowid: str | None
    """A name by which the rowid can be had; None without one."""
    alias: str | None
    """The INTEGER PRIMARY KEY column, which is the rowid."""
    foreign_keys: tuple[ForeignKey, ...] = ()
    indexes: tuple[Index, ...] = ()
    specials: tuple[SpecialUnique, ...] = ()

    @property
    def uniques(self) -> list[Index]:
        """Keys whose values no two rows share: the primary key, then unique constraints and indexes of whole columns."""
        found = [each for each in self.indexes if each.unique and not each.partial]
        if self.alias:
            found.insert(0, Index((self.alias,), ("BINARY",), unique=True, partial=False))
        return found

    @property
    def stored(self) -> tuple[TableColumn, ...]:
        return tuple(each for each in self.columns if not each.generated)

    @property
    def primary(self) -> tuple[str, ...]:
        """The primary key's columns in its order."""
        keyed = sorted((each for each in self.columns if each.key_position), key=lambda each: each.key_position)
        return tuple(each.name for each in keyed)

    def column(self, name: str) -> TableColumn | None:
        return next((each for each in self.columns if each.name.lower() == name.lower()), None)


@dataclass(frozen=True, slots=True)
class Catalog:
    tables: dict[str, Table]
    objects: list[dict[str, str]]
    """Definitions in order of creation: type, name, table, sql."""
    pragmas: dict[str, Any] = field(default_factory=dict)
    sequences: dict[str, int] = field(default_factory=dict)

    @property
    def plain(self) -> list[Table]:
        """Tables that hold rows: ordinary ones and the shadow tables of virtual ones."""
        return [each for each in self.tables.values() if each.sort != "virtual"]

    @property
    def utf8(self) -> bool:
        return self.pragmas.get("encoding") == "UTF-8"

    def module_of(self, table: Table) -> str:
        """The virtual table that a shadow table belongs to; any other is a module of its own."""
        if table.sort != "shadow":
            return table.name
        owners = [t.name for t in self.tables.values() if t.sort == "virtual" and table.name.startswith(t.name + "_")]
        return max(owners, key=len, default=table.name)

    def find(self, name: str) -> Table | None:
        return next((each for each in self.tables.values() if each.name.lower() == name.lower()), None)


def catalog_read(connection: sqlite3.Connection) -> Catalog:
    """Read the catalogue inside the connection's transaction. Raises SourceUnsupported, sqlite3.Error."""
    if sqlite3.sqlite_version_info < SQLITE_MIN:
        raise SourceUnsupported(
            f"SQLite {sqlite3.sqlite_version} is too old", hint="use a Python built with SQLite 3.37 or newer"
        )
    factory, connection.text_factory = connection.text_factory, str
    try:
        rows = connection.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid"
        )
        objects = [dict(zip(("type", "name", "table", "sql"), row, strict=True)) for row in rows]
        objects = [each for each in objects if not each["name"].startswith("sqlite_")]
        sorts = {row[1]: (row[2], bool(row[4])) for row in connection.execute("PRAGMA main.table_list")}
        tables = {
            each["name"]: _table(connection, each["name"], each["sql"], *sorts[each["name"]])
            for each in objects
            if each["type"] == "table"
        }
        pragmas = {name: connection.execute(f"PRAGMA main.{name}").fetchone()[0] for name in _PRAGMAS}
        has_sequences = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_sequence'").fetchone()
        sequences = {}
        if has_sequences:
            sequences = dict(connection.execute("SELECT name, seq FROM sqlite_sequence ORDER BY rowid").fetchall())
        return Catalog(tables, objects, pragmas, {str(name): int(seq or 0) for name, seq in sequences.items()})
    finally:
        connection.text_factory = factory


def _table(connection: sqlite3.Connection, name: str, sql: str, sort: str, without_rowid: bool) -> Table:
    columns = tuple(
        TableColumn(row[1], row[2], bool(row[3]), row[4], row[5], row[6] in (2, 3))
        for row in connection.execute(f"PRAGMA main.table_xinfo({quote(name)})")
        if row[6] != 1
    )
    taken = {each.name.lower() for each in columns}
    rowid = None if without_rowid else next((each for each in _ROWID_NAMES if each not in taken), None)
    keyed = [each for each in columns if each.key_position]
    alias = None
    if not without_rowid and len(keyed) == 1 and keyed[0].type.upper() == "INTEGER":
        indexes = connection.execute(f"PRAGMA main.index_list({quote(name)})").fetchall()
        if not any(row[3] == "pk" for row in indexes):  # INTEGER PRIMARY KEY DESC is no alias: it has an index.
            alias = keyed[0].name
            rowid = rowid or quote(alias)
    plain, special = _indexes(connection, name)
    return Table(name, sql, sort, columns, rowid, alias, _foreign_keys(connection, name), plain, special)


def _indexes(connection: sqlite3.Connection, name: str) -> tuple[tuple[Index, ...], tuple[SpecialUnique, ...]]:
    plain: list[Index] = []
    special: list[SpecialUnique] = []
    for _, index, unique, _, partial in connection.execute(f"PRAGMA main.index_list({quote(name)})").fetchall():
        info = connection.execute(f"PRAGMA main.index_xinfo({quote(index)})").fetchall()
        keys = [(row[2], row[4]) for row in info if row[5]]
        named = all(column is not None for column, _ in keys)
        if named:
            columns, collations = zip(*keys, strict=True)
            plain.append(Index(columns, collations, bool(unique), bool(partial)))
        if unique and (partial or not named):
            sql = connection.execute("SELECT sql FROM main.sqlite_schema WHERE name = ?", (index,)).fetchone()[0]
            special.append(special_unique(sql))
    return tuple(plain), tuple(special)


def special_unique(sql: str) -> SpecialUnique:
    """What a CREATE UNIQUE INDEX statement says of its rows: the terms of its list, and the condition behind it."""
    tokens = [" " if each.startswith(("--", "/*")) else each for each in _TOKENS.findall(sql)]
    begin = tokens.index("(")
    terms: list[list[str]] = [[]]
    depth, at = 1, begin + 1
    while depth:
        piece = tokens[at]
        depth += {"(": 1, ")": -1}.get(piece, 0)
        if piece == "," and depth == 1:
            terms.append([])
        elif depth:
            terms[-1].append(piece)
        at += 1
    rest = "".join(tokens[at:]).strip()
    condition = rest[len("WHERE") :].strip() if rest.upper().startswith("WHERE") else "TRUE"
    return SpecialUnique(tuple(_ORDER.sub("", "".join(term).strip()) for term in terms), condition)


_TOKENS = re.compile(
    r"""--[^\n]*|/\*.*?\*/|"(?:[^"]|"")*"|'(?:[^']|'')*'|`(?:[^`]|``)*`|\[[^\]]*\]|[(),]|[^-/"'`\[(),]+|.""", re.DOTALL
)
_ORDER = re.compile(r"\s+(?:ASC|DESC)$", re.IGNORECASE)


def _foreign_keys(connection: sqlite3.Connection, name: str) -> tuple[ForeignKey, ...]:
    found: dict[int, tuple[str, list[tuple[int, str, str | None]]]] = {}
    for number, seq, parent, own, theirs, *_ in connection.execute(f"PRAGMA main.foreign_key_list({quote(name)})"):
        found.setdefault(number, (parent, []))[1].append((seq, own, theirs))
    keys = []
    for parent, pairs in found.values():
        pairs.sort(key=lambda pair: pair[0])
        theirs = tuple(each[2] for each in pairs)
        if None in theirs:  # The parent's primary key is meant.
            info = connection.execute(f"PRAGMA main.table_info({quote(parent)})")
            theirs = tuple(row[1] for row in sorted(info, key=lambda row: row[5]) if row[5])
        if len(theirs) == len(pairs):
            keys.append(ForeignKey(parent, tuple(each[1] for each in pairs), tuple(str(each) for each in theirs)))
    return tuple(keys)
