"""Partitioned tables: foreign keys of a single partition, partitions dropped, detached, cut otherwise since the backup."""

import pytest

from connectors._postgresql.config import PostgresqlConfig
from engine.errors import SchemaMismatch, TargetError
from tests.connectors.postgres_views import execute, put_back, query, table_text, take

LINKED = """
create table tenant(id int primary key);
create table shop(id int, region text, tenant int references tenant, primary key (region, id)) partition by list (region);
create table shop_a partition of shop for values in ('a');
create table shop_b partition of shop for values in ('b');
create unique index on shop_b (id);
create table sale(id int, year int, shop int, primary key (year, id)) partition by range (year);
create table sale_old partition of sale for values from (2000) to (2020);
create table sale_new partition of sale for values from (2020) to (2030) partition by range (id);
create table sale_new_low partition of sale_new for values from (0) to (1000);
create table sale_new_high partition of sale_new for values from (1000) to (2000);
alter table sale_new add foreign key (shop) references shop_b(id);
insert into tenant values (1), (2);
insert into shop values (1, 'a', 1), (1, 'b', 2), (2, 'b', 1), (3, 'b', 1);
insert into sale values (1, 2010, 1), (2, 2021, 1), (3, 2022, 2), (1004, 2023, 2), (5, 2024, 3);
"""


def rows_of(dsn: str) -> PostgresqlConfig:
    return PostgresqlConfig(dsn=dsn, layout="rows", tenant_column="tenant", tenant_value="1", definitions=False)


def test_the_link_of_one_partition_says_whose_a_row_is(postgres_database: str) -> None:
    """Goal: no row of another's, none forgotten. Method: equal keys in two partitions, one of them referred to."""
    execute(postgres_database, LINKED)
    found = {table.name: table.rows_only for table in take(rows_of(postgres_database)).tables}
    assert [row.split(b"\t")[:2] for row in found["public.sale"]] == [
        [b"2022", b"3"], [b"2023", b"1004"], [b"2024", b"5"],
    ]  # fmt: skip


def test_a_row_of_a_partition_needs_its_parent(postgres_database: str) -> None:
    """Goal: what silenced triggers would have refused. Method: remove the parent; add a child of a row that must go."""
    execute(postgres_database, LINKED)
    # The restore takes the sales, not the shops, whose row is gone for good.
    sales = PostgresqlConfig(dsn=postgres_database, layout="database", include=("sale",))
    view = take(sales)
    execute(postgres_database, "delete from sale where shop = 3; delete from shop where region = 'b' and id = 3")
    live = table_text(postgres_database, "sale")
    with pytest.raises(TargetError, match=r"public\.shop that are not there"):
        put_back(sales, view)
    assert table_text(postgres_database, "sale") == live
    # The row with the same key in the partition that is not referred to helps nobody.
    execute(postgres_database, "insert into shop values (3, 'a', 1)")
    with pytest.raises(TargetError, match=r"public\.shop that are not there"):
        put_back(sales, view)
    execute(postgres_database, "insert into shop values (3, 'b', 1)")
    put_back(sales, view)
    shops = PostgresqlConfig(dsn=postgres_database, layout="database", include=("shop",))
    view = take(shops)
    execute(postgres_database, "insert into shop values (9, 'b', 1); insert into sale values (9, 2025, 9)")
    with pytest.raises(TargetError, match=r"public\.sale would refer"):
        put_back(shops, view, prove=True)
    assert query(postgres_database, "select count(*) from shop where id = 9") == [(1,)]


PARTED = """
create table kind(code text primary key); insert into kind values ('x');
create table parted(id int, region text, v text, kind text references kind, primary key (region, id)) partition by list (region);
create table parted_a partition of parted for values in ('a');
create table "parted ""b" partition of parted for values in ('b') partition by range (id);
create table parted_b1 partition of "parted ""b" for values from (0) to (20);
create table parted_b2 partition of "parted ""b" for values from (20) to (90);
create index on parted (v); create index only_here on parted_b1 (v, id);
alter table parted_b1 add constraint short check (length(v) < 20);
alter table parted_b1 alter v set default 'b one';
create function mark() returns trigger language plpgsql as $$ begin return new; end $$;
create trigger all_of_them before update on parted for each row execute function mark();
create trigger just_one before update on parted_b2 for each row execute function mark();
create table child(region text, id int, foreign key (region, id) references parted);
create unique index on parted_b2 (id);
create table of_one(id int references parted_b2 (id));
insert into parted select g, case when g % 2 = 0 then 'a' else 'b' end, 'v' || g, 'x' from generate_series(1, 60) g;
insert into child select region, id from parted where region = 'a'; insert into of_one values (21);
"""

