"""Retention as operators have it: policies in force, the trash, holds, dates, stores with rules of their own."""

import contextlib
import datetime
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from audit.models import Entry
from core import clock
from core.errors import ConfirmationNeeded, Conflict, NotFound
from operations.models import Operation, Schedule
from operations.schedules import ensure
from tenants.handlers import retention as retention_handler
from tenants.management.commands.backup import Command as BackupCommand
from tenants.management.commands.retention import Command as RetentionCommand
from tenants.management.commands.tenant import Command as TenantCommand
from tenants.models import Backup, BackupCopy, BackupPresence, Copy, Source, StoreConfig, Tenant
from tenants.retention.policy import DEFAULT, NOTHING, Policy, policy_of
from tenants.retention_selectors import keepings, kept_numbers
from tenants.selectors import backup_get, backup_usable
from tenants.services.backups import backup_delete_start, prune_start
from tenants.services.retention import (
    Place,
    policy_at,
    policy_drop,
    policy_put,
    retention_look,
    retention_start,
    upcoming,
)
from tenants.services.sources import source_archive
from tenants.services.stores import store_add
from tenants.services.trash import backup_undelete, backups_expire
from tests.tenants.conftest import ACTOR, House

NOON = datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC)  # A Sunday.
DAY = datetime.timedelta(days=1)
_COMMANDS = {"backup": BackupCommand, "retention": RetentionCommand, "tenant": TenantCommand}


def typed(noun: str, *words: object, code: int = 0) -> dict[str, Any]:
    """Run a command in this process, under its clock; its one JSON object."""
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        ended = _COMMANDS[noun]().run([*map(str, words), "--json"], noun=noun)
    assert ended == code, (words, ended, said.getvalue(), errors.getvalue())
    answer = json.loads(said.getvalue())
    assert isinstance(answer, dict)
    return answer


def aged(backup: Backup, at: datetime.datetime, **more: Any) -> Backup:
    """Make a real backup look older: its manifest is as it was, only the catalogue's date goes back."""
    Backup.objects.filter(pk=backup.pk).update(taken_at=at, created_at=at, **more)
    return backup_get(backup.pk)


def history(house: House, tenant: Tenant, days: int) -> list[Backup]:
    """One real backup for each of the last days, Sundays' full, oldest first; each with a file of its own."""
    source = Source.objects.get(tenant=tenant, name="assets")
    made = []
    for number in range(days, 0, -1):
        (house.folder(source) / "day").write_text(f"day {number} " * 200)
        at = NOON - number * DAY
        made.append(aged(house.backup(tenant), at, type="full" if at.weekday() == 6 else "incremental"))
    return made


def run(house: House, tenant: Tenant, **options: Any) -> Any:
    return house.run(retention_start(tenant, actor=ACTOR, here=True, **options)).result


@pytest.fixture
def aurora(house: House) -> Tenant:
    tenant = house.tenant()
    house.files(tenant)
    return tenant


# ---------------------------------------------------------------- the trash


def test_what_no_rule_keeps_goes_by_way_of_the_trash(
    house: House, aurora: Tenant, content: Callable[[Path], dict[str, bytes]]
) -> None:
    """Goal: nobody loses a backup within 7 days; end one by rule, restore and take back, wait, and find it gone."""
    with clock.held(NOON) as advance:
        made = history(house, aurora, 9)
        old, older = made[0], made[1]  # Neither is full, both older than a week.
        said = typed("retention", "upcoming", "aurora", "--days", "1")["data"]
        assert [row["id"] for row in said][:2] == [old.pk, older.pk]
        result = run(house, aurora)
        assert result["trashed"] == [old.pk, older.pk] and result["forgotten"] == 0 and result["prune"] is None
        listed = typed("backup", "list", "aurora", "--trash")["data"]
        assert {row["id"]: row["until"] for row in listed} == dict.fromkeys(
            (old.pk, older.pk), (NOON + 7 * DAY).isoformat().replace("+00:00", "Z")
        )
        assert [row["state"] for row in listed] == ["expired"] * 2
        target = house.data / "back"
        house.restore(backup_usable(old.pk), targets=[f"path={target}"])
        assert content(target)["day"] == b"day 9 " * 200
        advance(6 * DAY)
        assert run(house, aurora)["forgotten"] == 0
        typed("backup", "undelete", older.pk)
        assert backup_get(older.pk).held and backup_get(older.pk).state == "succeeded"
        advance(1 * DAY)
        ended = run(house, aurora)
        assert ended["forgotten"] == 1 and ended["prune"]["forgotten"] == [old.number]
        assert ended["prune"]["before"]["total"] > ended["prune"]["after"]["total"]
        with pytest.raises(NotFound, match="expired"):
            backup_usable(old.pk)
        with pytest.raises(Conflict, match="forgotten for good"):
            backup_undelete(backup_get(old.pk), actor=ACTOR)
    assert house.run(prune_start(aurora, dry_run=False, actor=ACTOR, here=True)).result["packs_dropped"] == 0
    house.restore(backup_usable(older.pk), targets=[f"path={house.data / 'older'}"])


