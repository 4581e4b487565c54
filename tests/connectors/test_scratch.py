"""Throw-away targets: made, asked and removed without a trace, on a real server."""

from pathlib import Path

import pytest

from connectors.postgresql import PostgresqlConnector
from connectors.sqlite import SqliteConfig, SqliteConnector
from engine.errors import SourceUnsupported, TargetError, UsageError
from engine.ports import RestoreRequest, ScratchSite
from engine.progress import NullProgress
from tests.connectors.postgres_views import execute, query, take
from tests.connectors.test_postgresql_neighbours import rows_of, schema_of

NAME = "lastro_drl_01_0"


@pytest.fixture
def site(tmp_path: Path) -> ScratchSite:
    return ScratchSite(str(tmp_path))


@pytest.mark.parametrize("layout", ["rows", "schema"])
def test_a_schema_beside_the_source(postgres_database: str, site: ScratchSite, layout: str) -> None:
    """Goal: a drill sees the restored rows only, and leaves none; restore, ask, drop, in two layouts."""
    execute(
        postgres_database,
        """create schema app; create table app.note(id int primary key, tenant int, v text);
        insert into app.note select g, 1 + g % 2, 'n' || g from generate_series(1, 100) g""",
    )
    config = rows_of(postgres_database) if layout == "rows" else schema_of(postgres_database, "app")
    connector, view = PostgresqlConnector(config), take(config)
    execute(postgres_database, "delete from app.note where id > 10")
    report = connector.scratch(NAME, site).restore(view, RestoreRequest(label="d", in_place=False), NullProgress())
    assert all(check.passed for check in report.checks)
    expected = "50" if layout == "rows" else "100"
    assert connector.scratch_ask(NAME, site, "select count(*) from note;", seconds=5) == expected
    assert connector.scratch_place(NAME, site)["schema"] == NAME
    connector.scratch_drop(NAME, site)
    connector.scratch_drop(NAME, site)
    assert query(postgres_database, f"select 1 from pg_namespace where nspname = '{NAME}'") == []
    assert query(postgres_database, "select count(*) from app.note") == [(10,)]


def test_a_database_of_its_own(postgres_database: str, site: ScratchSite) -> None:
    """Goal: production is spared where another server is named; also with a session left inside."""
    execute(
        postgres_database, "create table note(id int primary key, tenant int); insert into note values (1, 1), (2, 2)"
    )
    config = rows_of(postgres_database)
    config = type(config)(**{**config.__dict__, "definitions": True})
    there = ScratchSite(site.folder, postgres_database)
    connector, view = PostgresqlConnector(config), take(config)
    connector.scratch(NAME, there).restore(view, RestoreRequest(label="d", in_place=False), NullProgress())
    assert connector.scratch_ask(NAME, there, "select id from note", seconds=5) == "1"
    connector.scratch_drop(NAME, there)
    connector.scratch_drop(NAME, there)
    assert query(postgres_database, f"select 1 from pg_database where datname = '{NAME}'") == []


def test_a_question_is_tried_on_the_live_tables(postgres_database: str) -> None:
    """Goal: a tenant's own tables answer, shared ones are only planned; ask both, with names that are not there."""
    execute(
        postgres_database,
        """create schema app; create table app.note(id int primary key, tenant int, v text);
        insert into app.note select g, 1 + g % 2, 'n' || g from generate_series(1, 100) g;
        create function app.loud() returns int language plpgsql as $$ begin raise exception 'was asked'; end $$""",
    )
    own = PostgresqlConnector(schema_of(postgres_database, "app"))
    assert own.question_try("select count(*), true from note;", seconds=5) == "100\tt"
    shared = PostgresqlConnector(rows_of(postgres_database))
    assert shared.question_try("select count(*) from note", seconds=5) is None
    assert shared.question_try("select loud() from note", seconds=5) is None
    for connector in (own, shared):
        for question in (
            "select count(*) from nowhere",
            "select v + 1 from note",
            "delete from note",
            "select 1; select 2",
        ):
            with pytest.raises(UsageError, match="cannot be asked"):
                connector.question_try(question, seconds=5)
    with pytest.raises(TargetError, match="longer than 1 s"):
        own.question_try("select pg_sleep(60)", seconds=1)
    assert query(postgres_database, "select count(*) from app.note") == [(100,)]


