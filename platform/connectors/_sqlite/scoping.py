"""Which rows of the target are the tenant's when something is to be put back.

Besides the rows in scope these are rows that lost their parents and lead to nobody else's row. Those with a key of the
backup would collide with restored rows; those that refer to a row which comes back would be in scope
again afterwards without being in the backup.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from connectors._sqlite.catalog import Catalog, Table, quote
from connectors._sqlite.lines import insert_all, tuples_of
from connectors._sqlite.matching import Match, match
from connectors._sqlite.read import Layout
from connectors._sqlite.scope import Scope, scope_find
from connectors._sqlite.windows import windows
from engine.errors import SchemaMismatch
from engine.ports import TableView
from engine.table_runs import keys_of_rows

PARENTS = "temp.lastro_parent"


def scope_of(connection: sqlite3.Connection, catalog: Catalog, layout: Layout) -> Scope:
    """The scope as the connection sees the target now; of a database that is the tenant's alone everything."""
    if layout.whole:
        return Scope()
    return scope_find(connection, catalog, layout.tenant_column, layout.tenant_value)


def where_of(scope: Scope, layout: Layout, name: str) -> str | None:
    """The condition of a table's rows in scope. Raises SchemaMismatch for a table that has none any more."""
    where = scope.where.get(name)
    if where is None and not layout.whole:
        raise SchemaMismatch(
            f"table {name} is no longer reached from the tenant column",
            hint="its foreign keys or its tenant column changed; restore to another place (path=FILE)",
        )
    return where


def adopt(
    connection: sqlite3.Connection,
    catalog: Catalog,
    scope: Scope,
    views: Mapping[str, TableView],
    check: Callable[[], None],
) -> None:
    """Take rows into scope that lost their parents and would be in the way of the backup's."""
    grown = True
    while grown:
        grown = False
        for table in scope.children:
            if table.name not in views:
                continue
            for key, parent in scope.children[table]:
                if parent.name in views and scope.dangling(connection, table, key):
                    keys = _keys_list(connection, views[parent.name], key.parent_columns)
                    grown = scope.adopt_referring(connection, table, key, keys) or grown
            for handles in _strays(connection, catalog, scope, table, views[table.name], check):
                scope.adopt(connection, table, handles)
                grown = grown or bool(handles)


def _keys_list(connection: sqlite3.Connection, parent: TableView, columns: Sequence[str]) -> str:
    """A temporary table of what the backup's rows hold in those columns."""
    connection.execute(f"DROP TABLE IF EXISTS {PARENTS}")
    connection.execute(f"CREATE TABLE {PARENTS} ({', '.join(f'k{at}' for at in range(len(columns)))})")
    names = [each.name.lower() for each in parent.columns]
    if not all(each.lower() in names for each in columns):
        return PARENTS
    places = [names.index(each.lower()) for each in columns]
    for rows in parent.rows():
        tuples = tuples_of(rows, skip=parent.key.synthetic)
        insert_all(connection, PARENTS, (tuple(row[at] for at in places) for row in tuples))
    return PARENTS


def _strays(
    connection: sqlite3.Connection,
    catalog: Catalog,
    scope: Scope,
    table: Table,
    view: TableView,
    check: Callable[[], None],
) -> Iterator[list[tuple[Any, ...]]]:
    """Rowids or primary keys of unclaimed rows whose keys the backup has too."""
    unclaimed = scope.unclaimed(table)
    found = match(connection, catalog, table, view, where=unclaimed, by_identity=False, exists=True, base=None)
    if connection.execute(f"SELECT 1 FROM main.{quote(table.name)} WHERE {unclaimed} LIMIT 1").fetchone() is None:
        return
    sides = found.sides(connection, 0, exists=True, base=None, check=check)
    for (wanted, _), (rows, tags) in windows(sides):
        keys = set(keys_of_rows(found.plan.key, wanted))
        texts = keys_of_rows(found.plan.key, rows)
        at_hand = [(row, tag[0]) for text, row, tag in zip(texts, rows, tags, strict=True) if text in keys]
        if at_hand:
            yield _handles(found, at_hand)


def _handles(found: Match, rows: list[tuple[bytes, Any]]) -> list[tuple[Any, ...]]:
    if found.table.rowid:
        return [(handle,) for _, handle in rows]
    count = len(found.table.primary)
    tuples = tuples_of([row for row, _ in rows], skip=found.plan.key.synthetic)
    places = [found.columns.index(name) for name in found.table.primary]
    assert len(places) == count, "a key without a rowid is shared by both sides"
    return [tuple(row[at] for at in places) for row in tuples]
