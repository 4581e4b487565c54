"""Which rows of shared tables are a tenant's: by the tenant column, or through foreign keys.

Tables with the tenant column are roots. A table without it that refers to a table in scope, at any
distance, is a child: its rows in scope are those that refer to a row in scope by any of its foreign keys
while none leads to another tenant's row. A row between two tenants belongs to neither: restoring one of
them can then never change what the other one sees. They are listed in temporary tables until no more are found, so that cycles and tables that refer to
themselves need no special case. What roots merely refer to (shared parents) is out of scope.
"""

import sqlite3
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from connectors._sqlite.catalog import Catalog, ForeignKey, Table, quote

Links = dict[Table, list[tuple[ForeignKey, Table]]]


@dataclass
class Scope:
    """A condition per table in scope, and how it was found."""

    where: dict[str, str] = field(default_factory=dict)
    through: dict[str, list[str]] = field(default_factory=dict)
    """Child table -> the tables it is reached through."""
    children: Links = field(default_factory=dict)
    lists: dict[str, str] = field(default_factory=dict)
    """Child table -> the temporary table of its rows in scope."""
    others: dict[str, str] = field(default_factory=dict)
    """Conditions for rows that lead to another tenant, of tables whose rows may lie between two."""

    def unclaimed(self, table: Table) -> str:
        """The condition for rows of a child table that lead to no row at all, or only to rows in scope."""
        parts = [self.outside(table.name)]
        for key, parent in self.children[table]:
            own, theirs = _names(key.columns), _names(key.parent_columns)
            others = f"SELECT {theirs} FROM main.{quote(parent.name)} WHERE {self.outside(parent.name)}"
            parts.append(f"(({own}) IN ({others})) IS NOT TRUE")
        return " AND ".join(parts)

    def dangling(self, connection: sqlite3.Connection, table: Table, key: ForeignKey) -> bool:
        """Whether an unclaimed row of a child table refers to a row by this key at all."""
        named = " AND ".join(f"{quote(each)} IS NOT NULL" for each in key.columns)
        sql = f"SELECT 1 FROM main.{quote(table.name)} WHERE {self.unclaimed(table)} AND {named} LIMIT 1"
        return connection.execute(sql).fetchone() is not None

    def adopt_referring(self, connection: sqlite3.Connection, table: Table, key: ForeignKey, keys: str) -> bool:
        """Take unclaimed rows into scope that refer to one of the listed parents; whether there were any."""
        before = connection.total_changes
        connection.execute(
            f"INSERT OR IGNORE INTO {self.lists[table.name]} SELECT {', '.join(_handles(table))} "
            f"FROM main.{quote(table.name)} WHERE {self.unclaimed(table)} AND ({_names(key.columns)}) IN (SELECT * FROM {keys})"
        )
        grown = connection.total_changes > before
        if grown:
            _fill(connection, self, {table.name})
        return grown

    def adopt(self, connection: sqlite3.Connection, table: Table, handles: Iterable[tuple[Any, ...]]) -> None:
        """Take rows of a child table into scope, by rowid or primary key, and what refers to them."""
        places = ",".join("?" * len(_handles(table)))
        connection.executemany(f"INSERT OR IGNORE INTO {self.lists[table.name]} VALUES ({places})", handles)
        _fill(connection, self, {table.name})

    def outside(self, table: str) -> str:
        """The condition for all other rows of a table."""
        return f"({self.where[table]}) IS NOT TRUE" if table in self.where else "TRUE"


def tenant_literals(value: str) -> str:
    """The tenant's value as SQL literals: as text, and as a number when it looks like one."""
    literals = ["'" + value.replace("'", "''") + "'"]
    digits = value.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) < 19 and str(int(value)) == value:
        literals.append(value)
    return ", ".join(literals)