@pytest.mark.parametrize(
    "question",
    [
        "delete from note",
        "select 1; select 2",
        "select 1) to program 'touch /tmp/lastro-was-here' --",
        "copy note to program 'touch /tmp/lastro-was-here'",
        "with gone as (delete from note returning 1) select * from gone",
        "select nextval('counter')",
        "select * from nowhere",
        "select repeat('x', 70000)",
        "",
        "select '\0'",
    ],
)
def test_questions_only_read(postgres_database: str, site: ScratchSite, question: str) -> None:
    """Goal: a check is no way to write, nor to the server's shell; ask for it in all ways known."""
    execute(postgres_database, "create table note(id int primary key, tenant int); create sequence counter")
    execute(postgres_database, "insert into note values (1, 1)")
    connector = PostgresqlConnector(rows_of(postgres_database))
    execute(postgres_database, f"create schema {NAME}")
    with pytest.raises(UsageError):
        connector.scratch_ask(NAME, site, question, seconds=5)
    assert query(postgres_database, "select count(*) from note") == [(1,)]
    assert query(postgres_database, "select is_called from counter") == [(False,)]
    assert not Path("/tmp/lastro-was-here").exists()


def test_a_question_has_a_time_limit(postgres_database: str, site: ScratchSite) -> None:
    """Goal: a bad question does not stop the drill for ever; sleep longer than it may."""
    execute(postgres_database, f"create schema {NAME}")
    with pytest.raises(TargetError, match="longer than 1 s"):
        PostgresqlConnector(rows_of(postgres_database)).scratch_ask(NAME, site, "select pg_sleep(60)", seconds=1)


def test_sqlite_questions_only_read(tmp_path: Path, site: ScratchSite) -> None:
    """Goal: neither ATTACH nor PRAGMA nor a write; ask for each."""
    connector = SqliteConnector(SqliteConfig(path=str(tmp_path / "live.db")))
    target = connector.scratch(NAME, site)
    import sqlite3

    with sqlite3.connect(target._config.path) as database:
        database.execute("CREATE TABLE note (id INTEGER PRIMARY KEY, v)")
        database.execute("INSERT INTO note VALUES (1, NULL), (2, 'x')")
    assert connector.scratch_ask(NAME, site, "SELECT * FROM note ORDER BY id", seconds=5) == "1\t\\N\n2\tx"
    for question in (
        f"ATTACH '{tmp_path}/other.db' AS other", "PRAGMA query_only = OFF", "DELETE FROM note", "SELECT 1; SELECT 2",
        "SELECT load_extension('x')", "VACUUM INTO '/tmp/lastro-was-here'", "SELECT hex(zeroblob(100000))",
    ):  # fmt: skip
        with pytest.raises(UsageError):
            connector.scratch_ask(NAME, site, question, seconds=5)
    assert connector.scratch_ask(NAME, site, "SELECT count(*) FROM note", seconds=5) == "2"
    assert not (tmp_path / "other.db").exists()
    connector.scratch_drop(NAME, site)
    assert not (tmp_path / NAME).exists()


def test_files_answer_no_sql(tmp_path: Path, site: ScratchSite) -> None:
    """Goal: a clear refusal; ask a folder."""
    from connectors.files import FilesConfig, FilesConnector

    with pytest.raises(SourceUnsupported):
        FilesConnector(FilesConfig(path=str(tmp_path))).scratch_ask(NAME, site, "SELECT 1", seconds=1)
