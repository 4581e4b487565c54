"""Merges of PostgreSQL sources: policies, clocks, collisions, a base, rows that others hold, drifted schemas."""

import pytest

from engine.errors import TargetError, UsageError
from engine.plans import POLICIES
from tests.connectors.postgres_changes import LAYOUTS, apply, config_of, contents, preview, undo
from tests.connectors.postgres_views import execute, query, table_text, take

TABLE = "create table t(id int primary key, tenant int, v text, updated_at timestamptz);"


def changes(report: object, name: str = "public.t") -> dict[str, int]:
    """The counts of a table that are not zero."""
    found = next(change for change in report.tables if change.name == name)  # type: ignore[attr-defined]
    names = ("insert", "update", "delete", "kept", "conflicts", "collisions", "withheld", "stays", "unchanged")
    return {each: getattr(found, each) for each in names if getattr(found, each)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("policy", "texts"),
    [
        ("only_missing", ["1 same", "2 newer", "3 older", "4 no clock", "5 back", "6 own"]),
        ("newest_wins", ["1 same", "2 newer", "3 then", "4 no clock", "5 back", "6 own"]),
        ("take_backup", ["1 same", "2 then", "3 then", "4 then", "5 back", "6 own"]),
    ],
)
def test_policies(postgres_database: str, layout: str, policy: str, texts: list[str]) -> None:
    """Goal: each policy as documented. Method: a row of every kind, in every layout."""
    config = config_of(postgres_database, layout)
    execute(
        postgres_database,
        TABLE
        + "insert into t values (1, 1, '1 same', null), (2, 1, '2 then', '2026-02-01'), (3, 1, '3 then', '2026-02-01'),"
        "(4, 1, '4 then', '2026-02-01'), (5, 1, '5 back', '2026-02-01')",
    )
    view = take(config)
    execute(
        postgres_database,
        "update t set v = '2 newer', updated_at = '2026-03-01' where id = 2; update t set v = '3 older', updated_at = '2026-01-01' where id = 3;"
        "update t set v = '4 no clock', updated_at = null where id = 4; delete from t where id = 5; insert into t values (6, 1, '6 own', null)",
    )
    done = apply(config, view, mode="merge", policies={"t": policy})
    assert [row[0] for row in query(postgres_database, "select v from t order by id")] == texts
    updated = {"only_missing": 0, "newest_wins": 1, "take_backup": 3}[policy]
    wanted = {"insert": 1, "update": updated, "kept": 4 - updated, "unchanged": 1}
    assert changes(done.report) == {name: count for name, count in wanted.items() if count}


@pytest.mark.parametrize("policy", POLICIES)
def test_three_ways(postgres_database: str, policy: str) -> None:
    """Goal: with a base one side's changes are that side's. Method: every pair of what two sides can do to a row."""
    config = config_of(postgres_database, "rows")
    rows = {"keep": 1, "theirs": 2, "ours": 3, "both": 4, "we_delete": 5, "they_delete": 6, "d_vs_u": 7, "u_vs_d": 8}
    values = ", ".join(f"({key}, 1, 'base', '2026-01-01')" for key in rows.values())
    execute(postgres_database, TABLE + f"insert into t values {values}")
    base = take(config)
    execute(postgres_database, "update t set v = 'backup', updated_at = '2026-03-01' where id in (2, 4, 7); delete from t where id in (6, 8);"
            "insert into t values (20, 1, 'backup', null)")  # fmt: skip
    view = take(config)
    execute(postgres_database, f"delete from t; insert into t values {values};"
            "update t set v = 'live', updated_at = '2026-02-01' where id in (3, 4, 8); delete from t where id in (5, 7);"
            "insert into t values (21, 1, 'live', null)")  # fmt: skip
    done = apply(config, view, mode="merge", base=base, policies={"t": policy})
    found = dict(query(postgres_database, "select id, v from t"))
    expected = {
        1: "base",
        2: "backup",
        3: "live",
        4: "live" if policy == "only_missing" else "backup",
        7: "backup",
        20: "backup",
        21: "live",
    }
    if policy != "take_backup":
        expected[8] = "live"
    assert found == expected
    assert changes(done.report)["conflicts"] == 3
    conflicts = [
        s.key["id"]
        for s in preview(config, view, mode="merge", base=base).samples["public.t"]
        if s.change == "conflict"
    ]
    assert set(conflicts) <= {"4", "8"}
    assert apply(config, view, mode="merge", base=base, policies={"t": policy}).report.tables[0].insert == 0


