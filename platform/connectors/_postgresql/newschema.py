"""Restores into another schema: one transaction, so that the schema is there whole or not at all.

A tenant's schema is built from pg_dump's text, which names the schema everywhere. Instead of editing SQL, the
schema is built under its own name and renamed at the end; a live schema of that name steps aside within
the same transaction. Other sessions never see it: they go on with the committed catalogue.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from connectors._postgresql.catalogue import COPY_MARK, Catalogue, Table, read_catalogue
from connectors._postgresql.committing import commit
from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import Connection, begin, errors, rows, run, value
from connectors._postgresql.definitions import POST_DATA, PRE_DATA, ROLES, SEQUENCES, Item, items
from connectors._postgresql.followers import refresh_views
from connectors._postgresql.inplace import connect_target
from connectors._postgresql.loading import Comparison, Destination, changes_of, load_table, set_sequences, spread
from connectors._postgresql.newdatabase import create_missing_database, may_dangle
from connectors._postgresql.quoting import ident, idents, literal
from connectors._postgresql.roles import create_roles
from connectors._postgresql.statements import Runner
from engine.errors import TargetOccupied
from engine.faults import kill_point
from engine.ports import Check, RestoreReport, RestoreRequest, SourceView, TableView
from engine.progress import Progress

ASIDE = "lastro_aside"

_INSIDE = """
SELECT count(*) FROM pg_depend d WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = to_regnamespace({name})
"""

_OUTSIDE = """
WITH space AS (SELECT oid, nspname FROM pg_namespace WHERE nspname <> {schema} AND nspname !~ '^pg_' AND nspname <> 'information_schema'),
  relation AS (SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c JOIN space n ON n.oid = c.relnamespace)
SELECT name FROM relation
 UNION ALL SELECT format('column %s.%I', r.name, a.attname) FROM pg_attribute a JOIN relation r ON r.oid = a.attrelid
  WHERE a.attnum > 0 AND NOT a.attisdropped
 UNION ALL SELECT format('default of %s, column %s', r.name, d.adnum) FROM pg_attrdef d JOIN relation r ON r.oid = d.adrelid
 UNION ALL SELECT format('trigger %I on %s', t.tgname, r.name) FROM pg_trigger t JOIN relation r ON r.oid = t.tgrelid
  WHERE NOT t.tgisinternal
 UNION ALL SELECT format('rule %I on %s', w.rulename, r.name) FROM pg_rewrite w JOIN relation r ON r.oid = w.ev_class
 UNION ALL SELECT format('policy %I on %s', p.polname, r.name) FROM pg_policy p JOIN relation r ON r.oid = p.polrelid
 UNION ALL SELECT format('constraint %I.%I (%s)', n.nspname, k.conname, k.oid) FROM pg_constraint k JOIN space n ON n.oid = k.connamespace
 UNION ALL SELECT format('function %I.%I (%s)', n.nspname, f.proname, f.oid) FROM pg_proc f JOIN space n ON n.oid = f.pronamespace
 UNION ALL SELECT format('type %I.%I', n.nspname, t.typname) FROM pg_type t JOIN space n ON n.oid = t.typnamespace
 UNION ALL SELECT format('operator %I.%s (%s)', n.nspname, o.oprname, o.oid) FROM pg_operator o JOIN space n ON n.oid = o.oprnamespace
 UNION ALL SELECT format('operator class %I.%I (%s)', n.nspname, o.opcname, o.oid) FROM pg_opclass o JOIN space n ON n.oid = o.opcnamespace
 UNION ALL SELECT format('extension %I', extname) FROM pg_extension
 UNION ALL SELECT format('event trigger %I', evtname) FROM pg_event_trigger
