"""Databases that are not UTF-8: every byte comes back, whatever it means."""

import gzip
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from connectors._postgresql import part as part_module
from connectors._postgresql.config import PostgresqlConfig
from connectors.postgresql import PostgresqlConnector
from engine.errors import LastroError, SourceError, SourceUnsupported
from engine.progress import NullProgress
from engine.table_backup import backup_table
from engine.table_view import TableView
from tests.connectors.postgres_views import put_back, take
from tests.engine.table_sources import MemoryChunks
from tests.services.postgres import PostgresServer

RAW = bytes(range(128, 256)).replace(b"\\", b"")
SCHEMA = (
    b"create table words(word text primary key, tenant text, v varchar(200), c char(4), a text[], e text);"
    b"create table plain(n numeric primary key, w text); create table keyless(w text);"
    b"create type mood as enum ('ok', 'tr\xe8s'); alter table words add m mood default 'tr\xe8s';"
    b"comment on table words is 'caf\xe9'; create view seen as select word from words where v <> '\xff';"
    b"create function said() returns text language sql as $$ select '\xe9t\xe9'::text $$;"
    b"insert into words values ('a', 't', 'x', 'y', '{}', '');"
    b"insert into words select 'w\xff' || g, 't\xe9', '" + RAW + b"', 'c\xe9', array['\xe9\"', null, '\xfe,'], '\xc3\xa9'"
    b" from generate_series(1, 300) g;"
    b"insert into plain select g, '\xe9' || g from generate_series(1, 20) g; insert into keyless values ('\xe9'), ('\xe9'), ('\xff\\\\')"
)  # fmt: skip
TABLES = ("words", "plain", "keyless")


def raw(dsn: str, sql: bytes) -> list[bytes]:
    """Rows of one column as the bytes that lie in the database."""
    with psycopg.connect(dsn, client_encoding="SQL_ASCII") as connection:
        cursor = connection.execute(sql)
        return (
            [bytes(row[0] if isinstance(row[0], bytes) else str(row[0]).encode()) for row in cursor]
            if cursor.description
            else []
        )


def contents(dsn: str) -> dict[str, list[bytes]]:
    return {table: raw(dsn, f"select textsend(t::text) from {table} t order by 1".encode()) for table in TABLES}


def said(dsn: str) -> list[bytes]:
    """Texts of definitions: a comment, a view, a function, an enum."""
    return raw(
        dsn,
        b"select textsend(obj_description('words'::regclass)) union all select textsend(pg_get_viewdef('seen'::regclass))"
        b" union all select textsend(prosrc) from pg_proc where proname = 'said'"
        b" union all select textsend(enumlabel::text) from pg_enum",
    )


