"""One consistent view of a PostgreSQL source: an exported snapshot and what is read from it.

When versions (xmin) may stand for contents
-------------------------------------------
An incremental compares `(key, xmin)` of every row in scope with the parent's; equal means unchanged. That
holds because an update writes a new row version with the writing transaction's id, and it is the
equality that is tested, never "newer than": open transactions, subtransactions and deletions need no
thought. What changes a row's text without changing its xmin, and what catches it:

- columns added with a default, dropped, retyped; generated expressions; defaults: the fingerprint (columns
  with numbers, types, collations, stored defaults for old rows). Generated columns are not kept at all.
- renamed enum labels, changed composite types and domains, upgraded extension types: the fingerprint
  (every type reachable from the columns).
- partitions attached or detached, tables swapped by renaming: the fingerprint (oid of the table and its leaves).
- columns that print names of other objects (regclass …): such a table is compared by content always.
- tables without a key, foreign partitions, other access methods: compared by content always.
- a row that enters or leaves the scope because its parent changed hands: versions are read through the
  whole scope query, so that the row appears or disappears.
- a fail-over, a restored or cloned server, a dump reloaded by pg_upgrade, a crash that lost asynchronous
  commits whose ids are then used again: the domain (system identifier, timeline, server start, database oid, major).
- transaction ids used again: the domain changes every 2^31 transactions. Left over is a row last written
  exactly a multiple of 2^32 transactions before its next change; a full backup reads contents and would say so.
- settings that change text: pinned, see `connection`.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import psycopg

from connectors._postgresql import large_objects
from connectors._postgresql.catalogue import Catalogue, Table, read_catalogue, rows_of_extensions
from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import Connection, begin, connect, errors, rows, run, session_settings, value
from connectors._postgresql.definitions import (
    POST_DATA,
    PRE_DATA,
    ROLES,
    SEQUENCES,
    Dump,
    TextDocument,
    large_objects_document,
    roles_document,
    sequences_document,
)
from connectors._postgresql.description import (
    filled_views,
    fingerprint,
    may_compare_versions,
    schema_version,
    sequence_facts,
    table_facts,
)
from connectors._postgresql.part import PostgresTablePart, SnapshotPool
from connectors._postgresql.piped import Psql
from connectors._postgresql.quoting import literal
from connectors._postgresql.rowtext import RowText
from connectors._postgresql.scope import Selection, select_all, select_tenant
from connectors._postgresql.wire import readable
from engine.errors import SourceChanged, SourceDenied, SourceError, SourceUnsupported, UsageError
from engine.ports import DocumentPart, TablePart, TreePart
from engine.progress import Progress

OPEN_ATTEMPTS_MAX = 4
UTF8_ENCODINGS = ("UTF8", "SQL_ASCII")

_POSITION = """
SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
       (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END)::text,
       (SELECT system_identifier::text FROM pg_control_system()),
       (SELECT oid::text FROM pg_database WHERE datname = current_database()),
       pg_snapshot_xmax(pg_current_snapshot())::text,
       coalesce((SELECT backend_start FROM pg_stat_activity WHERE backend_type = 'checkpointer'), pg_postmaster_start_time())::text,
       CASE WHEN pg_is_in_recovery()
            THEN greatest((SELECT timeline_id FROM pg_control_checkpoint()), (SELECT min_recovery_end_timeline FROM pg_control_recovery()))
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END
"""


def connect_source(config: PostgresqlConfig) -> Connection:
    """Open a pinned connection to the source."""
    return connect(
        config.conninfo,
        side="source",
        connect_timeout=config.connect_timeout_seconds,
        statement_timeout=config.statement_timeout_seconds,
        lock_timeout=config.lock_timeout_seconds,
    )


def catalogue_of(connection: Connection, config: PostgresqlConfig) -> Catalogue:
    """Read the tables the layout may take; UsageError for a schema that does not exist."""
    if config.schema:
        found = value(connection, f"SELECT count(*) FROM pg_namespace WHERE nspname = {literal(config.schema)}")
        if not found:
            raise UsageError(f"there is no schema {config.schema!r} in the database", hint="psql \\dn lists them")
    if config.schema:
        return read_catalogue(connection, schemas=(config.schema,))
    found = read_catalogue(connection, copies=config.layout != "rows")
    if config.layout != "database":
        return found
    return dataclasses.replace(found, skipped={**found.skipped, **rows_of_extensions(connection)})


def selection_of(catalogue: Catalogue, config: PostgresqlConfig) -> Selection:
    """Choose tables and rows by the layout."""
    if config.layout != "rows":
        return select_all(catalogue, include=config.include, exclude=config.exclude)
    return select_tenant(
        catalogue,
        column=config.tenant_column,
        value=config.tenant_value,
        include=config.include,
        exclude=config.exclude,
        ignored_links=config.ignored_links,
    )


def module_names(tables: Sequence[Table]) -> dict[int, str]:
    """Name each table's module: the bare table name where that is unambiguous."""
    counts: dict[str, int] = {}
    for table in tables:
        counts[table.name] = counts.get(table.name, 0) + 1
    return {table.oid: table.name if counts[table.name] == 1 else table.display for table in tables}


