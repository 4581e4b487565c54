"""How the rows of a backup's table meet those of the target: which columns, by which key, in which order.

Usually both are read in the backup's own key order. A table whose key in the backup is only its rowid is matched by its
declared key, or by content, where not every row is put back: rowids are given out anew and change with VACUUM. The backup's
rows are then laid into a temporary table and sorted there, and so they are when columns or key kinds differ.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any

from connectors._sqlite.catalog import Catalog, Table, quote
from connectors._sqlite.lines import insert_all, tuples_of
from connectors._sqlite.plan import (
    KeyMode,
    TablePlan,
    key_kinds,
    plan_by,
    rows_select,
)
from connectors._sqlite.windows import Batch, Side, columns_cut
from engine.errors import SchemaMismatch
from engine.ports import KeyKind, TableView

TAB = b"\t"
ELSEWHERE = "restore to another place (path=FILE), or bring the schema back to that of the backup"


@dataclass(frozen=True, slots=True)
class Match:
    """One table on both sides. `columns` are shared, the key's first."""

    view: TableView
    table: Table
    columns: tuple[str, ...]
    extras: tuple[str, ...]
    removed: tuple[str, ...]
    plan: TablePlan
    staged: bool
    """Whether the backup's rows are sorted anew."""

    @property
    def handled(self) -> bool:
        """Whether the first field is the rowid that a row gets back."""
        return self.plan.mode in ("alias", "rowid")

    @property
    def keys(self) -> tuple[str, ...]:
        return self.plan.columns[: len(self.plan.key.kinds) - self.plan.key.synthetic]

    def sides(
        self,
        connection: sqlite3.Connection,
        number: int,
        *,
        exists: bool,
        base: TableView | None,
        check: Callable[[], None],
    ) -> list[Side]:
        """Backup, target and base, each in key order; rows of the target are tagged with rowid and whole line."""
        target = self._target(connection) if exists else iter(())
        views = [self.view] if base is None else [self.view, base]
        sides = [
            Side(self._rows(connection, view, f"{number}_{at}", check), self.plan.key) for at, view in enumerate(views)
        ]
        sides.insert(1, Side(target, self.plan.key))
        return sides

    def _target(self, connection: sqlite3.Connection) -> Iterator[Batch]:
        count = len(self.extras)
        for rows, handles in rows_select(connection, RLock(), self.plan, handle=True):
            tags = [*zip(handles, rows, strict=True)]
            yield ([row.rsplit(TAB, count)[0] for row in rows] if count else rows), tags

    def lines(self, connection: sqlite3.Connection, where: str | None) -> Iterator[list[bytes]]:
        """Lines of the target under a condition, as the backup has them."""
        plan = replace(self.plan, where=where, columns=self.columns)
        return (rows for rows, _ in rows_select(connection, RLock(), plan))

    def _rows(
        self, connection: sqlite3.Connection, view: TableView, name: str, check: Callable[[], None]
    ) -> Iterator[Batch]:
        if self.staged:
            place = f"temp.lastro_view_{name}"
            stage(connection, place, view, self.columns, check)
            yield from self._sorted(connection, place)
            return
        cut = None
        names = [each.name for each in view.columns]
        if names != [*self.columns]:
            cut = columns_cut(
                [*range(view.key.synthetic), *(view.key.synthetic + names.index(each) for each in self.columns)]
            )
        for rows in view.rows():
            check()
            yield (cut(rows) if cut else rows), [None] * len(rows)

    def _sorted(self, connection: sqlite3.Connection, place: str) -> Iterator[Batch]:
        plan = replace(self.plan, place=place, where=None, columns=self.columns)
        for rows, _ in rows_select(connection, RLock(), plan):
            yield rows, [None] * len(rows)
        connection.execute(f"DROP TABLE {place}")


def stage(
    connection: sqlite3.Connection, place: str, view: TableView, columns: Sequence[str], check: Callable[[], None]
) -> None:
    """Lay the rows of a backup into a temporary table with columns of the same names."""
    names = [each.name for each in view.columns]
    places = [names.index(each) for each in columns]
    every = places == [*range(len(names))]
    connection.execute(f"DROP TABLE IF EXISTS {place}")
    connection.execute(f"CREATE TABLE {place} ({', '.join(map(quote, columns))})")
    for rows in view.rows():
        check()
        tuples: Sequence[tuple[Any, ...]] = tuples_of(rows, skip=view.key.synthetic)
        insert_all(connection, place, tuples if every else [tuple(row[at] for at in places) for row in tuples])


