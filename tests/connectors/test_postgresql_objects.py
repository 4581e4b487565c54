"""Every kind of object that a database may hold, built anew: pg_dump says the same of both, and COPY of their rows."""

import dataclasses
import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors._postgresql.config import PostgresqlConfig
from connectors.postgresql import PostgresqlConnector
from engine.errors import SchemaMismatch, TargetOccupied
from engine.progress import NullProgress
from tests.connectors.postgres_objects import (
    CODE,
    DAMAGE,
    MOOD,
    ROLES,
    TABLES,
    TYPES,
    anew,
    contents,
    discard,
    dump,
    everything,
)
from tests.connectors.postgres_views import MemoryDocument, execute, psql, put_back, query, table_text, take
from tests.services.postgres import PostgresServer, account, servers_for_session


def test_every_kind_of_object_comes_back(postgres_each: PostgresServer) -> None:
    """Goal: definitions and rows of a database built anew, on every version. Method: pg_dump and texts of both."""
    with everything(postgres_each) as dsn:
        view, rows, definitions = take(PostgresqlConfig(dsn=dsn)), contents(dsn), dump(dsn, postgres_each.major)
        try:
            restored = anew(postgres_each, dsn, view, "objects_copy")
            assert restored.report.warnings == ()
            there = postgres_each.dsn("objects_copy")
            assert dump(there, postgres_each.major) == definitions
            assert contents(there) == rows
        finally:
            discard(postgres_each, "objects_copy")


def test_a_database_is_cleared_of_every_kind(postgres: PostgresServer) -> None:
    """Goal: a confirmed overwriting, and the rerun of a killed build, begin with nothing. Method: build twice, compare."""
    with everything(postgres) as dsn:
        view, rows, definitions = take(PostgresqlConfig(dsn=dsn)), contents(dsn), dump(dsn, postgres.major)
        there = postgres.dsn("objects_copy")
        try:
            anew(postgres, dsn, view, "objects_copy")
            execute(there, "create view later as select 1 as a; create extension citext schema pg_catalog")
            with pytest.raises(TargetOccupied):
                anew(postgres, dsn, view, "objects_copy")
            restored = anew(postgres, dsn, view, "objects_copy", overwrite=True)
            assert restored.report.warnings == ()
            assert dump(there, postgres.major) == definitions
            assert contents(there) == rows
            assert query(there, "select extname from pg_extension where extname = 'citext'") == []
            acl = "select nspowner::regrole::text, nspacl::text, obj_description(oid) from pg_namespace where nspname = 'public'"
            assert query(there, acl) == query(dsn, acl)
        finally:
            discard(postgres, "objects_copy")


def test_a_database_keeps_its_locale(postgres_each: PostgresServer) -> None:
    """Goal: texts sort as they did. Method: databases of every provider that the server has, built anew."""
    kinds = ["locale 'C'"]
    if postgres_each.major >= 15 and query(
        postgres_each.dsn(), "select count(*) > 9 from pg_collation where collprovider = 'i'"
    ) == [(True,)]:
        rules = " icu_rules '& V < w <<< W'" if postgres_each.major >= 16 else ""
        kinds.append(f"locale 'C' locale_provider icu icu_locale 'de-u-co-phonebk'{rules}")
    if postgres_each.major >= 17:
        kinds.append("locale 'C' locale_provider builtin builtin_locale 'C.UTF-8'")
    for kind in kinds:
        postgres_each.execute(f"create database sorted template template0 encoding 'UTF8' {kind}")
        try:
            dsn = postgres_each.dsn("sorted")
            execute(dsn, "create table t(v text primary key); insert into t values ('a'), ('B'), ('ä'), ('z')")
            put_back(
                PostgresqlConfig(dsn=dsn),
                take(PostgresqlConfig(dsn=dsn)),
                target={"dsn": postgres_each.dsn("sorted_copy")},
            )
            assert query(postgres_each.dsn("sorted_copy"), "select v from t order by v") == query(
                dsn, "select v from t order by v"
            )
            same = """select count(distinct to_jsonb(d) - array['oid', 'datname', 'dattablespace', 'datfrozenxid', 'datminmxid'])
              from pg_database d where datname ~ '^sorted'"""
            assert query(dsn, same) == [(1,)]
        finally:
            postgres_each.drop_database("sorted")
            postgres_each.drop_database("sorted_copy")


