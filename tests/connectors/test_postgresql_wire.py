"""Rows read off the socket: the driver's lines whatever their lengths, errors typed, no row lost without a word."""

import random
import struct
from collections.abc import Generator
from contextlib import closing

import psycopg
import pytest

from connectors._postgresql import part as part_module
from connectors._postgresql import wire
from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import connect
from connectors._postgresql.part import PostgresTablePart, copy_lines
from connectors.postgresql import PostgresqlConnector
from engine.errors import SourceError
from engine.ports import KeyKind, KeySpec, RowBatch
from engine.progress import NullProgress
from engine.table_runs import lines_take_apart
from tests.connectors.postgres_views import execute, query

LENGTHS = """SELECT g, repeat('x', g % 3000), repeat(E'd\\n\\t\\\\', g % 7), CASE g % 5 WHEN 0 THEN NULL ELSE 'é' END
  FROM generate_series(1, 20000) g"""
WIDE = "SELECT g, repeat('x', 3000000 + g) FROM generate_series(1, 3) g"
EMPTY = "SELECT FROM generate_series(1, 300) g"
NOTHING = "SELECT 1 WHERE false"


def message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack(">I", len(content) + 4) + content


def answer(rows: list[bytes]) -> bytes:
    """What a server sends for COPY, with notices and parameters between rows."""
    out = [message(b"H", b"\0\0\1\0\0")]
    for number, row in enumerate(rows):
        out.append(message(b"d", row + b"\n"))
        if number % 97 == 5:
            out.append(message(b"N", b"SNOTICE\0MA row\nd of\nwords\0\0"))
        if number % 89 == 7:
            out.append(message(b"S", b"TimeZone\0UTC\0"))
    return b"".join([*out, message(b"c", b""), message(b"C", b"COPY 1\0"), message(b"Z", b"T")])


def lines_in(blocks: list[bytes]) -> list[bytes]:
    return [line for lines in wire._Answer(wire._LINES).rows(iter(blocks)) for line in lines[0]]


@pytest.mark.parametrize("text", [LENGTHS, WIDE, EMPTY, NOTHING])
def test_gives_the_lines_that_the_driver_gives(postgres_database: str, text: str) -> None:
    """Goal: one text of rows. Method: every length of row, empty ones, ones larger than a block, read both ways."""
    with closing(connect(postgres_database, side="source")) as connection:
        expected = [line for lines in copy_lines(connection, text) for line in lines]
        assert wire.readable(connection)
        for _ in range(2):
            assert [line for lines in wire.wire_lines(connection, text) for line in lines] == expected
            assert connection.execute("SELECT 42").fetchone() == (42,)


def test_is_indifferent_to_where_blocks_end() -> None:
    """Goal: no byte is taken for another. Method: lengths with newlines in them, foreign messages, every cut."""
    rng = random.Random(4)
    sizes = [*range(15), 250, 251, 2553, 2554, 2560, 2565, 2570, *(rng.randrange(3000) for _ in range(200))]
    rows = [bytes(rng.choices(b"dNScZ\t x", k=size)) for size in sizes]
    data = answer(rows)
    assert lines_in([data]) == rows
    for cut in range(0, len(answer(rows[:25])), 11):
        assert lines_in([data[:cut], data[cut:]]) == rows
    for width in (5, 64, 1000):
        assert lines_in([data[at : at + width] for at in range(0, len(data), width)]) == rows


def test_an_answer_without_its_end_is_an_error() -> None:
    """Goal: never fewer rows than the table has. Method: leave out what follows each message."""
    data = answer([b"a", b"bb", b"x" * 300])
    for end in range(len(data) - 6 - len(message(b"C", b"COPY 1\0")) - 5 + 1):
        with pytest.raises(psycopg.OperationalError):
            lines_in([data[:end]])
    with pytest.raises(psycopg.OperationalError, match="kind"):
        lines_in([message(b"H", b"\0\0\0") + message(b"T", b"\0\0")])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("SELECT 1 / (g - 15000) FROM generate_series(1, 20000) g", psycopg.errors.DivisionByZero),
        ("SELECT * FROM nowhere", psycopg.errors.UndefinedTable),
        ("SELECT pg_terminate_backend(pg_backend_pid())", psycopg.errors.AdminShutdown),
    ],
)
def test_an_error_is_the_drivers(postgres_database: str, text: str, kind: type[psycopg.Error]) -> None:
    """Goal: typed errors. Method: fail at once, after rows were given, and by losing the server."""
    with closing(connect(postgres_database, side="source")) as connection, pytest.raises(kind):
        list(wire.wire_lines(connection, text))