def match(
    connection: sqlite3.Connection,
    catalog: Catalog,
    table: Table,
    view: TableView,
    *,
    where: str | None,
    by_identity: bool,
    exists: bool,
    base: TableView | None,
) -> Match:
    """Raises SchemaMismatch when rows cannot be told apart as they were. `by_identity`: never by a mere rowid."""
    live = {each.name.lower(): each.name for each in table.stored}
    names = [each.name for each in view.columns]
    columns = tuple(name for name in names if name.lower() in live)
    removed = tuple(name for name in names if name.lower() not in live)
    shared = {name.lower() for name in columns}
    extras = tuple(each.name for each in table.stored if each.name.lower() not in shared)
    if not columns:
        raise SchemaMismatch(f"table {table.name} has no column in common with the backup", hint=ELSEWHERE)
    mode: KeyMode = view.facts["mode"]
    same_base = base is None or (base.key, base.facts["mode"], [c.name for c in base.columns]) == (
        view.key,
        mode,
        names,
    )
    staged = (by_identity and mode == "rowid") or (mode == "content" and bool(removed or extras)) or not same_base
    if staged:
        plan = _plan_anew(connection, catalog, table, [view] if base is None else [view, base], columns, where, exists)
    else:
        own = tuple(names[: len(view.key.kinds) - view.key.synthetic])
        _key_check(connection, catalog, table, view, own, where, exists)
        plan = plan_by(table, mode, view.key.kinds, own, columns, where)
    whole = replace(plan, columns=(*plan.columns, *extras))
    return Match(view, table, plan.columns, extras, removed, whole, staged)


def _key_check(
    connection: sqlite3.Connection,
    catalog: Catalog,
    table: Table,
    view: TableView,
    own: tuple[str, ...],
    where: str | None,
    exists: bool,
) -> None:
    mode, kinds = view.facts["mode"], view.key.kinds
    if (mode == "alias" and table.alias != own[0]) or (mode == "rowid" and table.rowid is None):
        raise SchemaMismatch(f"table {table.name} has another primary key than in the backup", hint=ELSEWHERE)
    if mode != "primary":
        return
    if {*table.primary} != {*own}:
        raise SchemaMismatch(f"table {table.name} has another primary key than in the backup", hint=ELSEWHERE)
    if not exists:
        return
    now = key_kinds(connection, catalog, table, where, own, empty=dict(zip(own, kinds, strict=True)))
    if now is None:
        raise SchemaMismatch(f"table {table.name} has rows without a key", hint=ELSEWHERE)
    for name, kind, found in zip(own, kinds, now, strict=True):
        if kind not in (found, "hash"):
            raise SchemaMismatch(
                f"table {table.name}: key column {name} holds values that are no {kind} as in the backup",
                hint="remove those rows, or restore to another place (path=FILE)",
            )


def _plan_anew(
    connection: sqlite3.Connection,
    catalog: Catalog,
    table: Table,
    views: Sequence[TableView],
    columns: tuple[str, ...],
    where: str | None,
    exists: bool,
) -> TablePlan:
    """By the declared key when every side has all of it, else by content."""
    own = table.primary
    for view in views:
        known = {each.name for each in view.columns}
        if not set(columns) <= known:
            raise SchemaMismatch(f"table {table.name} has other columns in the base", hint="merge without a base")
    if own and set(own) <= set(columns):
        places = [(f"main.{quote(table.name)}", where)] if exists else []
        for number, view in enumerate(views):
            stage(connection, f"temp.lastro_kinds_{number}", view, own, lambda: None)
            places.append((f"temp.lastro_kinds_{number}", None))
        found = [key_kinds(connection, catalog, table, condition, own, place=place) for place, condition in places]
        for number in range(len(views)):
            connection.execute(f"DROP TABLE temp.lastro_kinds_{number}")
        if None not in found:
            kinds: tuple[KeyKind, ...] = tuple(
                each[0] if len(set(each)) == 1 else "hash" for each in zip(*(f for f in found if f), strict=True)
            )
            return plan_by(table, "primary", kinds, own, columns, where)
    if table.rowid is None:
        raise SchemaMismatch(f"table {table.name} has another primary key than in the backup", hint=ELSEWHERE)
    return plan_by(table, "content", ("text", "int"), (), columns, where)
