"""Selective restores of PostgreSQL sources: only the chosen modules, and what references make of the rest."""

import pytest

from engine.errors import TargetError
from tests.connectors.postgres_changes import LAYOUTS, apply, config_of, contents, preview, undo
from tests.connectors.postgres_views import MemoryTable, MemoryView, execute, query, take
from tests.connectors.test_postgresql_merge import changes

CHAIN = """
create table country(code text primary key);
create table city(id int primary key, tenant int, country text references country, name text);
create table house(id int primary key, tenant int, city_id int references city, twin int references house, name text);
create table room(house_id int references house, n int, v text, primary key (house_id, n));
create table note(tenant int, house_id int references house, v text);
insert into country values ('pt'), ('de');
insert into city select g, 1 + g % 2, 'pt', 'c' || g from generate_series(1, 8) g;
insert into house select g, tenant, id, null, 'h' || g from city c, generate_series(id * 10, id * 10 + 1) g;
insert into room select id, n, 'r' from house, generate_series(1, 2) n;
insert into note select tenant, id, 'x' from house;
"""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_chosen_modules_change(postgres_database: str, layout: str) -> None:
    """Goal: a module alone. Method: damage everywhere; one module is restored in each layout, then undone."""
    config = config_of(postgres_database, layout)
    execute(postgres_database, CHAIN)
    view = take(config)
    execute(postgres_database, "update city set name = 'changed' where tenant = 1; update house set name = 'changed' where tenant = 1;"
            "delete from room where house_id = 20; delete from note where house_id = 40; insert into room values (40, 9, 'new')")  # fmt: skip
    before = contents(postgres_database)
    done = apply(config, view, mode="selective", modules=("room",), prove=True)
    after = contents(postgres_database)
    assert {name for name in after if after[name] != before[name]} == {"public.room"}
    assert changes(done.report, "public.room")["insert"] == 2 and changes(done.report, "public.room")["delete"] == 1
    assert [change.name for change in done.report.tables] == ["public.room"]
    undo(config, done.image)
    assert contents(postgres_database) == before
    nothing = apply(config, view, mode="selective", modules=())
    assert nothing.report.tables == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parents_come_along_exactly_as_far_as_needed(postgres_database: str, layout: str) -> None:
    """Goal: rows of other modules come back only where needed. Method: whole chains are lost, the leaves are asked for."""
    config = config_of(postgres_database, layout)
    execute(postgres_database, CHAIN + "update house set twin = 41 where id = 21")
    view = take(config)
    execute(postgres_database, "delete from note where tenant = 1; delete from room where house_id in (select id from house where tenant = 1);"
            "update house set twin = null; delete from house where tenant = 1; delete from city where id in (2, 6);"
            "update city set name = 'changed' where id = 4")  # fmt: skip
    before = contents(postgres_database)
    only = "house_id in (20, 21)"
    keep = [line for line in table_of(view, "public.room").rows_only if line.split(b"\t")[0] in (b"20", b"21")]
    table_of(view, "public.room").rows_only = keep
    table_of(view, "public.room").row_count = len(keep)
    request = {"mode": "selective", "modules": ("room",)}
    said = preview(config, view, **request)
    done = apply(config, view, digest=said.digest, **request)
    assert query(postgres_database, f"select count(*) from room where {only}") == [(4,)]
    assert query(postgres_database, "select id, twin from house where tenant = 1 order by id") == [
        (20, None),
        (21, 41),
        (41, None),
    ]
    assert query(postgres_database, "select id, name from city where tenant = 1 order by id") == [
        (2, "c2"),
        (4, "changed"),
        (8, "c8"),
    ]
    assert {(d.kind, d.table, d.other, d.rows, d.module) for d in said.dependencies} == {
        ("along", "public.house", "public.room", 2, "house"),
        ("along", "public.house", "public.house", 1, "house"),
        ("along", "public.city", "public.house", 1, "city"),
    }
    undo(config, done.image)
    assert contents(postgres_database) == before


