"""A whole database built anew: definitions, rows over two connections, then indexes and constraints.

It takes many transactions, so a schema with a telling name marks the database as unfinished from the first
of them to the last. A restore that finds such a mark clears what a killed one left and begins again.
"""

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from connectors._postgresql.catalogue import read_catalogue
from connectors._postgresql.clearing import clear
from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import (
    Connection,
    begin,
    clean_message,
    connect,
    errors,
    parse_dsn,
    rows,
    run,
    value,
)
from connectors._postgresql.definitions import POST_DATA, PRE_DATA, ROLES, SEQUENCES, Item, items
from connectors._postgresql.inplace import connect_target
from connectors._postgresql.large_applying import make_large_objects
from connectors._postgresql.large_objects import DOCUMENT as LARGE_OBJECTS
from connectors._postgresql.large_objects import NAME as LARGE_OBJECT_PAGES
from connectors._postgresql.large_objects import insertion
from connectors._postgresql.loading import (
    CONNECTIONS,
    Comparison,
    Destination,
    changes_of,
    load_frozen,
    set_sequences,
    spread,
)
from connectors._postgresql.piped import Psql
from connectors._postgresql.quoting import ident, literal
from connectors._postgresql.roles import apply_database, create_roles
from connectors._postgresql.statements import Runner
from engine.errors import LastroError, SchemaMismatch, TargetError, TargetOccupied
from engine.faults import kill_point
from engine.ports import Check, RestoreReport, RestoreRequest, SourceView
from engine.progress import Progress

INSUFFICIENT_PRIVILEGE = "42501"
MARK = "lastro_unfinished_restore"
EARLY_KINDS = {"INDEX ATTACH"}
LINK_KIND = "FK CONSTRAINT"
EVENT_TRIGGER = "EVENT TRIGGER"
REFRESH_ROUNDS_MAX = 20
LOCK_HOURS_MAX = 24
_NAME = r'(?:"(?:[^"]|"")+"|[^\s".(]+)'
_VIEW_NAME = re.compile(rf"CREATE MATERIALIZED VIEW ({_NAME}\.{_NAME})")

_OCCUPIED = """
SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
   AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')
 ORDER BY 1 LIMIT 5
"""


def occupants(connection: Connection) -> str:
    """Name some of what a database holds; "" when it is empty or an unfinished restore of ours."""
    marked = value(connection, f"SELECT to_regnamespace({literal(ident(MARK))}) IS NOT NULL")
    return "" if marked else ", ".join(row[0] for row in rows(connection, _OCCUPIED))


def replaces_rows(connection: Connection, view: SourceView) -> bool:
    """Whether one tenant's rows go into shared tables that are all there already."""
    return bool(view.facts["layout"] == "rows" and _holds_tables(connection, view))


def _holds_tables(connection: Connection, view: SourceView) -> bool:
    names = [literal(ident(t.facts["schema"], t.facts["table"])) for t in view.tables]
    wanted = f"unnest(ARRAY[{', '.join(names)}]::text[])"
    return bool(value(connection, f"SELECT bool_and(to_regclass(n) IS NOT NULL) FROM {wanted} n"))


def restore_to_database(
    config: PostgresqlConfig, view: SourceView, request: RestoreRequest, progress: Progress
) -> RestoreReport:
    """Build the database that the DSN names, creating it when it does not exist."""
    if PRE_DATA not in view.documents:
        raise SchemaMismatch(
            "the backup holds no definitions to build a database from",
            hint="install pg_dump of the server's major version and back up again, or restore with schema=NAME",
        )
    with errors("target", config.conninfo):
        create_missing_database(config, view)
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(contextlib.closing(connect_target(config))) for _ in range(CONNECTIONS)]
            return _Building(config, view, request, progress, connections).run()


def may_dangle(view: SourceView, request: RestoreRequest) -> bool:
    """Whether rows may refer to rows that are not restored: of other tenants, not selected, or erased since."""
    erased = any(table.sha256 == "" for table in view.tables)
    return bool(view.facts["layout"] == "rows" or request.mode == "selective" or erased)


