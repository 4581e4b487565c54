"""Tables that the backup has and a tenant's own database or schema has lost: made again from the definitions."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from connectors._postgresql import large_objects
from connectors._postgresql.connection import Connection, rows, run
from connectors._postgresql.definitions import POST_DATA, PRE_DATA, Item, items
from connectors._postgresql.scope import Selection
from connectors._postgresql.statements import Runner
from engine.ports import SourceView, TableView

GROUND_KINDS = {"SCHEMA", "EXTENSION", "TYPE", "SHELL TYPE", "DOMAIN", "COLLATION", "FUNCTION", "SEQUENCE", "OPERATOR"}
"""What a table may need before it can be made; what exists already is left alone."""

_CONSTRAINTS = "SELECT conrelid::regclass::text || ' ' || conname FROM pg_constraint WHERE contype = 'f'"


@dataclass(frozen=True, slots=True)
class Missing:
    """Views whose tables are not in the target, with the definitions to make them."""

    source: SourceView
    views: Sequence[TableView]

    @classmethod
    def among(cls, source: SourceView, selection: Selection) -> "Missing":
        """Find them; none for shared tables, whose schema belongs to everybody."""
        if source.facts["layout"] == "rows" or PRE_DATA not in source.documents:
            return cls(source, ())
        present = {(scope.table.schema, scope.table.name) for scope in selection.scopes}
        wanted = (view for view in source.tables if view.name != large_objects.NAME)
        return cls(source, tuple(v for v in wanted if (v.facts["schema"], v.facts["table"]) not in present))

    def create(self, connection: Connection, warn: Callable[[str], None]) -> None:
        """Make the tables, without indexes and constraints."""
        for view in self.views:
            warn(f"{view.name} was gone and is made again")
        entries = items(self.source.documents[PRE_DATA].read())
        runner = Runner(connection, warn, skip_existing=True)
        runner.run_all(item for item in entries if item.kind in GROUND_KINDS or self._concerns(item))

    def complete(self, connection: Connection, warn: Callable[[str], None]) -> None:
        """Add indexes, constraints and triggers, and foreign keys of other tables that went with the lost ones."""
        if not self.views:
            return
        run(connection, "SET CONSTRAINTS ALL IMMEDIATE")
        entries = list(items(self.source.documents[POST_DATA].read()))
        runner = Runner(connection, warn, skip_existing=True)
        runner.run_all(item for item in entries if item.kind != "FK CONSTRAINT" and self._concerns(item))
        have = {row[0] for row in rows(connection, _CONSTRAINTS)}
        links = [item for item in entries if item.kind == "FK CONSTRAINT"]
        runner.run_all(item for item in links if not _constraint_names(item) & have)

    def _names(self) -> Iterator[tuple[str, str]]:
        for view in self.views:
            yield view.facts["schema"], view.facts["table"]
            yield from view.facts.get("partitions", ())

    def _concerns(self, item: Item) -> bool:
        """Whether an entry belongs to one of the lost tables: its tag begins with the name, or its SQL has it."""
        for schema, table in self._names():
            if item.schema != schema:
                continue
            if item.tag == table or item.tag.startswith(f"{table} ") or item.tag == f"TABLE {table}":
                return True
            if item.kind in ("INDEX", "SEQUENCE OWNED BY", "INDEX ATTACH", "TABLE ATTACH") and _names(item.sql, table):
                return True
        return False


def _names(sql: str, table: str) -> bool:
    plain, quoted = re.escape(table), re.escape('"' + table.replace('"', '""') + '"')
    return re.search(rf"[.\s](?:{plain}|{quoted})[\s.;(]", sql) is not None


def _constraint_names(item: Item) -> set[str]:
    """`schema.table constraint` as regclass prints it, both ways a name may be quoted."""
    table, _, name = item.tag.rpartition(" ")
    found = re.search(r"ALTER TABLE (?:ONLY )?(\S.*?)\n\s+ADD CONSTRAINT", item.sql)
    return {f"{item.schema}.{table} {name}", f"{found[1]} {name}" if found else ""}
