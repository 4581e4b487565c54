"""Restores of tables in which the source has no row left: loaded without a comparison, and held to the same promises."""

from typing import Any

import psycopg
import pytest

from connectors.postgresql import PostgresqlConnector
from engine.errors import StalePlan, TargetError
from engine.ports import RestoreReport
from engine.progress import NullProgress
from tests.connectors.postgres_changes import (
    LAYOUTS,
    MemoryImage,
    apply,
    config_of,
    contents,
    preview,
    request_of,
    undo,
)
from tests.connectors.postgres_views import execute, query, take
from tests.connectors.test_postgresql_preview import SHOP

AWKWARD = r"""
create table seat(id int generated always as identity, tenant int, code text collate "C" primary key, next text references seat,
                  twice int generated always as (id * 2) stored);
create table ev(tenant int, id int, v float8, primary key (tenant, id)) partition by range (id);
create table ev_0 partition of ev for values from (0) to (50); create table ev_1 partition of ev for values from (50) to (100);
insert into seat(tenant, code, next) select 1 + g % 2, 'c' || g, 'c' || (1 + (g + 1) % 8) from generate_series(1, 8) g;
insert into log select 1, x from unnest(array['tab' || e'\t', e'line\nbreak', e'back\\slash', '\N', '', null, 'same', 'same']) x;
insert into ev select 1 + g % 2, g, 'NaN' from generate_series(5, 95, 5) g;
"""
SHOP_GONE = (
    "set session_replication_role = replica; delete from line where stay_id in (select id from stay where tenant = 1);"
    + "".join(f"delete from {name} where tenant = 1;" for name in ("stay", "guest", "room", "log"))
)
GONE = SHOP_GONE + "delete from seat where tenant = 1; delete from ev where tenant = 1"


class Counting(NullProgress):
    """Counts the rows of each phase, and does something as one begins."""

    def __init__(self, **acts: Any) -> None:
        super().__init__()
        self.items: dict[str, int] = {}
        self._phase, self._acts = "", acts

    def phase(self, name: str) -> None:
        self._phase = name
        self.items[name] = 0
        if act := self._acts.pop(name, None):
            act()

    def advance(self, *, bytes: int = 0, items: int = 0) -> None:
        self.items[self._phase] += items


def run(progress: Counting, config: Any, view: Any, **request: Any) -> tuple[RestoreReport, MemoryImage]:
    image = MemoryImage()
    with PostgresqlConnector(config).prepare(view, request_of(**request), progress) as prepared:
        prepared.image(image)
        prepared.commit()
        return prepared.report, image


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lost_rows_come_back_as_previewed(postgres_database: str, layout: str) -> None:
    """Goal: exact rows, plan and undo without a comparison. Method: lose every row of all kinds of tables, restore, undo, again."""
    execute(postgres_database, SHOP + AWKWARD)
    config = config_of(postgres_database, layout)
    whole, view = contents(postgres_database), take(config)
    execute(postgres_database, GONE if layout == "rows" else "truncate line, stay, guest, room, log, seat, ev")
    before = contents(postgres_database)
    said = preview(config, view)
    progress = Counting()
    report, image = run(progress, config, view, digest=said.digest, prove=True)
    assert (progress.items["load"], progress.items["apply"]) == (0, sum(table.row_count for table in view.tables))
    assert (report.tables, report.digest) == (said.tables, said.digest)
    assert contents(postgres_database) == whole
    assert query(postgres_database, "select count(*) from pg_class where relname ~ '^lastro'") == [(0,)]
    back = undo(config, image, prove=True)
    assert contents(postgres_database) == before
    undo(config, back.image)
    assert contents(postgres_database) == whole