def missing_database(config: PostgresqlConfig) -> bool:
    """Whether the DSN's server answers and has no such database. Raises what connecting to it raises otherwise."""
    wanted = str(parse_dsn(config.conninfo).get("dbname") or "")
    try:
        connect_target(config).close()
    except TargetError as error:
        refused = error
    else:
        return False
    try:
        maintenance = connect(config.conninfo, side="target", database="postgres")
    except LastroError:
        raise refused from None
    with contextlib.closing(maintenance):
        # The server may say what is wrong in any language; its catalogue tells whether the database is there.
        if value(maintenance, f"SELECT EXISTS (SELECT FROM pg_database WHERE datname = {literal(wanted)})"):
            raise refused
    return True


def create_missing_database(config: PostgresqlConfig, view: SourceView) -> None:
    """Create the DSN's database with the encoding and locale of the backup's, unless it exists."""
    wanted = str(parse_dsn(config.conninfo).get("dbname") or "")
    if not missing_database(config):
        return
    with contextlib.closing(connect(config.conninfo, side="target", database="postgres")) as maintenance:
        facts = json.loads(view.documents[ROLES].read())["database"] if ROLES in view.documents else {}
        encoding = facts.get("encoding") or view.facts.get("encoding") or "UTF8"
        locale = _locale(facts) if facts else ""
        try:
            run(maintenance, f"CREATE DATABASE {ident(wanted)} TEMPLATE template0 ENCODING {literal(encoding)}{locale}")
        except (psycopg.DataError, psycopg.ProgrammingError, psycopg.NotSupportedError) as error:
            if error.sqlstate == INSUFFICIENT_PRIVILEGE:
                raise
            raise SchemaMismatch(
                f"the database cannot be created as it was ({encoding}{locale}): {clean_message(error)}",
                hint="create it with a locale that the server has, and restore into it",
            ) from None


def _locale(facts: Mapping[str, Any]) -> str:
    """What CREATE DATABASE has to be told of the order of texts and the classes of characters."""
    options = [f"LC_COLLATE {literal(facts['collate'])} LC_CTYPE {literal(facts['ctype'])}"]
    words = {"i": "LOCALE_PROVIDER icu ICU_LOCALE", "b": "LOCALE_PROVIDER builtin BUILTIN_LOCALE"}
    if facts.get("locale_provider") in words and facts.get("locale"):
        options.append(f"{words[facts['locale_provider']]} {literal(facts['locale'])}")
    if facts.get("icu_rules"):
        options.append(f"ICU_RULES {literal(facts['icu_rules'])}")
    return " " + " ".join(options)


