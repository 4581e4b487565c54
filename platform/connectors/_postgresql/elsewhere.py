"""What a restore to another schema or database would do: everything is inserted, and what is there already is said."""

import contextlib
from collections.abc import Iterable

from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import errors, parse_dsn
from connectors._postgresql.inplace import connect_target
from connectors._postgresql.large_objects import NAME as LARGE_OBJECT_PAGES
from connectors._postgresql.newdatabase import occupants, replaces_rows
from connectors._postgresql.newschema import objects_inside
from connectors._postgresql.previewing import preview_in_place
from connectors._postgresql.target import Target, way_of
from engine.errors import LastroError
from engine.plans import SAMPLE_VALUE_CHARACTERS, ChangeDigest, Preview, RowSample
from engine.ports import RestoreRequest, SourceView, TableChange, TableView, unescape_field
from engine.progress import Progress


def preview_elsewhere(
    config: PostgresqlConfig, target: Target, view: SourceView, request: RestoreRequest, progress: Progress
) -> Preview:
    """Say what `restore_elsewhere` would do."""
    way, there, schema = way_of(config, target, view)
    progress.phase("compare")
    warnings = []
    with errors("target", there.conninfo):
        try:
            connection = connect_target(there)
        except LastroError as error:
            name = str(parse_dsn(there.conninfo).get("dbname") or "")
            if way == "copy" or f'database "{name}" does not exist' not in error.message:
                raise
            warnings.append(f"database {name} does not exist and is made")
        else:
            with contextlib.closing(connection):
                if way == "database" and request.overwrite and replaces_rows(connection, view):
                    return preview_in_place(there, view, request, progress)
                found = occupants(connection) if way == "database" else objects_inside(connection, schema)
            if found:
                where = f"schema {schema}" if way != "database" else "the target database"
                warnings.append(f"{where} holds {found}; it is replaced when that is confirmed, and refused otherwise")
    tables = [table for table in view.tables if table.name != LARGE_OBJECT_PAGES]
    samples = {table.name: _samples(table, request.samples) for table in tables}
    return Preview(
        digest=digest_of_views(tables),
        tables=tuple(TableChange(table.name, insert=table.row_count) for table in tables),
        samples={name: found for name, found in samples.items() if found},
        warnings=tuple(warnings),
    )


def digest_of_views(tables: Iterable[TableView]) -> str:
    """engine.plans.ChangeDigest of inserting whole tables: their digests stand for their rows."""
    digest = ChangeDigest()
    for table in tables:
        digest.section(table.name, [column.name for column in table.columns])
        digest.lines([b"I\t\t" + f"{table.row_count} {table.sha256}".encode()])
    return digest.hexdigest()


def _samples(table: TableView, limit: int) -> tuple[RowSample, ...]:
    names = [column.name for column in table.columns]
    lines = table.rows_after(None, limit=limit) if limit > 0 else []
    found = []
    for line in lines:
        fields = [_text(field) for field in line.split(b"\t")[table.key.synthetic :]] if names else []
        row = dict(zip(names, fields, strict=True))
        found.append(RowSample("insert", {name: row[name] for name in table.facts.get("key") or ()}, None, row))
    return tuple(found)


def _text(field: bytes) -> str | None:
    if field == b"\\N":
        return None
    return unescape_field(field).decode("utf-8", "replace")[:SAMPLE_VALUE_CHARACTERS]
