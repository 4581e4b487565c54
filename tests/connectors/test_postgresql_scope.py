"""Whose row is it: several paths, null references, references to others, circles, overrides."""

import random
from collections.abc import Iterable, Iterator

import psycopg
import pytest

from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.quoting import literal
from connectors.postgresql import PostgresqlConnector
from engine.errors import SchemaMismatch, TargetError, TargetOccupied, UsageError
from tests.connectors.postgres_views import execute, put_back, query, table_text, take
from tests.services.postgres import PostgresServer

SHOP = """
create table shop(id int primary key, name text);
create table users(id int primary key, shop_id int references shop, name text);
create table message(id int primary key, sender int references users, receiver int references users, body text);
create table thread(id int primary key, message_id int references message on delete set null, parent int references thread);
create table grade(code text primary key);
create table composite(a int, b int, shop_id int, primary key (a, b));
create table below(id int primary key, a int, b int, grade text references grade,
  foreign key (a, b) references composite on delete cascade);
create table left_side(id int primary key, user_id int references users, right_id int);
create table right_side(id int primary key, left_id int references left_side);
alter table left_side add foreign key (right_id) references right_side;
insert into shop values (1, 'one'), (2, 'two');
insert into users values (11, 1, 'a'), (12, 1, 'b'), (21, 2, 'c'), (90, null, 'platform');
insert into message values (1, 11, 12, 'within'), (2, 11, 21, 'across'), (3, 90, 11, 'from nobody'), (4, 21, 21, 'theirs'),
  (5, null, null, 'of nobody');
insert into thread values (1, 1, null), (2, 2, 1), (3, 4, 1), (4, null, 1);
insert into grade values ('g');
insert into composite values (1, 1, 1), (1, 2, 2);
insert into below values (1, 1, 1, 'g'), (2, 1, 2, 'g'), (3, 1, null, 'g');
insert into left_side values (1, 11, null), (2, 21, null);
insert into right_side values (1, 1), (2, 2);
update left_side set right_id = id;
"""


@pytest.fixture
def shop(postgres_database: str) -> str:
    execute(postgres_database, SHOP)
    return postgres_database


def config(dsn: str, **more: object) -> PostgresqlConfig:
    return PostgresqlConfig(dsn=dsn, layout="rows", tenant_column="shop_id", tenant_value="1", **more)  # type: ignore[arg-type]


def keys(settings: PostgresqlConfig) -> dict[str, list[bytes]]:
    return {t.name.removeprefix("public."): [t.key.text(row) for row in t.rows_only] for t in take(settings).tables}


def test_rows_between_two_tenants_belong_to_neither(shop: str) -> None:
    """Goal: every rule of ownership. Method: one row for each, looked up by key."""
    assert keys(config(shop)) == {
        "shop": [b"1"],
        "users": [b"11", b"12"],
        "message": [b"1", b"3"],
        "thread": [b"1"],
        "composite": [b"1\t1"],
        "below": [b"1"],
        "left_side": [b"1"],
        "right_side": [b"1"],
    }


def test_every_row_is_whose_the_rules_say(postgres_database: str, rng: random.Random) -> None:
    """Goal: ownership through several references, two deep. Method: random references and owners, judged one by one here."""
    owners = {table: [rng.choice([1, 1, 2, 3, None]) for _ in range(40)] for table in ("a", "b")}
    cells = [[rng.choice([*range(40), None]) for _ in ("a", "b", "a")] for _ in range(400)]
    beneath = [[rng.choice([*range(400), None]), rng.choice([*range(40), None])] for _ in range(600)]

    def values(rows: Iterable[Iterable[int | None]]) -> str:
        return ", ".join("(" + ", ".join("null" if v is None else str(v) for v in row) + ")" for row in rows)

    execute(
        postgres_database,
        "create table a(id int primary key, shop_id int); create table b(id int primary key, shop_id int);"
        "create table c(id int primary key, a int references a, b int references b, again int references a);"
        "create table d(id int primary key, c int references c, b int references b);"
        f"insert into a values {values(enumerate_rows(zip(owners['a'])))}; insert into b values {values(enumerate_rows(zip(owners['b'])))};"
        f"insert into c values {values(enumerate_rows(cells))}; insert into d values {values(enumerate_rows(beneath))}",
    )

    def owner(found: Iterable[int | None]) -> int | None:
        """1: this tenant's; 2: another's is among them; None: nobody's. An owner that is not 1 is as good as 2."""
        kinds = {1 if each == 1 else 2 for each in found if each is not None}
        return None if not kinds else 1 if kinds == {1} else 2

    of = {(table, n): who for table, all_of in owners.items() for n, who in enumerate(all_of)}
    of_c = [owner([of.get(("a", a)), of.get(("b", b)), of.get(("a", again))]) for a, b, again in cells]
    of_d = [owner([None if c is None else of_c[c], of.get(("b", b))]) for c, b in beneath]
    found = keys(config(postgres_database))
    assert found["c"] == [b"%d" % n for n, who in enumerate(of_c) if who == 1]
    assert found["d"] == [b"%d" % n for n, who in enumerate(of_d) if who == 1]


