"""Modes through the services: what is named is found or refused, and what is planned is done on real PostgreSQL and SQLite."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from engine.errors import UsageError
from tenants import plan_outputs
from tenants.models import Backup, Restore, RestorePlan, Tenant
from tenants.plan_text import plan_text
from tenants.services.sources import source_add
from tests.tenants.conftest import ACTOR, House

_SCHEMA = """
CREATE TABLE users (id bigserial PRIMARY KEY, tenant int, name text, updated_at timestamptz DEFAULT now());
CREATE TABLE rooms (id bigserial PRIMARY KEY, tenant int, name text);
CREATE TABLE reservations (id bigserial PRIMARY KEY, tenant int, user_id bigint REFERENCES users,
  room_id bigint REFERENCES rooms, note text, updated_at timestamptz DEFAULT now());
INSERT INTO users (tenant, name) SELECT 1 + g % 2, 'u' || g FROM generate_series(1, 60) g;
INSERT INTO rooms (tenant, name) SELECT 1 + g % 2, 'r' || g FROM generate_series(1, 10) g;
INSERT INTO reservations (tenant, user_id, room_id, note)
  SELECT u.tenant, u.id, (SELECT min(id) FROM rooms r WHERE r.tenant = u.tenant), 'n' || u.id FROM users u;
