"""One consistent view of a SQLite database, while others write to it."""

import datetime
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any

from connectors._sqlite.catalog import Catalog, catalog_read
from connectors._sqlite.connect import source_errors
from connectors._sqlite.plan import TablePlan, functions_register, plan_make, rows_select
from connectors._sqlite.scope import Scope, scope_find
from engine.errors import SourceUnsupported
from engine.ports import Column, DocumentPart, TablePart, TreePart
from engine.progress import Progress

SCHEMA_DOCUMENT = "schema.json"
TAB = b"\t"


@dataclass(frozen=True, slots=True)
class Layout:
    """What of the database belongs to the source; without a tenant column everything does."""

    tenant_column: str = ""
    tenant_value: str = ""

    @property
    def whole(self) -> bool:
        return not self.tenant_column


@dataclass(frozen=True, slots=True)
class SchemaDocument:
    name: str
    text: bytes

    def read(self) -> bytes:
        return self.text


class SqliteTable:
    """A TablePart: SQLite has no row versions, so that contents are compared."""

    version_domain = ""

    def __init__(self, view: "SqliteView", plan: TablePlan) -> None:
        self._view, self._plan = view, plan
        table = plan.table
        self.name, self.module, self.key = table.name, view.catalog.module_of(table), plan.key
        types = {each.name: each.type for each in table.columns}
        self.columns = tuple(Column(name, types[name]) for name in plan.columns)
        scope = view.scope.through.get(table.name)
        self.facts: Mapping[str, Any] = {"mode": plan.mode, **({"through": scope} if scope else {})}
        basis = json.dumps([table.sql, plan.select(), view.layout.tenant_value])
        self.fingerprint = hashlib.sha256(basis.encode()).hexdigest()

    def rows(self) -> Iterator[list[bytes]]:
        """Every line; the version is empty. Raises SourceError."""
        with source_errors(self._view.path):
            for rows, _ in rows_select(self._view.connection, self._view.lock, self._plan):
                yield [TAB + row for row in rows]

    def versions(self) -> Iterator[list[bytes]]:
        """Never called by the engine, as there is no version domain."""
        for lines in self.rows():
            yield [TAB + self.key.text(line[1:]) for line in lines]

    def rows_for(self, keys: Sequence[bytes]) -> Iterator[list[bytes]]:
        """Lines of those keys; a filter over all rows, as the engine compares SQLite by contents only."""
        wanted = set(keys)
        for lines in self.rows():
            found = [line for line in lines if self.key.text(line[1:]) in wanted]
            if found:
                yield found


class SqliteView:
    """A SourceReader over one connection in one read transaction.

    All threads share the connection behind a lock: two connections cannot see the same snapshot.
    """

    def __init__(self, connection: sqlite3.Connection, path: str, layout: Layout, progress: Progress) -> None:
        self.connection, self.path, self.layout, self.lock = connection, path, layout, RLock()
        now = datetime.datetime.now(datetime.UTC).isoformat()
        self.catalog = catalog_read(connection)
        functions_register(connection, self.catalog.pragmas["encoding"])
        self.scope = Scope()
        if not layout.whole:
            self.scope = scope_find(connection, self.catalog, layout.tenant_column, layout.tenant_value)
            if not self.scope.where:
                raise SourceUnsupported(
                    f"no table of {path} has a column {layout.tenant_column}",
                    hint="check tenant_column, or use layout=database",
                )
        self.position: Mapping[str, Any] = {"at": now}
        definitions = json.dumps(sorted(each["sql"] for each in self.catalog.objects))
        self.schema_version = hashlib.sha256(definitions.encode()).hexdigest()[:16]
        self.facts: Mapping[str, Any] = {
            "layout": "database" if layout.whole else "rows",
            "tenant_column": layout.tenant_column,
            "tenant_value": layout.tenant_value,
            "sqlite_version": sqlite3.sqlite_version,
            "scope": self.scope.through,
        }
        self._tables = [
            SqliteTable(self, self._plan(table.name))
            for table in self.catalog.plain
            if layout.whole or table.name in self.scope.where
        ]

    def _plan(self, name: str) -> TablePlan:
        table, where = self.catalog.tables[name], self.scope.where.get(name)
        return plan_make(self.connection, self.catalog, table, whole=self.layout.whole, where=where)

    def trees(self) -> Sequence[TreePart]:
        return ()

    def tables(self) -> Sequence[TablePart]:
        return self._tables

    def documents(self) -> Sequence[DocumentPart]:
        return [SchemaDocument(SCHEMA_DOCUMENT, schema_text(self.catalog))]

    def finish(self) -> Mapping[str, Any]:
        """Nothing can have moved: everything came from one read transaction."""
        return {}


def schema_text(catalog: Catalog) -> bytes:
    """The schema document: definitions in order of creation, settings, sequences, sorts of tables."""
    document = {
        "objects": catalog.objects,
        "pragmas": catalog.pragmas,
        "sequences": catalog.sequences,
        "sorts": {each.name: each.sort for each in catalog.tables.values()},
    }
    return json.dumps(document, indent=1, sort_keys=True).encode()
