"""Encrypted, large tables come through psql: the driver's lines, errors typed, nothing left running."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from connectors._postgresql import part as part_module
from connectors._postgresql import reader as reader_module
from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.part import PostgresTablePart
from connectors._postgresql.piped import Psql
from connectors._postgresql.tools import find_psql
from connectors.postgresql import PostgresqlConnector
from engine.errors import SourceError
from engine.progress import NullProgress
from tests.connectors.postgres_views import execute, query

SCHEMA = """
create table odd(id int primary key, "a:b" text, c int[], d jsonb, e bytea, f timestamptz);
insert into odd select g, repeat('x' || g, g % 400) || E'\\n\\t\\\\ :é', array[g, null], jsonb_build_object('k', g),
  sha256(g::text::bytea), '2026-01-01'::timestamptz + g * interval '1 h' from generate_series(1, 20000) g;
"""


@pytest.fixture
def odd(postgres_database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Odd rows on a server that counts as one that encrypts."""
    monkeypatch.setattr(reader_module, "readable", lambda connection: False)
    execute(postgres_database, SCHEMA)
    return postgres_database


def program(dsn: str) -> str:
    with closing(psycopg.connect(dsn)) as connection:
        found = find_psql(connection.info.server_version // 10000)
    if found is None:
        pytest.skip("psql is not installed")
    return found


def lines_of(dsn: str, *, kind: str = "rows", **more: object) -> list[bytes]:
    config = PostgresqlConfig(dsn=dsn, **more)  # type: ignore[arg-type]
    with PostgresqlConnector(config).open(NullProgress()) as reader:
        (part,) = reader.tables()
        assert isinstance(part, PostgresTablePart)
        return [line for batch in getattr(part, kind)() for line in batch]


def backends(dsn: str) -> int:
    return int(
        query(dsn, "select count(*) from pg_stat_activity where query like 'COPY (%' and state = 'active'")[0][0]
    )


@pytest.mark.parametrize("kind", ["rows", "versions"])
def test_gives_the_lines_that_the_driver_gives(odd: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: one text of rows whichever program reads. Method: read odd values and their versions both ways."""
    program(odd)
    calls: list[str] = []
    through_psql = Psql.lines

    def counted(self: Psql, before: list[str], text: str) -> Iterator[list[bytes]]:
        calls.append(text)
        return through_psql(self, before, text)

    monkeypatch.setattr(Psql, "lines", counted)
    monkeypatch.setattr(part_module, "PIPED_BYTES_MIN", 1)
    piped = lines_of(odd, kind=kind)
    assert len(calls) == 1
    monkeypatch.setattr(part_module, "PIPED_BYTES_MIN", 1 << 40)
    assert piped == lines_of(odd, kind=kind)
    assert len(piped) == 20_000 and len(calls) == 1


def test_reads_without_psql(odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: psql is no need. Method: a folder of tools that holds pg_dump alone."""
    dump = Path(program(odd)).parent / "pg_dump"
    (tmp_path / "pg_dump").symlink_to(dump)
    assert shutil.which("psql", path=str(tmp_path)) is None
    monkeypatch.setattr(part_module, "PIPED_BYTES_MIN", 1)
    assert len(lines_of(odd, tools=str(tmp_path))) == 20_000


def test_a_password_is_no_argument(odd: str) -> None:
    """Goal: no secret in the list of processes. Method: look at every command line while psql runs."""
    parts = psycopg.conninfo.conninfo_to_dict(odd)
    dsn = psycopg.conninfo.make_conninfo("", **{**parts, "password": "geheim"})
    psql = Psql(program(odd), dsn, 10)
    with closing(psql.blocks([], "SELECT pg_sleep(0), 1")) as blocks:
        assert next(blocks)
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                assert b"geheim" not in command.read_bytes()
            except OSError:
                continue


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("SELECT 1 / (g - 15000) FROM generate_series(1, 20000) g", psycopg.errors.DivisionByZero),
        ("SELECT * FROM nowhere", psycopg.errors.UndefinedTable),
    ],
)
def test_an_error_is_the_drivers(odd: str, text: str, kind: type[psycopg.Error]) -> None:
    """Goal: typed errors. Method: fail at once, and after rows were given."""
    with pytest.raises(kind):
        list(Psql(program(odd), odd, 10).lines([], text))


def test_no_server_is_an_error_of_the_connection(odd: str) -> None:
    """Goal: typed errors. Method: a port where nobody listens."""
    with pytest.raises(psycopg.OperationalError, match="connection"):
        list(Psql(program(odd), "host=127.0.0.1 port=1 dbname=none", 10).lines([], "SELECT 1"))


def test_the_statement_timeout_holds(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: the settings of a source hold in psql too. Method: a query that sleeps."""
    program(odd)
    monkeypatch.setattr(part_module, "PIPED_BYTES_MIN", 1)
    config = PostgresqlConfig(dsn=odd, statement_timeout_seconds=1)
    with PostgresqlConnector(config).open(NullProgress()) as reader:
        (part,) = reader.tables()
        assert isinstance(part, PostgresTablePart)
        with pytest.raises(SourceError, match="statement timeout"):
            list(part._pool.lines("SELECT pg_sleep(30)", large=True))


def test_a_reader_that_stops_ends_the_query(odd: str) -> None:
    """Goal: nothing is left running. Method: stop after the first block, look at the server."""
    psql = Psql(program(odd), odd, 10)
    with closing(psql.blocks([], "SELECT repeat('x', 1000) FROM generate_series(1, 1000000)")) as blocks:
        next(blocks)
        assert backends(odd) == 1
    for _ in range(200):
        if not backends(odd):
            return
        query(odd, "select pg_sleep(0.05)")
    pytest.fail("the query goes on without a reader")