@dataclass
class _Building:
    config: PostgresqlConfig
    view: SourceView
    request: RestoreRequest
    progress: Progress
    connections: Sequence[Connection]
    warnings: list[str] = field(default_factory=list)

    @property
    def main(self) -> Connection:
        return self.connections[0]

    @property
    def shared(self) -> bool:
        """Rows of one tenant out of shared tables: roles and settings of the database are not its own."""
        return bool(self.view.facts["layout"] == "rows")

    def run(self) -> RestoreReport:
        self._claim()
        self._say_session()
        was, now = (
            int(version) // 10000 for version in (self.view.facts["server_version"], self.main.info.server_version)
        )
        if was > now:
            self._warn(f"the backup is of PostgreSQL {was}, the target is {now}: its definitions may be too new")
        destinations = [
            Destination(table, table.facts["schema"], table.facts["table"])
            for table in self.view.tables
            if table.name != LARGE_OBJECT_PAGES
        ]
        self.progress.phase("definitions")
        if ROLES in self.view.documents:
            create_roles(self.main, self._document(ROLES)["roles"], self._warn)
        self._runner(self.main).run_all(items(self.view.documents[PRE_DATA].read()))
        kill_point("pg.build.defined")
        for table in self.view.tables:
            if table.facts.get("tablespaces"):
                self._warn(
                    f"{table.name} lay in tablespace {table.facts['tablespaces'][0]}: it is in the default one now"
                )
        self._load(destinations)
        kill_point("pg.build.loaded")
        self.progress.phase("indexes")
        psql = Psql.find(self.config, server_version=self.main.info.server_version)
        comparison = Comparison(
            read_catalogue(self.main), destinations, validate=self.request.validate, psql=psql, as_loaded=True
        )
        self._finish_definitions(comparison)
        if SEQUENCES in self.view.documents:
            set_sequences(self.main, self._document(SEQUENCES), rename={})
        self._refresh()
        self.progress.phase("check")
        checks = self._checks(destinations, comparison)
        if not self.shared and ROLES in self.view.documents:
            apply_database(self.main, self._document(ROLES), self._warn)
        kill_point("pg.build.applied")
        # A commit that waits for the disk takes everything before it along, on whichever connection it was.
        run(self.main, "SET synchronous_commit = on")
        run(self.main, "BEGIN")
        run(self.main, f"DROP SCHEMA {ident(MARK)}")
        # Event triggers watch what others do in the finished database, not how it was built.
        self._runner(self.main).run_all(filter(_is_watching, items(self.view.documents[POST_DATA].read())))
        run(self.main, "COMMIT")
        kill_point("pg.build.committed")
        changes = (*changes_of(destinations), *insertion(self.view))
        return RestoreReport(changes, None, checks, None, tuple(self.warnings))

    def _warn(self, message: str) -> None:
        self.warnings.append(message)
        self.progress.warn("postgresql.definitions", message)

    def _document(self, name: str) -> Any:
        return json.loads(self.view.documents[name].read())

    # -------------------------------------------------------- the place

    def _claim(self) -> None:
        """Make sure the database is empty, or ours to clear, and mark it as unfinished."""
        marked = value(self.main, f"SELECT to_regnamespace({literal(ident(MARK))}) IS NOT NULL")
        there = [row[0] for row in rows(self.main, _OCCUPIED)]
        if there and not marked and not self.request.overwrite:
            raise TargetOccupied(
                f"the target database holds {', '.join(there)}",
                hint="name an empty database, or confirm the overwriting",
            )
        begin(self.main, "READ COMMITTED")
        if there or marked:
            clear(self.main, self._warn)
        run(self.main, f"CREATE SCHEMA {ident(MARK)}")
        run(self.main, f"COMMENT ON SCHEMA {ident(MARK)} IS {literal('lastro ' + self.request.label)}")
        run(self.main, "COMMIT")

    def _say_session(self) -> None:
        """Speed that costs no safety: an unfinished database is thrown away after a crash."""
        for connection in self.connections:
            run(connection, "SET synchronous_commit = off")
            run(connection, "SET maintenance_work_mem = '256MB'")
            # They wait for one another's indexes and keys alone, as long as those take to build.
            run(connection, f"SET lock_timeout = '{LOCK_HOURS_MAX}h'")

    # -------------------------------------------------------- rows

    def _load(self, destinations: Sequence[Destination]) -> None:
        self.progress.phase("load")
        views = self.view.tables
        self.progress.total(bytes=sum(v.byte_count for v in views), items=sum(v.row_count for v in views))

        def load(destination: Destination) -> Callable[[Connection], None]:
            return lambda connection: load_frozen(connection, destination, self.progress)

        spread(self.connections, [(each.view.byte_count, load(each)) for each in destinations], self.progress)
        pages = next((table for table in views if table.name == LARGE_OBJECT_PAGES), None)
        if LARGE_OBJECTS in self.view.documents:
            document = self.view.documents[LARGE_OBJECTS].read()
            make_large_objects(self.main, pages, document, self._warn, self.progress)

    # -------------------------------------------------------- definitions

    def _runner(self, connection: Connection) -> Runner:
        return Runner(connection, self._warn, links_may_dangle=may_dangle(self.view, self.request))

    def _finish_definitions(self, comparison: Comparison) -> None:
        """Keys in parallel, then other indexes beside the reading back of rows, the rest in pg_dump's order."""
        entries = list(items(self.view.documents[POST_DATA].read()))
        sizes = {table.facts["table"]: table.byte_count for table in self.view.tables}

        def build(item: Item) -> Callable[[Connection], None]:
            return lambda connection: self._runner(connection).run_item(item)

        keys = [item for item in entries if item.kind == "CONSTRAINT"]
        late = _on_late_views(entries)
        indexes = [item for item in entries if item.kind == "INDEX" and id(item) not in late]
        # A foreign key to a partitioned table waits until the partitions' indexes are attached.
        attached = any(item.kind in EARLY_KINDS for item in entries)
        links = [] if attached else [item for item in entries if item.kind == LINK_KIND]
        try:
            spread(self.connections, [(sizes.get(k.tag.split(" ")[0], 0), build(k)) for k in keys], self.progress)
            # Which table an index belongs to is not in its tag; beside the large tables' reading its order is no matter.
            middle = sorted(sizes.values())[len(sizes) // 2] if sizes else 0
            jobs = [*comparison.jobs(), *((middle, build(index)) for index in indexes)]
            # Foreign keys lock two tables each: one after another they cannot block one another. They come first, beside
            # the reading back: an index of their tables would have to wait for them, and they for it.
            jobs.append((sum(sizes.values()), lambda connection: self._runner(connection).run_all(links)))
            spread(self.connections, jobs, self.progress)
        except psycopg.errors.SyntaxError as error:
            raise TargetError(f"an index definition cannot be read: {error.diag.message_primary}") from None
        done = {id(item) for item in (*keys, *indexes, *links)}
        rest = [item for item in entries if id(item) not in done and not _is_watching(item)]
        rest.sort(key=lambda item: item.kind not in EARLY_KINDS)
        self._runner(self.main).run_all(rest)

    def _refresh(self) -> None:
        """Fill materialized views, those that read others after them."""
        pending = list(self.view.facts.get("materialized", ()))
        for _ in range(REFRESH_ROUNDS_MAX):
            left = []
            for schema, name in pending:
                try:
                    run(self.main, f"REFRESH MATERIALIZED VIEW {ident(schema, name)}")
                except psycopg.errors.ObjectNotInPrerequisiteState:
                    left.append((schema, name))
                except psycopg.Error as error:
                    self._warn(f"materialized view {schema}.{name} stays empty: {error.diag.message_primary}")
            if not left or len(left) == len(pending):
                break
            pending = left
        for schema, name in left if pending else ():
            self._warn(f"materialized view {schema}.{name} stays empty")

    # -------------------------------------------------------- checks

    def _checks(self, destinations: Sequence[Destination], comparison: Comparison) -> tuple[Check, ...]:
        catalogue = read_catalogue(self.main)
        dangling = [link.name for link in catalogue.foreign_keys if not link.validated]
        return (
            comparison.check(),
            Check(
                "data_integrity",
                True,
                0,
                0,
                f"{len(catalogue.foreign_keys)} foreign keys, {len(dangling)} not validated",
            ),
            Check(
                "schema_compatibility",
                True,
                len(destinations),
                len(destinations),
                "built from the backup's definitions",
            ),
        )


def _on_late_views(entries: Sequence[Item]) -> set[int]:
    """Ids of indexes on materialized views that wait for a key themselves (GROUP BY a primary key)."""
    found = (_VIEW_NAME.search(item.sql) for item in entries if item.kind == "MATERIALIZED VIEW")
    views = [re.escape(match[1]) for match in found if match]
    if not views:
        return set()
    on_one = re.compile(rf" ON (?:ONLY )?(?:{'|'.join(views)}) ")
    return {id(item) for item in entries if item.kind == "INDEX" and on_one.search(item.sql)}


def _is_watching(item: Item) -> bool:
    return item.kind == EVENT_TRIGGER or (item.kind == "COMMENT" and item.tag.startswith(EVENT_TRIGGER))
