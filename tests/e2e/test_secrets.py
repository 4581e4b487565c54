"""A canary in a password: whatever the program says, keeps or stores, the canary is in none of it."""

import sqlite3
from pathlib import Path

import pytest

from tests.e2e.program import Program
from tests.services.postgres import PostgresServer

CANARY = "kanarie-5f0c9e"


def _dsn(server: PostgresServer, database_dsn: str) -> str:
    """The same database with a password in the DSN; the server trusts whoever comes over loopback."""
    before, _, after = database_dsn.partition("@")
    user = before.removeprefix("postgresql://").partition(":")[0] or "postgres"
    return f"postgresql://{user}:{CANARY}@{after}"


def _everything(program: Program) -> bytes:
    """All bytes on disk, all rows as text, all that was said."""
    parts = [f"{said.out}{said.err}".encode() for said in program.said]
    parts += [path.read_bytes() for path in program.data.rglob("*") if path.is_file()]
    with sqlite3.connect(program.data / "catalogue.sqlite3") as catalogue:
        parts.append("\n".join(catalogue.iterdump()).encode())
    return b"\n".join(parts)


@pytest.mark.postgres
def test_a_password_is_nowhere_in_clear(
    program: Program, postgres: PostgresServer, postgres_database: str, tmp_path: Path
) -> None:
    """Goal: secrets are write-only; go the whole way with one, also wrong ways, then search everything."""
    import psycopg

    with psycopg.connect(postgres_database) as connection:
        connection.execute(
            "CREATE TABLE t (id int PRIMARY KEY, tenant int); INSERT INTO t SELECT g, 1 FROM generate_series(1, 9) g"
        )
    dsn = _dsn(postgres, postgres_database)
    rows = ("--set", "layout=rows", "--set", "tenant_column=tenant", "--set", "tenant_value=1")
    program("tenant", "add", "aurora", "--name", "A")
    program(
        "source",
        "add",
        "aurora",
        "db",
        "--kind",
        "postgresql",
        "--category",
        "database",
        "--set",
        "dsn=env:DSN",
        *rows,
        DSN=dsn,
    )
    program("source", "show", "aurora", "db")
    program("source", "test", "aurora", "db")
    backup = program.backup("aurora", "full", "--no-encrypt", "--no-compress")
    program("backup", "export", backup["id"], "--output", tmp_path / "out")
    program.restore(backup["id"], "aurora")
    program.raw(
        "restore", "run", backup["id"], "--target", f"dsn=postgresql://x:{CANARY}@127.0.0.1:1/x", "--here", "--json"
    )
    program.raw(
        "source",
        "add",
        "aurora",
        "bad",
        "--kind",
        "postgresql",
        "--category",
        "database",
        "--set",
        f"dsn=postgresql://x:{CANARY}@127.0.0.1:1/x",
    )
    program.raw(
        "source",
        "add",
        "aurora",
        "bad",
        "--kind",
        "postgresql",
        "--category",
        "database",
        "--set",
        f"dsn={CANARY}",
        "--json",
    )
    program("audit", "list")
    program("operation", "list")
    program.raw("doctor", "--json")
    assert CANARY.encode() not in _everything(program)
    assert all(CANARY.encode() not in path.read_bytes() for path in (tmp_path / "out").iterdir())
