"""The change set of one table in a temporary table, from its decision to its change image.

`temp.lastro_change_<n>` holds every row that differs, in key order:

| column | meaning |
|---|---|
| `id` | place in key order |
| `op` | 0 insert, 1 delete, 2 update: what would make the target equal to the backup |
| `act` | 1 when it is done |
| `why` | when it is not done: kept, collision, withheld, stays |
| `other` | the table on whose account it is withheld, stays or comes along |
| `conflict`, `along`, `stranger` | changed on both sides of a three-way merge; comes along; the key was given out again |
| `reason` | of a kept row, a key of `KEPT_REASONS` |
| `handle` | the rowid, where there is one and it is known |
| `before` | the target's row as a line, all stored columns |
| `c0` … | the backup's values of the columns that both have; of a deletion the target's |
| `x0` … | of an update the values of columns that the backup does not know |
"""

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from connectors._sqlite.catalog import Table, quote
from connectors._sqlite.lines import columns_of, insert_all, rows_of
from connectors._sqlite.windows import DELETE, INSERT, UPDATE, Change
from engine.plans import ChangeDigest
from engine.ports import TableChange, TableView

TAB = b"\t"
FETCH_ROWS = 2048
_NAMES = (b"insert", b"delete", b"update")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is decided about one row by itself, before references are looked at."""

    act: bool
    why: str | None = None
    conflict: bool = False
    stranger: bool = False
    """The target's row of that key is another thing."""
    reason: str | None = None
    """Of a row that is kept: a key of `KEPT_REASONS`, short because every such row has it."""


KEPT_REASONS = {
    "t": "only the tenant has it",
    "d": "the tenant deleted it",
    "c": "only the tenant changed it",
    "o": "only_missing",
    "n": "newest_wins",
    "b": "take_backup",
    "u": "its module was not chosen",
}
"""In the words that every kind of database uses; policies by their names."""

DONE = Verdict(act=True)
COLLIDES = Verdict(act=False, why="collision", stranger=True)
CONFLICT_DONE = Verdict(act=True, conflict=True)


def kept(reason: str, *, conflict: bool = False) -> Verdict:
    """The tenant's row stays, or stays away."""
    return Verdict(act=False, why="kept", conflict=conflict, reason=reason)