@pytest.mark.parametrize(
    ("columns", "one", "other", "collides"),
    [
        ("created_at date, a int", "'2026-01-01', 1", "'2026-01-02', 1", True),
        ("created_at date, a int", "'2026-01-01', 1", "'2026-01-01', 2", False),
        ("created_at date, a int", "null, 1", "'2026-01-01', 2", False),
        ("created_at date, a int unique", "'2026-01-01', 1", "'2026-01-01', 2", False),
        ("created_at date, a int unique", "null, 1", "'2026-01-01', 2", True),
        ("mail text unique, a int", "'x', 1", "'y', 1", True),
        ("mail text unique, a int", "'x', 1", "'x', 2", False),
        ("mail text unique, nick text unique, a int", "'x', 'n', 1", "'y', 'n', 1", False),
        ("mail text unique, nick text unique, a int", "'x', 'n', 1", "'y', 'm', 1", True),
        ("a int, b int, c int", "1, 1, 1", "2, 2, 2", True),
        ("a int, b int, c int", "1, 1, 1", "2, 2, 1", False),
        ("a int, b int", "1, 1", "2, 2", False),
    ],
)
def test_collisions_are_found_by_content(
    postgres_database: str, columns: str, one: str, other: str, collides: bool
) -> None:
    """Goal: two things of one key are never mixed. Method: every rule of the record of decisions, and children of both."""
    config = config_of(postgres_database, "rows")
    execute(
        postgres_database,
        f"create table t(id int primary key, tenant int, {columns}); create table child(id int primary key, tenant int, t int references t);"
        f"insert into t values (1, 1, {one}); insert into child values (1, 1, 1), (2, 1, 1)",
    )
    view = take(config)
    execute(
        postgres_database,
        f"delete from child; delete from t; insert into t values (1, 1, {other}); insert into child values (2, 1, null)",
    )
    before = contents(postgres_database)
    said = preview(config, view, mode="merge", policies={"t": "take_backup", "child": "take_backup"})
    done = apply(config, view, mode="merge", policies={"t": "take_backup", "child": "take_backup"}, digest=said.digest)
    if collides:
        assert changes(done.report) == {"collisions": 1}
        assert changes(done.report, "public.child") == {"withheld": 2}
        assert [(d.kind, d.table, d.rows) for d in said.dependencies] == [("withheld", "public.child", 2)]
        assert said.samples["public.t"][0].change == "collision"
        assert contents(postgres_database) == before
    else:
        assert changes(done.report) == {"update": 1}
        assert changes(done.report, "public.child") == {"insert": 1, "update": 1}
        undo(config, done.image)
        assert contents(postgres_database) == before


@pytest.mark.parametrize(
    "constraint",
    [
        "unique (code)",
        "exclude using btree (code with =)",
        "unique (code) deferrable initially deferred",
        "check (true)); create unique index on t (lower(code)) where code <> 'none'; create table u(id int",
    ],
)
def test_unique_values_given_out_again(postgres_database: str, constraint: str) -> None:
    """Goal: a value of another row is left to it. Method: constraints, expressions, part of the rows; another tenant's too."""
    config = config_of(postgres_database, "rows")
    execute(postgres_database, f"create table t(id int primary key, tenant int, code text, created_at int default 1, {constraint});"
            "create table child(id int primary key, tenant int, t int references t);"
            "insert into t values (1, 1, 'a'), (2, 1, 'b'), (3, 1, 'c'), (4, 1, 'd'); insert into child select id, 1, id from t")  # fmt: skip
    view = take(config)
    execute(postgres_database, "delete from child where id < 4; delete from t where id < 4; update t set code = 'moved' where id = 4;"
            "insert into t values (11, 1, 'a'), (12, 2, 'b'), (13, 1, 'd')")  # fmt: skip
    before = contents(postgres_database)
    done = apply(config, view, mode="merge", policies={"t": "take_backup"})
    assert query(postgres_database, "select id, code from t where id < 10 order by 1") == [(3, "c"), (4, "moved")]
    assert changes(done.report) | {"kept": 0} == {"insert": 1, "collisions": 3, "kept": 0}
    assert query(postgres_database, "select t from child order by 1") == [(3,), (4,)]
    undo(config, done.image)
    assert contents(postgres_database) == before


def test_a_reused_key_after_the_base_is_nobodys(postgres_database: str) -> None:
    """Goal: the base tells a reused key even when the backup's row is gone. Method: deleted there, given out anew here."""
    config = config_of(postgres_database, "rows")
    execute(
        postgres_database,
        "create table t(id int primary key, tenant int, created_at int, v text); insert into t values (1, 1, 1, 'x'), (2, 1, 1, 'x')",
    )
    base = take(config)
    execute(postgres_database, "delete from t where id = 1; update t set v = 'y' where id = 2")
    view = take(config)
    execute(postgres_database, "delete from t; insert into t values (1, 1, 7, 'new'), (2, 1, 7, 'new')")
    done = apply(config, view, mode="merge", base=base, policies={"t": "take_backup"})
    assert table_text(postgres_database, "t") == ["(1,1,7,new)", "(2,1,7,new)"]
    assert changes(done.report) == {"kept": 1, "collisions": 1}