def enumerate_rows(rows: Iterable[Iterable[int | None]]) -> Iterator[list[int | None]]:
    """Each row with its number as the first value."""
    for number, row in enumerate(rows):
        yield [number, *row]


def test_links_and_tables_can_be_taken_out(shop: str) -> None:
    """Goal: the operator corrects what was found. Method: ignore one link, exclude by pattern."""
    found = keys(config(shop, ignored_links=("message.message_receiver_fkey",), exclude=("*_side", "below")))
    assert found["message"] == [b"1", b"2"]
    assert set(found) == {"shop", "users", "message", "thread", "composite"}


def test_unknown_tenant_column_is_said(shop: str) -> None:
    """Goal: a typed error with a hint. Method: a column that no table has."""
    with pytest.raises(UsageError, match="tenant_colum"):
        take(PostgresqlConfig(dsn=shop, layout="rows", tenant_column="tenant_colum", tenant_value="1"))


def test_rows_that_lost_their_owner_come_back(shop: str) -> None:
    """Goal: ON DELETE SET NULL made a row nobody's. Method: delete its parent, restore, prove the others."""
    view = take(config(shop))
    before = {table: table_text(shop, table) for table in ("message", "thread", "users")}
    execute(shop, "delete from thread where id <> 1; delete from message where id = 1")
    assert query(shop, "select message_id from thread where id = 1") == [(None,)]
    put_back(config(shop), view, prove=True)
    assert table_text(shop, "message") == before["message"]
    assert query(shop, "select message_id from thread where id = 1") == [(1,)]


def test_reference_from_a_later_row_is_refused(shop: str) -> None:
    """Goal: no orphan among others' rows. Method: another tenant refers to a row that the restore would delete."""
    view = take(config(shop))
    execute(shop, "insert into users values (13, 1, 'new'); insert into message values (9, 21, 13, 'to the new one')")
    with pytest.raises(TargetError, match="message"):
        put_back(config(shop), view)
    assert query(shop, "select count(*) from users where shop_id = 1") == [(3,)]


def test_missing_shared_row_is_refused(shop: str) -> None:
    """Goal: no row without its parent. Method: remove the shared row that a deleted row referred to."""
    view = take(config(shop))
    execute(shop, "delete from below; delete from grade")
    with pytest.raises(TargetError, match="grade"):
        put_back(config(shop), view)


def test_circle_comes_back(shop: str) -> None:
    """Goal: tables that refer to each other. Method: delete both rows, restore."""
    view = take(config(shop))
    execute(
        shop,
        "update left_side set right_id = null; delete from right_side where id = 1; delete from left_side where id = 1",
    )
    put_back(config(shop), view)
    assert query(shop, "select l.id, r.id from left_side l join right_side r on r.id = right_id") == [(1, 1)]


def test_schema_that_moved_on(shop: str) -> None:
    """Goal: an old backup goes into a newer schema. Method: add, drop, retype columns, then one that cannot be."""
    view = take(config(shop))
    execute(
        shop,
        """alter table users add age int default 7; alter table users drop column name; update users set age = 50;
        alter table composite alter shop_id type bigint; delete from users where id = 12 and false;
        delete from message; delete from users where id = 12;""",
    )
    restored = put_back(config(shop), view, prove=True)
    assert query(shop, "select id, age from users where shop_id = 1 order by 1") == [(11, 50), (12, 7)]
    assert any("name" in warning for warning in restored.report.warnings)
    execute(
        shop,
        "alter table users add must text; update users set must = ''; alter table users alter must set not null; delete from message; delete from users where id = 12",
    )
    with pytest.raises(SchemaMismatch, match="must"):
        put_back(config(shop), view)
    execute(shop, "drop table below")
    with pytest.raises(SchemaMismatch, match="below"):
        put_back(config(shop), view)


def test_copy_beside_the_live_rows(shop: str) -> None:
    """Goal: a tenant's rows in a schema of their own. Method: change the live tables, copy, compare, refuse twice."""
    view, before = take(config(shop)), table_text(shop, "users", "shop_id = 1")
    execute(
        shop,
        "alter table users add age int not null default 1; alter table message drop column body; drop table thread",
    )
    put_back(config(shop), view, target={"schema": "beside"})
    assert [text for (text,) in query(shop, "select (id, shop_id, name)::text from beside.users order by 1")] == before
    assert query(shop, "select body from beside.message order by id") == [("within",), ("from nobody",)]
    assert query(shop, "select id from beside.thread") == [(1,)]
    with pytest.raises(TargetOccupied):
        put_back(config(shop), view, target={"schema": "beside"})
    put_back(config(shop), view, target={"schema": "beside"}, overwrite=True)