"""
"""Everything of other schemas that DROP … CASCADE may take along."""

_TEXT_REFERENCES = """
SELECT p.proname FROM pg_proc p WHERE p.pronamespace = to_regnamespace({name}) AND position({old} IN p.prosrc) > 0 ORDER BY 1
"""


def objects_inside(connection: Connection, schema: str) -> str:
    """Say how many objects a schema holds; "" when there is no such schema, or it is empty."""
    count = value(connection, _INSIDE.format(name=literal(ident(schema))))
    return f"{count} objects" if count else ""


@dataclass
class _SchemaWork:
    """What both ways of filling a schema share."""

    config: PostgresqlConfig
    schema: str
    view: SourceView
    request: RestoreRequest
    progress: Progress
    connection: Connection
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        self.progress.warn("postgresql.definitions", message)

    def make_room(self) -> None:
        """Remove an empty schema of that name, or a full one when that was confirmed."""
        name = literal(ident(self.schema))
        if not value(self.connection, f"SELECT to_regnamespace({name}) IS NOT NULL"):
            return
        inside = value(self.connection, _INSIDE.format(name=name))
        if inside and not self.request.overwrite:
            raise TargetOccupied(
                f"schema {self.schema} exists and holds {inside} objects",
                hint="name a new schema, or confirm the overwriting",
            )
        others = {row[0] for row in rows(self.connection, _OUTSIDE.format(schema=literal(self.schema)))}
        run(self.connection, f"DROP SCHEMA {ident(self.schema)} CASCADE")
        gone = sorted(others - {row[0] for row in rows(self.connection, _OUTSIDE.format(schema=literal(self.schema)))})
        if gone:
            raise TargetOccupied(
                f"objects outside schema {self.schema} hang on it and would go with it: {', '.join(gone[:5])}",
                hint="nothing was changed; name a new schema, or detach them first",
            )

    def load(self, destinations: Sequence[Destination]) -> None:
        self.progress.phase("load")
        views = [each.view for each in destinations]
        self.progress.total(bytes=sum(v.byte_count for v in views), items=sum(v.row_count for v in views))
        for destination in destinations:
            load_table(self.connection, destination, self.progress, fresh=False)
        kill_point("pg.schema.loaded")

    def finish(self, destinations: Sequence[Destination], detail: str) -> RestoreReport:
        """Compare digests, commit, report."""
        self.progress.phase("check")
        catalogue = read_catalogue(self.connection, schemas=(self.schema,))
        comparison = Comparison(catalogue, destinations, validate=self.request.validate)
        spread([self.connection], comparison.jobs(), self.progress)
        checks = (
            comparison.check(),
            Check("data_integrity", True, 0, 0, f"{len(catalogue.foreign_keys)} foreign keys hold"),
            Check("schema_compatibility", True, len(destinations), len(destinations), detail),
        )
        self.progress.check()
        kill_point("pg.schema.applied")
        commit(self.connection, lambda: connect_target(self.config))
        kill_point("pg.schema.committed")
        return RestoreReport(changes_of(destinations), None, checks, None, tuple(self.warnings))


def restore_to_schema(
    config: PostgresqlConfig, schema: str, view: SourceView, request: RestoreRequest, progress: Progress
) -> RestoreReport:
    """Build a tenant's schema under a name, in the source's database or another."""
    with errors("target", config.conninfo):
        create_missing_database(config, view)
        with contextlib.closing(connect_target(config)) as connection:
            return _build(_SchemaWork(config, schema, view, request, progress, connection))


def _build(work: _SchemaWork) -> RestoreReport:
    original = str(work.view.facts["schema"])
    renamed = original != work.schema
    connection, documents = work.connection, work.view.documents
    work.progress.phase("definitions")
    if ROLES in documents:
        create_roles(connection, json.loads(documents[ROLES].read())["roles"], work.warn)
    begin(connection, "READ COMMITTED")
    work.make_room()
    aside = renamed and value(connection, f"SELECT to_regnamespace({literal(ident(original))}) IS NOT NULL")
    if aside:
        run(connection, f"ALTER SCHEMA {ident(original)} RENAME TO {ident(ASIDE)}")
    runner = Runner(connection, work.warn, links_may_dangle=may_dangle(work.view, work.request))
    runner.run_all(items(documents[PRE_DATA].read()))
    work.load([Destination(t, original, t.facts["table"]) for t in work.view.tables])
    work.progress.phase("indexes")
    runner.run_all(items(documents[POST_DATA].read()))
    if SEQUENCES in documents:
        set_sequences(connection, json.loads(documents[SEQUENCES].read()), rename={})
    refresh_views(connection, work.view.facts.get("materialized", ()), work.warn)
    if renamed:
        run(connection, f"ALTER SCHEMA {ident(original)} RENAME TO {ident(work.schema)}")
        _warn_of_names(work, original)
    if aside:
        run(connection, f"ALTER SCHEMA {ident(ASIDE)} RENAME TO {ident(original)}")
    destinations = [Destination(t, work.schema, t.facts["table"]) for t in work.view.tables]
    return work.finish(destinations, "built from the backup's definitions")


def _warn_of_names(work: _SchemaWork, original: str) -> None:
    query = _TEXT_REFERENCES.format(name=literal(ident(work.schema)), old=literal(f"{original}."))
    found = [row[0] for row in rows(work.connection, query)]
    if found:
        work.warn(f"functions {', '.join(found[:5])} name the schema {original} in their text and still mean that one")


# ---------------------------------------------------------------- rows of one tenant


def copy_rows_to_schema(
    config: PostgresqlConfig, schema: str, view: SourceView, request: RestoreRequest, progress: Progress
) -> RestoreReport:
    """Put one tenant's rows beside the live tables: tables like them, in a schema of their own."""
    with errors("target", config.conninfo), contextlib.closing(connect_target(config)) as connection:
        work = _SchemaWork(config, schema, view, request, progress, connection)
        catalogue = read_catalogue(connection)
        begin(connection, "READ COMMITTED")
        work.make_room()
        run(connection, f"CREATE SCHEMA {ident(schema)}")
        run(connection, f"COMMENT ON SCHEMA {ident(schema)} IS {literal(COPY_MARK)}")
        names = _names(view.tables)
        destinations = [Destination(table, schema, names[table.name]) for table in view.tables]
        for destination in destinations:
            facts = destination.view.facts
            _create_like(work, destination, catalogue.find(facts["schema"], facts["table"]))
        work.load(destinations)
        _link(work, destinations, catalogue)
        return work.finish(destinations, "tables like the live ones")


