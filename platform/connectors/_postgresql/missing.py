"""Tables and partitions that the backup has and a tenant's own database or schema has lost: made again from the definitions.

A partition is attached to the table as it is today, which gives it the table's indexes, constraints and triggers;
what only the partition had is added when its rows are there. One that cannot be attached (the table is
partitioned otherwise by now) is not made: its rows go where the table puts them, or the restore is refused.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from connectors._postgresql import large_objects
from connectors._postgresql.connection import Connection, rows, run
from connectors._postgresql.definitions import POST_DATA, PRE_DATA, Item, items
from connectors._postgresql.scope import Selection
from connectors._postgresql.staging import lost_partitions
from connectors._postgresql.statements import Runner
from engine.errors import LastroError
from engine.ports import SourceView, TableView

GROUND_KINDS = {"SCHEMA", "EXTENSION", "TYPE", "SHELL TYPE", "DOMAIN", "COLLATION", "FUNCTION", "SEQUENCE", "OPERATOR"}
"""What a table may need before it can be made; what exists already is left alone."""

_NAMING_KINDS = {"INDEX", "SEQUENCE OWNED BY"}
"""Kinds whose tags are not the table's."""

_CONSTRAINTS = "SELECT conrelid::regclass::text || ' ' || conname FROM pg_constraint WHERE contype = 'f'"


@dataclass(frozen=True, slots=True)
class Missing:
    """Views whose tables are not in the target, and lost partitions of those that are, with the definitions to make them."""

    source: SourceView
    views: Sequence[TableView]
    partitions: Sequence[tuple[str, str]] = ()
    """(schema, name), those above first."""
    roots: Sequence[tuple[str, str]] = ()
    """Their tables."""
    attached: list[tuple[str, str]] = field(default_factory=list)
    """The partitions that could be made again."""

    @classmethod
    def among(cls, source: SourceView, selection: Selection) -> "Missing":
        """Find them; none for shared tables, whose schema belongs to everybody."""
        if source.facts["layout"] == "rows" or PRE_DATA not in source.documents:
            return cls(source, ())
        present = {(scope.table.schema, scope.table.name): scope.table for scope in selection.scopes}
        views, partitions, roots = [], [], []
        for view in source.tables:
            table = present.get((view.facts["schema"], view.facts["table"]))
            if table is not None:
                lost = [(each[0], each[1]) for each in lost_partitions(view, table)]
                partitions += lost
                roots += [(table.schema, table.name)] if lost else []
            elif view.name != large_objects.NAME:
                views.append(view)
        return cls(source, views, partitions, roots)

    def __bool__(self) -> bool:
        return bool(self.views or self.partitions)

    def limited_to(self, tables: Collection[tuple[str, str]]) -> "Missing":
        """Without what was lost of tables that are not among these (schema, name)."""
        views = [view for view in self.views if (view.facts["schema"], view.facts["table"]) in tables]
        whole = [view for view in self.source.tables if (view.facts["schema"], view.facts["table"]) in tables]
        wanted = {(each[0], each[1]) for view in whole for each in view.facts.get("partitions", ())}
        partitions = [each for each in self.partitions if each in wanted]
        return Missing(self.source, views, partitions, [root for root in self.roots if root in tables])

    def without_partitions(self) -> "Missing":
        """For a preview: attaching a partition takes locks that writers feel."""
        return Missing(self.source, self.views)

    def create(self, connection: Connection, warn: Callable[[str], None]) -> None:
        """Make the tables, without indexes and constraints, and the partitions with those of their table."""
        for view in self.views:
            warn(f"{view.name} was gone and is made again")
        entries = list(items(self.source.documents[PRE_DATA].read()))
        if self.views:
            runner = Runner(connection, warn, skip_existing=True)
            names = list(self._table_names())
            runner.run_all(item for item in entries if item.kind in GROUND_KINDS or _concerns(item, names))
        for schema, name in self.partitions:
            self._attach(connection, warn, schema, name, entries)

    def _attach(
        self, connection: Connection, warn: Callable[[str], None], schema: str, name: str, entries: Sequence[Item]
    ) -> None:
        run(connection, "SAVEPOINT lastro_partition")
        try:
            own = (item for item in entries if _concerns(item, [(schema, name)]))
            Runner(connection, warn, skip_existing=True).run_all(own)
        except LastroError as error:
            run(connection, "ROLLBACK TO SAVEPOINT lastro_partition")
            warn(
                f"partition {schema}.{name} was gone and cannot be made again ({error.message}):"
                " its rows go where the table puts them now"
            )
        else:
            self.attached.append((schema, name))
            warn(f"partition {schema}.{name} was gone and is made again")
        run(connection, "RELEASE SAVEPOINT lastro_partition")

    def complete(self, connection: Connection, warn: Callable[[str], None]) -> None:
        """Add indexes, constraints and triggers, and foreign keys of other tables that went with the lost ones."""
        if not self.views and not self.attached:
            return
        run(connection, "SET CONSTRAINTS ALL IMMEDIATE")
        entries = list(items(self.source.documents[POST_DATA].read()))
        names = [*self._table_names(), *self.attached]
        runner = Runner(connection, warn, skip_existing=True)
        runner.run_all(self._own_entries(entries, names))
        have = {row[0] for row in rows(connection, _CONSTRAINTS)}
        near = [*names, *self.roots]
        links = [item for item in entries if item.kind == "FK CONSTRAINT" and (self.views or _refers(item, near))]
        runner.run_all(item for item in links if not _constraint_names(item) & have)

    def _own_entries(self, entries: Sequence[Item], names: Sequence[tuple[str, str]]) -> list[Item]:
        """Everything but foreign keys, and but the indexes that an attached partition has got with its table's."""
        inherited = {(item.schema, item.tag) for item in entries if item.kind == "INDEX ATTACH"}
        indexes: set[tuple[str, str]] = set()
        found = []
        for item in entries:
            index = (item.schema, _constraint_name(item) if item.kind == "CONSTRAINT" else item.tag)
            if item.kind == "INDEX ATTACH":
                wanted = index in indexes
            elif item.kind in ("INDEX", "CONSTRAINT"):
                wanted = _concerns(item, names) and not (index in inherited and _concerns(item, self.attached))
                indexes |= {index} if wanted else set()
            else:
                wanted = item.kind != "FK CONSTRAINT" and _concerns(item, names)
            if wanted:
                found.append(item)
        return found

    def _table_names(self) -> Iterator[tuple[str, str]]:
        for view in self.views:
            yield view.facts["schema"], view.facts["table"]
            yield from ((each[0], each[1]) for each in view.facts.get("partitions", ()))


