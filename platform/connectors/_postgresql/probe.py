"""What testing a source's settings tells the operator before the first backup."""

import contextlib
from typing import Any

import psycopg

from connectors._postgresql.catalogue import Catalogue
from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import Connection, clean_message, errors, rows, value
from connectors._postgresql.description import describe_scope
from connectors._postgresql.quoting import ident, literal
from connectors._postgresql.reader import catalogue_of, connect_source, selection_of
from connectors._postgresql.scope import Scope, Selection
from connectors._postgresql.tools import find_pg_dump, missing_pg_dump
from engine.errors import SourceDenied, UsageError
from engine.ports import Probe

NAMES_SHOWN_MAX = 5


def probe(config: PostgresqlConfig) -> Probe:
    """Connect with a timeout, read the catalogues, try one row of every table."""
    with contextlib.closing(connect_source(config)) as connection, errors("source", config.conninfo):
        catalogue = catalogue_of(connection, config)
        selection = selection_of(catalogue, config)
        _require_rights(connection, selection)
        _require_value(connection, selection, config.tenant_value)
        warnings = _warnings(connection, config, catalogue, selection)
        major = connection.info.server_version // 10000
        tables = [scope.table.oid for scope in selection.scopes]
        size = value(
            connection, f"SELECT coalesce(sum(pg_table_size(o)), 0)::int8 FROM unnest(ARRAY[{_list(tables)}]::oid[]) o"
        )
        return Probe(
            summary=f"PostgreSQL {connection.info.parameter_status('server_version')}, {len(tables)} table{'s' * (len(tables) != 1)} in scope",
            details={
                "server_version": connection.info.server_version,
                "database": connection.info.dbname,
                "user": connection.info.user,
                "superuser": value(connection, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"),
                "in_recovery": value(connection, "SELECT pg_is_in_recovery()"),
                "pg_dump": find_pg_dump(major, folder=config.tools),
                "table_bytes": size,
                "tables": describe_scope(selection),
            },
            warnings=tuple(warnings),
        )


def _list(oids: list[int]) -> str:
    return ", ".join(map(str, oids))


def _require_rights(connection: Connection, selection: Selection) -> None:
    """Every table must be readable, and no policy may hide rows from us."""
    denied = []
    for scope in selection.scopes:
        name = literal(scope.table.quoted)
        schema = literal(scope.table.schema)
        allowed = value(
            connection,
            f"SELECT has_schema_privilege({schema}, 'USAGE') AND has_table_privilege({name}, 'SELECT')",
        )
        if not allowed:
            denied.append(scope.table.display)
    if denied:
        raise SourceDenied(
            f"the role may not read {_some(denied)}",
            hint="GRANT USAGE ON SCHEMA and GRANT SELECT ON ALL TABLES, or use the role pg_read_all_data",
        )
    hidden = [
        s.table.display for s in selection.scopes if value(connection, f"SELECT row_security_active({s.table.oid})")
    ]
    if hidden:
        raise SourceDenied(
            f"row security would hide rows of {_some(hidden)}", hint="grant the role BYPASSRLS: ALTER ROLE … BYPASSRLS"
        )


def _require_value(connection: Connection, selection: Selection, wanted: str) -> None:
    """The tenant's value must be one that each of the columns can hold: another would be no tenant's, or be cut to fit."""
    for table, name in selection.compared:
        column = table.column(name)
        plain = f"CAST({literal(wanted)} AS {column.plain_type})"
        try:
            fits = value(connection, f"SELECT CAST({plain} AS {column.type}) {column.equals} {plain}")
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            fits, said = False, f" ({clean_message(error)})"
        else:
            said = ""
        if not fits:
            raise UsageError(
                f"tenant_value {wanted!r} cannot stand in {table.display}.{name}, which is {column.type}{said}",
                hint=f"give it as the column holds it: SELECT DISTINCT {ident(name)} FROM {table.quoted}; "
                "or leave the table out (exclude)",
            )


def _some(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN_MAX
    return ", ".join(names[:NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def _warnings(
    connection: Connection, config: PostgresqlConfig, catalogue: Catalogue, selection: Selection
) -> list[str]:
    found = list(selection.warnings)
    keyless = [scope.table.display for scope in selection.scopes if scope.table.key is None]
    if keyless:
        found.append(
            f"no primary or unique key: {_some(keyless)}; kept by comparing whole rows, which is slower: add a primary key"
        )
    found += [f"{name} is left out: {reason}" for name, reason in catalogue.skipped.items()]
    blind = sorted({f"{table.display}.{name}" for table, name in selection.compared if table.column(name).caseless})
    if blind:
        found.append(
            f"{_some(blind)} knows no upper and lower case (citext): tenants that differ only in it are one tenant"
        )
    if config.layout == "rows":
        slow = [
            s.table.display
            for s in selection.scopes
            if s.reason == "has the tenant column" and not _led(connection, s, config)
        ]
        if slow:
            found.append(
                f"no index begins with {config.tenant_column} on {_some(slow)}: every backup reads all tenants' rows;"
                f" CREATE INDEX CONCURRENTLY ON … ({config.tenant_column}, …)"
            )
    elif find_pg_dump(connection.info.server_version // 10000, folder=config.tools) is None:
        found.append("; ".join(missing_pg_dump(connection.info.server_version // 10000, folder=config.tools)))
    if not _may_silence_triggers(connection):
        found.append(
            "the role may not set session_replication_role: a restore obeys triggers and cascades and may be refused;"
            " from PostgreSQL 15 on GRANT SET ON PARAMETER session_replication_role TO the role"
        )
    return found


def _led(connection: Connection, scope: Scope, config: PostgresqlConfig) -> bool:
    """Whether an index begins with the tenant column."""
    return bool(
        value(
            connection,
            "SELECT EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
            f" WHERE i.indrelid = {scope.table.oid} AND i.indisvalid AND i.indpred IS NULL"
            f" AND a.attname = {literal(config.tenant_column)})",
        )
    )


def _may_silence_triggers(connection: Connection) -> bool:
    if value(connection, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        return True
    if connection.info.server_version < 150000:
        return False
    answer: list[tuple[Any, ...]] = rows(
        connection, "SELECT has_parameter_privilege('session_replication_role', 'SET')"
    )
    return bool(answer[0][0])
