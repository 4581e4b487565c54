"""Previews: they say what a restore does, in every mode and layout, and change and hold up nothing."""

import psycopg
import pytest

from connectors.postgresql import PostgresqlConnector
from engine.errors import SchemaMismatch, StalePlan, TargetDenied, UsageError
from engine.progress import NullProgress
from tests.connectors.postgres_changes import LAYOUTS, MemoryImage, apply, config_of, contents, preview, request_of
from tests.connectors.postgres_views import execute, query, take

SHOP = """
create table room(id int primary key, tenant int, name text);
create table guest(id serial primary key, tenant int, name text, email text unique, updated_at timestamptz default now());
create table stay(id serial primary key, tenant int, guest_id int references guest, room_id int references room,
                  note text, updated_at timestamptz default '2026-01-01');
create table line(stay_id int references stay, n int, v numeric, primary key (stay_id, n));
create table log(tenant int, said text);
insert into room select g, 1 + g % 2, 'r' || g from generate_series(1, 10) g;
insert into guest(tenant, name, email) select 1 + g % 2, 'g' || g, 'm' || g from generate_series(1, 20) g;
insert into stay(tenant, guest_id, room_id, note) select g.tenant, g.id, 1 + (g.id - 1) % 10, 'n' || g.id from guest g;
insert into line select s.id, n, n from stay s, generate_series(1, 2) n;
insert into log select 1 + g % 2, 'said ' || g % 3 from generate_series(1, 12) g;
"""
DAMAGE = """
delete from line where stay_id in (2, 4, 6);
delete from stay where id in (4, 6);
delete from guest where id in (4, 6);
update stay set note = 'newer', updated_at = '2026-06-01' where id in (8, 10);
insert into stay(id, tenant, guest_id, room_id, note) values (100, 1, 2, 2, 'brand new');
update room set name = 'renamed' where id = 2;
delete from log where tenant = 1 and said = 'said 1';
insert into log values (1, 'said since');
"""
MODES = {
    "full": {},
    "selective": {"modules": ("stay",)},
    "merge": {},
    "newest": {"policies": {"stay": "newest_wins", "room": "take_backup"}},
    "backup": {"policies": dict.fromkeys(("room", "guest", "stay", "line", "log"), "take_backup")},
}


def mode_of(name: str) -> dict[str, object]:
    return {"mode": name if name in ("full", "selective") else "merge", **MODES[name]}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODES)
def test_what_is_applied_is_what_was_previewed(postgres_database: str, layout: str, name: str) -> None:
    """Goal: promise 3. Method: preview and apply every mode in every layout; counts, digest and image agree."""
    config = config_of(postgres_database, layout)
    execute(postgres_database, SHOP)
    view = take(config)
    execute(postgres_database, DAMAGE)
    before, others = contents(postgres_database), query(postgres_database, "select * from stay where tenant = 2")
    said = preview(config, view, **mode_of(name))
    assert contents(postgres_database) == before
    assert preview(config, view, **mode_of(name)).digest == said.digest
    done = apply(config, view, digest=said.digest, prove=True, **mode_of(name))
    assert (done.report.tables, done.report.digest) == (said.tables, said.digest)
    counts = {change.name: change for change in said.tables}
    for header, batches in done.image.written:
        change, rows = counts[header["name"]], sum(map(len, batches))
        wanted = change.insert if header["rows"] == "after" else change.delete
        assert rows == change.update + wanted
    assert query(postgres_database, "select * from stay where tenant = 2") == others
    if name == "full":
        assert take(config).digests() == view.digests()
    notes = dict(query(postgres_database, "select id, note from stay where id in (4, 8, 100)"))
    assert notes[4] == "n4"
    assert notes.get(100) == (None if name in ("full", "selective") else "brand new")
    assert notes[8] == ("n8" if name in ("full", "selective", "backup") else "newer")


