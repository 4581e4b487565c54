"""Which rows of shared tables are a tenant's: by the tenant column, or through foreign keys.

Tables with the tenant column are roots. A table without it that refers to a table in scope, at any
distance, is a child: its rows in scope are those that refer to a row in scope by any of its foreign keys.
They are listed in temporary tables until no more are found, so that cycles and tables that refer to
themselves need no special case. What roots merely refer to (shared parents) is out of scope.
"""

import sqlite3
from collections import deque
from dataclasses import dataclass, field

from connectors._sqlite.catalog import Catalog, ForeignKey, Table, quote


@dataclass
class Scope:
    """A condition per table in scope, and how it was found."""

    where: dict[str, str] = field(default_factory=dict)
    through: dict[str, list[str]] = field(default_factory=dict)
    """Child table -> the tables it is reached through."""

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
    children = _children(catalog, set(scope.where))
    for number, table in enumerate(children):
        scope.where[table.name] = _list_create(connection, table, f"temp.lastro_scope_{number}")
        scope.through[table.name] = sorted({key.parent for key, _ in children[table]})
    _fill(connection, scope, children, set(scope.where) - {table.name for table in children})
    return scope


Links = dict[Table, list[tuple[ForeignKey, Table]]]


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


def _fill(connection: sqlite3.Connection, scope: Scope, children: Links, roots: set[str]) -> None:
    """Insert rows that refer to rows in scope, again whenever a parent's list has grown."""
    waiting = deque(sorted(roots))
    while waiting:
        grown = waiting.popleft()
        for number, (table, links) in enumerate(children.items()):
            before = connection.total_changes
            for key, parent in links:
                if parent.name == grown:
                    _insert(connection, scope, table, f"temp.lastro_scope_{number}", key, parent)
            if connection.total_changes > before and table.name not in waiting:
                waiting.append(table.name)


def _insert(
    connection: sqlite3.Connection, scope: Scope, table: Table, name: str, key: ForeignKey, parent: Table
) -> None:
    own = ", ".join(quote(each) for each in key.columns)
    theirs = ", ".join(quote(each) for each in key.parent_columns)
    connection.execute(
        f"INSERT OR IGNORE INTO {name} SELECT {', '.join(_handles(table))} FROM main.{quote(table.name)} "
        f"WHERE ({own}) IN (SELECT {theirs} FROM main.{quote(parent.name)} WHERE {scope.where[parent.name]})"
    )
