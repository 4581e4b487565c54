"""One tenant's rows out of shared tables: found through foreign keys, put back exactly, others untouched."""

import pytest

from connectors._postgresql.config import PostgresqlConfig
from engine.errors import TargetError, UsageError
from tests.connectors.postgres_views import MemoryView, execute, put_back, query, table_text, take

HOTELS = """
create table hotel(id int primary key, name text not null);
create table guest(id bigserial primary key, hotel_id int not null references hotel, email text unique, note text);
create table booking(id bigserial primary key, hotel_id int not null references hotel,
  guest_id bigint not null references guest, price numeric, extra jsonb);
create table booking_item(id bigserial primary key, booking_id bigint not null references booking on delete cascade,
  what text, qty int, blob bytea);
create table item_note(item bigint references booking_item, n int, body text, primary key (item, n));
create table "Weird ""Name; drop"(id uuid primary key default gen_random_uuid(), hotel_id int references hotel, v text[]);
create table country(code char(2) primary key, name text);
insert into country values ('pt', 'Portugal');
insert into hotel select g, 'h' || g from generate_series(1, 4) g;
insert into guest(hotel_id, email, note) select 1 + g % 4, 'g' || g || '@x', md5(g::text) from generate_series(1, 400) g;
insert into booking(hotel_id, guest_id, price, extra)
  select hotel_id, id, id / 7.0, jsonb_build_object('k', id) from guest, generate_series(1, 2);
insert into booking_item(booking_id, what, qty, blob)
  select id, E'tab\\t nl\\n \\\\ ' || id, 2, decode(md5(id::text), 'hex') from booking;
insert into item_note select id, n, 'x' from booking_item, generate_series(1, 2) n where id % 3 = 0;
insert into "Weird ""Name; drop"(hotel_id, v) select 1 + g % 4, array['a' || g, null, '{,}"'] from generate_series(1, 100) g;
"""
TABLES = ("hotel", "guest", "booking", "booking_item", "item_note", '"Weird ""Name; drop"', "country")
DAMAGE = """
delete from item_note where item in (select i.id from booking_item i join booking b on b.id = booking_id where hotel_id = 3);
delete from booking_item where booking_id in (select id from booking where hotel_id = 3 and id % 3 = 0);
delete from booking where hotel_id = 3 and id % 3 = 0;
update guest set note = 'lost', email = 'x' || id where hotel_id = 3;
insert into guest(hotel_id, email) values (3, 'new');
insert into booking(hotel_id, guest_id) select 3, max(id) from guest;
update booking set price = 1 where hotel_id = 4;
"""


@pytest.fixture
def hotels(postgres_database: str) -> str:
    execute(postgres_database, HOTELS)
    return postgres_database


def config(dsn: str, **more: object) -> PostgresqlConfig:
    return PostgresqlConfig(dsn=dsn, layout="rows", tenant_column="hotel_id", tenant_value="3", **more)  # type: ignore[arg-type]


def everything(dsn: str) -> dict[str, list[str]]:
    return {table: table_text(dsn, table) for table in TABLES}


def others(dsn: str, view: MemoryView) -> dict[str, set[str]]:
    """All rows of all tables except the hotel's own guests and bookings and what hangs on them."""
    return {
        "hotel": set(table_text(dsn, "hotel", "id <> 3")),
        "guest": set(table_text(dsn, "guest", "hotel_id <> 3")),
        "booking": set(table_text(dsn, "booking", "hotel_id <> 3")),
        "item": set(table_text(dsn, "booking_item", "booking_id in (select id from booking where hotel_id <> 3)")),
        "country": set(table_text(dsn, "country")),
    }


def test_scope_is_found_through_foreign_keys(hotels: str) -> None:
    """Goal: child tables without the tenant column belong, shared ones do not. Method: names and counts of the parts."""
    view = take(config(hotels))
    counts = {table.name: table.row_count for table in view.tables}
    assert counts == {
        "public.hotel": 1,
        "public.guest": 100,
        "public.booking": 200,
        "public.booking_item": 200,
        "public.item_note": query(
            hotels,
            "select count(*) from item_note n join booking_item i on i.id = n.item join booking b on b.id = i.booking_id"
            " where hotel_id = 3",
        )[0][0],
        'public.Weird "Name; drop': 25,
    }


