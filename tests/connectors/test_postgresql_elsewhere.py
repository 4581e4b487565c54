"""Previews and selections for other targets: a schema, a database."""

import pytest

from engine.errors import StalePlan, TargetOccupied, UsageError
from tests.connectors.postgres_changes import config_of, preview
from tests.connectors.postgres_views import execute, put_back, query, take
from tests.connectors.test_postgresql_selective import CHAIN, without
from tests.services.postgres import PostgresServer

TARGETS = {"rows": {"schema": "copied"}, "schema": {"schema": "copied"}}


@pytest.mark.parametrize("layout", TARGETS)
@pytest.mark.parametrize("definitions", [True, False])
def test_a_selection_goes_into_a_schema(postgres_database: str, layout: str, definitions: bool) -> None:
    """Goal: chosen modules and what they refer to. Method: one table of a chain, keys from definitions and from live tables."""
    config = config_of(postgres_database, layout, definitions=definitions)
    execute(postgres_database, CHAIN + 'create table "odd ""name"(id int primary key, tenant int, "ro om" int, n int, foreign key ("ro om", n) references room);'
            "delete from room where house_id = 20; update house set twin = 40 where id = 41; insert into house values (999, 1, 2, null, 'alone')")  # fmt: skip
    view = take(config)
    request = {"mode": "selective", "modules": ("room",)}
    said = preview(config, view, target=TARGETS[layout], **request)
    put_back(config, view, target=TARGETS[layout], digest=said.digest, **request)
    counts = {change.name.split(".")[1]: change.insert for change in said.tables}
    for table, count in counts.items():
        assert query(postgres_database, f"select count(*) from copied.{table}") == [(count,)]
    live = (
        "where tenant = 1 and id in (select house_id from room)"
        if layout == "rows"
        else "where id in (select house_id from room)"
    )
    assert query(postgres_database, f"select count(*) from house {live}") == [(counts["house"],)]
    assert {(d.kind, d.table) for d in said.dependencies} >= {("along", "public.house"), ("along", "public.city")}
    assert ("public.country" in {d.table for d in said.dependencies}) == (layout == "schema")
    with pytest.raises(UsageError):
        preview(config, view, target=TARGETS[layout], mode="selective", modules=("nowhere",))
    again = preview(config, view, target=TARGETS[layout], **request)
    assert "copied holds" in again.warnings[0] and again.digest == said.digest
    with pytest.raises(TargetOccupied):
        put_back(config, view, target=TARGETS[layout], **request)
    with pytest.raises(StalePlan):
        put_back(config, view, target=TARGETS[layout], digest=said.digest, overwrite=True)
    put_back(config, view, target=TARGETS[layout], digest=said.digest, overwrite=True, **request)


@pytest.mark.parametrize("layout", ["rows", "schema", "database"])
def test_a_selection_and_the_erased_in_a_new_database(
    postgres: PostgresServer, postgres_database: str, layout: str
) -> None:
    """Goal: the same in a database that is made; references to erased rows are not enforced. Method: both, with a preview."""
    config = config_of(postgres_database, layout, definitions=True)
    execute(postgres_database, CHAIN)
    view = take(config)
    name = f"made_{layout}_{postgres_database.rpartition('/')[2]}"
    target = {"dsn": postgres.dsn(name)}
    try:
        said = preview(config, view, target=target, mode="selective", modules=("note",))
        assert name in said.warnings[0]
        put_back(config, view, target=target, mode="selective", modules=("note",), digest=said.digest)
        counts = {change.name: change.insert for change in said.tables}
        assert set(counts) >= {"public.note", "public.house", "public.city"} and "public.room" not in counts
        assert query(target["dsn"], "select (select count(*) from house), (select count(*) from room)") == [
            (counts["public.house"], 0)
        ]
        assert "holds" in preview(config, view, target=target).warnings[0] or layout == "rows"
        gone = without(view, "public.city", b"2")
        if layout != "rows":
            done = put_back(config, gone, target=target, overwrite=True)
            assert any("without validation" in warning for warning in done.report.warnings)
            assert query(target["dsn"], "select count(*) from city where id = 2") == [(0,)]
        else:
            assert {change.name for change in preview(config, gone, target=target, overwrite=True).tables} >= {
                "public.house"
            }
            put_back(config, gone, target=target, overwrite=True)
            assert query(target["dsn"], "select count(*) from house where city_id = 2") == [(2,)]
    finally:
        postgres.drop_database(name)


def test_the_shared_tables_own_schema_is_no_target(postgres_database: str) -> None:
    """Goal: no confirmation drops every tenant's tables. Method: one tenant's rows are to go where all the tables are."""
    config = config_of(postgres_database, "rows", definitions=False)
    execute(postgres_database, CHAIN)
    view = take(config)
    with pytest.raises(UsageError, match="shared tables themselves"):
        preview(config, view, target={"schema": "public"})
    with pytest.raises(UsageError, match="shared tables themselves"):
        put_back(config, view, target={"schema": "public"}, overwrite=True)
