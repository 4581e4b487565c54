"""The throw-away PostgreSQL is real, private and gone afterwards."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from tests.services.postgres import PostgresServer


def test_each_installed_major_serves(postgres_each: PostgresServer) -> None:
    """Goal: every installed version can be tested on; make a database and use it."""
    name = postgres_each.create_database()
    rows = postgres_each.execute(
        "CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2); SELECT sum(a) FROM t", database=name
    )
    postgres_each.drop_database(name)
    assert rows == [(3,)]
    assert postgres_each.major >= 14


def test_listens_on_loopback_only(postgres: PostgresServer) -> None:
    """Goal: nothing outside the machine reaches the server; ask it for its addresses."""
    if not postgres.managed:
        pytest.skip("an external server listens where its owner wants")
    assert postgres.execute("SHOW listen_addresses") == [("127.0.0.1",)]


def test_password_is_asked_for(postgres: PostgresServer) -> None:
    """Goal: refusals can be tested; a role with a password gets in with it and not without."""
    if not postgres.managed:
        pytest.skip("an external server may trust everyone")
    role = postgres.create_role(password="open-sesame")
    psycopg.connect(postgres.dsn(user=role, password="open-sesame")).close()
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(postgres.dsn(user=role, password="wrong"))
    postgres.drop_role(role)


def test_survives_a_crash_with_its_data() -> None:
    """Goal: restarts in mid-work can be tested; kill every process of a durable server and start it again."""
    server = PostgresServer.start(durable=True)
    try:
        before = server.dsn()
        server.execute("CREATE TABLE kept AS SELECT 42 AS a")
        server.restart(how=signal.SIGKILL)
        assert server.execute("SELECT a FROM kept") == [(42,)]
        assert server.dsn() == before
    finally:
        server.discard()
    assert server.folder is not None
    assert not server.folder.exists()


def test_dies_with_a_killed_test_run() -> None:
    """Goal: nothing keeps running; start a server from a process, SIGKILL that process, watch the server go."""
    program = (
        "from tests.services.postgres import PostgresServer as P; import time; s = P.start();"
        "print(s._process.pid, s.folder, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."}
    )
    assert owner.stdout is not None
    pid, folder = owner.stdout.readline().split()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    until = time.monotonic() + 30
    while Path("/proc", pid).exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path("/proc", pid).exists()
    assert not Path(folder, "data/postmaster.pid").exists()
    shutil.rmtree(folder)
