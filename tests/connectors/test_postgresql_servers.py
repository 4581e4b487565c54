"""Servers that change under a source: a standby, its promotion, a build in a new database that was killed."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors._postgresql.config import PostgresqlConfig
from engine.errors import TargetOccupied
from tests.connectors.postgres_views import execute, put_back, query, take
from tests.services.postgres import FOLDER_PREFIX, PostgresServer

SCHEMA = """
create table thing(id int primary key, v text);
insert into thing select g, 'v' || g from generate_series(1, 500) g;
create table part(id int primary key, thing int references thing);
insert into part select g, g from generate_series(1, 500) g;
create index on part(thing);
create unlogged table fleeting(id int primary key); insert into fleeting values (1);
"""


@pytest.fixture
def standby() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """A primary with the schema, and a standby that follows it."""
    primary = PostgresServer.start()
    copy = PostgresServer(
        programs=primary.programs, folder=Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-"))
    )
    assert primary.folder is not None and copy.folder is not None
    try:
        owner = (primary.folder / "data").stat()
        os.chown(copy.folder, owner.st_uid, owner.st_gid)
        copy._settings = dict(primary._settings)
        execute(primary.dsn(), SCHEMA)
        primary._run("pg_basebackup", "-D", str(copy.folder / "data"), "-R", "-c", "fast", "-d", primary.dsn())
        copy.launch()
        yield primary, copy
    finally:
        copy.discard()
        primary.discard()


def test_standby_and_failover(standby: tuple[PostgresServer, PostgresServer]) -> None:
    """Goal: a standby can be read, and after its promotion versions count no more. Method: compare domains."""
    primary, copy = standby
    config = [PostgresqlConfig(dsn=server.dsn()) for server in (primary, copy)]
    first, from_standby = take(config[0]), take(config[1])
    kept = {name: digest for name, digest in first.digests().items() if name != "public.fleeting"}
    assert from_standby.digests() == kept
    assert "standby" in from_standby.facts["skipped"]["public.fleeting"]
    execute(copy.dsn(), "select pg_promote()")
    execute(copy.dsn(), "update thing set v = 'after' where id = 7")
    promoted = take(config[1])
    domains = [{table.version_domain for table in view.tables} for view in (first, from_standby, promoted)]
    assert domains[1] != domains[2] and domains[0] != domains[2]
    assert promoted.position["timeline"] == first.position["timeline"] + 1
    assert promoted.position["system_identifier"] == first.position["system_identifier"]


KILLED = """
import sys
sys.path[:0] = ["platform", "."]
from connectors._postgresql.config import PostgresqlConfig
from tests.connectors.postgres_views import put_back, take
config = PostgresqlConfig(dsn=sys.argv[1])
put_back(config, take(config), target={"dsn": sys.argv[2]})
"""


@pytest.mark.parametrize("label", ["pg.build.defined", "pg.build.loaded", "pg.build.applied", "pg.build.committed"])
def test_killed_build_begins_again(postgres: PostgresServer, postgres_database: str, label: str) -> None:
    """Goal: what a killed build left is cleared by the next, a finished one is not. Method: SIGKILL at each point."""
    execute(postgres_database, SCHEMA)
    config, there = PostgresqlConfig(dsn=postgres_database), postgres.dsn("killed_build")
    root = Path(__file__).parents[2]
    try:
        done = subprocess.run(
            [sys.executable, "-c", KILLED, postgres_database, there],
            cwd=root, env={**os.environ, "LASTRO_KILL_AT": label}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr
        view = take(config)
        if label == "pg.build.committed":
            with pytest.raises(TargetOccupied):
                put_back(config, view, target={"dsn": there})
        else:
            assert query(there, "select count(*) from pg_namespace where nspname = 'lastro_unfinished_restore'") == [
                (1,)
            ]
            put_back(config, view, target={"dsn": there})
        assert take(PostgresqlConfig(dsn=there)).digests() == view.digests()
        assert query(there, "select count(*) from pg_namespace where nspname ~ 'lastro'") == [(0,)]
    finally:
        postgres.drop_database("killed_build")