def test_tenant_alone_in_a_new_database(postgres: PostgresServer, shop: str) -> None:
    """Goal: one tenant's rows and all definitions elsewhere. Method: new database, then over it with confirmation."""
    view = take(config(shop))
    there = postgres.dsn("alone")
    try:
        restored = put_back(config(shop), view, target={"dsn": there})
        assert query(there, "select id from message order by 1") == [(1,), (3,)]
        assert any("below_grade_fkey" in warning for warning in restored.report.warnings)
        execute(there, "delete from users where id = 12 and false; update shop set name = 'x'")
        with pytest.raises(TargetOccupied):
            put_back(config(shop), view, target={"dsn": there})
    finally:
        postgres.drop_database("alone")


def test_probe_shows_the_scope(shop: str) -> None:
    """Goal: the operator sees what was found and why. Method: read the probe's details and warnings."""
    probe = PostgresqlConnector(config(shop)).test()
    because = {table["table"]: table["because"] for table in probe.details["tables"]}
    assert because["public.shop"] == "holds the tenant's own row"
    assert because["public.below"] == "through below_a_b_fkey"
    assert any("no index begins with shop_id" in warning for warning in probe.warnings)
    assert any("refers back" in warning for warning in probe.warnings)


def tenant(dsn: str, value: str) -> PostgresqlConfig:
    return PostgresqlConfig(dsn=dsn, layout="rows", tenant_column="tenant", tenant_value=value, definitions=False)


def test_the_tenant_is_compared_by_the_columns_type(postgres_database: str) -> None:
    """Goal: what the application takes for one tenant is one. Method: citext, a domain over it, char(n), a long varchar."""
    execute(
        postgres_database,
        """create schema ext; create extension citext schema ext; create domain slug as ext.citext check (length(value) < 9);
        create table c(id int primary key, tenant ext.citext); create table d(id int primary key, tenant slug);
        create table child(id int primary key, c int references c);
        insert into c values (1, 'Acme'), (2, 'ACME'), (3, 'other'); insert into child select id, id from c;
        insert into d select * from c; create table b(id int primary key, tenant char(6)); insert into b values (1, 'acme');
        create table v(id int primary key, tenant varchar(9)); insert into v values (1, 'acme'), (2, 'acm')""",
    )
    assert keys(tenant(postgres_database, "acme")) == {
        "c": [b"1", b"2"], "d": [b"1", b"2"], "child": [b"1", b"2"], "b": [b"1"], "v": [b"1"],
    }  # fmt: skip
    probe = PostgresqlConnector(tenant(postgres_database, "acme")).test()
    assert any(
        "public.c.tenant, public.d.tenant knows no upper and lower case" in warning for warning in probe.warnings
    )
    view = take(tenant(postgres_database, "acme"))
    others, own = table_text(postgres_database, "c", "id = 3"), table_text(postgres_database, "c", "id < 3")
    execute(
        postgres_database,
        "delete from child where id < 3; update c set tenant = 'acme' where id = 1; delete from c where id = 2",
    )
    put_back(tenant(postgres_database, "acme"), view, prove=True)
    assert (table_text(postgres_database, "c", "id = 3"), table_text(postgres_database, "c", "id < 3")) == (others, own)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("int", "one"), ("int", "1.5"), ("smallint", "70000"), ("uuid", "4711"), ("varchar(4)", "acme2"),
        ("numeric(4, 1)", "12.34"), ("level", "third"), ("positive", "-1"), ("date", "soon"), ("inet", "300.1.1.1"),
    ],
)  # fmt: skip
def test_a_value_that_no_column_holds_is_refused(postgres_database: str, column: str, value: str) -> None:
    """Goal: said when the source is added, not at night. Method: values of other types, too long, outside a domain."""
    execute(
        postgres_database,
        "create type level as enum ('first', 'second'); create domain positive as int check (value > 0);"
        f" create table t(id int primary key, tenant {column})",
    )
    with pytest.raises(UsageError, match=r"cannot stand in public\.t\.tenant") as refused:
        PostgresqlConnector(tenant(postgres_database, value)).test()
    assert "SELECT DISTINCT" in refused.value.hint


@pytest.mark.parametrize(
    ("column", "value"),
    [("int", "7"), ("char(8)", "acme"), ("varchar(4)", "acme"), ("text", "Ünï 'q\\"), ("uuid", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"),
     ("numeric(4, 1)", "12.30"), ("positive", "1"), ("bytea", r"\x00ff")],
)  # fmt: skip
def test_a_value_of_the_columns_type_finds_its_rows(postgres_database: str, column: str, value: str) -> None:
    """Goal: every type that may name a tenant. Method: one row with the value, one without, one null."""
    execute(
        postgres_database,
        f"create domain positive as int check (value > 0); create table t(id int primary key, tenant {column})",
    )
    with psycopg.connect(postgres_database) as connection:
        connection.execute(f"insert into t values (1, {literal(value)}), (2, null)".encode())
    PostgresqlConnector(tenant(postgres_database, value)).test()
    assert keys(tenant(postgres_database, value)) == {"t": [b"1"]}