def test_samples_show_the_telling_rows(postgres_database: str) -> None:
    """Goal: an operator sees which rows and columns differ. Method: an update, a deletion, long values and nulls."""
    execute(postgres_database, "create table t(id int primary key, tenant int, v text, w text);"
            "insert into t select g, 1, repeat('x', 300), null from generate_series(1, 50) g")  # fmt: skip
    config = config_of(postgres_database, "rows")
    view = take(config)
    execute(
        postgres_database,
        "update t set w = 'new' where id <= 30; delete from t where id = 40; insert into t values (99, 1, 'extra')",
    )
    samples = preview(config, view).samples["public.t"]
    assert len(samples) == 20
    first, second = samples[:2]
    assert (first.change, first.key, first.after) == ("delete", {"id": "99"}, None)
    assert (second.change, second.fields) == ("update", ("w",))
    assert second.before == {"id": "1", "tenant": "1", "v": "x" * 200, "w": "new"}
    assert second.after == {"id": "1", "tenant": "1", "v": "x" * 200, "w": None}
    assert [s.change for s in preview(config, view, samples=100).samples["public.t"]].count("insert") == 1
    assert preview(config, view, samples=0).samples == {}


def test_only_the_tenants_changes_make_a_plan_stale(postgres_database: str) -> None:
    """Goal: what is applied is what was seen, and neighbours do not matter. Method: both write after the preview."""
    execute(postgres_database, SHOP)
    config = config_of(postgres_database, "rows")
    view = take(config)
    execute(postgres_database, DAMAGE)
    full, merge = preview(config, view), preview(config, view, mode="merge")
    execute(
        postgres_database,
        "update stay set note = 'theirs' where tenant = 2; insert into stay(id, tenant, guest_id) values (200, 2, 1)",
    )
    execute(postgres_database, "insert into stay(id, tenant, guest_id) values (300, 1, 2)")
    before = contents(postgres_database)
    with pytest.raises(StalePlan):
        apply(config, view, digest=full.digest)
    assert contents(postgres_database) == before
    apply(config, view, digest=merge.digest, mode="merge")
    assert query(postgres_database, "select id from stay where id in (4, 200, 300) order by 1") == [
        (4,),
        (200,),
        (300,),
    ]


def test_previews_and_prepared_restores_hold_nobody_up(postgres_database: str) -> None:
    """Goal: writers of other tenants never wait. Method: they write under a short lock timeout at every step."""
    execute(postgres_database, SHOP)
    config = config_of(postgres_database, "rows")
    view = take(config)
    execute(postgres_database, DAMAGE)
    writes = 0

    def write() -> None:
        nonlocal writes
        with psycopg.connect(postgres_database) as other:
            other.execute("set lock_timeout = '200ms'")
            other.execute("update stay set note = note || '.' where tenant = 2")
            other.execute(
                "insert into stay(tenant, guest_id, room_id) select 2, min(id), 1 from guest where tenant = 2"
            )
            other.execute(
                "delete from line where stay_id = (select max(stay_id) from line l join stay s on s.id = stay_id where tenant = 2)"
            )
            writes += 1

    class Watched(NullProgress):
        def phase(self, name: str) -> None:
            write()

    connector = PostgresqlConnector(config)
    connector.preview(view, request_of(), Watched())
    with connector.prepare(view, request_of(), Watched()) as prepared:
        write()
        prepared.image(MemoryImage())
        write()
        prepared.commit()
    assert writes >= 8
    assert take(config).digests() == view.digests()


def test_leaving_without_a_commit_changes_nothing(postgres_database: str) -> None:
    """Goal: two phases. Method: prepare and leave; then lose the connection while everything is applied."""
    execute(postgres_database, SHOP)
    config = config_of(postgres_database, "rows")
    view = take(config)
    execute(postgres_database, DAMAGE)
    before, connector = contents(postgres_database), PostgresqlConnector(config)
    with connector.prepare(view, request_of(), NullProgress()) as prepared:
        token = prepared.token
    assert contents(postgres_database) == before
    assert connector.settle(token) is False
    end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'lastro' and datname = current_database()"
    with connector.prepare(view, request_of(), NullProgress()) as prepared:
        assert query(postgres_database, end) == [(1,)]
        with pytest.raises(Exception, match=r"terminat|closed|lost"):
            prepared.commit()
    assert contents(postgres_database) == before
    with connector.prepare(view, request_of(), NullProgress()) as prepared:
        prepared.commit()
    assert connector.settle(prepared.token) is True
    assert connector.settle({**prepared.token, "system_identifier": "1"}) is None
    assert connector.settle({**prepared.token, "transaction": "99999999"}) is None