def sizes_of(connection: Connection, oids: Sequence[int]) -> dict[int, int]:
    """Bytes that the heaps of tables take, with those of their partitions."""
    found = rows(
        connection,
        "SELECT o::int8, coalesce(pg_relation_size(o), 0) + coalesce("
        "(SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(o) WHERE isleaf), 0)::int8"
        f" FROM unnest('{{{','.join(map(str, oids))}}}'::oid[]) o",
    )
    return dict(found)


def is_utf8(connection: Connection) -> bool:
    """Whether text sorts under the C collation as its UTF-8 bytes do."""
    return connection.info.parameter_status("server_encoding") in UTF8_ENCODINGS


class PostgresReader:
    """engine.ports.SourceReader: tables locked against changes of schema (ACCESS SHARE) until closed."""

    def __init__(self, config: PostgresqlConfig, progress: Progress) -> None:
        self._config, self._progress = config, progress
        self._resources = contextlib.ExitStack()
        try:
            self._main = self._resources.enter_context(contextlib.closing(connect_source(config)))
            with errors("source", config.conninfo):
                self._begin()
                self._describe()
        except BaseException:
            self._resources.close()
            raise

    # -------------------------------------------------------- opening

    def _begin(self) -> None:
        """Lock first, then take the snapshot, so that what is locked is what the snapshot shows."""
        for _ in range(OPEN_ATTEMPTS_MAX):
            wanted = selection_of(catalogue_of(self._main, self._config), self._config)
            begin(self._main, "REPEATABLE READ", read_only=True)
            try:
                tables = ", ".join(scope.table.quoted for scope in wanted.scopes)
                if tables:
                    run(self._main, f"LOCK TABLE {tables} IN ACCESS SHARE MODE")
                self._snapshot: str = value(self._main, "SELECT pg_export_snapshot()")
                self._catalogue = catalogue_of(self._main, self._config)
                self._selection = selection_of(self._catalogue, self._config)
            except psycopg.errors.UndefinedTable:
                run(self._main, "ROLLBACK")
                continue
            if [s.table.shape for s in self._selection.scopes] == [s.table.shape for s in wanted.scopes]:
                return
            run(self._main, "ROLLBACK")
        raise SourceChanged(
            "the schema changes faster than it can be read", hint="run the backup again after the migration"
        )

    def _describe(self) -> None:
        at, lsn, system, database, xid, started, timeline = rows(self._main, _POSITION)[0]
        self.position: Mapping[str, Any] = {
            "at": at,
            "lsn": lsn,
            "snapshot": self._snapshot,
            "timeline": timeline,
            "system_identifier": system,
            "transaction": xid,
        }
        major = self._main.info.server_version // 10000
        domain = json.dumps([system, timeline, started, database, major, int(xid) >> 31])
        self._domain = hashlib.sha256(domain.encode()).hexdigest()[:32]
        self.schema_version = schema_version(self._main, self._catalogue, self._selection)
        self.facts: Mapping[str, Any] = {
            "server_version": self._main.info.server_version,
            "encoding": self._main.info.parameter_status("server_encoding"),
            "database": self._main.info.dbname,
            "layout": self._config.layout,
            "schema": self._config.schema,
            "tenant_column": self._config.tenant_column,
            "tenant_value": self._config.tenant_value,
            "include": list(self._config.include),
            "exclude": list(self._config.exclude),
            "ignored_links": list(self._config.ignored_links),
            "skipped": dict(self._catalogue.skipped),
            "materialized": [] if self._config.layout == "rows" else filled_views(self._main, self._config.schema),
        }
        self._pool = SnapshotPool(
            lambda: connect_source(self._config),
            self._snapshot,
            age_seconds_max=self._config.snapshot_age_seconds_max,
            wire=readable(self._main),
            psql=Psql.find(self._config, server_version=self._main.info.server_version),
            timeouts=session_settings(self._main),
        )
        self._resources.callback(self._pool.close)
        self._large_objects = self._config.layout == "database" and self._may_read_large_objects()
        self._dump = self._start_dump()
        for name, reason in self._catalogue.skipped.items():
            self._progress.warn("postgresql.skipped", f"{name}: {reason}")
        for warning in self._selection.warnings:
            self._progress.warn("postgresql.scope", warning)

    def _may_read_large_objects(self) -> bool:
        if not large_objects.any_exist(self._main):
            return False
        if not large_objects.may_read(self._main):
            raise SourceDenied(
                "the database has large objects and the role may not read them",
                hint="back up as a superuser, or GRANT SELECT ON pg_largeobject to the role",
            )
        return True

    def _start_dump(self) -> Dump | None:
        """Begin dumping definitions beside the rows; for shared tables they are a convenience, elsewhere a must."""
        if self._config.layout == "rows" and not self._config.definitions:
            return None
        try:
            dump = Dump(
                self._config,
                server_version=self._main.info.server_version,
                snapshot=self._snapshot,
                encoding=str(self.facts["encoding"]),
            )
        except SourceUnsupported as error:
            if self._config.layout != "rows":
                raise
            self._progress.warn("postgresql.no_definitions", f"{error}; a restore into an empty database needs them")
            return None
        self._resources.callback(dump.close)
        return dump

    # -------------------------------------------------------- parts

    def trees(self) -> Sequence[TreePart]:
        return ()

    def tables(self) -> Sequence[TablePart]:
        """One part a table, in the order of names."""
        with errors("source"):
            sequences = sequence_facts(self._main)
            sizes = sizes_of(self._main, [scope.table.oid for scope in self._selection.scopes])
        modules = module_names([scope.table for scope in self._selection.scopes])
        utf8 = is_utf8(self._main)
        parts = [
            PostgresTablePart(
                self._pool,
                scope,
                text=(text := RowText.of(scope.table, utf8=utf8)),
                module=modules[scope.table.oid],
                fingerprint=fingerprint(scope, text),
                version_domain=self._domain if may_compare_versions(text) else "",
                facts=table_facts(scope, text, sequences.get(scope.table.oid, [])),
                size=sizes.get(scope.table.oid, 0),
            )
            for scope in self._selection.scopes
        ]
        if self._large_objects:
            parts.append(self._large_object_pages())
        return sorted(parts, key=lambda part: part.name)

    def _large_object_pages(self) -> PostgresTablePart:
        scope, text = large_objects.SCOPE, RowText.of(large_objects.PAGES, utf8=True)
        return PostgresTablePart(
            self._pool,
            scope,
            text=text,
            module=large_objects.MODULE,
            fingerprint=fingerprint(scope, text),
            version_domain=self._domain,
            facts=table_facts(scope, text, []),
        )

    def documents(self) -> Sequence[DocumentPart]:
        """Definitions, roles, sequences, owners of large objects: as far as the layout has them."""
        if self._config.layout == "rows":
            return self._definitions_if_readable()
        dump = self._dump
        assert dump is not None, "a layout with definitions of its own has begun to dump them"
        found: list[DocumentPart] = [TextDocument(name, partial(dump.text, name)) for name in (PRE_DATA, POST_DATA)]
        schema = self._config.schema
        found.append(TextDocument(SEQUENCES, partial(sequences_document, self._main, schema=schema)))
        found.append(TextDocument(ROLES, partial(roles_document, self._main)))
        if self._large_objects:
            found.append(TextDocument(large_objects.DOCUMENT, partial(large_objects_document, self._main)))
        return found

    def _definitions_if_readable(self) -> list[DocumentPart]:
        if self._dump is None:
            return []
        try:
            texts = {name: self._dump.text(name) for name in (PRE_DATA, POST_DATA)}
        except SourceError as error:
            self._progress.warn("postgresql.no_definitions", f"{error}; a restore into an empty database needs them")
            return []
        return [TextDocument(name, partial(bytes, text)) for name, text in texts.items()]

    def finish(self) -> Mapping[str, Any]:
        """Compare the schema with what was read; SourceChanged when a type or table changed in between."""
        with self._pool.outside() as connection, errors("source", self._config.conninfo):
            now = selection_of(catalogue_of(connection, self._config), self._config)
        before = {scope.table.display: scope.table.shape + scope.text for scope in self._selection.scopes}
        after = {scope.table.display: scope.table.shape + scope.text for scope in now.scopes}
        changed = sorted(name for name in before if after.get(name) != before[name])
        if changed:
            raise SourceChanged(
                f"the schema of {', '.join(changed[:5])} changed during the backup", hint="run the backup again"
            )
        return {"tables_added_meanwhile": sorted(after.keys() - before.keys())}

    def close(self) -> None:
        """End the snapshot and its locks."""
        self._resources.close()


@contextlib.contextmanager
def open_reader(config: PostgresqlConfig, progress: Progress) -> Iterator[PostgresReader]:
    """Open a reader and close it again."""
    config.validate()
    reader = PostgresReader(config, progress)
    try:
        yield reader
    finally:
        reader.close()
