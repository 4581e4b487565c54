"""Large objects of a PostgreSQL database: previewed and bound like rows, undone with them, whatever the moment of a kill."""

import functools
from typing import Any

import pytest

from connectors._postgresql import imaging, large_comparing
from core.errors import Conflict
from engine.ports import TableChange
from tenants import plan_outputs, restore_outputs
from tenants.models import RestoreState, Source, Tenant
from tenants.services.sources import source_add
from tests.connectors.postgres_views import execute, query
from tests.tenants.conftest import ACTOR, House
from tests.tenants.killing import killed

OBJECTS = "select oid::int, convert_from(lo_get(oid), 'UTF8'), obj_description(oid, 'pg_largeobject') from pg_largeobject_metadata order by 1"
MADE = [(77, "one" * 2000, None), (78, "two", "kept")]
LARGE = "large objects"


def _source(house: House, dsn: str) -> tuple[Tenant, Source]:
    execute(dsn, "create table t(id int primary key, v text); insert into t values (1, 'a'), (2, 'b')")
    execute(dsn, "select lo_from_bytea(77, repeat('one', 2000)::bytea), lo_from_bytea(78, 'two')")
    execute(dsn, "comment on large object 78 is 'kept'")
    tenant = house.tenant()
    source, _ = source_add(
        tenant, "db", kind="postgresql", category="database", values={"dsn": dsn, "layout": "database"}, actor=ACTOR
    )
    return tenant, source


def _hurt(dsn: str) -> list[tuple[Any, ...]]:
    execute(dsn, "select lo_put(77, 4000, 'XX'), lo_unlink(78), lo_from_bytea(79, 'new'); delete from t where id = 1")
    return query(dsn, OBJECTS)


def test_large_objects_are_previewed_bound_and_undone(house: House, postgres_database: str) -> None:
    """Goal: what the preview shows of them is what is done, and undone by one call. Method: each sort of change; plan, run, undo twice."""
    tenant, _ = _source(house, postgres_database)
    backup = house.backup(tenant)
    damaged = _hurt(postgres_database)
    plan = house.plan(backup)
    large = {"insert": 1, "update": 1, "delete": 1, "unchanged": 0}
    shown = plan_outputs.plan(plan)["tables"][-1]
    assert (shown["name"], {name: shown[name] for name in large}) == (LARGE, large)
    execute(postgres_database, "select lo_put(77, 0, 'Y')")
    assert house.run_plan(plan, ok=False).error_code == "plan.stale"
    execute(postgres_database, "select lo_put(77, 0, 'o')")
    assert query(postgres_database, OBJECTS) == damaged
    restore = house.run_plan(house.plan(backup))
    assert query(postgres_database, OBJECTS) == MADE
    undo = house.undo(restore)
    assert (query(postgres_database, OBJECTS), query(postgres_database, "select id from t")) == (damaged, [(2,)])
    assert not [each for each in undo.warnings if "large" in each["message"]]
    house.undo(undo)
    assert (query(postgres_database, OBJECTS), len(query(postgres_database, "select id from t"))) == (MADE, 2)


def test_large_objects_alone_are_undone(house: House, postgres_database: str) -> None:
    """Goal: an undo takes nothing else along. Method: change large objects alone, restore, write a row, undo."""
    tenant, _ = _source(house, postgres_database)
    backup = house.backup(tenant)
    quiet = house.restore(backup)
    assert restore_outputs.restore(quiet)["undoable"] == []
    execute(postgres_database, "select lo_unlink(78)")
    restore = house.restore(backup)
    assert query(postgres_database, OBJECTS) == MADE
    execute(postgres_database, "insert into t values (3, 'newer')")
    house.undo(restore)
    assert query(postgres_database, OBJECTS) == MADE[:1]
    assert query(postgres_database, "select count(*) from t") == [(3,)]


def test_a_newer_object_asks_for_a_preview_that_names_it(house: House, postgres_database: str) -> None:
    """Goal: nobody's newer upload is lost silently. Method: write after the restore; undo, plan the undo, run that plan."""
    tenant, _ = _source(house, postgres_database)
    backup = house.backup(tenant)
    damaged = _hurt(postgres_database)
    restore = house.restore(backup)
    execute(postgres_database, "select lo_put(78, 0, 'uploaded since')")
    undo = house.undo(restore, ok=False)
    assert (undo.error_code, undo.state) == ("plan.stale", RestoreState.FAILED)
    assert "large objects (78) that the restore wrote have changed since" in undo.error
    plan = house.undo_plan(restore)
    (large,) = [table for table in plan_outputs.plan(plan)["tables"] if table["name"] == LARGE]
    assert (large["insert"], large["update"], large["delete"], large["conflicts"]) == (1, 1, 1, 1)
    first = plan_outputs.plan(plan)["sources"][0]["samples"][LARGE][0]
    assert (first["change"], first["key"]) == ("conflict", {"oid": "78"})
    house.run_plan(plan)
    assert query(postgres_database, OBJECTS) == damaged


@pytest.mark.parametrize(
    ("of", "label"),
    [("restore", "pg.restore.objects"), ("undo", "pg.restore.objects"), ("undo", "pg.restore.committed")],
)
def test_a_kill_leaves_the_old_or_the_new(house: House, postgres_database: str, of: str, label: str) -> None:
    """Goal: never half of them. Method: SIGKILL at the label in a restore and in an undo, then the retry."""
    tenant, _ = _source(house, postgres_database)
    backup = house.backup(tenant)
    damaged = _hurt(postgres_database)
    first = house.restore(backup) if of == "undo" else None
    old, new = (MADE, damaged) if first else (damaged, MADE)

    def work() -> object:
        return house.undo(first) if first else house.restore(backup)

    killed(work, label=label)
    committed = label == "pg.restore.committed"
    assert query(postgres_database, OBJECTS) == (new if committed else old)
    if not committed:
        done = house.undo(first) if first else house.restore(backup)
        assert query(postgres_database, OBJECTS) == new
        house.undo(done)
        assert query(postgres_database, OBJECTS) == old


def test_images_of_older_versions_say_what_they_leave(
    house: House, postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: an image without large objects is undone as before, with a word. Method: an image and a report without them."""
    monkeypatch.setattr(imaging, "write_large_image", lambda *_: None)
    monkeypatch.setattr(large_comparing, "TableChange", functools.partial(TableChange, imaged=False))
    tenant, _ = _source(house, postgres_database)
    backup = house.backup(tenant)
    _hurt(postgres_database)
    restore = house.restore(backup)
    undo = house.undo(restore)
    assert (query(postgres_database, OBJECTS), query(postgres_database, "select id from t")) == (MADE, [(2,)])
    (warning,) = [each["message"] for each in undo.warnings if each["code"] == "restore.left_behind"]
    assert warning.endswith(
        f"restore plan {restore.safety_backup_id} --mode selective --source db --module 'large objects'"
    )
    execute(postgres_database, "insert into t values (1, 'a'); select lo_unlink(78)")
    alone = house.restore(backup)
    with pytest.raises(Conflict, match="large objects alone") as refused:
        house.undo(alone)
    assert f"restore plan {alone.safety_backup_id} --mode selective" in refused.value.hint
