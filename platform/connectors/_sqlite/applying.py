"""Carry out a change set inside the target's transaction, and check that exactly it was carried out.

Rows are deleted first and inserted afterwards, updates included, so that two rows that swap a unique value do not
collide on the way. Triggers of the tables concerned are dropped and made again inside the transaction,
so that none fires on a restored row; foreign keys are off and are checked at the end.
"""

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from connectors._sqlite.catalog import quote
from connectors._sqlite.changes import TableChanges
from connectors._sqlite.references import Relation
from engine.errors import SchemaMismatch, TargetError
from engine.faults import kill_point
from engine.ports import Check, TableChange
from engine.progress import Progress

Object = dict[str, str]
"""type, name, table, sql of a definition."""


def transaction_begin(connection: sqlite3.Connection) -> None:
    """Take the write lock, with everything off that would act on restored rows."""
    _quieten(connection)
    connection.execute("BEGIN IMMEDIATE")


def reading_begin(connection: sqlite3.Connection) -> None:
    """Read one snapshot, with the same things off; in WAL mode others go on writing."""
    _quieten(connection)
    connection.execute("BEGIN")


def _quieten(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("PRAGMA ignore_check_constraints = ON")


def data_version(connection: sqlite3.Connection) -> int:
    """A number that differs when any other connection has committed in between (SQLite's `PRAGMA data_version`)."""
    return int(connection.execute("PRAGMA main.data_version").fetchone()[0])


def transaction_commit(connection: sqlite3.Connection) -> None:
    """The last step of every restore."""
    kill_point("sqlite.before_commit")
    connection.execute("COMMIT")
    kill_point("sqlite.after_commit")


@dataclass
class Definitions:
    """Definitions that are made or dropped, and the triggers that must not fire meanwhile."""

    connection: sqlite3.Connection
    created: list[Object] = field(default_factory=list)
    dropped: list[Object] = field(default_factory=list)
    silenced: dict[str, str] = field(default_factory=dict)
    """Triggers that wait to be made again."""

    def names(self) -> set[str]:
        return {row[0].decode() for row in self.connection.execute("SELECT name FROM main.sqlite_schema")}

    def silence(self, tables: Iterable[str]) -> None:
        """Drop the triggers of those tables until `speak`."""
        wanted = {each.lower() for each in tables}
        rows = self.connection.execute(
            "SELECT name, tbl_name, sql FROM main.sqlite_schema WHERE type = 'trigger' ORDER BY rowid"
        ).fetchall()
        for name, table, sql in rows:
            if table.decode().lower() in wanted:
                self.connection.execute(f"DROP TRIGGER main.{quote(name.decode())}")
                self.silenced[name.decode()] = sql.decode()

    def speak(self) -> None:
        """Make the triggers again."""
        for sql in self.silenced.values():
            self.connection.execute(sql)
        self.silenced.clear()

    def create(self, each: Object) -> None:
        """Raises SchemaMismatch when the target cannot have it."""
        try:
            self.connection.execute(each["sql"])
        except sqlite3.OperationalError as error:
            raise SchemaMismatch(f"{each['name']} cannot be created in the target: {error}") from error
        self.created.append(each)

    def drop(self, each: Object) -> None:
        self.connection.execute(f"DROP {each['type']} IF EXISTS main.{quote(each['name'])}")
        self.dropped.append(each)


def rows_apply(
    connection: sqlite3.Connection, tables: Sequence[TableChanges], progress: Progress
) -> dict[str, dict[str, dict[str, int]]]:
    """Delete, then insert. The proof that no other row was touched: by table what was planned and what SQLite counted.

    SQLite's own count of changed rows includes what triggers and foreign keys do, in whatever table; an update is a
    deletion and an insertion here. Raises TargetError when the two differ.
    """
    planned = {table.name: _planned(table.counts()) for table in tables}
    counted = {table.name: {"delete": 0, "insert": 0} for table in tables}
    for table in tables:
        if planned[table.name]["insert"]:
            _rowids(connection, table)
    began = connection.total_changes
    for table in tables:
        progress.check()
        if planned[table.name]["delete"]:
            counted[table.name]["delete"] = _delete(connection, table)
    for table in tables:
        progress.check()
        if planned[table.name]["insert"]:
            counted[table.name]["insert"] = _insert(connection, table)
    total = connection.total_changes - began
    wrong = [name for name in planned if planned[name] != counted[name]]
    if wrong or total != sum(sum(each.values()) for each in planned.values()):
        told = "; ".join(f"{name}: planned {_words(planned[name])}, counted {_words(counted[name])}" for name in wrong)
        raise TargetError(
            f"the restore would have changed other rows than planned ({told or f'{total} in all'}); everything was rolled back",
            hint="restore to another place (path=FILE), and look for what writes on its own in this database",
        )
    return {
        name: {"planned": planned[name], "counted": counted[name]} for name in planned if any(planned[name].values())
    }


def _planned(change: TableChange) -> dict[str, int]:
    return {"delete": change.delete + change.update, "insert": change.insert + change.update}


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _rowids(connection: sqlite3.Connection, table: TableChanges) -> None:
    """Give rowids to inserted rows that bring none, behind the highest, as SQLite would."""
    if not table.table.rowid:
        return
    if not connection.execute(
        f"SELECT 1 FROM {table.temp} WHERE act = 1 AND op = 0 AND handle IS NULL LIMIT 1"
    ).fetchone():
        return
    highest = connection.execute(
        f"SELECT max(coalesce((SELECT max({table.table.rowid}) FROM {table.live}), 0), "
        f"coalesce((SELECT max(handle) FROM {table.temp}), 0))"
    ).fetchone()[0]
    connection.execute(
        f"UPDATE {table.temp} SET handle = new.place FROM "
        f"(SELECT id AS theirs, ? + row_number() OVER (ORDER BY id) AS place FROM {table.temp} "
        "WHERE act = 1 AND op = 0 AND handle IS NULL) AS new WHERE id = new.theirs",
        (highest,),
    )


def _delete(connection: sqlite3.Connection, table: TableChanges) -> int:
    own, theirs = table.table.rowid, "handle"
    if not own:
        own = f"({', '.join(map(quote, table.table.primary))})"
        theirs = ", ".join(str(table.value(each, "d")) for each in table.table.primary)
    return _run(
        connection,
        table,
        f"DELETE FROM {table.live} WHERE {own} IN (SELECT {theirs} FROM {table.temp} d WHERE act = 1 AND op > 0)",
    )


def _insert(connection: sqlite3.Connection, table: TableChanges) -> int:
    if not table.extras:
        return _insert_some(connection, table, "op <> 1", [])
    extras = [f"x{at}" for at in range(len(table.extras))]
    return _insert_some(connection, table, "op = 2", extras) + _insert_some(connection, table, "op = 0", [])


def _insert_some(connection: sqlite3.Connection, table: TableChanges, condition: str, extras: list[str]) -> int:
    names = [*map(quote, table.columns), *map(quote, table.extras if extras else ())]
    values = [*table.values, *extras]
    alias = (table.table.alias or "").lower()
    if table.table.rowid and alias not in {
        each.lower() for each in (*table.columns, *(table.extras if extras else ()))
    }:
        names.insert(0, table.table.rowid)
        values.insert(0, "handle")
    return _run(
        connection,
        table,
        f"INSERT OR ABORT INTO {table.live} ({', '.join(names)}) SELECT {', '.join(values)} FROM {table.temp} "
        f"WHERE act = 1 AND {condition} ORDER BY id",
    )


def _run(connection: sqlite3.Connection, table: TableChanges, sql: str) -> int:
    """Run a statement that says OR ABORT: a schema's own ON CONFLICT REPLACE would delete another tenant's row."""
    before = connection.total_changes
    try:
        connection.execute(sql)
    except sqlite3.IntegrityError as error:
        if "UNIQUE" not in str(error) and "PRIMARY" not in str(error):
            raise SchemaMismatch(
                f"table {table.name} does not take the backup's rows: {error}",
                hint="restore to another place (path=FILE)",
            ) from error
        raise TargetError(
            f"table {table.name}: a restored row collides with one that is not restored: {error}",
            hint="a key or a unique value was taken since the backup; restore to another place (path=FILE)",
        ) from error
    return connection.total_changes - before


# ---------------------------------------------------------------- checks


def rows_check(tables: Sequence[TableChanges]) -> tuple[Check, Check]:
    """Read back every row that was written and compare it with the plan. Raises TargetError."""
    wanted, actual, counts, decided_counts = {}, {}, {}, {}
    for table in tables:
        wanted[table.name], decided_counts[table.name] = _lines_digest(table.decided())
        actual[table.name], counts[table.name] = _lines_digest(table.read_back(table.columns))
        if wanted[table.name] != actual[table.name]:
            raise TargetError(
                f"table {table.name} does not hold what was decided after the restore; everything was rolled back",
                hint="the table's column types or constraints changed values; restore to another place (path=FILE)",
            )
    return (
        Check("checksum_verification", True, expected=wanted, actual=actual),
        Check("data_integrity", True, expected=decided_counts, actual=counts),
    )


def _lines_digest(batches: Iterable[list[bytes]]) -> tuple[str, int]:
    digest, count = hashlib.sha256(), 0
    for lines in batches:
        digest.update(b"\n".join(lines) + b"\n")
        count += len(lines)
    return digest.hexdigest(), count


def violations(connection: sqlite3.Connection, relations: Sequence[Relation]) -> Counter[tuple[Any, ...]]:
    """Broken references of tables that a change set may break, counted: rows without a rowid all look alike."""
    found: Counter[tuple[Any, ...]] = Counter()
    names = {
        relation.child.name
        for relation in relations
        for each in (relation.below, relation.above)
        if each is not None and (each.adds or each.removes)
    }
    for name in sorted(names):
        try:
            rows = connection.execute(f"PRAGMA main.foreign_key_check({quote(name)})").fetchall()
        except sqlite3.OperationalError:
            continue  # A foreign key that fits no parent cannot be checked, and is never enforced either.
        found.update(tuple(bytes(v) if isinstance(v, bytearray) else v for v in row) for row in rows)
    return found


def by_tables(found: Counter[tuple[Any, ...]]) -> Counter[str]:
    """How many broken references lead from one table to another, as `child -> parent`."""
    counts: Counter[str] = Counter()
    for (child, _, parent, *_), count in found.items():
        counts[f"{child.decode()} -> {parent.decode()}"] += count
    return counts
