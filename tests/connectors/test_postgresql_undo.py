"""Undo from change images: exactly what was there, or a preview of its own first."""

import pytest

from connectors._postgresql.config import PostgresqlConfig
from engine.errors import SchemaMismatch, StalePlan, TargetError, UsageError
from tests.connectors.postgres_changes import LAYOUTS, apply, config_of, contents, preview_undo, undo
from tests.connectors.postgres_views import execute, query, take
from tests.connectors.test_postgresql_preview import DAMAGE, MODES, SHOP, mode_of


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODES)
def test_undo_is_exact(postgres_database: str, layout: str, name: str) -> None:
    """Goal: every row as it was, in every mode and layout. Method: restore, undo, undo the undo, undo again."""
    config = config_of(postgres_database, layout)
    execute(postgres_database, SHOP)
    view = take(config)
    execute(postgres_database, DAMAGE)
    before = contents(postgres_database)
    done = apply(config, view, **mode_of(name))
    after = contents(postgres_database)
    assert after != before
    said = preview_undo(config, done.image)
    assert contents(postgres_database) == after
    back = undo(config, done.image, prove=True)
    assert (back.report.tables, back.report.digest) == (said.tables, said.digest)
    assert contents(postgres_database) == before
    again = undo(config, back.image)
    assert contents(postgres_database) == after
    undo(config, again.image)
    assert contents(postgres_database) == before


def test_awkward_rows_come_back(postgres_database: str) -> None:
    """Goal: exactness where it is hard. Method: keys that swap unique values, rows without a key, cycles, all kinds of text."""
    execute(
        postgres_database,
        r"""create table seat(id int primary key, tenant int, place text unique, next int references seat deferrable);
        create table made(id int generated always as identity primary key, tenant int, a int, b int generated always as (a * 2) stored);
        create table bag(tenant int, v text, at timestamptz default clock_timestamp());
        create table ev(tenant int, id int, v float8, primary key (tenant, id)) partition by range (id);
        create table ev_0 partition of ev for values from (0) to (50); create table ev_1 partition of ev for values from (50) to (100);
        insert into seat select g, 1, 'p' || g, null from generate_series(1, 6) g; update seat set next = 1 + id % 6;
        insert into made(tenant, a) select 1, g from generate_series(1, 5) g;
        insert into bag(tenant, v) select 1, x from unnest(array['tab' || e'\t', e'line\nbreak', e'back\\slash', '\N', '', null, 'same', 'same']) x;
        insert into ev select 1, g, 'NaN' from generate_series(10, 90, 20) g""",
    )
    config = config_of(postgres_database, "rows")
    view = take(config)
    execute(
        postgres_database,
        r"""update seat set place = 'x' || id; update seat set place = 'p' || (7 - id); update seat set next = id;
        delete from made where id = 2; update made set a = 100 where id = 3;
        delete from bag where v = 'same' or v is null; insert into bag(tenant, v) values (1, e'new\t'), (1, e'new\t');
        update ev set id = id + 50, v = '-0' where id = 10; delete from ev where id = 70""",
    )
    before = contents(postgres_database)
    done = apply(config, view)
    assert take(config).digests()["public.seat"] == view.digests()["public.seat"]
    undo(config, done.image)
    assert contents(postgres_database) == before


def test_rows_without_columns_come_back(postgres_database: str) -> None:
    """Goal: such a table stands in no undo's way. Method: fewer rows, then more, each restored and undone with a table beside it."""
    config = config_of(postgres_database, "schema")
    execute(postgres_database, "create table zero(); create table k(tenant int, id int primary key);"
            "insert into zero default values; insert into zero default values; insert into k values (1, 1)")  # fmt: skip
    view = take(config)
    for damage in ("delete from zero; delete from k", "insert into zero default values"):
        execute(postgres_database, damage)
        before = contents(postgres_database)
        done = apply(config, view)
        assert len(contents(postgres_database)["public.zero"]) == 2
        assert preview_undo(config, done.image).tables == undo(config, done.image).report.tables
        assert contents(postgres_database) == before
        apply(config, view)