def test_restore_brings_back_exactly_the_tenant(hotels: str) -> None:
    """Goal: rows as they were, neighbours as they are. Method: damage both, restore twice, compare texts."""
    view = take(config(hotels))
    before = everything(hotels)
    execute(hotels, DAMAGE)
    neighbours = others(hotels, view)
    restored = put_back(config(hotels), view, prove=True)
    assert take(config(hotels)).digests() == view.digests()
    assert others(hotels, view) == neighbours
    assert table_text(hotels, "guest") == before["guest"]
    assert all(check.passed for check in restored.report.checks)
    assert restored.report.neighbours is not None
    assert restored.report.neighbours["fingerprints"]["public.country"]["rows"] == 1
    assert put_back(config(hotels), view).changes() == {}


def test_a_restored_copy_is_not_taken_for_live_data(hotels: str) -> None:
    """Goal: a look beside the live data changes no later backup. Method: restore to a schema, back up again."""
    before = take(config(hotels))
    put_back(config(hotels), before, target={"schema": "look"})
    after = take(config(hotels))
    assert [table.name for table in after.tables] == [table.name for table in before.tables]
    execute(hotels, "delete from item_note; delete from booking_item")
    put_back(config(hotels), after)
    assert query(hotels, "select count(*) from look.booking") == [(200,)]


def test_unique_values_that_traded_places(hotels: str) -> None:
    """Goal: a unique column whose values were swapped. Method: swap two e-mails, free a third for a new row."""
    view = take(config(hotels))
    execute(
        hotels,
        """alter table guest add column later text default 'd';
        update guest set later = 'mine' where hotel_id = 3;
        update guest set email = 'tmp' where id = 2; update guest set email = 'g2@x' where id = 6;
        update guest set email = 'g6@x' where id = 2;
        delete from guest where id = -1;""",
    )
    restored = put_back(config(hotels), view, prove=True)
    assert query(hotels, "select id, email, later from guest where id in (2, 6) order by id") == [
        (2, "g2@x", "mine"),
        (6, "g6@x", "mine"),
    ]
    assert restored.changes() == {"public.guest": (0, 2, 0)}


def test_key_taken_by_another_tenant_is_refused(hotels: str) -> None:
    """Goal: nobody's row is overwritten. Method: give a deleted row's key to another hotel."""
    view = take(config(hotels))
    execute(
        hotels,
        "delete from item_note; delete from booking where guest_id = 2; delete from guest where id = 2;"
        "insert into guest(id, hotel_id, email) values (2, 1, 'other')",
    )
    before = everything(hotels)
    with pytest.raises(TargetError, match=r"1 rows .* public\.guest"):
        put_back(config(hotels), view)
    assert everything(hotels) == before


def test_settings_of_another_tenant_are_refused(hotels: str) -> None:
    """Goal: a backup never goes into another tenant's rows. Method: change tenant_value after the backup."""
    view = take(config(hotels))
    other = PostgresqlConfig(dsn=hotels, layout="rows", tenant_column="hotel_id", tenant_value="4")
    with pytest.raises(UsageError, match="tenant_value"):
        put_back(other, view)


@pytest.mark.parametrize("setting", ["include", "exclude", "ignored_links"])
def test_another_scope_than_the_backups_is_refused(hotels: str, setting: str) -> None:
    """Goal: rows that no backup holds are not deleted. Method: change what belongs to the tenant after the backup."""
    view = take(config(hotels))
    other = PostgresqlConfig(
        dsn=hotels, layout="rows", tenant_column="hotel_id", tenant_value="3", **{setting: ("public.guest",)}
    )
    with pytest.raises(UsageError, match=setting):
        put_back(other, view)
