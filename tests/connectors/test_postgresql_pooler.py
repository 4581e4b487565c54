"""Connection poolers in between: one that shares sessions is refused before anything is set, one that keeps them serves."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from connectors._postgresql.config import PostgresqlConfig
from connectors.postgresql import PostgresqlConnector
from engine.errors import UsageError
from tests.connectors.postgres_views import execute, put_back, query, table_text, take
from tests.services.pooler import Pooler
from tests.services.postgres import PostgresServer

SCHEMA = "create table thing(id int primary key, v text); insert into thing select g, 'v' || g from generate_series(1, 100) g"


@contextmanager
def pooled(server: PostgresServer, *, mode: str, size: int) -> Iterator[Pooler]:
    pooler = Pooler(server, mode=mode, size=size)
    try:
        yield pooler
    finally:
        pooler.discard()


@contextmanager
def busy(dsn: str, *, clients: int) -> Iterator[None]:
    """An application that keeps the pool's sessions in use."""
    ended = threading.Event()

    def work() -> None:
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
            while not ended.wait(0.002):
                connection.execute("select count(*) from thing")

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(("mode", "size"), [("transaction", 1), ("transaction", 5), ("statement", 2)])
def test_shared_sessions_are_refused(postgres: PostgresServer, postgres_database: str, mode: str, size: int) -> None:
    """Goal: an application's sessions stay as they are. Method: test, backup, restore; look at the pool's sessions."""
    execute(postgres_database, SCHEMA)
    view = take(PostgresqlConfig(dsn=postgres_database))
    with pooled(postgres, mode=mode, size=size) as pooler:
        dsn = pooler.dsn(str(psycopg.conninfo.conninfo_to_dict(postgres_database)["dbname"]))
        config = PostgresqlConfig(dsn=dsn)
        for attempt in (PostgresqlConnector(config).test, lambda: take(config), lambda: put_back(config, view)):
            with pytest.raises(UsageError, match="pooler") as refused:
                attempt()
            assert "session mode" in refused.value.hint
        clients = [psycopg.connect(dsn, autocommit=True) for _ in range(size)]
        try:
            for client in clients:
                assert client.execute("select count(*) from thing").fetchone() == (100,)
                assert client.execute("show datestyle").fetchone() == ("ISO, MDY",)
        finally:
            for client in clients:
                client.close()


def test_a_busy_pool_is_seen_through(postgres: PostgresServer, postgres_database: str) -> None:
    """Goal: chance does not hide a shared session. Method: clients that take the sessions in turns, twenty tries."""
    execute(postgres_database, SCHEMA)
    with pooled(postgres, mode="transaction", size=6) as pooler:
        dsn = pooler.dsn(str(psycopg.conninfo.conninfo_to_dict(postgres_database)["dbname"]))
        with busy(dsn, clients=4):
            for _ in range(20):
                with pytest.raises(UsageError, match="pooler"):
                    PostgresqlConnector(PostgresqlConfig(dsn=dsn)).test()
            with psycopg.connect(dsn) as client:
                assert client.execute("select count(*) from thing").fetchone() == (100,)


def test_kept_sessions_serve(postgres: PostgresServer, postgres_database: str) -> None:
    """Goal: a pool in session mode is as good as the server. Method: test, backup, restore in place and anew through it."""
    execute(postgres_database, SCHEMA)
    before = table_text(postgres_database, "thing")
    with pooled(postgres, mode="session", size=20) as pooler:
        config = PostgresqlConfig(dsn=pooler.dsn(str(psycopg.conninfo.conninfo_to_dict(postgres_database)["dbname"])))
        assert PostgresqlConnector(config).test().summary
        view = take(config)
        execute(postgres_database, "delete from thing where id > 10")
        put_back(config, view, prove=True)
        assert table_text(postgres_database, "thing") == before
        postgres.create_database("pooled_copy")
        try:
            put_back(config, view, target={"dsn": pooler.dsn("pooled_copy")})
            assert query(postgres.dsn("pooled_copy"), "select count(*) from thing") == [(100,)]
        finally:
            pooler.discard()
            postgres.drop_database("pooled_copy")