def scope_find(connection: sqlite3.Connection, catalog: Catalog, column: str, value: str) -> Scope:
    """Compute the scope as the connection sees the database now; an earlier one's temporary tables go."""
    scope = Scope()
    for table in catalog.plain:
        own = table.column(column)
        if table.sort == "table" and own is not None:
            scope.where[table.name] = f"{quote(own.name)} IN ({tenant_literals(value)})"
    scope.children = _children(catalog, set(scope.where))
    roots = set(scope.where)
    for number, table in enumerate(scope.children):
        scope.lists[table.name] = f"temp.lastro_scope_{number}"
        scope.where[table.name] = _list_create(connection, table, scope.lists[table.name])
        scope.through[table.name] = sorted({key.parent for key, _ in scope.children[table]})
    _list_others(connection, scope, {name: catalog.tables[name] for name in roots}, column, value)
    _fill(connection, scope, roots)
    return scope


def _list_others(
    connection: sqlite3.Connection, scope: Scope, roots: Mapping[str, Table], column: str, value: str
) -> None:
    """List what leads to other tenants: only where a table has several foreign keys can a row lie between two."""
    wanted = {table for table, links in scope.children.items() if len(links) > 1}
    pending = list(wanted)
    while pending:
        parents = {parent for _, parent in scope.children.get(pending.pop(), ()) if parent in scope.children}
        pending += parents - wanted
        wanted |= parents
    if not wanted:
        return
    theirs = Scope(children={table: links for table, links in scope.children.items() if table in wanted})
    for name, table in roots.items():
        own = table.column(column)
        assert own is not None, "a root has the tenant column"
        theirs.where[name] = f"{quote(own.name)} NOT IN ({tenant_literals(value)})"
    for number, table in enumerate(theirs.children):
        theirs.lists[table.name] = f"temp.lastro_others_{number}"
        theirs.where[table.name] = _list_create(connection, table, theirs.lists[table.name])
    _fill(connection, theirs, set(roots))
    scope.others = {table.name: theirs.where[table.name] for table in theirs.children}


def _children(catalog: Catalog, reached: set[str]) -> Links:
    """Tables reached through foreign keys, with the keys that lead to tables in scope."""
    roots = set(reached)
    while True:
        more = {
            table.name
            for table in catalog.plain
            if table.name not in reached
            and any((parent := catalog.find(key.parent)) and parent.name in reached for key in table.foreign_keys)
        }
        if not more:
            break
        reached |= more
    links: Links = {}
    for name in sorted(reached - roots):
        table = catalog.tables[name]
        parents = [(key, catalog.find(key.parent)) for key in table.foreign_keys]
        links[table] = [(key, parent) for key, parent in parents if parent is not None and parent.name in reached]
    return links


def _handles(table: Table) -> list[str]:
    return [table.rowid] if table.rowid else [quote(each) for each in table.primary]


def _list_create(connection: sqlite3.Connection, table: Table, name: str) -> str:
    handles = _handles(table)
    connection.execute(f"DROP TABLE IF EXISTS {name}")
    columns = ", ".join(f"k{at}" for at in range(len(handles)))
    connection.execute(f"CREATE TABLE {name} ({columns}, PRIMARY KEY ({columns})) WITHOUT ROWID")
    return f"({', '.join(handles)}) IN (SELECT {columns} FROM {name})"


def _fill(connection: sqlite3.Connection, scope: Scope, grown_tables: set[str]) -> None:
    """Insert rows that refer to rows in scope, again whenever a parent's list has grown."""
    waiting = deque(sorted(grown_tables))
    while waiting:
        grown = waiting.popleft()
        for table, links in scope.children.items():
            before = connection.total_changes
            for key, parent in links:
                if parent.name == grown:
                    _insert(connection, scope, table, key, parent)
            if connection.total_changes > before and table.name not in waiting:
                waiting.append(table.name)


def _names(columns: Iterable[str]) -> str:
    return ", ".join(map(quote, columns))


def _insert(connection: sqlite3.Connection, scope: Scope, table: Table, key: ForeignKey, parent: Table) -> None:
    shared = f" AND NOT {scope.others[table.name]}" if table.name in scope.others else ""
    connection.execute(
        f"INSERT OR IGNORE INTO {scope.lists[table.name]} "
        f"SELECT {', '.join(_handles(table))} FROM main.{quote(table.name)} WHERE ({_names(key.columns)}) IN "
        f"(SELECT {_names(key.parent_columns)} FROM main.{quote(parent.name)} WHERE {scope.where[parent.name]}){shared}"
    )