def table_of(view: MemoryView, name: str) -> MemoryTable:
    found = next(table for table in view.tables if table.name == name)
    found.sha256 = None  # type: ignore[assignment]
    return found


def test_what_others_refer_to_stays(postgres_database: str) -> None:
    """Goal: nothing dangles. Method: rows made since the backup, to which rows of other modules refer, in a chain."""
    config = config_of(postgres_database, "rows")
    execute(postgres_database, CHAIN)
    view = take(config)
    execute(postgres_database, "insert into city values (100, 1, 'pt', 'new'), (102, 1, 'pt', 'new'); insert into house values (100, 1, 100, null, 'new');"
            "insert into house values (102, 1, 100, 100, 'new'); insert into note values (1, 100, 'new')")  # fmt: skip
    said = preview(config, view, mode="selective", modules=("city", "house"))
    done = apply(config, view, mode="selective", modules=("city", "house"), digest=said.digest)
    assert query(postgres_database, "select id from city where id >= 100") == [(100,)]
    assert query(postgres_database, "select id from house where id >= 100") == [(100,)]
    assert changes(done.report, "public.house")["stays"] == 1
    assert {(d.kind, d.table, d.other, d.rows, d.module) for d in said.dependencies} == {
        ("stays", "public.house", "public.note", 1, "note"),
        ("stays", "public.city", "public.house", 1, ""),
    }
    apply(config, view, mode="selective", modules=("city", "house", "note"))
    assert query(
        postgres_database,
        "select (select count(*) from city where id >= 100), (select count(*) from house where id >= 100)",
    ) == [(0, 0)]


def test_rows_of_others_hold_what_they_refer_to(postgres_database: str) -> None:
    """Goal: a neighbour's reference is kept whole. Method: another tenant's row refers to a row made since."""
    config = config_of(postgres_database, "rows")
    execute(postgres_database, CHAIN)
    view = take(config)
    execute(
        postgres_database,
        "insert into city values (100, 1, 'pt', 'new'); insert into house values (300, 2, 100, null, 'theirs')",
    )
    with pytest.raises(TargetError, match="city"):
        apply(config, view)
    done = apply(config, view, mode="selective", modules=("city",), prove=True)
    assert changes(done.report, "public.city")["stays"] == 1


def test_shared_rows_that_are_gone_withhold(postgres_database: str) -> None:
    """Goal: what cannot come back is listed, with all that hangs on it. Method: a shared row is gone, children of children."""
    config = config_of(postgres_database, "rows")
    execute(postgres_database, CHAIN + "update city set country = 'de' where id in (2, 4)")
    view = take(config)
    execute(postgres_database, "delete from note; delete from room; delete from house; delete from city where id in (2, 6); update city set country = 'pt';"
            "delete from country where code = 'de'")  # fmt: skip
    before = contents(postgres_database)
    for request in ({"mode": "selective", "modules": ("city", "house", "room")}, {"mode": "merge"}):
        said = preview(config, view, **request)
        done = apply(config, view, digest=said.digest, **request)
        assert query(postgres_database, "select id from city where tenant = 1 order by 1") == [(4,), (6,), (8,)]
        assert query(postgres_database, "select distinct city_id from house where tenant = 1 order by 1") == [
            (4,),
            (6,),
            (8,),
        ]
        assert changes(done.report, "public.house")["withheld"] == 2
        assert changes(done.report, "public.room")["withheld"] == 4
        assert ("withheld", "public.city", "public.country") in {(d.kind, d.table, d.other) for d in said.dependencies}
        undo(config, done.image)
        assert contents(postgres_database) == before
    with pytest.raises(TargetError, match="country"):
        apply(config, view)


def without(view: MemoryView, name: str, *keys: bytes) -> MemoryView:
    """The view with rows erased: their number is exact, the digest unknown."""
    table = table_of(view, name)
    table.rows_only = [line for line in table.rows_only if line.split(b"\t")[0] not in keys]
    table.row_count, table.sha256 = len(table.rows_only), ""
    return view


