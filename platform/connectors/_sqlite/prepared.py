"""A restore of a SQLite file that only lacks its commit, its change image, and how to find out what became of it.

SQLite has no transaction ids, and the application's file gets no table of ours. The token therefore names a few of the
changed rows with digests of what they were and of what they are to be: a transaction takes effect wholly
or not at all, so that these rows tell, unless somebody changed them meanwhile.
"""

import hashlib
import os
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors._sqlite.applying import Object, transaction_commit
from connectors._sqlite.catalog import quote
from connectors._sqlite.changes import TableChanges
from connectors._sqlite.connect import target_errors
from connectors._sqlite.lines import RawText, field_of, rows_of, value_of
from connectors._sqlite.read import Layout
from engine.errors import CommitUnknown, TargetError
from engine.ports import ImageSink, RestoreReport

IMAGE_VERSION = 1
PROBES_MAX = 8


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Which file a path named when it was opened."""

    path: str
    device: int
    inode: int

    @classmethod
    def of(cls, path: str) -> "FileIdentity":
        found = os.stat(path)
        return cls(path, found.st_dev, found.st_ino)

    def check(self) -> None:
        """Raise TargetError when the path names another file by now."""
        try:
            same = FileIdentity.of(self.path) == self
        except FileNotFoundError:
            same = False
        if not same:
            raise TargetError(
                f"{self.path} was replaced by another file during the restore; that one was not touched",
                hint="stop what replaces the file, then run the restore again",
            )


@dataclass
class PreparedSqlite:
    """engine.ports.PreparedRestore over an open transaction."""

    connection: sqlite3.Connection
    file: FileIdentity
    layout: Layout
    tables: Sequence[TableChanges]
    report: RestoreReport
    created: Sequence[Object]
    dropped: Sequence[Object]
    sequences: Mapping[str, tuple[int | None, int | None]]
    healed: Mapping[str, int]
    """Broken references that are whole now, by tables; an undo may break as many again."""

    def __post_init__(self) -> None:
        self.token: Mapping[str, Any] = {
            "path": self.file.path,
            "digest": self.report.digest,
            "created": [each["name"] for each in self.created],
            "probes": [probe for table in self.tables for probe in _probes(table)][:PROBES_MAX],
        }

    def image(self, sink: ImageSink) -> None:
        """Write the schema's section, then every changed table's rows before and after."""
        with target_errors(self.file.path):
            self._image(sink)

    def _image(self, sink: ImageSink) -> None:
        sequences = {name: [*pair] for name, pair in self.sequences.items() if pair[0] != pair[1]}
        if not (sequences or self.created or self.dropped or any(each.adds or each.removes for each in self.tables)):
            return  # Nothing was changed: there is nothing to be taken back.
        sink.table(
            {
                "name": "", "columns": [], "key": [], "rows": "schema", "kind": "sqlite", "version": IMAGE_VERSION,
                "tenant_column": self.layout.tenant_column, "tenant_value": self.layout.tenant_value,
                "created": [*self.created], "dropped": [*self.dropped],
                "sequences": sequences,
                "healed": {name: count for name, count in self.healed.items() if count > 0}, "made_file": False,
            }
        )  # fmt: skip
        for table in self.tables:
            count = self.connection.execute(f"SELECT count(*) FROM {table.temp} WHERE act = 1").fetchone()[0]
            if not count:
                continue
            for side in ("before", "after"):
                sink.table(image_header(table, side))
                for lines in table.image_before() if side == "before" else table.image_after():
                    sink.rows(lines)

    def commit(self) -> None:
        """Raises TargetError when nothing was changed, CommitUnknown when that cannot be told."""
        self.file.check()
        try:
            transaction_commit(self.connection)
        except sqlite3.Error as error:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
                with target_errors(self.file.path):
                    raise
            done = probe(self.connection, self.token)
            if not done:
                kind = CommitUnknown if done is None else TargetError
                raise kind(
                    f"committing to {self.file.path} failed: {error}",
                    hint="check the disk, then look at the plan again",
                ) from error
        self.file.check()


def image_header(table: TableChanges, side: str) -> dict[str, Any]:
    """`columns` name the fields of the lines; the rowid comes first where there is one."""
    rowid = (table.table.rowid or "").strip('"')
    return {
        "name": table.name,
        "module": table.module,
        "columns": [*([rowid] if rowid else []), *table.stored],
        "key": [rowid] if rowid else [*table.table.primary],
        "rows": side,
        "rowid": bool(rowid),
    }


# ---------------------------------------------------------------- what became of a commit


def _probes(table: TableChanges) -> list[dict[str, Any]]:
    """A few changed rows: how to find each, and digests of what it was and of what it is to be ("" for no row)."""
    names = [table.table.rowid or ""] if table.table.rowid else [quote(each) for each in table.table.primary]
    keys = ["handle"] if table.table.rowid else [str(table.value(each, "d")) for each in table.table.primary]
    rows = table.connection.execute(
        f"SELECT op, before, {', '.join(keys)} FROM {table.temp} d WHERE act = 1 ORDER BY id LIMIT {PROBES_MAX}"
    ).fetchall()
    found = []
    for op, before, *values in rows:
        key = {name: field_of(value).decode("latin-1") for name, value in zip(names, values, strict=True)}
        where = {"table": table.table.name, "columns": [*table.stored], "key": key}
        was = hashlib.sha256(before).hexdigest() if op > 0 else ""
        found.append({**where, "was": was, "now": _digest(_row(table.connection, where))})
    return found


def _row(connection: sqlite3.Connection, where: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The row that a probe names; None also where its table was dropped."""
    found = connection.execute("SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = ?", (where["table"],))
    if found.fetchone() is None:
        return None
    conditions, values = [], []
    for name, text in where["key"].items():
        value = value_of(text.encode("latin-1"))
        conditions.append(f"{name} = {'CAST(? AS TEXT)' if isinstance(value, RawText) else '?'}")
        values.append(value)
    columns = ", ".join(map(quote, where["columns"]))
    sql = f"SELECT {columns} FROM main.{quote(where['table'])} WHERE {' AND '.join(conditions)}"
    row: tuple[Any, ...] | None = connection.execute(sql, values).fetchone()
    return row


def _digest(row: tuple[Any, ...] | None) -> str:
    return "" if row is None else hashlib.sha256(rows_of([row])[0]).hexdigest()


def probe(connection: sqlite3.Connection, token: Mapping[str, Any]) -> bool | None:
    """Whether the rows named by a token are as they were to be; None when they are neither that nor as they were."""
    probes = token["probes"]
    try:
        if not probes:
            names = {row[0].decode() for row in connection.execute("SELECT name FROM main.sqlite_schema")}
            return set(token["created"]) <= names
        found = [_digest(_row(connection, each)) for each in probes]
    except sqlite3.Error:
        return None
    if all(digest == each["now"] for digest, each in zip(found, probes, strict=True)):
        return True
    return False if all(digest == each["was"] for digest, each in zip(found, probes, strict=True)) else None