@pytest.fixture(params=["SQL_ASCII", "LATIN1"])
def encoded(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[str]:
    """A database of an encoding, filled with bytes that are no UTF-8."""
    postgres.execute(f"create database encoded template template0 encoding '{request.param}' locale 'C'")
    raw_dsn = postgres.dsn("encoded")
    with psycopg.connect(raw_dsn, client_encoding=request.param) as connection:
        connection.execute(SCHEMA)
    yield raw_dsn
    postgres.drop_database("encoded")


@pytest.mark.parametrize("large", [False, True])
def test_bytes_come_back(postgres: PostgresServer, encoded: str, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: rows and definitions exactly. Method: damage and restore in place, then anew; both ways of reading tables."""
    monkeypatch.setattr(part_module, "PIPED_BYTES_MIN", 1 if large else 1 << 30)
    config = PostgresqlConfig(dsn=encoded)
    PostgresqlConnector(config).test()
    view, before, texts = take(config), contents(encoded), said(encoded)
    raw(encoded, b"update words set v = 'lost' where word ~ '1'; delete from words where word ~ '2'; delete from plain;"
                 b"delete from keyless where w ~ '\\\\'; insert into keyless values ('new')")  # fmt: skip
    put_back(config, view, prove=True)
    assert contents(encoded) == before
    assert take(config).digests() == view.digests()
    try:
        put_back(config, view, target={"dsn": postgres.dsn("encoded_copy")})
        assert contents(postgres.dsn("encoded_copy")) == before
        assert said(postgres.dsn("encoded_copy")) == texts
        assert raw(postgres.dsn("encoded_copy"), b"show server_encoding") == raw(encoded, b"show server_encoding")
    finally:
        postgres.drop_database("encoded_copy")


def test_changed_rows_are_found_by_their_bytes(encoded: str) -> None:
    """Goal: incremental backups. Method: rows changed and deleted among keys that are no UTF-8, against a full one."""
    config, chunks = PostgresqlConfig(dsn=encoded), MemoryChunks()
    nodes: dict[str, Any] = {}
    for damage in (
        b"",
        b"update words set v = '\xe9!' where word ~ '77'; delete from words where word ~ '^.99'; delete from plain where n = 3",
    ):
        raw(encoded, damage)
        with PostgresqlConnector(config).open(NullProgress()) as reader:
            for part in reader.tables():
                nodes[part.name] = backup_table(
                    chunks, part, parent=nodes.get(part.name), reader=chunks, full=False, progress=NullProgress()
                )
    found = {view.name: view for view in (TableView(chunks, node) for node in nodes.values())}
    for table in take(config).tables:
        assert [line for batch in found[table.name].rows() for line in batch] == table.rows_only
        assert found[table.name].sha256 == table.sha256


def test_a_tenant_among_bytes(encoded: str) -> None:
    """Goal: rows of one tenant whose name is UTF-8, others' rows in any bytes. Method: restore, prove the others."""
    config = PostgresqlConfig(dsn=encoded, layout="rows", tenant_column="tenant", tenant_value="t", definitions=False)
    view, before = take(config), contents(encoded)
    assert {table.name: table.row_count for table in view.tables} == {"public.words": 1}
    raw(encoded, b"delete from words where tenant = 't'")
    put_back(config, view, prove=True)
    assert contents(encoded) == before


def test_export_of_bytes(postgres: PostgresServer, encoded: str, tmp_path: Path) -> None:
    """Goal: psql reads the export into a database of the same encoding. Method: do it, compare bytes."""
    PostgresqlConnector(PostgresqlConfig(dsn=encoded)).export(
        take(PostgresqlConfig(dsn=encoded)), str(tmp_path), NullProgress()
    )
    encoding = raw(encoded, b"show server_encoding")[0].decode()
    postgres.execute(f"create database encoded_export template template0 encoding '{encoding}' locale 'C'")
    try:
        script = gzip.decompress((tmp_path / "db.sql.gz").read_bytes())
        done = subprocess.run(
            ["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", postgres.dsn("encoded_export")],
            input=script,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        assert contents(postgres.dsn("encoded_export")) == contents(encoded)
    finally:
        postgres.drop_database("encoded_export")


def test_bytes_that_a_target_refuses(postgres: PostgresServer, postgres_database: str, encoded: str) -> None:
    """Goal: exact bytes or a typed error. Method: a database without encoding into one of UTF-8."""
    view = take(PostgresqlConfig(dsn=encoded))
    if view.facts["encoding"] == "LATIN1":
        put_back(PostgresqlConfig(dsn=encoded), view, target={"dsn": postgres_database})
        assert raw(postgres_database, b"select textsend(w) from keyless order by 1")[0] == "é".encode()
        return
    with pytest.raises(LastroError, match="invalid byte sequence"):
        put_back(PostgresqlConfig(dsn=encoded), view, target={"dsn": postgres_database})


def test_names_that_are_no_text_are_refused(postgres: PostgresServer) -> None:
    """Goal: a typed error where a manifest cannot hold a name. Method: a table, then a column of Latin-1 names."""
    postgres.execute("create database named template template0 encoding 'SQL_ASCII' locale 'C'")
    dsn = postgres.dsn("named")
    try:
        for sql in (b'create table "caf\xe9"(id int)', b'drop table "caf\xe9"; create table c("caf\xe9" int)'):
            raw(dsn, sql)
            with pytest.raises(SourceUnsupported, match=r"caf\\xe9"):
                PostgresqlConnector(PostgresqlConfig(dsn=dsn)).test()
    finally:
        postgres.drop_database("named")


def test_bytes_without_meaning(postgres: PostgresServer) -> None:
    """Goal: a typed error, no decoding error. Method: a byte that WIN1252 does not define."""
    postgres.execute("create database windows template template0 encoding 'WIN1252' locale 'C'")
    dsn = postgres.dsn("windows")
    try:
        with psycopg.connect(dsn, client_encoding="WIN1252") as connection:
            connection.execute(b"create table t(id int primary key, v text); insert into t values (1, 'a\x81')")
        with pytest.raises(SourceError, match="0x81") as refused:
            take(PostgresqlConfig(dsn=dsn))
        assert "encoding" in refused.value.hint
    finally:
        postgres.drop_database("windows")
