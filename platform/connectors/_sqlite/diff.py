"""The difference between a table of a backup and the target's rows in scope, found and applied."""

import sqlite3
from bisect import bisect_right
from collections.abc import Iterator
from threading import RLock
from typing import Any

from connectors._sqlite.catalog import quote
from connectors._sqlite.lines import insert_all, tuples_of
from connectors._sqlite.plan import TablePlan, rows_select
from engine.errors import SchemaMismatch, TargetError
from engine.ports import TableChange, TableView
from engine.progress import Progress
from engine.table_runs import keys_of_rows

_INSERT, _DELETE, _UPDATE = 0, 1, 2


class _TargetRows:
    """Rows of the target in key order, with their rowids, taken up to a key."""

    def __init__(self, batches: Iterator[tuple[list[bytes], list[Any]]], plan: TablePlan) -> None:
        self._batches, self._key = batches, plan.key
        self._rows: list[bytes] = []
        self._handles: list[Any] = []

    @property
    def any(self) -> bool:
        """Whether there is a row."""
        if not self._rows:
            self._rows, self._handles = next(self._batches, ([], []))
        return bool(self._rows)

    def take(self, bound: bytes | None) -> Iterator[tuple[list[bytes], list[Any]]]:
        """Batches of rows and rowids whose encoded key is not behind the bound."""
        key = self._key
        while True:
            if not self._rows:
                found = next(self._batches, None)
                if found is None:
                    return
                self._rows, self._handles = found
            count = len(self._rows)
            if bound is not None and key.encode(key.text(self._rows[-1])) > bound:
                count = bisect_right(self._rows, bound, key=lambda row: key.encode(key.text(row)))
            if count:
                yield self._rows[:count], self._handles[:count]
            self._rows, self._handles = self._rows[count:], self._handles[count:]
            if self._rows:
                return


def strays_of(
    connection: sqlite3.Connection, plan: TablePlan, view: TableView, where: str
) -> Iterator[list[tuple[Any, ...]]]:
    """Rowids or primary keys of rows under the condition whose keys the backup has too."""
    target = _TargetRows(rows_select(connection, RLock(), plan, where=where, handle=True), plan)
    if not target.any:
        return
    for wanted in view.rows():
        keys = set(keys_of_rows(plan.key, wanted))
        for rows, handles in target.take(plan.key.encode(plan.key.text(wanted[-1]))):
            texts = keys_of_rows(plan.key, rows)
            found = [at for at, text in enumerate(texts) if text in keys]
            if plan.table.rowid:
                yield [(handles[at],) for at in found]
            else:
                count = len(plan.key.kinds)
                yield [row[:count] for row in tuples_of([rows[at] for at in found])] if found else []