def test_some_tables_are_compared(postgres_database: str) -> None:
    """Goal: each table by what it holds. Method: lose all rows of some, change others, add a column that has a default."""
    execute(postgres_database, SHOP)
    config = config_of(postgres_database, "rows")
    view = take(config)
    execute(postgres_database, "delete from line where stay_id in (select id from stay where tenant = 1); delete from stay where tenant = 1;"
            "update guest set name = 'x' where tenant = 1; alter table line add column more text default 'm'")  # fmt: skip
    before = contents(postgres_database)
    progress = Counting()
    said = preview(config, view)
    report, image = run(progress, config, view, digest=said.digest)
    assert (report.tables, report.digest) == (said.tables, said.digest)
    assert progress.items["apply"] == 10 + 20
    assert progress.items["load"] > 0
    assert take(config).digests()["public.guest"] == view.digests()["public.guest"]
    assert query(postgres_database, "select more, count(*) from line group by 1") == [("m", 40)]
    undo(config, image)
    assert contents(postgres_database) == before


def test_keys_of_others_are_found_and_said(postgres_database: str) -> None:
    """Goal: what a comparison finds is found. Method: lost keys are another tenant's, then nobody's, then free but their value taken."""
    execute(postgres_database, SHOP)
    config = config_of(postgres_database, "rows")
    view = take(config)
    execute(postgres_database, SHOP_GONE)
    execute(postgres_database, "insert into room values (2, 2, 'theirs')")
    live = contents(postgres_database)
    with pytest.raises(TargetError, match="belong to rows outside"):
        apply(config, view)
    assert contents(postgres_database) == live
    execute(postgres_database, "update room set tenant = null where id = 2")
    said = preview(config, view)
    done = apply(config, view, digest=said.digest)
    assert {change.name: change.update for change in done.report.tables}["public.room"] == 1
    undo(config, done.image)
    assert contents(postgres_database)["public.room"] == sorted(
        ["(2,,theirs)" if row.startswith("(2,") else row for row in live["public.room"]]
    )


def test_rows_written_meanwhile_are_seen(postgres_database: str) -> None:
    """Goal: a row that comes after the look is not kept by accident, and not lost against a plan. Method: write as it applies."""
    execute(postgres_database, SHOP)
    config = config_of(postgres_database, "rows")
    view = take(config)
    execute(postgres_database, SHOP_GONE)
    said = preview(config, view)

    def write() -> None:
        execute(postgres_database, "insert into room values (500, 1, 'meanwhile')")

    with pytest.raises(StalePlan):
        run(Counting(apply=write), config, view, digest=said.digest)
    assert query(postgres_database, "select id from room where tenant = 1") == [(500,)]
    execute(postgres_database, "delete from room where id = 500")
    report, _ = run(Counting(apply=write), config, view)
    assert take(config).digests() == view.digests()
    assert {change.name: change.delete for change in report.tables}["public.room"] == 1


def test_an_owner_without_more_rights(postgres_database: str) -> None:
    """Goal: the server's own rules stay on for such a role. Method: its tables, a trigger, a row that the trigger would change."""
    execute(postgres_database, SHOP)
    execute(postgres_database, "create role keeper login password 'x';"
            "do $$ declare t text; begin foreach t in array array['room', 'guest', 'stay', 'line', 'log']"
            " loop execute format('alter table %I owner to keeper', t); end loop; end $$")  # fmt: skip
    try:
        parts = psycopg.conninfo.conninfo_to_dict(postgres_database) | {"user": "keeper", "password": "x"}
        config = config_of(psycopg.conninfo.make_conninfo("", **parts), "rows")
        whole, view = contents(postgres_database), take(config)
        execute(postgres_database, SHOP_GONE)
        done = apply(config, view, digest=preview(config, view).digest)
        assert contents(postgres_database) == whole
        assert done.report.neighbours["triggers_silent"] is False
        execute(postgres_database, SHOP_GONE + "create function shout() returns trigger language plpgsql as"
                " $$ begin new.name = upper(new.name); return new; end $$;"
                "create trigger shout before insert on room for each row execute function shout()")  # fmt: skip
        before = contents(postgres_database)
        with pytest.raises(TargetError, match="keep changing"):
            apply(config, view)
        assert contents(postgres_database) == before
    finally:
        execute(postgres_database, "drop owned by keeper cascade; drop role keeper")