@pytest.mark.parametrize("mode", ["full", "merge"])
def test_the_erased_do_not_come_back(postgres_database: str, mode: str) -> None:
    """Goal: an erased subject takes its rows along. Method: a view without it, rows that refer to it directly and through others."""
    config = config_of(postgres_database, "rows")
    execute(postgres_database, CHAIN)
    view = without(take(config), "public.city", b"2")
    execute(postgres_database, "delete from note where house_id in (20, 21, 40); delete from room where house_id in (20, 21, 40);"
            "delete from house where id in (20, 21, 40); delete from city where id = 2; update city set name = 'x' where id = 4")  # fmt: skip
    before = contents(postgres_database)
    said = preview(config, view, mode=mode)
    done = apply(config, view, mode=mode, digest=said.digest)
    assert query(postgres_database, "select id from city where tenant = 1 order by 1") == [(4,), (6,), (8,)]
    assert query(postgres_database, "select id from house where tenant = 1 order by 1 limit 2") == [(40,), (41,)]
    assert changes(done.report, "public.house")["withheld"] == 2
    assert changes(done.report, "public.room")["withheld"] == 4
    assert changes(done.report, "public.note")["withheld"] == 2
    undo(config, done.image)
    assert contents(postgres_database) == before
    city = table_of(view, "public.city")
    city.row_count, city.sha256 = city.row_count + 1, ""
    with pytest.raises(TargetError, match="city"):
        preview(config, view, mode=mode)


def test_deep_chains_of_rows(postgres_database: str) -> None:
    """Goal: a chain within one table is followed to its end. Method: a thousand rows, each referring to the one before."""
    config = config_of(postgres_database, "rows")
    execute(postgres_database, "create table step(id int primary key, tenant int, before int references step); create table last(id int primary key, tenant int, step int references step);"
            "insert into step select g, 1, nullif(g - 1, 0) from generate_series(1, 1000) g; insert into last values (1, 1, 1000)")  # fmt: skip
    view = take(config)
    execute(postgres_database, "delete from last; delete from step")
    said = preview(config, view, mode="selective", modules=("last",))
    assert {(d.kind, d.table, d.other, d.rows) for d in said.dependencies} == {
        ("along", "public.step", "public.last", 1), ("along", "public.step", "public.step", 999),
    }  # fmt: skip
    apply(config, view, mode="selective", modules=("last",), digest=said.digest)
    assert query(postgres_database, "select count(*) from step") == [(1000,)]
    execute(postgres_database, "delete from last; delete from step")
    gone = without(view, "public.step", b"1")
    said = preview(config, gone)
    assert changes(said, "public.step") == {"withheld": 999}
    assert changes(said, "public.last") == {"withheld": 1}


def test_a_value_taken_since_keeps_a_row_from_coming_along(postgres_database: str) -> None:
    """Goal: rows that come along meet rows that stay. Method: a unique value was given to another row."""
    config = config_of(postgres_database, "rows")
    execute(postgres_database, "create table guest(id int primary key, tenant int, mail text unique); create table stay(id int primary key, tenant int, guest int references guest);"
            "insert into guest values (1, 1, 'a'), (2, 1, 'b'); insert into stay values (1, 1, 1), (2, 1, 2)")  # fmt: skip
    view = take(config)
    execute(postgres_database, "delete from stay; delete from guest; insert into guest values (3, 1, 'a')")
    said = preview(config, view, mode="selective", modules=("stay",))
    apply(config, view, mode="selective", modules=("stay",), digest=said.digest)
    assert query(postgres_database, "select id from guest order by 1") == [(2,), (3,)]
    assert query(postgres_database, "select id from stay") == [(2,)]
    assert changes(said, "public.guest") == {"insert": 1, "collisions": 1}
