"""Every version from 14 to 18: what the other tests prove on one server, in small on each; clients older than the server."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.tools import find_pg_dump
from connectors.postgresql import PostgresqlConnector
from engine.errors import SourceUnsupported, TargetError
from engine.progress import NullProgress
from tests.connectors.postgres_views import execute, put_back, table_text, take
from tests.connectors.test_postgresql_histories import run
from tests.connectors.test_postgresql_rows import DAMAGE, HOTELS
from tests.services.postgres import PostgresServer, servers_for_session

HISTORIES = 1
OWN = {
    "guest": "hotel_id = 3",
    "booking": "hotel_id = 3",
    "booking_item": "booking_id in (select id from booking where hotel_id = 3)",
    "item_note": "item in (select i.id from booking_item i join booking b on b.id = booking_id where hotel_id = 3)",
    '"Weird ""Name; drop"': "hotel_id = 3",
}


def test_histories_on_every_version(postgres_each: PostgresServer, seed: int, rounds: Callable[[int], range]) -> None:
    """Goal: full and incremental backups are exact on each. Method: random histories against COPY, as elsewhere."""
    name = postgres_each.create_database()
    try:
        for number in rounds(HISTORIES):
            run(postgres_each.dsn(name), seed + number)
    finally:
        postgres_each.drop_database(name)


def test_rows_in_place_on_every_version(postgres_each: PostgresServer) -> None:
    """Goal: one tenant comes back, the others stay, on each. Method: damage both, restore one, compare all rows."""
    name = postgres_each.create_database()
    dsn = postgres_each.dsn(name)
    try:
        execute(dsn, HOTELS)
        config = PostgresqlConfig(dsn=dsn, layout="rows", tenant_column="hotel_id", tenant_value="3")
        view = take(config)
        own = {table: table_text(dsn, table, where) for table, where in OWN.items()}
        execute(dsn, DAMAGE)
        others = {table: table_text(dsn, table, f"({where}) is not true") for table, where in OWN.items()}
        put_back(config, view, prove=True)
        assert {table: table_text(dsn, table, where) for table, where in OWN.items()} == own
        assert {table: table_text(dsn, table, f"({where}) is not true") for table, where in OWN.items()} == others
        assert take(config).digests() == view.digests()
    finally:
        postgres_each.drop_database(name)


def test_an_older_pg_dump_is_refused(postgres_each: PostgresServer, tmp_path: Path) -> None:
    """Goal: pg_dump must be as new as the server. Method: a folder of tools with the one of PostgreSQL 15 alone."""
    known = find_pg_dump(15)
    assert known is not None
    if find_pg_dump(15) == find_pg_dump(18):
        pytest.skip("there is no pg_dump older than 18 here")
    shutil.copy(Path(known).resolve(), tmp_path / "pg_dump")  # Debian's wrapper would choose by the server
    major = postgres_each.major
    name = postgres_each.create_database()
    try:
        execute(postgres_each.dsn(name), "create table t(tenant int primary key); insert into t values (1)")
        whole = PostgresqlConfig(dsn=postgres_each.dsn(name), tools=str(tmp_path))
        rows = PostgresqlConfig(
            dsn=postgres_each.dsn(name), layout="rows", tenant_column="tenant", tenant_value="1", tools=str(tmp_path)
        )
        if major <= 15:
            assert take(whole).digests()
            return
        with pytest.raises(SourceUnsupported, match=f"pg_dump {major} or newer .*15") as refused:
            take(whole)
        assert f"postgresql-client-{major}" in refused.value.hint
        probe = PostgresqlConnector(whole).test()
        assert any(f"postgresql-client-{major}" in warning for warning in probe.warnings)
        # The rows of shared tables do without definitions, and say so.
        progress = NullProgress()
        with PostgresqlConnector(rows).open(progress) as reader:
            assert [line for part in reader.tables() for batch in part.rows() for line in batch]
            assert list(reader.documents()) == []
        assert any("postgresql.no_definitions" in warning for warning in progress.warnings)
    finally:
        postgres_each.drop_database(name)


TEMPORAL = """
create extension btree_gist;
create table stay(id int, during daterange, tenant int, v text, primary key (id, during without overlaps));
create table visit(id int primary key, stay int, during daterange, foreign key (stay, period during) references stay (id, period during));
insert into stay values (1, '[2020-01-01,2020-02-01)', 1, 'a'), (1, '[2020-02-01,2020-03-01)', 1, 'b'), (2, '[2020-01-01,2021-01-01)', 2, 'c');
insert into visit values (1, 1, '[2020-01-20,2020-02-10)'), (2, 2, '[2020-03-01,2020-04-01)'), (3, null, '[2020-01-01,2020-01-02)');
"""


@pytest.mark.postgres
def test_keys_without_overlaps() -> None:
    """Goal: temporal keys and references of PostgreSQL 18. Method: in place, and each way to break a reference."""
    server = servers_for_session().get(18)
    name = server.create_database()
    dsn = server.dsn(name)
    try:
        execute(dsn, TEMPORAL)
        config = PostgresqlConfig(dsn=dsn, layout="rows", tenant_column="tenant", tenant_value="1", definitions=False)
        view, stays, visits = take(config), table_text(dsn, "stay"), table_text(dsn, "visit")
        assert {table.name: table.row_count for table in view.tables} == {"public.stay": 2, "public.visit": 1}
        execute(dsn, "delete from visit where id = 1; update stay set during = '[2020-01-01,2020-01-10)', v = 'x' where v = 'a';"
                     "update stay set v = 'y' where v = 'b'; insert into stay values (1, '[2020-01-10,2020-01-15)', 1, 'new')")  # fmt: skip
        put_back(config, view, prove=True)
        assert (table_text(dsn, "stay"), table_text(dsn, "visit")) == (stays, visits)
        stays_only = PostgresqlConfig(dsn=dsn, layout="database", include=("stay",))
        before = take(stays_only)
        # Another's visit hangs on a row that must go; then the visit is covered by half only.
        execute(
            dsn,
            "insert into stay values (1, '[2021-01-01,2022-01-01)', 1, 'new'); insert into visit values (9, 1, '[2021-02-01,2021-03-01)')",
        )
        with pytest.raises(TargetError, match=r"public\.visit would refer"):
            put_back(stays_only, before)
        rows_only = PostgresqlConfig(dsn=dsn, layout="database", include=("visit",))
        kept = take(rows_only)
        execute(dsn, "delete from visit; delete from stay where v = 'b'")
        with pytest.raises(TargetError, match=r"public\.stay that are not there"):
            put_back(rows_only, kept)
        execute(
            dsn,
            "insert into stay values (1, '[2020-02-01,2020-02-05)', 1, 'b'), (1, '[2020-02-05,2020-02-10)', 1, 'b')",
        )
        put_back(rows_only, kept)
        assert len(table_text(dsn, "visit")) == 4
    finally:
        server.drop_database(name)