def test_a_prune_leaves_the_trash_alone(house: House, aurora: Tenant) -> None:
    """Goal: ended by hand is not gone; delete, prune, take back, restore; then delete for good, and prune again."""
    first, _ = history(house, aurora, 2)
    house.run(backup_delete_start(first, actor=ACTOR, here=True))
    pruned = house.run(prune_start(aurora, dry_run=False, actor=ACTOR, here=True)).result
    assert pruned["forgotten"] == [] and pruned["before"]["trash"] > 0
    back = typed("backup", "undelete", first.pk, "--reason", "needed for the audit")
    assert back["state"] == "succeeded" and back["held"] and back["held_reason"] == "needed for the audit"
    house.restore(backup_get(first.pk), targets=[f"path={house.data / 'out'}"])
    assert typed("backup", "delete", first.pk, "--confirm", "aurora", code=1)["error"]["code"] == "catalogue.conflict"
    typed("backup", "release", first.pk)
    typed("backup", "delete", first.pk, code=6)
    gone = typed("backup", "delete", first.pk, "--now", "--confirm", "aurora")
    assert gone["state"] == "deleted" and gone["trashed_at"] is None
    pruned = house.run(prune_start(aurora, dry_run=False, actor=ACTOR, here=True)).result
    assert pruned["packs_dropped"] > 0 and pruned["after"]["total"] < pruned["before"]["total"]
    assert typed("backup", "undelete", first.pk, code=1)["error"]["detail"].endswith("was forgotten for good")
    events = set(Entry.objects.filter(tenant="aurora").values_list("type", flat=True))
    assert {"backup.trashed", "backup.undeleted", "backup.forgotten"} <= events


def test_what_lies_in_the_trash_can_go_before_its_time(house: House, aurora: Tenant) -> None:
    """Goal: an operator who must free space can; trash a backup, then delete it for good."""
    first, _ = history(house, aurora, 2)
    assert typed("backup", "delete", first.pk, "--confirm", "aurora")["until"] is not None
    again = typed("backup", "delete", first.pk, "--confirm", "aurora", code=1)
    assert "in the trash already" in again["error"]["detail"] and "undelete" in again["error"]["hint"]
    typed("backup", "delete", first.pk, "--now", "--confirm", "aurora")
    assert typed("backup", "list", "aurora", "--trash")["data"] == []


def test_the_trash_is_no_parent_and_no_last_backup(house: House, aurora: Tenant) -> None:
    """Goal: an ended backup serves for restores only; trash the newest but one, and look what the next is compared with."""
    first, second, third = history(house, aurora, 3)
    assert third.parent_id == second.pk
    house.run(backup_delete_start(second, actor=ACTOR, here=True))
    with pytest.raises(Conflict, match="last good"):
        backup_delete_start(third, actor=ACTOR, here=True)
    Backup.objects.filter(pk=third.pk).update(damaged=True)
    assert house.backup(aurora, "incremental").parent_id == first.pk


# ---------------------------------------------------------------- holds and last ones


def test_a_hold_on_the_tenant_stops_every_end(house: House, aurora: Tenant) -> None:
    """Goal: under legal hold nothing goes, not even out of the trash; hold, run, delete, release, run."""
    with clock.held(NOON) as advance:
        made = history(house, aurora, 10)
        house.run(backup_delete_start(made[5], actor=ACTOR, here=True))
        assert typed("tenant", "hold", "aurora", "--reason", "lawsuit 7")["held"]
        advance(8 * DAY)
        result = run(house, aurora)
        assert result["trashed_total"] == result["forgotten"] == 0
        refused = typed("backup", "delete", made[0].pk, "--now", "--confirm", "aurora", code=1)
        kept = typed("backup", "delete", made[5].pk, "--now", "--confirm", "aurora", code=1)
        assert "lawsuit 7" in kept["error"]["detail"], "not even out of the trash"
        assert "lawsuit 7" in refused["error"]["detail"] and "tenant release aurora" in refused["error"]["hint"]
        assert {each.verdict.rule for each in keepings(Tenant.objects.get(pk=aurora.pk))} == {"tenant_held"}
        assert upcoming(days=3000) == []
        typed("tenant", "release", "aurora")
        result = run(house, aurora)
        assert result["trashed_total"] > 5 and result["forgotten"] == 1
    assert typed("tenant", "hold", "aurora", "--reason", " ", code=2)["error"]["code"] == "usage.invalid"