"""
TABLES = ("users", "rooms", "reservations")


class Shared:
    """Shared tables of two tenants in PostgreSQL, of which the second is ours, and a SQLite beside it."""

    def __init__(self, house: House, dsn: str) -> None:
        self.house, self.dsn, self.tenant = house, dsn, house.tenant()
        self.sql(_SCHEMA)
        values = {"dsn": dsn, "layout": "rows", "tenant_column": "tenant", "tenant_value": "2"}
        source_add(self.tenant, "bookings", kind="postgresql", category="database", values=values, actor=ACTOR)
        self.crm = Path(house.database(self.tenant, "crm", rows=20).config["path"])

    def sql(self, text: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            done = connection.execute(text)  # type: ignore[arg-type]
            return done.fetchall() if done.description else []

    def rows(self, *, ours: bool = True) -> dict[str, list[tuple[Any, ...]]]:
        sign = "=" if ours else "<>"
        return {table: self.sql(f"SELECT * FROM {table} WHERE tenant {sign} 2 ORDER BY id") for table in TABLES}

    def plan(self, backup: Backup, **wish: Any) -> tuple[RestorePlan, dict[str, Any]]:
        plan = self.house.plan(backup, **wish)
        return plan, {f"{each['source']}.{each['name']}": each for each in plan_outputs.plan(plan)["tables"]}


@pytest.fixture
def shared(house: House, postgres_database: str) -> Iterator[Shared]:
    return Shared(house, postgres_database)


def _break(shared: Shared) -> None:
    shared.sql("DELETE FROM reservations WHERE tenant = 2 AND id % 3 = 0")
    shared.sql("UPDATE reservations SET note = 'newer', updated_at = now() WHERE tenant = 2 AND id % 7 = 1")
    shared.sql("INSERT INTO reservations (tenant, user_id, note) SELECT 2, min(id), 'new' FROM users WHERE tenant = 2")
    with sqlite3.connect(shared.crm) as connection:
        connection.execute("DELETE FROM users WHERE id < 5")


@pytest.mark.parametrize("mode", ["full", "selective", "merge"])
def test_what_is_planned_is_done_and_undone(shared: Shared, mode: str) -> None:
    """Goal: previewed, applied and undone row for row, neighbours untouched; plan, run and undo on both databases."""
    backup = shared.house.backup(shared.tenant)
    _break(shared)
    before, others = shared.rows(), shared.rows(ours=False)
    modules = ("reservations", "crm.users") if mode == "selective" else ()
    plan, tables = shared.plan(backup, mode=mode, modules=modules)
    assert shared.rows() == before
    restore = shared.house.run_plan(plan)
    done = {f"{s['name']}.{t['name']}": t for s in _sources(restore) for t in s["tables"]}
    counts = ("insert", "update", "delete", "unchanged", "kept", "conflicts", "collisions", "withheld", "stays")
    assert {name: {c: t[c] for c in counts} for name, t in done.items()} == {
        name: {c: t[c] for c in counts} for name, t in tables.items()
    }
    assert restore.state == "succeeded"
    notes = [row[0] for row in shared.sql("SELECT note FROM reservations WHERE tenant = 2")]
    assert notes.count("new") == (1 if mode == "merge" else 0)
    assert ("newer" in notes) == (mode == "merge")
    assert len(notes) == 30 + (mode == "merge")
    assert shared.rows(ours=False) == others
    shared.house.undo(restore)
    assert shared.rows() == before
    assert shared.rows(ours=False) == others


def _sources(restore: Restore) -> list[dict[str, Any]]:
    from tenants.restore_outputs import restore as restore_json

    sources: list[dict[str, Any]] = restore_json(restore)["sources"]
    return sources


def test_neighbours_never_make_a_plan_stale_and_own_rows_do(shared: Shared) -> None:
    """Goal: the digest binds what is changed and nothing else; write as a neighbour, run; write as the tenant, run."""
    backup = shared.house.backup(shared.tenant)
    _break(shared)
    first, _ = shared.plan(backup, mode="merge")
    shared.sql("UPDATE reservations SET note = 'theirs' WHERE tenant = 1")
    assert shared.house.run_plan(first).state == "succeeded"
    _break(shared)
    second, _ = shared.plan(backup, mode="full")
    shared.sql("UPDATE reservations SET note = 'newest' WHERE tenant = 2 AND id % 7 = 1")
    before = shared.rows()
    stale = shared.house.run_plan(second, ok=False)
    assert (stale.state, stale.error_code) == ("failed", "plan.stale")
    assert shared.rows() == before
    with sqlite3.connect(shared.crm) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (15,)


def test_a_three_way_merge_takes_each_sides_changes(shared: Shared) -> None:
    """Goal: with a base each side keeps what it alone did; change both sides after the base, list what both changed."""
    base = shared.house.backup(shared.tenant)
    ids = [row[0] for row in shared.sql("SELECT id FROM users WHERE tenant = 2 ORDER BY id LIMIT 4")]
    shared.sql(f"UPDATE users SET name = 'theirs' WHERE id IN ({ids[0]}, {ids[2]})")
    backup = shared.house.backup(shared.tenant, "incremental")
    shared.sql(f"UPDATE users SET name = 'u' || id WHERE id = {ids[0]}")
    shared.sql(f"UPDATE users SET name = 'u' || id, updated_at = (SELECT updated_at FROM users WHERE id = {ids[3]})")
    shared.sql(f"UPDATE users SET name = 'ours' WHERE id IN ({ids[1]}, {ids[2]})")
    plan, tables = shared.plan(backup, mode="merge", base=base.pk, sources=("bookings",))
    users = next(each for name, each in tables.items() if name.endswith("users"))
    assert users["conflicts"] == 1
    restore = shared.house.run_plan(plan)
    assert restore.base_id == base.pk
    names = dict(shared.sql(f"SELECT id, name FROM users WHERE id IN ({', '.join(map(str, ids))})"))
    assert names == {ids[0]: "theirs", ids[1]: "ours", ids[2]: "ours", ids[3]: f"u{ids[3]}"}


_IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"mode": "selective", "modules": ("roms",)}, "no module 'roms'; did you mean rooms"),
    ({"mode": "selective", "modules": ("users",)}, "could be bookings.users and crm.users"),
    ({"mode": "selective"}, "needs --module"),
    ({"mode": "full", "modules": ("rooms",)}, "--module does not go with --mode full"),
    ({"mode": "merge", "modules": ("rooms",)}, "--module does not go with --mode merge"),
    ({"mode": "sideways"}, "mode 'sideways' is not known"),
    ({"mode": "full", "policies": ("rooms=take_backup",)}, "--policy does not go with"),
    ({"mode": "merge", "policies": ("rooms",)}, "a policy is MODULE=POLICY"),
    ({"mode": "merge", "policies": ("rooms=take_backups",)}, "did you mean take_backup"),
    ({"mode": "merge", "policies": ("roms=take_backup",)}, "did you mean rooms"),
    ({"mode": "merge", "clocks": ("rooms=updated",)}, "table .*rooms has no column 'updated'"),
    ({"mode": "merge", "clocks": ("reservations=updated",)}, "did you mean updated_at"),
    ({"mode": "merge", "clocks": ("reservations",)}, "a clock is TABLE=COLUMN"),
    ({"mode": "selective", "modules": ("rooms",), "sources": ("bookings", "crm")}, "no module of source crm"),
    ({"mode": "selective", "modules": ("crm.rooms",)}, "no module 'crm.rooms'"),
]


def test_what_cannot_be_meant_is_refused(shared: Shared) -> None:
    """Goal: bad input ends before anything is queued, with what was perhaps meant; try each for a plan and a restore."""
    backup = shared.house.backup(shared.tenant)
    for wish, message in _IMPOSSIBLE:
        with pytest.raises(UsageError, match=message):
            shared.house.plan(backup, **wish)
        with pytest.raises(UsageError, match=message):
            shared.house.restore(backup, **wish)
    assert not RestorePlan.objects.exists()
    assert not Restore.objects.exists()


def test_a_base_must_fit(shared: Shared) -> None:
    """Goal: a merge is never based on somebody else's backup, or on one without the source; give both."""
    house = shared.house
    backup = house.backup(shared.tenant)
    other: Tenant = house.tenant("boreal")
    house.database(other, "bookings")
    foreign = house.backup(other)
    with pytest.raises(UsageError, match="of another tenant"):
        house.plan(backup, mode="merge", base=foreign.pk)
    partial = house.backup(shared.tenant, sources=("crm",))
    with pytest.raises(UsageError, match="does not hold source 'bookings'"):
        house.plan(backup, mode="merge", base=partial.pk)
    newer = house.backup(shared.tenant, "incremental")
    assert house.plan(backup, mode="merge", base=newer.pk).state == "ready"


def test_what_must_come_along_is_said(shared: Shared) -> None:
    """Goal: nobody is surprised by a row of another module; lose guests with their reservations, choose these alone."""
    backup = shared.house.backup(shared.tenant)
    gone = "SELECT id FROM users WHERE tenant = 2 ORDER BY id LIMIT 2"
    ids = [row[0] for row in shared.sql(gone)]
    shared.sql(f"DELETE FROM reservations WHERE user_id IN ({gone}); DELETE FROM users WHERE id IN ({gone})")
    plan = shared.house.plan(backup, mode="selective", modules=("reservations",))
    said = plan_outputs.plan(plan)
    text = "\n".join(plan_text(said))
    assert "2 rows of public.users come along, because restored rows of public.reservations refer to them" in text
    shared.house.run_plan(plan)
    assert shared.sql(f"SELECT count(*) FROM users WHERE id IN ({ids[0]}, {ids[1]})") == [(2,)]
