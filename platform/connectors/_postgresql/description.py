"""What a backup notes about tables beside their rows: when versions count, sequences, schema version, scope."""

import hashlib
import json
from typing import Any

import psycopg

from connectors._postgresql.catalogue import Catalogue
from connectors._postgresql.connection import Connection, rows, run, value
from connectors._postgresql.quoting import ident, literal
from connectors._postgresql.rowtext import RowText
from connectors._postgresql.scope import Scope, Selection

_SEQUENCES = """
SELECT d.refobjid::int8, a.attname, n.nspname, c.relname, pg_sequence_last_value(s.seqrelid)
  FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass
       AND d.deptype IN ('a', 'i')
  JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
 WHERE has_sequence_privilege(s.seqrelid, 'SELECT')
"""


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


def filled_views(connection: Connection, schema: str) -> list[list[str]]:
    """Materialized views that hold rows, as [schema, name], in the order of their making."""
    where = f" AND n.nspname = {literal(schema)}" if schema else ""
    found = rows(
        connection,
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        f" WHERE c.relkind = 'm' AND c.relispopulated AND n.nspname !~ '^pg_'{where} ORDER BY c.oid",
    )
    return [list(row) for row in found]


def table_facts(scope: Scope, text: RowText, sequences: list[dict[str, Any]]) -> dict[str, Any]:
    """What the restore and the operator need to know about a table."""
    return {
        "schema": scope.table.schema,
        "table": scope.table.name,
        "key": [column.name for column in text.key_columns],
        "scope": scope.reason,
        "sequences": sequences,
        "generated": [column.name for column in scope.table.columns if column.generated],
        "partitions": [list(each) for each in scope.table.partitions],
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