def test_a_hold_that_comes_in_between_is_respected(
    house: House, aurora: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: a decision may be old when it is carried out; hold the tenant between the two."""
    with clock.held(NOON):
        made = history(house, aurora, 9)
        real = backups_expire

        def held_meanwhile(*args: Any, **options: Any) -> list[str]:
            Backup.objects.filter(pk=made[0].pk).update(held=True)
            return real(*args, **options)

        monkeypatch.setattr(retention_handler, "backups_expire", held_meanwhile)
        assert run(house, aurora)["trashed"] == [made[1].pk]


def test_the_last_good_backup_of_each_source_stays(house: House, aurora: Tenant) -> None:
    """Goal: a source is never without a way back, removed ones included; keep nothing at all, and run."""
    with clock.held(clock.now()) as advance:
        house.database(aurora)
        both = house.backup(aurora, sources=("assets", "db"))
        newer = house.backup(aurora, sources=("assets",))
        policy_put(Place(aurora), NOTHING, actor=ACTOR, confirmed="aurora")
        source_archive(Source.objects.get(tenant=aurora, name="db"), actor=ACTOR)
        advance(400 * DAY)
        house_now = {each.known.point.id: each for each in keepings(aurora)}
        assert run(house, aurora)["trashed_total"] == 0
        assert house_now[both.pk].words == "it is the last good backup of source db"
        assert house_now[newer.pk].verdict.goes_at is None


def test_safety_backups_wait_for_the_end_of_the_undo(house: House, aurora: Tenant) -> None:
    """Goal: what undoes a restore stays as long as it can be undone; restore, and look at its date and after it."""
    with clock.held(clock.now()) as advance:
        first = house.backup(aurora)
        source = Source.objects.get(tenant=aurora)
        (house.folder(source) / "a").write_text("newer")
        restore = house.restore(first)
        house.backup(aurora)
        (safety,) = [each for each in keepings(aurora) if each.known.point.trigger == "safety"]
        assert safety.known.point.id == restore.safety_backup_id and safety.verdict.rule == "undo"
        assert restore.finished_at is not None and safety.verdict.goes_at == restore.finished_at + 30 * DAY
        advance(29 * DAY)
        assert restore.safety_backup_id not in run(house, aurora)["trashed"]
        advance(2 * DAY)
        assert restore.safety_backup_id in run(house, aurora)["trashed"]


# ---------------------------------------------------------------- policies


def test_the_narrowest_policy_rules(house: House, aurora: Tenant) -> None:
    """Goal: what was set where is what holds; set policies at every width, and take them back."""
    source = Source.objects.get(tenant=aurora)
    store = aurora.store
    widths = [Place(), Place(store=store), Place(aurora), Place(aurora, store=store), Place(aurora, source)]
    for number, place in enumerate(widths, 1):
        policy_put(
            place, policy_of({"daily_count": number}), actor=ACTOR, confirmed="aurora" if place.tenant else "all"
        )
    assert policy_at(Place(aurora, source))[0].daily_count == 5
    assert policy_at(Place(aurora))[0].daily_count == 4
    for left in (3, 2, 1, 0):
        policy_drop(widths[left], actor=ACTOR, confirmed="aurora" if left > 1 else "all")
        assert policy_at(Place(aurora))[0] == (policy_of({"daily_count": left}) if left else DEFAULT)
    with pytest.raises(Conflict, match="no policy was set"):
        policy_drop(Place(aurora), actor=ACTOR)
    assert Entry.objects.filter(type="retention.set").count() == 5


def test_a_policy_that_ends_more_has_to_be_confirmed(house: House, aurora: Tenant) -> None:
    """Goal: nobody ends backups by a slip; lower a number without and with the confirmation, raise it without."""
    with clock.held(NOON):
        history(house, aurora, 6)
        refused = typed("retention", "set", "aurora", "--set", "incremental_days=2", code=6)
        assert refused["error"]["detail"].startswith("5 backups that stay today")
        told = typed("retention", "set", "aurora", "--set", "incremental_days=2", "--dry-run")
        assert told["goes"] == 5 and policy_at(Place(aurora))[0] == DEFAULT
        typed("retention", "set", "aurora", "--set", "incremental_days=2", "--confirm", "aurora")
        raised = typed("retention", "set", "aurora", "--set", "incremental_days=9")
        assert raised["stays"] == 5 and raised["policy"]["weekly_full_count"] == 4
        typed("retention", "set", "--preset", "default")
        policy_put(Place(aurora), replace(DEFAULT, daily_count=99), actor=ACTOR)
        policy_put(Place(), Policy(incremental_days=1, weekly_full_count=0), actor=ACTOR)
        with pytest.raises(ConfirmationNeeded, match="5 backups"):
            policy_drop(Place(aurora), actor=ACTOR)
    shown = typed("retention", "show")["data"]
    assert [row["place"] for row in shown] == ["every tenant", "tenant aurora", "built in"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("set", "aurora"), 2),
        (("set", "aurora", "--set", "daily_count"), 2),
        (("set", "aurora", "--set", "hourly=3"), 2),
        (("set", "aurora", "--preset", "bronze"), 2),
        (("set", "--source", "assets", "--set", "daily_count=1"), 2),
        (("set", "nobody", "--set", "daily_count=1"), 4),
        (("set", "aurora", "--source", "none", "--set", "daily_count=1"), 4),
        (("show", "aurora", "--store", "none"), 4),
        (("simulate", "aurora", "--policy", "/nowhere.json"), 2),
        (("simulate", "aurora", "--days", "0"), 2),
        (("reset", "aurora"), 1),
        (("thaw", "--confirm", "all"), 1),
    ],
)
def test_mistakes_are_named(aurora: Tenant, words: tuple[str, ...], code: int) -> None:
    """Goal: what cannot be meant is refused with a hint; type it."""
    error = typed("retention", *words, code=code)["error"]
    assert error["detail"] and error["hint"]


def test_the_simulator_names_the_rule_or_the_date(house: House, aurora: Tenant, tmp_path: Path) -> None:
    """Goal: a policy is known before it is set; simulate real and coming backups, by a file and by numbers."""
    with clock.held(NOON):
        made = history(house, aurora, 3)
        file = tmp_path / "policy.json"
        file.write_text(json.dumps({"daily_count": 2, "yearly_count": "forever"}))
        said = typed("retention", "simulate", "aurora", "--days", "10", "--policy", file, "--set", "daily_count=3")
        assert said["policy"]["daily_count"] == 3 and said["policy"]["yearly_count"] == "forever"
        assert [row["id"] for row in said["data"][:3]] == [backup.pk for backup in made]
        assert len(said["data"]) == 13 and said["kept"] == 3 and said["gone"] == 10
        assert all(row["rule"] and row["words"] for row in said["data"])
        assert [row["goes_at"][:10] for row in said["data"][:3]] == ["2026-11-23", "2026-11-24", "2026-11-25"]
        assert policy_at(Place(aurora))[0] == DEFAULT


# ---------------------------------------------------------------- stores with rules of their own


def _copy_store(house: House, aurora: Tenant, **values: int) -> tuple[StoreConfig, Copy]:
    store = store_add("far", kind="local", values={"path": str(house.data / "far")}, actor=ACTOR)
    policy_put(Place(store=store), policy_of(values), actor=ACTOR, confirmed="all")
    return store, Copy.objects.create(tenant=aurora, store=store, afterwards=False)


def test_each_store_keeps_what_its_rules_say(house: House, aurora: Tenant) -> None:
    """Goal: a copy may keep more than the primary, and less; ask which backups belong where."""
    with clock.held(NOON):
        made = history(house, aurora, 12)
        store, _ = _copy_store(house, aurora, weekly_count=3)
        here = {each.backup_id for each in kept_numbers(aurora, aurora.store)}
        there = {each.backup_id: each for each in kept_numbers(aurora, store)}
        assert {backup.pk for backup in made[-6:]} <= here
        assert set(there) == {made[-1].pk, made[5].pk}  # Yesterday, and the Sunday before.
        assert there[made[5].pk].rule == "weekly" and there[made[5].pk].number == made[5].number


def test_the_primary_waits_for_the_copy_and_then_lets_go(house: House, aurora: Tenant) -> None:
    """Goal: what a copy is to keep is not lost before it is there; end by the primary's rules before and after the copy."""
    with clock.held(NOON) as advance:
        made = history(house, aurora, 12)
        store, copy = _copy_store(house, aurora, daily_count=30)
        policy_put(Place(aurora), policy_of({"daily_count": 3}), actor=ACTOR, confirmed="aurora")
        result = run(house, aurora)
        assert result["trashed_total"] == result["left_primary"] == 0
        waiting = {each.known.point.id: each for each in keepings(aurora)}[made[0].pk]
        assert waiting.verdict.rule == "waits" and "store far" in waiting.words
        BackupCopy.objects.create(copy=copy, backup=made[0], presence=BackupPresence.PRESENT)
        result = run(house, aurora)
        assert result["left_primary"] == 1 and result["prune"]["forgotten"] == [made[0].number]
        left = backup_get(made[0].pk)
        assert left.state == "succeeded" and left.left_at == NOON and left.expires_at is not None
        assert made[0].pk in {each.backup_id for each in kept_numbers(aurora, store)}
        assert made[0].pk not in {each.backup_id for each in kept_numbers(aurora, aurora.store)}
        assert run(house, aurora)["left_primary"] == 0
        advance(40 * DAY)
        policy_put(Place(store=store), NOTHING, actor=ACTOR, confirmed="all")
        assert made[0].pk in run(house, aurora)["trashed"]


def test_the_primary_keeps_what_its_copy_has_lost_meanwhile(house: House, aurora: Tenant) -> None:
    """Goal: the last whole one stays. Method: let go of a backup, be killed before the prune, lose the copy, prune."""
    with clock.held(NOON):
        made = history(house, aurora, 3)
        _, copy = _copy_store(house, aurora, daily_count=30)
        Backup.objects.filter(pk=made[0].pk).update(left_at=NOON)
        there = BackupCopy.objects.create(copy=copy, backup=made[0], presence=BackupPresence.DAMAGED)
        for presence, held, forgotten in (
            (BackupPresence.DAMAGED, False, []),
            (BackupPresence.PRESENT, True, []),
            (BackupPresence.PRESENT, False, [made[0].number]),
        ):
            BackupCopy.objects.filter(pk=there.pk).update(presence=presence)
            Tenant.objects.filter(pk=aurora.pk).update(held=held)
            pruned = house.run(prune_start(aurora, dry_run=False, actor=ACTOR, here=True))
            assert pruned.result["forgotten"] == forgotten


# ---------------------------------------------------------------- the daily look


def test_the_daily_look_writes_dates_once_and_queues_what_is_due(house: House, aurora: Tenant) -> None:
    """Goal: ten thousand tenants cost no writes on a quiet day; look twice, count what is written and queued."""
    with clock.held(NOON):
        history(house, aurora, 9)
        quiet = house.tenant("boreal")
        house.files(quiet)
        aged(house.backup(quiet), NOON)
        first = retention_look(actor=ACTOR)
        assert (first.tenants, first.backups, first.going, len(first.queued)) == (2, 10, 2, 1)
        assert first.dates_changed == 10
        assert Operation.objects.get(pk=first.queued[0]).kind == "retention"
        with CaptureQueriesContext(
            connection,
        ) as queries:
            again = retention_look(actor=ACTOR)
        assert again.dates_changed == 0 and again.queued == [], "the one that waits is not doubled"
        written = [each["sql"] for each in queries if each["sql"].startswith(("UPDATE", "INSERT"))]
        assert not [sql for sql in written if "tenants_backup" in sql]
        assert [each.pk for each in upcoming(days=30)][:1] == [Backup.objects.order_by("taken_at")[0].pk]


def test_exactly_one_schedule_looks_daily(db: None) -> None:
    """Goal: retention runs without being asked, and once; start the schedules twice."""
    ensure()
    ensure()
    (row,) = Schedule.objects.filter(work="retention")
    assert (row.cron, row.selection, row.paused_at) == ("0 4 * * *", {}, None)


def test_a_removed_tenant_keeps_everything(house: House, aurora: Tenant) -> None:
    """Goal: removing a tenant ends no backup; remove it, look, run."""
    with clock.held(NOON):
        history(house, aurora, 9)
        typed("tenant", "remove", "aurora", "--confirm", "aurora")
        assert retention_look(actor=ACTOR).tenants == 0
        assert typed("retention", "run", "aurora", "--here", code=1)["error"]["code"] == "catalogue.conflict"