SHAPE = """
select 'index ' || indexrelid::regclass, indrelid::regclass::text, indisvalid::text from pg_index join pg_class c on c.oid = indrelid
  where relnamespace = 'public'::regnamespace
union all select 'attached ' || inhrelid::regclass, inhparent::regclass::text, '' from pg_inherits
union all select 'constraint ' || conname, conrelid::regclass::text, pg_get_constraintdef(oid) from pg_constraint
  where connamespace = 'public'::regnamespace and conparentid = 0
union all select 'trigger ' || tgname, tgrelid::regclass::text, '' from pg_trigger where not tgisinternal
union all select 'default', adrelid::regclass::text, pg_get_expr(adbin, adrelid) from pg_attrdef
order by 1, 2, 3
"""


@pytest.mark.parametrize(
    "lost",
    [
        "alter table child drop constraint child_region_id_fkey; drop table parted_b1; alter table child add foreign key (region, id) references parted",
        "drop table parted_b2 cascade",
        'drop table "parted ""b" cascade',
        'alter table "parted ""b" detach partition parted_b1',
        "drop table parted cascade",
    ],
)
def test_lost_partitions_are_made_again(postgres_database: str, lost: str) -> None:
    """Goal: rows, indexes, constraints, triggers as before. Method: drop or detach at every level, restore, compare all."""
    execute(postgres_database, PARTED)
    config = PostgresqlConfig(dsn=postgres_database, layout="database")
    view, rows, shape = take(config), table_text(postgres_database, "parted"), query(postgres_database, SHAPE)
    execute(postgres_database, lost)
    restored = put_back(config, view)
    assert table_text(postgres_database, "parted") == rows
    assert query(postgres_database, SHAPE) == shape
    assert any("gone and is made again" in warning for warning in restored.report.warnings)
    assert take(config).digests() == view.digests()


def test_tables_cut_otherwise(postgres_database: str) -> None:
    """Goal: rows go where the table puts them now, or nowhere. Method: one partition instead of two, then a gap."""
    execute(postgres_database, PARTED)
    config = PostgresqlConfig(dsn=postgres_database, layout="database", include=("parted",))
    view, rows = take(config), table_text(postgres_database, "parted")
    execute(
        postgres_database,
        """drop table child; drop table of_one; drop table parted_b1; drop table parted_b2;
        create table parted_b3 partition of "parted ""b" for values from (10) to (90)""",
    )
    with pytest.raises(
        SchemaMismatch, match=r"no partition .* lost the partitions public\.parted_b1 FOR VALUES FROM \(0\)"
    ):
        put_back(config, view)
    execute(postgres_database, 'create table parted_b4 partition of "parted ""b" default')
    restored = put_back(config, view)
    assert table_text(postgres_database, "parted") == rows
    assert any("parted_b2 was gone and cannot be made again" in warning for warning in restored.report.warnings)


def test_shared_tables_are_not_cut_anew(postgres_database: str) -> None:
    """Goal: a tenant's restore makes no tables for everybody, and says what is missing. Method: drop a shared partition."""
    execute(postgres_database, LINKED)
    view, rows = take(rows_of(postgres_database)), table_text(postgres_database, "sale", "shop in (2, 3)")
    execute(postgres_database, "drop table sale_new_high")
    with pytest.raises(
        SchemaMismatch, match=r"public\.sale: no partition .* public\.sale_new_high FOR VALUES"
    ) as refused:
        put_back(rows_of(postgres_database), view)
    assert "PARTITION OF" in refused.value.hint
    execute(postgres_database, "create table sale_rest partition of sale_new default")
    put_back(rows_of(postgres_database), view, prove=True)
    assert table_text(postgres_database, "sale", "shop in (2, 3)") == rows