def test_rows_that_changed_since_are_asked_about(postgres_database: str) -> None:
    """Goal: newer work is not lost silently. Method: change, delete, re-add restored rows; approve by a digest."""
    execute(postgres_database, SHOP)
    config = config_of(postgres_database, "rows")
    view = take(config)
    execute(postgres_database, DAMAGE)
    before = contents(postgres_database)
    done = apply(config, view)
    execute(postgres_database, "update stay set note = 'since' where id = 4; delete from line where stay_id = 6 and n = 1;"
            "insert into log values (2, 'theirs')")  # fmt: skip
    live = contents(postgres_database)
    with pytest.raises(StalePlan):
        undo(config, done.image)
    said = preview_undo(config, done.image)
    counts = {change.name: change for change in said.tables}
    assert (counts["public.stay"].conflicts, counts["public.line"].conflicts) == (1, 0)
    assert said.samples["public.stay"][0].change == "conflict"
    assert contents(postgres_database) == live
    with pytest.raises(StalePlan):
        undo(config, done.image, digest="0" * 64)
    undo(config, done.image, digest=said.digest)
    execute(postgres_database, "delete from log where said = 'theirs'")
    assert contents(postgres_database) == before


def test_what_others_hang_on_stays(postgres_database: str) -> None:
    """Goal: an undo breaks no reference. Method: new children of a restored row, a unique value taken since."""
    execute(postgres_database, SHOP)
    config = config_of(postgres_database, "rows")
    view = take(config)
    execute(postgres_database, DAMAGE + "update guest set email = 'changed' where id = 8")
    done = apply(config, view)
    execute(
        postgres_database,
        "insert into stay(id, tenant, guest_id) values (500, 1, 4); update guest set email = 'changed' where id = 12",
    )
    with pytest.raises(StalePlan):
        undo(config, done.image)
    said = preview_undo(config, done.image)
    assert [(d.kind, d.table, d.other, d.rows) for d in said.dependencies] == [
        ("stays", "public.guest", "public.stay", 1)
    ]
    guest = next(change for change in said.tables if change.name == "public.guest")
    assert (guest.stays, guest.collisions) == (1, 1)
    undo(config, done.image, digest=said.digest)
    assert query(postgres_database, "select id, email from guest where id in (4, 6, 8) order by 1") == [
        (4, "m4"),
        (8, "m8"),
    ]


def test_keys_of_others_are_not_taken_back(postgres_database: str) -> None:
    """Goal: no neighbour's row is touched. Method: a restored row is deleted and its key given to another tenant."""
    execute(postgres_database, SHOP)
    config = config_of(postgres_database, "rows")
    view = take(config)
    execute(postgres_database, "update room set name = 'renamed' where id = 9 or id = 1")
    execute(postgres_database, "update stay set note = 'changed' where tenant = 1")
    done = apply(config, view)
    execute(postgres_database, "update stay set tenant = 2 where id = 2")
    for attempt in (undo, preview_undo):
        with pytest.raises(TargetError, match="outside"):
            attempt(config, done.image)


def test_an_image_goes_back_where_it_came_from(postgres_database: str) -> None:
    """Goal: refused with a reason. Method: another tenant's settings, a column and a table that are gone."""
    execute(postgres_database, SHOP)
    config = config_of(postgres_database, "rows")
    view = take(config)
    execute(postgres_database, DAMAGE)
    done = apply(config, view)
    other = PostgresqlConfig(
        dsn=postgres_database, layout="rows", tenant_column="tenant", tenant_value="2", definitions=False
    )
    with pytest.raises(UsageError, match="tenant_value"):
        undo(other, done.image)
    execute(postgres_database, "alter table guest drop email")
    with pytest.raises(SchemaMismatch, match="email"):
        undo(config, done.image)
    execute(postgres_database, "drop table log")
    with pytest.raises(SchemaMismatch):
        undo(config, done.image)
