"""What a restore to another schema or database would do: everything is inserted, and what is there already is said."""

import contextlib
from collections.abc import Iterator

from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import errors, parse_dsn
from connectors._postgresql.inplace import connect_target
from connectors._postgresql.large_objects import NAME as LARGE_OBJECT_PAGES
from connectors._postgresql.large_objects import insertion
from connectors._postgresql.newdatabase import missing_database, occupants
from connectors._postgresql.newschema import objects_inside
from connectors._postgresql.partial import selected
from connectors._postgresql.previewing import preview_in_place
from connectors._postgresql.target import Target, Way, digest_of_views, live_catalogue, restores_in_place, way_of
from engine.plans import SAMPLE_VALUE_CHARACTERS, Preview, RowSample
from engine.ports import RestoreRequest, SourceView, TableChange, TableView, unescape_field
from engine.progress import Progress


def preview_elsewhere(
    config: PostgresqlConfig, target: Target, view: SourceView, request: RestoreRequest, progress: Progress
) -> Preview:
    """Say what `restore_elsewhere` would do."""
    way, there, schema = way_of(config, target, view)
    progress.phase("compare")
    if restores_in_place(way, there, view, request):
        return preview_in_place(there, view, request, progress)
    warnings = list(_what_is_there(way, there, schema))
    with selected(view, request, lambda: live_catalogue(there)) as chosen:
        tables = [table for table in chosen.tables if table.name != LARGE_OBJECT_PAGES]
        samples = {table.name: _samples(table, request.samples) for table in tables}
        return Preview(
            digest=digest_of_views(chosen),
            tables=(
                *(TableChange(table.name, insert=table.row_count) for table in tables),
                *(insertion(chosen) if way == "database" else ()),
            ),
            samples={name: found for name, found in samples.items() if found},
            dependencies=getattr(chosen, "dependencies", ()),
            warnings=(*warnings, *getattr(chosen, "warnings", ())),
            staged_bytes=0,
        )


def _what_is_there(way: Way, there: PostgresqlConfig, schema: str) -> Iterator[str]:
    if way != "copy" and missing_database(there):
        yield f"database {parse_dsn(there.conninfo).get('dbname')} does not exist and is made"
        return
    with errors("target", there.conninfo), contextlib.closing(connect_target(there)) as connection:
        found = occupants(connection) if way == "database" else objects_inside(connection, schema)
    if found:
        where = f"schema {schema}" if way != "database" else "the target database"
        yield f"{where} holds {found}; it is replaced when that is confirmed, and refused otherwise"


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