@dataclass
class TableChanges:
    """The changes of one table. `columns` are those that target and backup share, `extras` the target's own."""

    connection: sqlite3.Connection
    number: int
    name: str
    module: str
    table: Table
    columns: tuple[str, ...]
    extras: tuple[str, ...]
    synthetic: int
    handled: bool
    """Whether inserted rows get back the rowid that is their first field."""
    exists: bool = True
    """False for a table that the target does not have yet."""
    placed: bool = True
    """Whether the rowid of an inserted row is part of the change, and not merely where it would go if that is free."""
    selected: bool = True
    unchanged: int = 0
    removes: bool = False
    """Whether any row of the target may be deleted or updated."""
    adds: bool = False
    leaves: bool = False
    """Whether any change is not made."""
    keys: tuple[str, ...] = ()
    """Key columns as shown to people; empty for a rowid."""
    _next: int = 1
    _indexed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.temp = f"temp.lastro_change_{self.number}"
        columns = [*(f"c{at}" for at in range(len(self.columns))), *(f"x{at}" for at in range(len(self.extras)))]
        self.connection.execute(f"DROP TABLE IF EXISTS {self.temp}")
        self.connection.execute(
            f"CREATE TABLE {self.temp} (id INTEGER PRIMARY KEY, op, act, why, other, conflict, along, stranger, reason, "
            f"handle INTEGER, before, "
            f"{', '.join(columns)})"
        )

    def drop(self) -> None:
        self.connection.execute(f"DROP TABLE IF EXISTS {self.temp}")

    # ------------------------------------------------ names in SQL

    @property
    def live(self) -> str:
        return f"main.{quote(self.table.name)}"

    @property
    def values(self) -> list[str]:
        return [f"c{at}" for at in range(len(self.columns))]

    def value(self, column: str, alias: str) -> str | None:
        """Where a change holds a column's value; None for a column that only the target has."""
        names = [each.lower() for each in self.columns]
        return f"{alias}.c{names.index(column.lower())}" if column.lower() in names else None

    def same_row(self, change: str, row: str, *, find: str = "row") -> str:
        """The condition that a change is about a row of the target; `find` says which of the two is looked up by it.

        A column of the target loses its affinity (`+`) where a change is looked up: SQLite would not use the index.
        """
        if self.table.rowid:
            return f"{row}.{self.table.rowid} = {change}.handle"
        bare = "+" if find == "change" else ""
        return " AND ".join(f"{bare}{row}.{quote(name)} = {self.value(name, change)}" for name in self.table.primary)

    def gone(self, row: str) -> str:
        """The condition that a row of the target is deleted, or replaced by an update."""
        return self.touched(row, done=False)

    def touched(self, row: str, *, done: bool) -> str:
        """The condition that a row is one that goes or changes; when it is `done`, that it came or changed."""
        if not (self.adds if done else self.removes):
            return "0"
        if self.table.rowid:
            self.index("handle")
        else:
            self.index_on(self.table.primary)
        return (
            f"EXISTS (SELECT 1 FROM {self.temp} gone WHERE {self.same_row('gone', row, find='change')} "
            f"AND gone.act = 1 AND gone.op {'<> 1' if done else '> 0'})"
        )

    def index_on(self, columns: Sequence[str]) -> None:
        """Make lookups by those columns of the target quick; nothing for columns that changes do not know."""
        values = [self.value(each, "d") for each in columns]
        if None not in values:
            self.index(*(str(each).partition(".")[2] for each in values))

    def index(self, *columns: str) -> None:
        """Make lookups by those columns of the temporary table quick."""
        name = f"lastro_by_{self.number}_{'_'.join(columns)}"
        if name not in self._indexed:
            self._indexed.add(name)
            place = self.temp.removeprefix("temp.")
            self.connection.execute(f"CREATE INDEX temp.{name} ON {place} ({', '.join(columns)})")

    # ------------------------------------------------ collect

    def store(self, changes: Sequence[Change], verdicts: Sequence[Verdict]) -> None:
        """Add changes, which come in key order. The tag of a row of the target is its rowid and its whole line."""
        if not changes:
            return
        acts = [int(each.act) for each in verdicts]
        for change, act in zip(changes, acts, strict=True):
            self.removes = self.removes or (act == 1 and change.op != INSERT)
            self.adds = self.adds or (act == 1 and change.op != DELETE)
            self.leaves = self.leaves or not act
        count = len(changes)
        columns: list[Sequence[Any]] = [
            range(self._next, self._next + count),
            [change.op for change in changes],
            acts,
            [each.why for each in verdicts],
            [None] * count,
            [int(each.conflict) for each in verdicts],
            [0] * count,
            [int(each.stranger) for each in verdicts],
            [each.reason for each in verdicts],
            self._handles(changes),
            self._befores(changes),
            *columns_of([change.after or change.before for change in changes], skip=self.synthetic),
            *self._extras(changes),
        ]
        self._next += count
        insert_all(self.connection, self.temp, zip(*columns, strict=True))

    def move_from_taken(self) -> None:
        """Let rows be inserted elsewhere whose rowids other rows have by now."""
        self.connection.execute(
            f"UPDATE {self.temp} SET handle = NULL WHERE op = {INSERT} AND handle IN (SELECT {self.table.rowid} FROM {self.live})"
        )

    def _handles(self, changes: Sequence[Change]) -> list[Any]:
        if self.handled:
            return [change.tag[0] if change.tag else int(change.after.partition(TAB)[0]) for change in changes]
        return [change.tag[0] if change.tag else None for change in changes]

    def _befores(self, changes: Sequence[Change]) -> list[bytes | None]:
        """The target's rows without made-up fields."""
        count = self.synthetic
        if not count:
            return [change.tag[1] if change.tag else None for change in changes]
        return [change.tag[1].split(TAB, count)[count] if change.tag else None for change in changes]

    def _extras(self, changes: Sequence[Change]) -> list[Sequence[Any]]:
        count = len(self.extras)
        if not count:
            return []
        empty = TAB.join([b"\\N"] * count)
        return columns_of(
            [TAB.join(change.tag[1].rsplit(TAB, count)[1:]) if change.op == UPDATE else empty for change in changes]
        )

    def lines_of(self, changes: Sequence[Change], verdicts: Sequence[Verdict]) -> list[bytes]:
        """Digest lines of what `store` was given and is done; the same as `digest` reads later."""
        done = [change for change, verdict in zip(changes, verdicts, strict=True) if verdict.act]
        if not done:
            return []
        handles, count = self._handles(done), self.synthetic
        afters = [
            b""
            if change.op == DELETE
            else b"%b\t%b"
            % (
                b"\\N" if handle is None else b"%d" % handle,
                change.after.split(TAB, count)[count] if count else change.after,
            )
            for change, handle in zip(done, handles, strict=True)
        ]
        befores = _flat([each or b"" for each in self._befores(done)])
        return [
            b"%b\t%b\t%b" % (_NAMES[change.op], before, after)
            for change, before, after in zip(done, befores, _flat(afters), strict=True)
        ]

    # ------------------------------------------------ read

    def digest(self, digest: ChangeDigest) -> None:
        """Add every change that is done."""
        digest.section(self.name, self.columns)
        handle = "handle" if self.placed else f"CASE WHEN op <> {INSERT} THEN handle END"
        cursor = self.connection.execute(
            f"SELECT op, before, {handle}, {', '.join(self.values)} FROM {self.temp} WHERE act = 1 ORDER BY id"
        )
        while found := cursor.fetchmany(FETCH_ROWS):
            digest.lines(change_lines(found))

    def counts(self) -> TableChange:
        """What is done, and what is not and why."""
        rows = self.connection.execute(
            f"SELECT op, act, CAST(why AS BLOB), count(*), sum(conflict) FROM {self.temp} GROUP BY op, act, why"
        ).fetchall()
        done = dict.fromkeys((INSERT, DELETE, UPDATE), 0)
        left = {"kept": 0, "collision": 0, "withheld": 0, "stays": 0}
        conflicts = 0
        for op, act, why, count, both in rows:
            conflicts += both
            if act:
                done[op] += count
            else:
                left[why.decode()] += count
        return TableChange(
            self.name, insert=done[INSERT], update=done[UPDATE], delete=done[DELETE], unchanged=self.unchanged,
            kept=left["kept"], conflicts=conflicts, collisions=left["collision"], withheld=left["withheld"],
            stays=left["stays"],
        )  # fmt: skip

    @property
    def stored(self) -> tuple[str, ...]:
        """All columns in the order of `before`."""
        return (*self.columns, *self.extras)

    def image_before(self) -> Iterator[list[bytes]]:
        """Lines of rows as they were: the rowid where there is one, then `stored`."""
        cursor = self.connection.execute(f"SELECT handle, before FROM {self.temp} WHERE act = 1 AND op > 0 ORDER BY id")
        while found := cursor.fetchmany(FETCH_ROWS):
            if self.table.rowid:
                yield [b"%d\t%b" % pair for pair in found]
            else:
                yield [line for _, line in found]

    def image_after(self) -> Iterator[list[bytes]]:
        """Lines of rows as they are now, read from the table."""
        yield from self.read_back(self.stored)

    def read_back(self, columns: Sequence[str]) -> Iterator[list[bytes]]:
        """Lines of inserted and updated rows as the table has them now, after their rowids."""
        if not self.adds:
            return
        names = [*([f"m.{self.table.rowid}"] if self.table.rowid else []), *(f"m.{quote(each)}" for each in columns)]
        cursor = self.connection.execute(
            f"SELECT {', '.join(names)} FROM {self.temp} d CROSS JOIN {self.live} m ON {self.same_row('d', 'm')} "
            "WHERE d.act = 1 AND d.op <> 1 ORDER BY d.id"
        )
        while found := cursor.fetchmany(FETCH_ROWS):
            yield rows_of(found)

    def decided(self) -> Iterator[list[bytes]]:
        """The same lines as the plan says they must be, of the shared columns."""
        names = [*(["handle"] if self.table.rowid else []), *self.values]
        cursor = self.connection.execute(
            f"SELECT {', '.join(names)} FROM {self.temp} WHERE act = 1 AND op <> 1 ORDER BY id"
        )
        while found := cursor.fetchmany(FETCH_ROWS):
            yield rows_of(found)