class TableDiff:
    """Changes of one table, kept in a temporary table until they are applied."""

    def __init__(
        self, connection: sqlite3.Connection, plan: TablePlan, view: TableView, progress: Progress, number: int
    ) -> None:
        self._connection, self._plan, self._view, self._progress = connection, plan, view, progress
        self._temp = f"temp.lastro_change_{number}"
        self._counts = {_INSERT: 0, _DELETE: 0, _UPDATE: 0}
        self._unchanged = 0
        self._filled = False
        self.applied = 0
        """Rows that deletions and insertions really touched."""
        table = plan.table
        names = {name.lower() for name in plan.columns}
        self._extra = [each for each in table.stored if each.name.lower() not in names]
        for column in self._extra:
            if column.not_null and column.default is None:
                raise SchemaMismatch(
                    f"table {table.name} has a new column {column.name} that must have a value",
                    hint="give it a default, or restore to another place (path=FILE)",
                )
        self._synthetic = plan.key.synthetic

    @property
    def planned(self) -> int:
        """Row changes by the plan: an update is a deletion and an insertion, unless columns must be kept."""
        both = 1 if self._extra else 2
        return self._counts[_INSERT] + self._counts[_DELETE] + both * self._counts[_UPDATE]

    @property
    def change(self) -> TableChange:
        counts = self._counts
        return TableChange(self._view.name, counts[_INSERT], counts[_UPDATE], counts[_DELETE], self._unchanged)

    # ------------------------------------------------ find

    def find(self) -> None:
        """Compare the backup's rows with the target's, both in key order."""
        if self._fill_empty():
            return
        columns = ", ".join(f"c{at}" for at in range(len(self._plan.columns)))
        self._connection.execute(f"DROP TABLE IF EXISTS {self._temp}")
        self._connection.execute(f"CREATE TABLE {self._temp} (op, handle, {columns})")
        target = _TargetRows(rows_select(self._connection, RLock(), self._plan, handle=True), self._plan)
        key = self._plan.key
        for wanted in self._view.rows():
            self._progress.check()
            bound = key.encode(key.text(wanted[-1]))
            rows: list[bytes] = []
            handles: list[Any] = []
            for more, more_handles in target.take(bound):
                if len(rows) + len(more) > 4 * len(wanted) + 65_536:
                    more, more_handles = self._only_wanted(wanted, more, more_handles)
                rows += more
                handles += more_handles
            self._window(wanted, rows, handles)
            self._progress.advance(bytes=sum(map(len, wanted)), items=len(wanted))
        for rows, handles in target.take(None):
            self._store(_DELETE, rows, handles)

    def _fill_empty(self) -> bool:
        """Insert straight into a table without any row; whether this was one."""
        table = self._plan.table
        if self._connection.execute(f"SELECT 1 FROM main.{quote(table.name)} LIMIT 1").fetchone() is not None:
            return False
        with_rowid = self._plan.mode == "rowid"
        columns = [*([table.rowid or ""] if with_rowid else []), *map(quote, self._plan.columns)]
        into = f"main.{quote(table.name)} ({', '.join(columns)})"
        before = self._connection.total_changes
        for rows in self._view.rows():
            self._progress.check()
            insert_all(self._connection, into, tuples_of(rows, skip=0 if with_rowid else self._synthetic))
            self._counts[_INSERT] += len(rows)
            self._progress.advance(bytes=sum(map(len, rows)), items=len(rows))
        self.applied += self._connection.total_changes - before
        self._filled = True
        return True

    def _only_wanted(self, wanted: list[bytes], rows: list[bytes], handles: list[Any]) -> tuple[list[bytes], list[Any]]:
        """Settle at once what the backup does not have, so that a window stays small."""
        keys = set(keys_of_rows(self._plan.key, wanted))
        triples = [*zip(keys_of_rows(self._plan.key, rows), rows, handles, strict=True)]
        gone = [each for each in triples if each[0] not in keys]
        kept = [each for each in triples if each[0] in keys]
        self._store(_DELETE, [each[1] for each in gone], [each[2] for each in gone])
        return [each[1] for each in kept], [each[2] for each in kept]

    def _window(self, wanted: list[bytes], rows: list[bytes], handles: list[Any]) -> None:
        if wanted == rows:
            self._unchanged += len(rows)
            return
        same = set(wanted) & set(rows)
        self._unchanged += len(same)
        key = self._plan.key
        new = [row for row in wanted if row not in same]
        old = [(row, handle) for row, handle in zip(rows, handles, strict=True) if row not in same]
        old_keys = keys_of_rows(key, [row for row, _ in old])
        by_key = {text: handle for text, (_, handle) in zip(old_keys, old, strict=True)}
        new_keys = keys_of_rows(key, new)
        known = set(new_keys)
        updated = [(row, by_key[text]) for text, row in zip(new_keys, new, strict=True) if text in by_key]
        inserted = [row for text, row in zip(new_keys, new, strict=True) if text not in by_key]
        deleted = [pair for text, pair in zip(old_keys, old, strict=True) if text not in known]
        self._store(_DELETE, [row for row, _ in deleted], [handle for _, handle in deleted])
        self._store(_UPDATE, [row for row, _ in updated], [handle for _, handle in updated])
        self._store(_INSERT, inserted, self._rowids(inserted))

    def _rowids(self, rows: list[bytes]) -> list[Any]:
        """The rowids that inserted rows get back; None lets SQLite choose."""
        if self._plan.mode != "rowid":
            return [None] * len(rows)
        return [int(row.partition(b"\t")[0]) for row in rows]

    def _store(self, op: int, rows: list[bytes], handles: list[Any]) -> None:
        if not rows:
            return
        self._counts[op] += len(rows)
        tuples = tuples_of(rows, skip=self._synthetic)
        insert_all(self._connection, self._temp, ((op, at, *row) for at, row in zip(handles, tuples, strict=True)))

    # ------------------------------------------------ apply

    def delete(self) -> None:
        """Delete what goes, and what is to be inserted again with other values."""
        if self._filled:
            return
        ops = f"{_DELETE}" if self._extra else f"{_DELETE}, {_UPDATE}"
        table = self._plan.table
        if table.rowid:
            own, theirs = table.rowid, "handle"
        else:
            own = "(" + ", ".join(map(quote, self._key_columns)) + ")"
            theirs = ", ".join(f"c{at}" for at in range(len(self._key_columns)))
        self._run(
            f"DELETE FROM main.{quote(table.name)} WHERE {own} IN (SELECT {theirs} FROM {self._temp} WHERE op IN ({ops}))"
        )

    @property
    def _key_columns(self) -> tuple[str, ...]:
        return self._plan.columns[: len(self._plan.key.kinds) - self._synthetic]

    def insert(self) -> None:
        """Insert what is missing; rows that were updated come back under their rowid."""
        if self._filled:
            return
        if self._extra:
            self._update()
        table, ops = self._plan.table, f"{_INSERT}" if self._extra else f"{_INSERT}, {_UPDATE}"
        columns = [*map(quote, self._plan.columns)]
        values = [f"c{at}" for at in range(len(columns))]
        if table.rowid and self._plan.mode != "alias":
            columns, values = [table.rowid, *columns], ["handle", *values]
        self._run(
            f"INSERT OR ABORT INTO main.{quote(table.name)} ({', '.join(columns)}) "
            f"SELECT {', '.join(values)} FROM {self._temp} WHERE op IN ({ops}) ORDER BY op DESC, rowid"
        )

    def _update(self) -> None:
        """Write over rows in place, so that columns which the backup does not know keep their values."""
        table = self._plan.table
        pairs = ", ".join(f"{quote(name)} = source.c{at}" for at, name in enumerate(self._plan.columns))
        match = f"{quote(table.name)}.{table.rowid} = source.handle"
        if not table.rowid:
            match = " AND ".join(
                f"{quote(table.name)}.{quote(name)} = source.c{at}" for at, name in enumerate(self._key_columns)
            )
        self._run(
            f"UPDATE OR ABORT main.{quote(table.name)} SET {pairs} FROM {self._temp} AS source WHERE source.op = {_UPDATE} AND {match}"
        )

    def _run(self, sql: str) -> None:
        """Run a statement that says OR ABORT: a schema's own ON CONFLICT REPLACE would delete another tenant's row."""
        before = self._connection.total_changes
        try:
            self._connection.execute(sql)
        except sqlite3.IntegrityError as error:
            raise TargetError(
                f"table {self._view.name}: a restored row collides with one that is not restored: {error}",
                hint="a key or a unique value was taken since the backup; restore to another place (path=FILE)",
            ) from error
        self.applied += self._connection.total_changes - before

    def drop(self) -> None:
        """Remove the temporary table."""
        self._connection.execute(f"DROP TABLE IF EXISTS {self._temp}")