@pytest.mark.parametrize("mode", ["full", "merge", "selective"])
def test_rights_are_asked_for_first(postgres_database: str, mode: str) -> None:
    """Goal: a role without rights hears so, by preview and restore alike. Method: take away DELETE on one table."""
    execute(
        postgres_database,
        SHOP
        + "create role limited login password 'x'; grant select, insert, update on all tables in schema public to limited",
    )
    config = config_of(postgres_database, "rows")
    view = take(config)
    try:
        parts = psycopg.conninfo.conninfo_to_dict(postgres_database) | {"user": "limited", "password": "x"}
        theirs = config_of(psycopg.conninfo.make_conninfo("", **parts), "rows")
        for attempt in (preview, apply):
            with pytest.raises(TargetDenied, match="DELETE"):
                attempt(theirs, view, mode=mode, modules=("stay",) if mode == "selective" else ())
    finally:
        execute(postgres_database, "drop owned by limited; drop role limited")


def test_unknown_names_are_refused(postgres_database: str) -> None:
    """Goal: bad input is named. Method: a module with a typing error, a clock that is no column."""
    execute(postgres_database, SHOP)
    config = config_of(postgres_database, "rows")
    view = take(config)
    with pytest.raises(UsageError, match="guest") as refused:
        preview(config, view, mode="selective", modules=("gest",))
    assert "guest" in refused.value.hint
    with pytest.raises(UsageError, match="changed_on"):
        preview(config, view, mode="merge", policies={"stay": "newest_wins"}, clocks={"public.stay": "changed_on"})
    execute(
        postgres_database,
        "alter table log add must text; update log set must = ''; alter table log alter must set not null; delete from log where tenant = 1",
    )
    for mode in ("full", "merge"):
        with pytest.raises(SchemaMismatch, match="must"):
            preview(config, view, mode=mode)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_drift_is_said(postgres_database: str, layout: str) -> None:
    """Goal: an operator sees what has become of the schema. Method: columns, types, constraints, indexes, of every kind."""
    execute(
        postgres_database,
        SHOP + "alter table stay add constraint kept check (id > 0), add constraint goes check (id < 1000000);"
        'create index "by ""note" on stay (note); create index by_name on guest (name) where name <> \'x\';',
    )
    config = config_of(postgres_database, layout, definitions=True)
    view = take(config)
    assert preview(config, view).drift == ()
    execute(
        postgres_database,
        "alter table stay add paid bool default false; alter table guest drop email; alter table line alter v type text;"
        "alter table stay drop constraint goes; alter table room add constraint named check (name <> ''); drop index by_name;"
        "create unique index by_name on guest (name); create index more on log (said); alter table stay drop constraint stay_room_id_fkey",
    )
    drift = {each.where: (each.was, each.now) for each in preview(config, view).drift}
    assert drift == {
        "public.stay.paid": (None, "boolean"),
        "public.guest.email": ("text", None),
        "public.line.v": ("numeric", "text"),
        "public.stay, constraint goes": ("CHECK ((id < 1000000))", None),
        "public.room, constraint named": (None, "CHECK ((name <> ''::text))"),
        "public.guest, constraint guest_email_key": ("UNIQUE (email)", None),
        "public.guest, index by_name": (
            "CREATE INDEX by_name ON public.guest USING btree (name) WHERE (name <> 'x'::text)",
            "CREATE UNIQUE INDEX by_name ON public.guest USING btree (name)",
        ),
        "public.log, index more": (None, "CREATE INDEX more ON public.log USING btree (said)"),
        "public.stay, constraint stay_room_id_fkey": ("FOREIGN KEY (room_id) REFERENCES public.room(id)", None),
    }
    assert all(each.action for each in preview(config, view).drift)


def test_elsewhere_everything_is_an_insertion(postgres_database: str) -> None:
    """Goal: previews of other targets. Method: a new schema, then one that is taken."""
    execute(postgres_database, SHOP)
    config = config_of(postgres_database, "rows")
    view = take(config)
    said = preview(config, view, target={"schema": "copied"})
    assert {change.name: change.insert for change in said.tables} == {t.name: t.row_count for t in view.tables}
    assert not said.warnings
    execute(postgres_database, "create schema copied; create table copied.t()")
    assert "copied" in preview(config, view, target={"schema": "copied"}).warnings[0]