def test_a_locale_that_the_server_lacks(postgres: PostgresServer, postgres_database: str) -> None:
    """Goal: a typed error with advice, and nothing made. Method: a backup of a locale that no server has."""
    view = take(PostgresqlConfig(dsn=postgres_database))
    roles = json.loads(view.documents["roles.json"].read())
    roles["database"]["collate"] = "tlh_QO.UTF-8"
    view = dataclasses.replace(
        view, documents={**view.documents, "roles.json": MemoryDocument("roles.json", json.dumps(roles).encode())}
    )
    with pytest.raises(SchemaMismatch, match="tlh_QO") as refused:
        put_back(PostgresqlConfig(dsn=postgres_database), view, target={"dsn": postgres.dsn("klingon")})
    assert "create it" in refused.value.hint
    assert query(postgres_database, "select from pg_database where datname = 'klingon'") == []


def test_every_kind_of_object_in_place(postgres_each: PostgresServer) -> None:
    """Goal: rules, triggers, event triggers, policies, silent partners do nothing. Method: damage all, restore, compare."""
    with everything(postgres_each) as dsn:
        execute(dsn, "drop publication pub_all")  # Nobody may delete from a published table that has no key.
        view, rows, definitions = take(PostgresqlConfig(dsn=dsn)), contents(dsn), dump(dsn, postgres_each.major)
        execute(dsn, DAMAGE)
        assert contents(dsn) != rows
        restored = put_back(PostgresqlConfig(dsn=dsn), view, prove=True)
        after = contents(dsn)
        for sequence in ("unused", "awkward_id_seq"):  # never backwards
            after.pop(sequence), rows.pop(sequence)
        assert after == rows
        assert dump(dsn, postgres_each.major) == definitions
        assert take(PostgresqlConfig(dsn=dsn)).digests() == view.digests()
        assert not restored.report.warnings


def test_every_kind_of_object_is_exported(postgres: PostgresServer, tmp_path: Path) -> None:
    """Goal: psql reads all of it. Method: export, psql into an empty database, compare what pg_dump says of both."""
    with everything(postgres) as dsn:
        view = take(PostgresqlConfig(dsn=dsn))
        PostgresqlConnector(PostgresqlConfig(dsn=dsn)).export(view, str(tmp_path), NullProgress())
        postgres.create_database("objects_copy")
        there = postgres.dsn("objects_copy")
        try:
            psql(there, gzip.decompress((tmp_path / "db.sql.gz").read_bytes()).decode())
            assert dump(there, postgres.major) == dump(dsn, postgres.major)
            rows, found = contents(dsn), contents(there)
            # Owners and grants of large objects are no part of the script.
            rows.pop("large"), found.pop("large")
            assert found == rows
        finally:
            discard(postgres, "objects_copy")


@pytest.fixture
def elsewhere(postgres: PostgresServer) -> Iterator[str]:
    """A tablespace."""
    folder = Path(tempfile.mkdtemp(prefix="lastro-space-"))
    if account():
        os.chown(folder, account()["user"], account()["group"])
    postgres.execute(f"create tablespace elsewhere location '{folder}'")
    yield "elsewhere"
    postgres.execute("drop tablespace elsewhere")
    shutil.rmtree(folder)


def test_tablespaces_are_left_behind(postgres: PostgresServer, postgres_database: str, elsewhere: str) -> None:
    """Goal: another server has other disks; it is said. Method: a table and an index in a tablespace, built anew."""
    execute(postgres_database, f"create table t(id int primary key using index tablespace {elsewhere}) tablespace {elsewhere};"
            f"create index on t (id desc) tablespace {elsewhere}; insert into t values (1)")  # fmt: skip
    view = take(PostgresqlConfig(dsn=postgres_database))
    try:
        restored = anew(postgres, postgres_database, view, "spaceless")
        assert query(postgres.dsn("spaceless"), "select id from t") == [(1,)]
        assert any("public.t lay in tablespace elsewhere" in warning for warning in restored.report.warnings)
    finally:
        postgres.drop_database("spaceless")
        execute(postgres_database, "drop table t")


def test_rows_that_extensions_hold(postgres: PostgresServer, postgres_database: str) -> None:
    """Goal: rows in an extension's own tables are not lost in silence. Method: one that counts as the user's."""
    execute(
        postgres_database,
        """create schema ext; create extension hstore schema ext; create table ext.settings(k text, own bool);
        insert into ext.settings values ('shipped', false); alter extension hstore add table ext.settings;
        create table mine(id int primary key)""",
    )
    execute(postgres_database, "update pg_extension set extconfig = array['ext.settings'::regclass],"
            " extcondition = array['where own'] where extname = 'hstore'")  # fmt: skip
    assert not [
        w for w in PostgresqlConnector(PostgresqlConfig(dsn=postgres_database)).test().warnings if "hstore" in w
    ]
    execute(postgres_database, "insert into ext.settings values ('ours', true)")
    probe = PostgresqlConnector(PostgresqlConfig(dsn=postgres_database)).test()
    assert any("ext.settings" in warning and "extension hstore" in warning for warning in probe.warnings)
    assert "ext.settings" in take(PostgresqlConfig(dsn=postgres_database)).facts["skipped"]


