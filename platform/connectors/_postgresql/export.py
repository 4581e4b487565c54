"""A backup as one SQL script that psql reads: definitions, COPY blocks, sequences, constraints."""

import gzip
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from connectors._postgresql import unencoded
from connectors._postgresql.definitions import POST_DATA, PRE_DATA, SEQUENCES
from connectors._postgresql.large_objects import DOCUMENT as LARGE_OBJECTS
from connectors._postgresql.large_objects import NAME as LARGE_OBJECT_PAGES
from connectors._postgresql.large_objects import PAGE_BYTES
from connectors._postgresql.quoting import ident, idents, literal
from engine.ports import SourceView, TableView
from engine.progress import Progress

COMPRESSION = 6

_HEADER = """-- Written by Lastro. Read it into an empty database: gunzip -c FILE | psql -X -v ON_ERROR_STOP=1 DATABASE
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SET check_function_bodies = off;
SET client_min_messages = warning;
SET row_security = off;
SET search_path = '';
SET DateStyle = 'ISO, YMD';
SET IntervalStyle = 'postgres';
SET TimeZone = 'UTC';
SET lc_monetary = 'C';
SET xmloption = content;

"""

_LINK = re.compile(r"(?s)ADD CONSTRAINT .*? FOREIGN KEY .*? REFERENCES (?P<parent>.+?)\([^)]*\)[^;]*(?P<end>;)")


def export(view: SourceView, folder: str, progress: Progress) -> list[str]:
    """Write `<source>.sql.gz`; a name that could leave the folder is flattened."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", view.name).lstrip(".") + ".sql.gz"
    progress.phase(f"export {view.name}")
    progress.total(bytes=sum(table.byte_count for table in view.tables))
    with (
        open(os.path.join(folder, name), "xb") as raw,
        gzip.GzipFile(filename="", mode="wb", compresslevel=COMPRESSION, fileobj=raw, mtime=0) as out,
    ):
        for block in _script(view, progress):
            out.write(block)
    return [name]


def _script(view: SourceView, progress: Progress) -> Iterator[bytes]:
    unencoded_rows = view.facts.get("encoding") == unencoded.ENCODING
    yield (_HEADER.replace("UTF8", unencoded.ENCODING) if unencoded_rows else _HEADER).encode()
    documents = view.documents
    if PRE_DATA in documents:
        yield _without_public(_entries(documents[PRE_DATA].read()))
    else:
        yield _plain_tables(view).encode()
    for table in view.tables:
        if table.name == LARGE_OBJECT_PAGES:
            yield from _large_objects(view, table, progress)
        else:
            yield from _copy(table, progress)
    if LARGE_OBJECTS in documents and not any(t.name == LARGE_OBJECT_PAGES for t in view.tables):
        yield _create_large_objects(view)
    yield _sequences(view).encode()
    if POST_DATA in documents:
        yield _post_data(view, _entries(documents[POST_DATA].read()))
    for schema, name in view.facts.get("materialized", ()):
        yield f"REFRESH MATERIALIZED VIEW {ident(schema, name)};\n".encode()


def _entries(sql: bytes) -> bytes:
    """A section without the settings at its head: a newer pg_dump sets what an older server does not know."""
    _, mark, entries = sql.partition(b"\n--\n-- Name: ")
    return mark + entries


def _without_public(sql: bytes) -> bytes:
    """A new database has the schema public already."""
    return sql.replace(b"\nCREATE SCHEMA public;\n", b"\nCREATE SCHEMA IF NOT EXISTS public;\n")


def _plain_tables(view: SourceView) -> str:
    schemas = sorted({table.facts["schema"] for table in view.tables})
    statements = [f"CREATE SCHEMA IF NOT EXISTS {ident(schema)};\n" for schema in schemas]
    for table in view.tables:
        columns = ", ".join(f"{ident(column.name)} {column.type}" for column in table.columns)
        key = f", PRIMARY KEY ({idents(table.facts['key'])})" if table.facts.get("key") else ""
        statements.append(f"CREATE TABLE {ident(table.facts['schema'], table.facts['table'])} ({columns}{key});\n")
    return "".join(statements)


def _copy(table: TableView, progress: Progress) -> Iterator[bytes]:
    columns = [column.name for column in table.columns if not column.generated]
    quoted = ident(table.facts["schema"], table.facts["table"])
    if not columns:
        yield f"INSERT INTO {quoted} SELECT FROM generate_series(1, {table.row_count});\n".encode()
        return
    kept = [not column.generated for column in table.columns]
    yield f"\nCOPY {quoted} ({idents(columns)}) FROM stdin;\n".encode()
    for lines in table.rows():
        progress.check()
        if table.key.synthetic:
            lines = [line.split(b"\t", table.key.synthetic)[table.key.synthetic] for line in lines]
        if not all(kept):
            lines = [b"\t".join([f for f, k in zip(line.split(b"\t"), kept, strict=True) if k]) for line in lines]
        block = b"\n".join(lines) + b"\n" if lines else b""
        progress.advance(bytes=len(block), items=len(lines))
        yield block
    yield b"\\.\n\n"


def _create_large_objects(view: SourceView) -> bytes:
    stored: list[dict[str, Any]] = json.loads(view.documents[LARGE_OBJECTS].read())
    return b"".join(b"SELECT pg_catalog.lo_create(%d);\n" % int(each["oid"]) for each in stored)


def _large_objects(view: SourceView, table: TableView, progress: Progress) -> Iterator[bytes]:
    yield _create_large_objects(view)
    for lines in table.rows():
        progress.check()
        for line in lines:
            number, page, data = line.split(b"\t")
            # COPY escapes the backslash of a bytea's \x.
            text = data.replace(b"\\\\", b"\\")
            yield b"SELECT pg_catalog.lo_put(%d, %d, '%s');\n" % (int(number), int(page) * PAGE_BYTES, text)


def _sequences(view: SourceView) -> str:
    statements = []
    if SEQUENCES in view.documents:
        stored = json.loads(view.documents[SEQUENCES].read())
    else:
        stored = [sequence for table in view.tables for sequence in table.facts.get("sequences", ())]
        if PRE_DATA not in view.documents:
            return ""
    for each in stored:
        if each["last_value"] is not None:
            name = literal(ident(each["schema"], each["name"]))
            called = str(each.get("is_called", True)).lower()
            statements.append(f"SELECT pg_catalog.setval({name}, {int(each['last_value'])}, {called});\n")
    return "".join(statements)


def _post_data(view: SourceView, sql: bytes) -> bytes:
    """Foreign keys to tables whose rows are not in the backup are declared without checking what is there."""
    if view.facts.get("layout") != "rows":
        return sql
    present = {(table.facts["schema"], table.facts["table"]) for table in view.tables}
    names = {spelling for schema, table in present for spelling in _spellings(schema, table)}

    def soften(match: re.Match[str]) -> str:
        if match["parent"] in names:
            return match[0]
        return match[0][: match.start("end") - match.start()] + " NOT VALID;"

    return unencoded.encode(_LINK.sub(soften, unencoded.decode(sql)))


def _spellings(schema: str, table: str) -> set[str]:
    """How pg_dump may write a name: quoted only where it must be."""
    return {f"{s}.{t}" for s in (schema, ident(schema)) for t in (table, ident(table))}