def change_lines(found: Sequence[tuple[Any, ...]]) -> list[bytes]:
    """Digest lines of (op, before, handle, values …)."""
    befores = _flat([b"" if row[1] is None else row[1] for row in found])
    afters = _flat(rows_of([row[2:] for row in found]))
    return [
        b"%b\t%b\t%b" % (_NAMES[row[0]], before, b"" if row[0] == DELETE else after)
        for row, before, after in zip(found, befores, afters, strict=True)
    ]


def _flat(lines: list[bytes]) -> list[bytes]:
    r"""Lines with tabs written as `\t` and backslashes doubled."""
    block = b"\n".join(lines)
    if b"\\" in block:
        block = block.replace(b"\\", b"\\\\")
    return block.replace(b"\t", b"\\t").split(b"\n")


def insert_lines(table: TableView, rows: Sequence[bytes]) -> list[bytes]:
    """Digest lines of rows that are all inserted; the same as of a change set with these rows alone."""
    mode, synthetic = table.facts["mode"], table.key.synthetic
    if mode == "rowid":
        lines = [*rows]
    elif mode == "alias":
        lines = [row.partition(TAB)[0] + TAB + row for row in rows]
    else:
        lines = [b"\\N\t" + (row.split(TAB, synthetic)[synthetic] if synthetic else row) for row in rows]
    return [b"insert\t\t" + line for line in _flat(lines)] if lines else []
