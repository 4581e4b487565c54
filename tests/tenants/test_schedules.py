"""Schedules of tenants: what a new installation does, for whom, and that real backups come of it."""

import contextlib
import datetime
import importlib
import io
import json
from typing import Any

import pytest
from django.apps import apps
from django.core.management.base import CommandError
from django_q.models import Schedule as Standing

from core import clock
from core.errors import NotFound
from engine.errors import UsageError
from operations.management.commands.schedule import Command as ScheduleCommand
from operations.models import ExpectedRun, Operation, Schedule
from operations.schedules import ensure
from operations.scheduling.selectors import run_list, schedule_get
from operations.scheduling.services import schedule_remove, schedules_without
from operations.scheduling.ticking import scheduler_tick
from operations.services import operation_run
from tenants.models import Backup, Drill, Tenant
from tenants.services import drill_schedules
from tenants.services.sources import source_archive
from tenants.services.tenants import tenant_archive
from tests.tenants.conftest import ACTOR, House

SATURDAY = datetime.datetime(2026, 11, 21, 23, 30, tzinfo=datetime.UTC)
MINUTE, HOUR, DAY = datetime.timedelta(minutes=1), datetime.timedelta(hours=1), datetime.timedelta(days=1)


def typed(*words: str, code: int = 0) -> dict[str, Any]:
    """Run `schedule …` as it is typed, and give its JSON."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert ScheduleCommand().run([*words, "--json"], noun="schedule") == code
    return json.loads(out.getvalue())


def _work() -> list[str]:
    """Run what is queued, as workers would; the kinds."""
    queued = list(Operation.objects.filter(state="queued").order_by("priority", "turn", "id"))
    return [operation_run(operation.pk).kind for operation in queued]


def test_a_database_every_four_hours_assets_daily_configurations_weekly(house: House) -> None:
    """Goal: what the operator says is what is backed up, full on Sundays; three schedules, real backups, a day and a half."""
    with clock.held(SATURDAY) as advance:
        tenant = house.tenant()
        house.files(tenant, "assets")
        house.database(tenant, "db")
        typed(
            "add", "db", "--work", "backup", "--cron", "0 */4 * * *", "--category", "database", "--set", "tags=by-clock"
        )
        typed("add", "assets", "--work", "backup", "--cron", "@daily", "--category", "assets", "--full", "sun")
        typed("add", "conf", "--work", "backup", "--cron", "0 3 * * 1", "--category", "configurations")
        for _ in range(10):
            scheduler_tick()
            _work()
            advance(4 * HOUR)
    taken = [
        (f"{backup.created_at:%a %H}", backup.requested_type, [each.name for each in backup.sources.all()], backup.tags)
        for backup in Backup.objects.order_by("created_at")
    ]
    assert [each[:3] for each in taken if each[2] == ["assets"]] == [
        ("Sun 03", "full", ["assets"]),
        ("Mon 03", "incremental", ["assets"]),
    ]
    assert len([each for each in taken if each[2] == ["db"] and each[3] == ["by-clock"]]) == 9
    assert set(Backup.objects.values_list("state", "trigger")) == {("succeeded", "schedule")}
    assert not ExpectedRun.objects.filter(schedule_name="conf").exists(), "nobody has configurations"
    runs = run_list(schedule=schedule_get("db"), states=["ok"])
    assert len(runs) == 9 and all(run.tenant == "aurora" and run.lane == tenant.store.name for run in runs)
    shown = typed("show", "db")
    assert (len(shown["next_runs"]), shown["words"]) == (5, "Every 4 hours")
    assert len(typed("runs", "db", "--state", "ok", "--limit", "3")["data"]) == 3


def test_a_new_installation_works_by_itself(house: House, settings: Any) -> None:
    """Goal: the defaults of the design, made once; start twice, remove one, start again, and let a night pass."""
    settings.INHERITED_SCHEDULE = "15 1 * * *"
    with clock.held(SATURDAY) as advance:
        ensure()
        made = {row.name: (row.work, row.cron, row.full) for row in Schedule.objects.all()}
        assert made["backups"] == ("backup", "15 1 * * *", "sun")
        assert {name: made[name][:2] for name in ("drills", "verification", "catalogue")} == {
            "drills": ("drill", "0 2 * * 0"),
            "verification": ("samples", "0 3 * * *"),
            "catalogue": ("catalogue", "*/15 * * * *"),
        }
        schedule_remove(schedule_get("structure"), actor=ACTOR)
        ensure()
        with pytest.raises(NotFound):
            schedule_get("structure")
        tenant = house.tenant()
        house.files(tenant)
        kinds = []
        for _ in range(11):
            scheduler_tick()
            kinds += _work()
            advance(30 * MINUTE)
        assert set(kinds) >= {"backup", "drill", "copies", "retention_look", "catalogue"}
    assert Drill.objects.get().state == "passed"
    assert Backup.objects.get(requested_type="full").state == "succeeded"
    assert not ExpectedRun.objects.filter(state="failed").exists()
    assert typed("list", "--work", "backup")["data"][0]["name"] == "backups"


def test_a_bad_schedule_of_the_environment_is_refused(house: House, settings: Any) -> None:
    """Goal: a typing error in BACKUP_SCHEDULE is not a night without backups; start with one that never comes."""
    settings.INHERITED_SCHEDULE = "0 0 31 2 *"
    with pytest.raises(UsageError, match="never comes"):
        ensure()
    assert not Schedule.objects.exists(), "nothing is made then"
    from operations.management.commands.worker import Command

    with pytest.raises(CommandError, match="BACKUP_SCHEDULE"):
        Command().handle(cluster=None, quiet=True)


def test_a_tenants_own_drills_take_the_place_of_the_general_ones(house: House) -> None:
    """Goal: nobody is rehearsed twice; one tenant has a schedule of its own."""
    with clock.held(SATURDAY) as advance:
        ensure()
        for slug in ("aurora", "boreal"):
            tenant = house.tenant(slug)
            house.files(tenant)
            house.backup(tenant)
        drill_schedules.drill_schedule_put(Tenant.objects.get(slug="aurora"), "30 3 * * *", actor=ACTOR)
        advance(2 * HOUR)
        scheduler_tick()
        expected = ExpectedRun.objects.filter(work="drill").values_list("schedule_name", "tenant")
        assert set(expected) == {("drills", "boreal")}
        advance(HOUR)
        scheduler_tick()
        assert ("drill-aurora", "aurora") in set(expected.all())
        assert schedules_without("aurora", actor=ACTOR) == 1
        with pytest.raises(NotFound):
            schedule_get("drill-aurora")


def test_whoever_has_nothing_left_is_not_expected(house: House) -> None:
    """Goal: a source or a tenant that was removed makes no alarm; remove them while their runs are expected."""
    with clock.held(SATURDAY) as advance:
        for slug in ("aurora", "boreal", "cobre"):
            house.files(house.tenant(slug))
        typed("add", "nightly", "--work", "backup", "--cron", "0 0 * * *")
        scheduler_tick()
        assert ExpectedRun.objects.filter(state="expected").count() == 3
        source_archive(Tenant.objects.get(slug="aurora").sources.get(), actor=ACTOR)
        tenant_archive(Tenant.objects.get(slug="boreal"), actor=ACTOR)
        advance(31 * MINUTE)
        scheduler_tick()
    assert list(ExpectedRun.objects.values_list("tenant", "state")) == [("cobre", "running")]


def test_old_schedules_move_over(house: House) -> None:
    """Goal: an upgrade loses no drill; rows of the queue's own table, moved as the migration does."""
    Standing.objects.create(name="lastro: retention", func="tenants.tasks.retention_scheduled", cron="0 4 * * *")
    old = Standing(name="drill:aurora", func="tenants.tasks.drill_scheduled", schedule_type="C", cron="30 3 * * *")
    Standing.objects.bulk_create([old])
    importlib.import_module("operations.migrations.0004_schedules").move(apps, None)
    row = schedule_get("drill-aurora")
    assert (row.work, row.cron, row.selection) == ("drill", "30 3 * * *", {"tenants": ["aurora"]})
    assert not Standing.objects.exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("add", "x", "--work", "backup"), "engine.usage"),
        (("add", "x", "--work", "backup", "--cron", "0 25 * * *"), "engine.usage"),
        (("add", "x", "--work", "backup", "--cron", "@daily", "--tenant", "nobody"), "catalogue.not_found"),
        (("add", "x", "--work", "backup", "--cron", "@daily", "--all", "--source", "s"), "engine.usage"),
        (("add", "x", "--work", "backup", "--cron", "@daily", "--set", "compress"), "engine.usage"),
        (("add", "x", "--work", "backup", "--cron", "@daily", "--set", "nothing=1"), "engine.usage"),
        (("add", "x", "--work", "copies", "--cron", "@daily", "--full", "sun"), "engine.usage"),
        (("show", "nothing"), "catalogue.not_found"),
        (("next",), "engine.usage"),
        (("next", "--cron", "@daily", "--zone", "Mars/North"), "engine.usage"),
    ],
)
def test_what_was_typed_wrong_is_said(house: House, words: tuple[str, ...], code: str) -> None:
    """Goal: every refusal has its code and a hint; type something wrong."""
    exit_code = 4 if code == "catalogue.not_found" else 2
    error = typed(*words, code=exit_code)["error"]
    assert error["hint"], error
    assert not Schedule.objects.exists()


def test_the_next_times_are_shown(house: House) -> None:
    """Goal: an expression can be tried; over the night in which clocks go back."""
    with clock.held(datetime.datetime(2026, 10, 24, 12, tzinfo=datetime.UTC)):
        shown = typed("next", "--cron", "30 1 * * *", "--zone", "Europe/Lisbon", "--count", "2")
    assert shown == {
        "words": "At 01:30",
        "zone": "Europe/Lisbon",
        "next_runs": ["2026-10-25T00:30:00.000Z", "2026-10-26T01:30:00.000Z"],
    }
