"""Large objects of a PostgreSQL database: previewed and bound like rows, and said where an undo leaves them."""

import pytest

from core.errors import Conflict
from tenants import plan_outputs, restore_outputs
from tenants.models import Source, Tenant
from tenants.services.sources import source_add
from tests.connectors.postgres_views import execute, query
from tests.tenants.conftest import ACTOR, House

OBJECTS = "select oid::int, convert_from(lo_get(oid), 'UTF8') from pg_largeobject_metadata order by 1"
MADE = [(77, "one" * 2000), (78, "two")]


def _source(house: House, dsn: str) -> tuple[Tenant, Source]:
    execute(dsn, "create table t(id int primary key, v text); insert into t values (1, 'a'), (2, 'b')")
    execute(dsn, "select lo_from_bytea(77, repeat('one', 2000)::bytea), lo_from_bytea(78, 'two')")
    tenant = house.tenant()
    source, _ = source_add(
        tenant, "db", kind="postgresql", category="database", values={"dsn": dsn, "layout": "database"}, actor=ACTOR
    )
    return tenant, source


def test_large_objects_are_previewed_bound_and_brought_back(house: House, postgres_database: str) -> None:
    """Goal: what the preview shows of them is what is done; change each sort, plan, change again, run, undo, put them back."""
    tenant, _ = _source(house, postgres_database)
    backup = house.backup(tenant)
    execute(
        postgres_database,
        "select lo_put(77, 4000, 'XX'), lo_unlink(78), lo_from_bytea(79, 'new'); delete from t where id = 1",
    )
    damaged = query(postgres_database, OBJECTS)
    plan = house.plan(backup)
    large = {"insert": 1, "update": 1, "delete": 1, "unchanged": 0}
    shown = plan_outputs.plan(plan)["tables"][-1]
    assert (shown["name"], {name: shown[name] for name in large}) == ("large objects", large)
    execute(postgres_database, "select lo_put(77, 0, 'Y')")
    assert house.run_plan(plan, ok=False).error_code == "plan.stale"
    execute(postgres_database, "select lo_put(77, 0, 'o')")
    assert query(postgres_database, OBJECTS) == damaged
    restore = house.run_plan(house.plan(backup))
    assert query(postgres_database, OBJECTS) == MADE
    undo = house.undo(restore)
    assert query(postgres_database, "select id from t order by 1") == [(2,)]
    assert query(postgres_database, OBJECTS) == MADE
    (warning,) = [each["message"] for each in undo.warnings if each["code"] == "restore.left_behind"]
    assert warning.endswith(
        f"restore plan {restore.safety_backup_id} --mode selective --source db --module 'large objects'"
    )
    assert restore.safety_backup is not None
    house.restore(restore.safety_backup, mode="selective", sources=("db",), modules=("large objects",))
    assert query(postgres_database, OBJECTS) == damaged
    assert query(postgres_database, "select id from t order by 1") == [(2,)]


def test_large_objects_alone_are_not_undone_by_force(house: House, postgres_database: str) -> None:
    """Goal: an undo never takes newer rows along; change large objects alone, restore, write a row, ask for the undo."""
    tenant, _ = _source(house, postgres_database)
    backup = house.backup(tenant)
    quiet = house.restore(backup)
    assert not any("large" in each["message"] for each in quiet.warnings)
    assert restore_outputs.restore(quiet)["undoable"] == []
    execute(postgres_database, "select lo_unlink(78)")
    restore = house.restore(backup)
    assert query(postgres_database, OBJECTS) == MADE
    execute(postgres_database, "insert into t values (3, 'newer')")
    with pytest.raises(Conflict, match="large objects alone") as refused:
        house.undo(restore)
    assert f"restore plan {restore.safety_backup_id} --mode selective" in refused.value.hint
    assert query(postgres_database, "select count(*) from t") == [(3,)]
