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
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg

from connectors._postgresql.catalogue import Catalogue, Table, read_catalogue
from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import Connection, begin, connect, errors, rows, run, value
from connectors._postgresql.part import PostgresTablePart, SnapshotPool
from connectors._postgresql.quoting import ident, literal
from connectors._postgresql.rowtext import RowText
from connectors._postgresql.scope import Scope, Selection, select_all, select_tenant
from engine.errors import SourceChanged, UsageError
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

_SEQUENCES = """
SELECT d.refobjid::int8, a.attname, n.nspname, c.relname, pg_sequence_last_value(s.seqrelid)
  FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass
       AND d.deptype IN ('a', 'i')
  JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
 WHERE has_sequence_privilege(s.seqrelid, 'SELECT')
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
    return read_catalogue(connection, schemas=(config.schema,) if config.schema else None)


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


def is_utf8(connection: Connection) -> bool:
    """Whether text sorts under the C collation as its UTF-8 bytes do."""
    return connection.info.parameter_status("server_encoding") in UTF8_ENCODINGS


class PostgresReader:
    """engine.ports.SourceReader: tables locked against changes of schema (ACCESS SHARE) until closed."""

    def __init__(self, config: PostgresqlConfig, progress: Progress) -> None:
        self._config, self._progress = config, progress
        self._main = connect_source(config)
        try:
            with errors("source", config.conninfo):
                self._begin()
                self._describe()
        except BaseException:
            self._main.close()
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
            "skipped": dict(self._catalogue.skipped),
        }
        self._pool = SnapshotPool(
            lambda: connect_source(self._config),
            self._snapshot,
            age_seconds_max=self._config.snapshot_age_seconds_max,
        )
        for name, reason in self._catalogue.skipped.items():
            self._progress.warn("postgresql.skipped", f"{name}: {reason}")
        for warning in self._selection.warnings:
            self._progress.warn("postgresql.scope", warning)

    # -------------------------------------------------------- parts

    def trees(self) -> Sequence[TreePart]:
        return ()

    def tables(self) -> Sequence[TablePart]:
        """One part a table, in the order of names."""
        with errors("source"):
            sequences = sequence_facts(self._main)
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
            )
            for scope in self._selection.scopes
        ]
        return sorted(parts, key=lambda part: part.name)

    def documents(self) -> Sequence[DocumentPart]:
        return ()

    def finish(self) -> Mapping[str, Any]:
        """Compare the schema with what was read; SourceChanged when a type or table changed in between."""
        with contextlib.closing(connect_source(self._config)) as connection, errors("source", self._config.conninfo):
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
        self._pool.close()
        self._main.close()


def may_compare_versions(text: RowText) -> bool:
    """Whether equal xmin means equal text for this table, given equal fingerprint and domain."""
    table = text.table
    return table.heap and not table.names_objects and not text.key.synthetic


def fingerprint(scope: Scope, text: RowText) -> str:
    """Digest of what makes a row's text and a table's membership: schema, types, partitions, scope query."""
    what = [scope.table.shape, scope.text, [c.name for c in text.columns], list(text.key.kinds), text.utf8]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def sequence_facts(connection: Connection) -> dict[int, list[dict[str, Any]]]:
    """Sequences that columns own, with their last value, by the table's oid."""
    found: dict[int, list[dict[str, Any]]] = {}
    for oid, column, schema, name, last in rows(connection, _SEQUENCES):
        found.setdefault(oid, []).append({"column": column, "schema": schema, "name": name, "last_value": last})
    return found


def table_facts(scope: Scope, text: RowText, sequences: list[dict[str, Any]]) -> dict[str, Any]:
    """What the restore and the operator need to know about a table."""
    return {
        "schema": scope.table.schema,
        "table": scope.table.name,
        "key": [column.name for column in text.key_columns],
        "scope": scope.reason,
        "sequences": sequences,
        "generated": [column.name for column in scope.table.columns if column.generated],
        "partitioned": scope.table.partitioned,
        "tablespaces": list(scope.table.tablespaces),
    }


_MIGRATIONS = {
    "django_migrations": "SELECT 'django:' || (array_agg(app || '.' || name ORDER BY id DESC))[1] || '#' || count(*) FROM {}",
    "alembic_version": "SELECT 'alembic:' || string_agg(version_num, ',' ORDER BY version_num) FROM {}",
    "flyway_schema_history": "SELECT 'flyway:' || (array_agg(version ORDER BY installed_rank DESC))[1] FROM {} WHERE success",
}


def schema_version(connection: Connection, catalogue: Catalogue, selection: Selection) -> str:
    """The newest applied migration where a known tool keeps a table of them, else a digest of the schema."""
    for table in sorted(catalogue.tables.values(), key=lambda table: (table.schema, table.name)):
        query = _MIGRATIONS.get(table.name)
        if query is None:
            continue
        run(connection, "SAVEPOINT lastro_version")
        try:
            found = value(connection, query.format(table.quoted))
        except psycopg.Error:
            # Not that tool's table after all, or not readable: the digest says as much.
            run(connection, "ROLLBACK TO SAVEPOINT lastro_version")
            continue
        if found:
            return str(found)
    described = [
        [scope.table.schema, scope.table.name, [[c.name, c.type, c.not_null] for c in scope.table.columns]]
        for scope in selection.scopes
    ]
    return "digest:" + hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


@contextlib.contextmanager
def open_reader(config: PostgresqlConfig, progress: Progress) -> Iterator[PostgresReader]:
    """Open a reader and close it again."""
    config.validate()
    reader = PostgresReader(config, progress)
    try:
        yield reader
    finally:
        reader.close()


def describe_scope(selection: Selection) -> list[dict[str, Any]]:
    """The tables of a source and why their rows belong, for the operator to confirm."""
    return [
        {
            "table": scope.table.display,
            "because": scope.reason,
            "key": list(scope.table.key.columns) if scope.table.key else None,
            "condition": scope.condition or ident(scope.table.schema, scope.table.name),
        }
        for scope in selection.scopes
    ]