def _concerns(item: Item, names: Sequence[tuple[str, str]]) -> bool:
    """Whether an entry belongs to one of the tables: its tag begins with the name, or its SQL has it."""
    for schema, table in names:
        if item.schema != schema:
            continue
        if item.tag == table or item.tag.startswith(f"{table} ") or item.tag == f"TABLE {table}":
            return True
        if item.kind in _NAMING_KINDS and _names(item.sql, table):
            return True
    return False


def _refers(item: Item, names: Sequence[tuple[str, str]]) -> bool:
    """Whether a foreign key is on one of the tables or leads to it."""
    return _concerns(item, names) or any(_names(item.sql.replace("(", " ("), table) for _, table in names)


def _names(sql: str, table: str) -> bool:
    plain, quoted = re.escape(table), re.escape('"' + table.replace('"', '""') + '"')
    return re.search(rf"[.\s](?:{plain}|{quoted})[\s.;(]", sql) is not None


def _constraint_name(item: Item) -> str:
    """The bare name of the constraint that an entry adds; its tag may have blanks anywhere."""
    found = re.search(r'ADD CONSTRAINT (?:"((?:[^"]|"")+)"|(\S+)) ', item.sql)
    return (found[1] or found[2]).replace('""', '"') if found else ""


def _constraint_names(item: Item) -> set[str]:
    """`schema.table constraint` as regclass prints it, both ways a name may be quoted."""
    table, _, name = item.tag.rpartition(" ")
    found = re.search(r"ALTER TABLE (?:ONLY )?(\S.*?)\n\s+ADD CONSTRAINT", item.sql)
    return {f"{item.schema}.{table} {name}", f"{found[1]} {name}" if found else ""}
