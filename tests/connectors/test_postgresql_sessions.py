"""What a server, database or role may be set to, and must not do to a backup or a restore: timeouts, lazy commits."""

import signal
import time
from collections.abc import Iterator

import pytest

from connectors._postgresql import part as part_module
from connectors._postgresql.config import PostgresqlConfig
from connectors.postgresql import PostgresqlConnector
from engine.progress import NullProgress
from tests.connectors.postgres_views import execute, put_back, query, table_text, take
from tests.services.postgres import PostgresServer

SCHEMA = """
create table thing(id int primary key, v text);
insert into thing select g, 'v' || g from generate_series(1, 3000) g;
create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(0.3); return null; end $$;
"""
TIMEOUTS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout")
SHORT = "200ms"


def impatient(server: PostgresServer, dsn: str) -> str:
    """A superuser whose sessions end after moments unless they say otherwise."""
    role = server.create_role(options="LOGIN SUPERUSER")
    for name in (*TIMEOUTS, *(["transaction_timeout"] if server.major >= 17 else [])):
        execute(dsn, f"alter role {role} set {name} = '{SHORT}'")
    return role


def test_default_timeouts_do_not_end_our_work(postgres_each: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a role's defaults stop neither reading nor restoring. Method: a role that times out at once, slow work."""
    monkeypatch.setattr(part_module, "PIPED_BYTES_MIN", 1)
    name = postgres_each.create_database()
    dsn, there = postgres_each.dsn(name), "impatient_copy"
    role = impatient(postgres_each, dsn)
    try:
        execute(dsn, SCHEMA)
        config = PostgresqlConfig(dsn=postgres_each.dsn(name, user=role), statement_timeout_seconds=60)
        with PostgresqlConnector(config).open(NullProgress()) as reader:
            (part,) = reader.tables()
            batches = part.rows()
            next(batches)
            time.sleep(0.3)  # longer than any of the role's timeouts
            assert sum(map(len, part.versions())) == 3000
            assert [document.read() for document in reader.documents()]
            reader.finish()
            batches.close()  # type: ignore[attr-defined]
        view, before = take(config), table_text(dsn, "thing")
        execute(dsn, "update thing set v = 'x'; create constraint trigger t after update on thing"
                " deferrable initially deferred for each row when (new.id = 1) execute function slow();"
                " alter table thing enable always trigger t")  # fmt: skip
        put_back(config, view)
        assert table_text(dsn, "thing") == before
        put_back(config, view, target={"dsn": postgres_each.dsn(there, user=role)})
        assert table_text(postgres_each.dsn(there), "thing") == before
    finally:
        postgres_each.drop_database(there)
        postgres_each.drop_database(name)
        postgres_each.drop_role(role)


@pytest.fixture
def lazy() -> Iterator[PostgresServer]:
    """A server that answers a commit long before the disk has it."""
    server = PostgresServer.start(durable=True, settings={"synchronous_commit": "off", "wal_writer_delay": "10s"})
    yield server
    server.discard()


def test_a_restore_that_was_reported_survives_a_crash(lazy: PostgresServer) -> None:
    """Goal: done means on disk. Method: a server that commits lazily, killed the moment a restore returns."""
    execute(lazy.dsn(), SCHEMA)
    config = PostgresqlConfig(dsn=lazy.dsn())
    view, before = take(config), table_text(lazy.dsn(), "thing")
    execute(lazy.dsn(), "set synchronous_commit = on; delete from thing where id > 100")
    execute(lazy.dsn(), "update thing set v = 'never seen again'")
    lazy.restart(how=signal.SIGKILL)
    assert table_text(lazy.dsn(), "thing", "v ~ 'never'") == []  # the server is as lazy as this test needs
    put_back(config, view)
    lazy.restart(how=signal.SIGKILL)
    assert table_text(lazy.dsn(), "thing") == before
    for where in ({"dsn": lazy.dsn("anew")}, {"schema": "beside"}):
        settings = config if "dsn" in where else PostgresqlConfig(
            dsn=lazy.dsn(), layout="rows", tenant_column="id", tenant_value="7", definitions=False
        )  # fmt: skip
        chosen = take(settings)
        put_back(settings, chosen, target=where)
        lazy.restart(how=signal.SIGKILL)
        if "dsn" in where:
            assert table_text(lazy.dsn("anew"), "thing") == before
            assert query(lazy.dsn("anew"), "select count(*) from pg_namespace where nspname ~ 'lastro'") == [(0,)]
        else:
            assert query(lazy.dsn(), "select v from beside.thing") == [("v7",)]