def test_a_reader_that_stops_ends_the_query(postgres_database: str) -> None:
    """Goal: nothing is left running, nothing half read is used again. Method: stop a part's reading after a block."""
    execute(postgres_database, "create table one(id int primary key, t text)")
    execute(postgres_database, "insert into one select g, repeat('x', 1000) from generate_series(1, 50000) g")
    with PostgresqlConnector(PostgresqlConfig(dsn=postgres_database)).open(NullProgress()) as reader:
        (part,) = reader.tables()
        rows = part.rows()
        assert isinstance(rows, Generator)
        with closing(rows):
            next(rows)
        assert sum(len(lines) for lines in part.rows()) == 50_000
    for _ in range(200):
        if not query(
            postgres_database, "select 1 from pg_stat_activity where query like 'COPY (%' and state = 'active'"
        ):
            return
        query(postgres_database, "select pg_sleep(0.05)")
    pytest.fail("the query goes on without a reader")


def test_the_statement_timeout_holds(postgres_database: str) -> None:
    """Goal: a source's settings hold here too. Method: a query that sleeps."""
    execute(postgres_database, "create table one(id int primary key)")
    config = PostgresqlConfig(dsn=postgres_database, statement_timeout_seconds=1)
    with PostgresqlConnector(config).open(NullProgress()) as reader:
        (part,) = reader.tables()
        assert isinstance(part, PostgresTablePart)
        with pytest.raises(SourceError, match="statement timeout"):
            list(part._pool.lines("SELECT pg_sleep(30)", large=True))


def test_a_backup_reads_tables_so(postgres_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: tables take this way in the backup's snapshot. Method: rows that are added after it was taken."""
    execute(postgres_database, "create table one as select g id from generate_series(1, 5000) g")
    execute(postgres_database, "alter table one add primary key (id)")
    monkeypatch.setattr(part_module, "copy_lines", None)
    with PostgresqlConnector(PostgresqlConfig(dsn=postgres_database)).open(NullProgress()) as reader:
        (part,) = reader.tables()
        execute(postgres_database, "insert into one values (0)")
        rows = [line.split(b"\t")[1] for lines in part.rows() for line in lines]
    assert rows == [b"%d" % number for number in range(1, 5001)]


@pytest.mark.parametrize("fields", [1, 2])
@pytest.mark.parametrize("alone", [False, True])
def test_rows_are_taken_apart_as_their_lines_are(fields: int, alone: bool) -> None:
    """Goal: one meaning of a line. Method: versions and keys of every length, rows of all, cut into blocks everywhere."""
    rng = random.Random(5)
    kinds: list[KeyKind] = ["text"] * fields
    lines = []
    for size in (*range(12), 252, 253, 2553, 2560, 2565, *(rng.randrange(3000) for _ in range(60))):
        version = rng.choice([b"", b"7", b"1234567890"])
        key = [bytes(rng.choices(b"dNScZx", k=rng.randrange(40))) for _ in range(fields)]
        rest = [] if alone else [bytes(rng.choices(b"dNScZ\t x", k=size))]
        lines.append(b"\t".join([version, *key, *rest]))
    expected = lines_take_apart(KeySpec(tuple(kinds)), True, lines)
    data = answer(lines)
    cuts = [[data], *([data[:cut], data[cut:]] for cut in range(0, len(data) // 8, 7))]
    cuts += [[data[at : at + width] for at in range(0, len(data), width)] for width in (5, 64, 1000)]
    for blocks in cuts:
        columns: list[list[bytes]] = [[], [], []]
        for found in wire._Answer(wire._rows_split(fields, alone)).rows(iter(blocks)):
            for column, more in zip(columns, found, strict=True):
                column += more
        rows, heads, keys = columns
        assert RowBatch(rows, keys, heads) == expected