def test_every_kind_of_object_in_a_schema(postgres: PostgresServer) -> None:
    """Goal: a tenant's schema beside itself, elsewhere and in place. Method: the same objects, compare rows and dumps."""
    name, there = postgres.create_database(), postgres.create_database()
    dsn, far = postgres.dsn(name), "drop foreign table far"
    tables = [
        f"only acme.{table[5:]}" if table[:5] == "only " else f"acme.{table}" for table in TABLES if table != "far"
    ]
    try:
        execute(dsn, "create schema acme; set search_path = acme; " + MOOD)
        execute(dsn, "set search_path = acme;" + TYPES)
        execute(dsn, "set search_path = acme;" + CODE + far)
        config = PostgresqlConfig(dsn=dsn, layout="schema", schema="acme")
        view, rows = take(config), {table: table_text(dsn, table) for table in tables}
        assert put_back(config, view, target={"schema": "beside"}).report.warnings == ()
        assert {table: table_text(dsn, table.replace("acme.", "beside.")) for table in tables} == rows
        assert put_back(config, view, target={"dsn": postgres.dsn(there)}).report.warnings == ()
        assert {table: table_text(postgres.dsn(there), table) for table in tables} == rows
        own = [dump(each, postgres.major, "--schema=acme") for each in (dsn, postgres.dsn(there))]
        assert own[0] == own[1]
        execute(
            dsn, "set search_path = acme;" + DAMAGE.replace("select lo_unlink(78); select lo_put(77, 0, 'more');", "")
        )
        put_back(config, view, prove=True)
        assert {table: table_text(dsn, table) for table in tables} == rows
    finally:
        postgres.drop_database(name)
        postgres.drop_database(there)


def test_a_role_without_power(postgres: PostgresServer, postgres_database: str) -> None:
    """Goal: the owner of a database builds what it may, and is told what it may not. Method: an extension, made beforehand."""
    execute(postgres_database, """create schema extra; create extension file_fdw schema extra; create table extra.t(id int primary key);
      insert into extra.t values (7); create extension hstore; create table h(id int primary key, h hstore); insert into h values (1, 'a=>1')""")  # fmt: skip
    view = take(PostgresqlConfig(dsn=postgres_database))
    role = postgres.create_role(options="LOGIN CREATEDB")
    there = postgres.dsn("of_the_weak", user=role)
    try:
        with pytest.raises(SchemaMismatch, match="permission denied to create extension") as refused:
            put_back(PostgresqlConfig(dsn=postgres_database), view, target={"dsn": there})
        assert "superuser" in refused.value.hint
        postgres.drop_database("of_the_weak")
        postgres.create_database("of_the_weak", owner=role)
        prepared = postgres.dsn("of_the_weak")
        execute(prepared, f"create schema extra authorization {role}; create extension file_fdw schema extra")
        restored = put_back(PostgresqlConfig(dsn=postgres_database), view, target={"dsn": there})
        assert query(there, "select t.id, h.h -> 'a' from extra.t, h") == [(7, "1")]
        assert all("owner" in warning or "EXTENSION" in warning for warning in restored.report.warnings)
    finally:
        postgres.drop_database("of_the_weak")
        postgres.drop_role(role)


@pytest.mark.postgres
def test_from_the_oldest_server_to_the_newest() -> None:
    """Goal: a backup outlives its server's version. Method: everything of 14 built anew on 18; back, it is said."""
    oldest, newest = servers_for_session().get(14), servers_for_session().get(18)
    try:
        with everything(oldest) as dsn:
            rows = contents(dsn)
            restored = anew(newest, dsn, take(PostgresqlConfig(dsn=dsn)), "objects_copy")
            assert restored.report.warnings == ()
            assert contents(newest.dsn("objects_copy")) == rows
        execute(newest.dsn(), "create table t(id int primary key)")
        view = take(PostgresqlConfig(dsn=newest.dsn()))
        restored = anew(oldest, newest.dsn(), view, "objects_back")
        assert any("PostgreSQL 18, the target is 14" in warning for warning in restored.report.warnings)
    finally:
        execute(newest.dsn(), "drop table t")
        discard(newest, "objects_copy")
        discard(oldest, "objects_back")
        for role in ROLES:
            newest.drop_role(role)