def test_clocks_may_be_named(postgres_database: str) -> None:
    """Goal: an application's own clock. Method: a version number; a table without any clock says so."""
    config = config_of(postgres_database, "rows")
    execute(postgres_database, "create table t(id int primary key, tenant int, version int, v text); create table u(id int primary key, tenant int, v text);"
            "insert into t values (1, 1, 5, 'then'), (2, 1, 5, 'then'); insert into u values (1, 1, 'then')")  # fmt: skip
    view = take(config)
    execute(
        postgres_database,
        "update t set version = 4, v = 'now' where id = 1; update t set version = 6, v = 'now' where id = 2; update u set v = 'now'",
    )
    policies = {"t": "newest_wins", "u": "newest_wins"}
    said = preview(config, view, mode="merge", policies=policies, clocks={"public.t": "version"})
    assert said.facts["clocks"] == {"public.t": "version"}
    assert any("public.u" in warning and "when a row changed" in warning for warning in said.warnings)
    apply(config, view, mode="merge", policies=policies, clocks={"t": "version"}, digest=said.digest)
    with pytest.raises(UsageError, match="is text, which does not tell which row is newer"):
        preview(config, view, mode="merge", policies=policies, clocks={"t": "v"})
    assert query(postgres_database, "select v from t order by id") == [("then",), ("now",)]
    assert query(postgres_database, "select v from u") == [("now",)]


def test_keys_of_other_tenants_collide(postgres_database: str) -> None:
    """Goal: a merge does what a full restore would refuse. Method: a lost row's key belongs to somebody else."""
    config = config_of(postgres_database, "rows")
    execute(postgres_database, TABLE + "create table child(id int primary key, tenant int, t int references t);"
            "insert into t values (1, 1, 'mine'), (2, 1, 'mine'); insert into child values (1, 1, 1), (2, 1, 2)")  # fmt: skip
    view = take(config)
    execute(postgres_database, "delete from child; delete from t; insert into t values (1, 2, 'theirs')")
    with pytest.raises(TargetError, match="outside"):
        apply(config, view)
    done = apply(config, view, mode="merge", prove=True)
    assert table_text(postgres_database, "t") == ["(1,2,theirs,)", "(2,1,mine,)"]
    assert query(postgres_database, "select id from child") == [(2,)]
    assert changes(done.report) == {"insert": 1, "collisions": 1}


@pytest.mark.parametrize("mode", ["full", "merge", "selective"])
def test_an_older_backup_goes_into_a_newer_schema(postgres_database: str, mode: str) -> None:
    """Goal: columns by name, defaults, removed ones reported, types converted. Method: all of them, and the undo."""
    config = config_of(postgres_database, "rows")
    execute(postgres_database, "create table t(id int primary key, tenant int, gone text, n int, v text);"
            "insert into t select g, 1, 'g', g, 'v' from generate_series(1, 4) g")  # fmt: skip
    view = take(config)
    execute(postgres_database, "alter table t drop gone; alter table t add extra text default 'new'; alter table t alter n type bigint;"
            "alter table t add twice bigint generated always as (n * 2) stored; delete from t where id = 1; update t set v = 'w', extra = 'mine' where id = 2")  # fmt: skip
    before = contents(postgres_database)
    request = {"mode": mode, "policies": {"t": "take_backup"}, "modules": ("t",)}
    done = apply(config, view, **request)
    assert query(postgres_database, "select id, n, v, extra, twice from t order by id limit 2") == [
        (1, 1, "v", "new", 2),
        (2, 2, "v", "mine", 4),
    ]
    assert any("gone" in warning for warning in done.report.warnings)
    undo(config, done.image)
    assert contents(postgres_database) == before


def test_sequences_go_past_what_came_back(postgres_database: str) -> None:
    """Goal: no key is given twice after a merge. Method: a sequence that was set back."""
    config = config_of(postgres_database, "rows")
    execute(
        postgres_database,
        "create table t(id serial primary key, tenant int); insert into t(tenant) select 1 from generate_series(1, 20)",
    )
    view = take(config)
    execute(postgres_database, "delete from t; select setval('t_id_seq', 3)")
    apply(config, view, mode="merge")
    assert query(postgres_database, "select nextval('t_id_seq')") == [(21,)]