def _names(views: Sequence[TableView]) -> dict[str, str]:
    """Bare table names; those of several schemas that would clash carry their schema."""
    bare = [table.facts["table"] for table in views]
    return {
        table.name: table.facts["table"]
        if bare.count(table.facts["table"]) == 1
        else f"{table.facts['schema']}_{table.facts['table']}"
        for table in views
    }


def _create_like(work: _SchemaWork, destination: Destination, live: Table | None) -> None:
    """Create a table like the live one, with the backup's columns that it lost; a dropped one from the backup alone."""
    view = destination.view
    if live is None:
        columns = ", ".join(f"{ident(column.name)} {column.type}" for column in view.columns)
        run(work.connection, f"CREATE TABLE {destination.quoted} ({columns})")
        key = view.facts.get("key")
        if key:
            run(work.connection, f"ALTER TABLE {destination.quoted} ADD PRIMARY KEY ({idents(key)})")
        work.warn(f"{view.name} no longer exists: its copy has columns and key, no other constraints")
        return
    run(work.connection, f"CREATE TABLE {destination.quoted} (LIKE {live.quoted} INCLUDING ALL)")
    known = {column.name for column in live.columns}
    for column in view.columns:
        if column.name not in known:
            run(work.connection, f"ALTER TABLE {destination.quoted} ADD COLUMN {ident(column.name)} {column.type}")
            work.warn(f"{view.name} no longer has {column.name}: the copy has it")
    kept = {column.name for column in view.columns}
    for live_column in live.columns:
        required = live_column.not_null and live_column.default is None and not live_column.identity
        if live_column.name not in kept and required:
            run(
                work.connection,
                f"ALTER TABLE {destination.quoted} ALTER COLUMN {ident(live_column.name)} DROP NOT NULL",
            )


def _link(work: _SchemaWork, destinations: Sequence[Destination], catalogue: Catalogue) -> None:
    """Foreign keys among the copies; those to shared tables are left out, as the copies are to be looked at."""
    by_oid = {}
    for destination in destinations:
        live = catalogue.find(destination.view.facts["schema"], destination.view.facts["table"])
        if live is not None:
            by_oid[live.oid] = destination
    runner = Runner(work.connection, work.warn, links_may_dangle=True)
    for link in catalogue.foreign_keys:
        # The copies are plain tables: what holds for one partition would be wrong for all rows.
        whole = not (link.child_part or link.parent_part or link.period)
        if link.child in by_oid and link.parent in by_oid and link.validated and whole:
            child, parent = by_oid[link.child], by_oid[link.parent]
            sql = (
                f"ALTER TABLE {child.quoted} ADD CONSTRAINT {ident(link.name)} FOREIGN KEY ({idents(link.columns)})"
                f" REFERENCES {parent.quoted} ({idents(link.parent_columns)});"
            )
            runner.run_item(Item("FK CONSTRAINT", child.schema, f"{child.name} {link.name}", sql))
