"""Copies through the services: made, read in need, verified, mended, kept by rules of their own."""

import datetime
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core import clock
from core.errors import Busy, Conflict
from engine.errors import ObjectMissing, RepositoryMissing, WrongKey
from operations.models import Operation
from operations.scheduling.works import Order
from operations.services import operation_run
from tenants.copy_diagnosis import copy_signs
from tenants.copy_opening import copy_open, nearness, read_measured
from tenants.copy_outputs import backup_copies
from tenants.copy_selectors import copy_get, copy_primary, findings_open, protections
from tenants.models import Backup, BackupCopy, Copy, CopyFinding, StoreConfig, Tenant
from tenants.selectors import backup_get, tenant_get
from tenants.services.backups import prune_start
from tenants.services.browsing import backup_browse
from tenants.services.copies import (
    copies_all_start,
    copy_add,
    copy_remove,
    copy_repair_start,
    copy_run_start,
    copy_set,
    copy_verify_start,
)
from tenants.services.erasures import erasure_add
from tenants.services.stores import store_add
from tests.services.seaweed import LOCKED
from tests.tenants.conftest import ACTOR, House

Content = Callable[[Path], dict[str, bytes]]
StoreValues = Callable[[str], dict[str, str]]


class Copies:
    """A tenant with files and a database, its primary in the default store, and copies in further ones."""

    def __init__(self, house: House) -> None:
        self.house, self.tenant = house, house.tenant()
        self.files = house.files(self.tenant, a="one", b="two" * 50_000)
        self.database = house.database(self.tenant, rows=200)

    def store(self, name: str = "second", kind: str = "local", values: dict[str, str] | None = None) -> StoreConfig:
        return store_add(name, kind=kind, values=values or {"path": str(self.house.data / name)}, actor=ACTOR)

    def add(self, name: str = "second", **more: Any) -> Copy:
        return copy_add(self.tenant, self.store(name, **more), actor=ACTOR)

    def run(self, copy: Copy, *, ok: bool = True, **more: Any) -> Operation:
        return self.house.run(copy_run_start(copy, actor=ACTOR, here=True, **more), ok=ok)

    def verify(self, copy: Copy, mode: str = "structure", *, repair: bool = False) -> dict[str, Any]:
        operation = copy_verify_start(copy, mode=mode, actor=ACTOR, here=True, repair=repair)
        return dict(self.house.run(operation).result or {})

    def repair(self, copy: Copy, *, ok: bool = True) -> dict[str, Any]:
        return dict(self.house.run(copy_repair_start(copy, actor=ACTOR, here=True), ok=ok).result or {})

    def change(self, text: str) -> Backup:
        (self.house.folder(self.files) / "a").write_text(text * 20_000)
        return self.house.backup(self.tenant, "incremental")

    def objects(self, name: str, sort: str) -> list[Path]:
        return sorted(each for each in (self.house.data / name).rglob(f"{sort}/**/*") if each.is_file())

    def again(self, copy: Copy) -> Copy:
        return Copy.objects.select_related("store", "tenant__store").get(pk=copy.pk)

    def primary(self) -> Copy:
        return copy_primary(tenant_get("aurora"))


@pytest.fixture
def copies(house: House) -> Copies:
    return Copies(house)


def _states(backup: Backup) -> dict[str, str]:
    return {each["store"]: each["state"] for each in backup_copies(backup_get(backup.pk))}


@pytest.mark.parametrize("kind", ["local", "s3", "gcs"])
def test_a_tenant_comes_back_from_a_copy_when_the_primary_is_gone(
    copies: Copies, kind: str, store_values: StoreValues, content: Content
) -> None:
    """Goal: a copy is enough; back up, copy, lose the primary's folder, restore elsewhere, browse, compare."""
    first = copies.house.backup(copies.tenant)
    copy = copies.add(kind=kind, values=store_values(kind))
    copies.run(copy)
    second = copies.change("three")
    assert _states(second) == {"default": "present"}
    ended = copies.run(copy, look=False, read_back=True)
    assert (ended.result["copied"], ended.result["health"]) == (1, "whole")
    assert _states(first) == _states(second) == {"default": "present", "second": "present"}
    want = content(copies.house.folder(copies.files))
    shutil.rmtree(copies.house.data / "store")
    assert {each["source"] for each in backup_browse(second, actor=ACTOR)["sources"]} == {"assets", "db"}
    target = copies.house.data / "elsewhere"
    restore = copies.house.restore(
        second, targets=(f"assets.path={target}", f"db.path={copies.house.data / 'copy.sqlite3'}")
    )
    assert restore.state == "succeeded"
    assert content(target) == want
    warned = Operation.objects.get(subject_id=restore.pk).warnings
    assert any("store default could not be reached, store second did" in each["message"] for each in warned)


def test_copies_follow_backups_once_each(copies: Copies) -> None:
    """Goal: no queue grows without workers; take backups with a copy that follows and one that does not."""
    after, later = copies.add(), copies.add("third")
    copy_set(later, afterwards=False, actor=ACTOR)
    copies.house.backup(copies.tenant)
    copies.house.backup(copies.tenant, "incremental")
    queued = Operation.objects.filter(kind="copy", state="queued")
    assert [each.subject_id for each in queued] == [after.pk]
    assert queued[0].resource == "copy:aurora:second", "it waits for no backup, and none waits for it"
    assert not queued[0].params["look"]


def test_what_cannot_be_a_copy_is_refused(copies: Copies) -> None:
    """Goal: mistakes are told before anything is copied; the primary, the same twice, another repository's place."""
    with pytest.raises(Conflict, match="is the primary"):
        copy_add(copies.tenant, copies.tenant.store, actor=ACTOR)
    copy = copies.add()
    with pytest.raises(Conflict, match="already"):
        copy_add(copies.tenant, copy.store, actor=ACTOR)
    with pytest.raises(RepositoryMissing), copy_open(copy):
        pass
    config = copies.house.data / "third" / "r" / copies.tenant.repository_id / "config"
    third = copies.store("third")
    config.parent.mkdir(parents=True)
    config.write_text('{"format": "lastro-repository", "version": 1, "public_key": "00"}')
    with pytest.raises(WrongKey):
        copy_add(copies.tenant, third, actor=ACTOR)
    copy_remove(copy, actor=ACTOR)
    assert not Copy.objects.filter(pk=copy.pk).exists()


def _flip(path: Path) -> None:
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)


@pytest.mark.parametrize(
    ("sort", "name"), [("data", "store"), ("meta", "second"), ("manifests", "second"), ("index", "store")]
)
def test_damage_is_found_repaired_and_said(copies: Copies, sort: str, name: str, content: Content) -> None:
    """Goal: from the finding to whole again; hurt objects of either store, verify, let the queued repair run, restore."""
    backups = [copies.house.backup(copies.tenant), copies.change("three")]
    copy = copies.add()
    copies.run(copy)
    for path in copies.objects(name, sort):
        path.unlink() if sort == "data" else _flip(path)
    hurt = copies.again(copy) if name == "second" else copies.primary()
    found = copies.verify(hurt, "deep", repair=True)
    assert found["status"] == "failed"
    assert found["health"] == "damaged"
    if sort != "index":
        assert set(found["affected"]) == {backup.pk for backup in backups}
        assert _states(backups[0])[hurt.store.name] in ("damaged", "missing")
        assert [each[1] for each in copy_signs()][1] == "critical"
    operation = Operation.objects.get(pk=found["repair"])
    assert operation.actor == "system:repair"
    Operation.objects.filter(pk=operation.pk).update(here=True)
    done = copies.house.run(operation).result or {}
    assert (done["lost"], done["damaged"], done["health"]) == ([], [], "whole")
    if sort != "index":
        assert set(done["whole_again"]) == {backup.pk for backup in backups}
    assert _states(backups[0]) == {"default": "present", "second": "present"}
    assert not findings_open(hurt)
    assert copies.verify(copies.again(hurt), "deep")["status"] == "passed"
    want = content(copies.house.folder(copies.files))
    shutil.rmtree(copies.house.data / ("second" if name == "store" else "store"))
    target = copies.house.data / "elsewhere"
    copies.house.restore(backups[1], sources=("assets",), targets=(f"path={target}",))
    assert content(target) == want


def test_a_primary_that_is_gone_is_filled_from_its_copies(copies: Copies, content: Content) -> None:
    """Goal: the loss of a store is mended by one command; empty the primary, repair, back up, lose the copy, restore."""
    backups = [copies.house.backup(copies.tenant), copies.change("three")]
    copies.run(copies.add())
    closed = Tenant.objects.get().numbers_closed
    Tenant.objects.update(number_reserved=closed + 2, numbers_closed=closed + 2)  # Two sessions that did not commit.
    shutil.rmtree(copies.house.data / "store" / "r")
    done = copies.repair(copies.primary())
    assert (done["damaged"], done["health"], done["packs_brought"] > 0) == ([], "whole", True)
    backups.append(copies.change("four"))
    assert (
        copies.house.run(prune_start(tenant_get("aurora"), dry_run=False, actor=ACTOR, here=True)).state == "succeeded"
    )
    shutil.rmtree(copies.house.data / "second")
    Copy.objects.filter(position__gt=0).delete()
    assert copies.verify(copies.primary(), "deep")["status"] == "passed"
    target = copies.house.data / "elsewhere"
    copies.house.restore(backups[-1], sources=("assets",), targets=(f"path={target}",))
    assert content(target) == content(copies.house.folder(copies.files))
    assert {_states(each)["default"] for each in backups} == {"present"}


def test_damage_without_a_copy_names_its_backups(copies: Copies) -> None:
    """Goal: what nobody can mend is said at once; lose packs of a tenant without copies, verify its store."""
    backup = copies.house.backup(copies.tenant)
    for path in copies.objects("store", "data"):
        path.unlink()
    found = copies.verify(copies.primary(), repair=True)
    assert (found["affected"], found["repair"]) == ([backup.pk], None)
    assert backup_get(backup.pk).damaged


def test_a_read_that_needed_a_copy_is_a_finding(copies: Copies, content: Content) -> None:
    """Goal: silent help hides no damage; flip the primary's packs, restore in place, look at findings, repair."""
    backup = copies.house.backup(copies.tenant)
    copies.run(copies.add())
    want = content(copies.house.folder(copies.files))
    packs = copies.objects("store", "data")
    for path in packs:
        _flip(path)
    target = copies.house.data / "elsewhere"
    copies.house.restore(backup, sources=("assets",), targets=(f"path={target}",))
    assert content(target) == want
    found = {each.key for each in findings_open(copies.primary())}
    assert found
    assert found <= {f"pack {path.name}" for path in packs}
    assert {each.by for each in CopyFinding.objects.all()} == {"read"}
    assert copies.repair(copies.primary())["lost"] == []
    assert not findings_open(copies.primary())


def test_a_verification_of_a_backup_mends_from_a_copy(copies: Copies) -> None:
    """Goal: the older command loses nothing that a copy has; flip packs, verify the backup, verify it again."""
    from tenants.services.backups import backup_verify_start

    backup = copies.house.backup(copies.tenant)
    copies.run(copies.add())
    for path in copies.objects("store", "data"):
        _flip(path)
    for status in ("failed", "passed"):
        ended = copies.house.run(backup_verify_start(backup, deep=True, actor=ACTOR, here=True))
        assert ended.result["status"] == status
        assert ended.result["whole"]
        assert not backup_get(backup.pk).damaged


def test_a_copy_deleted_by_hand_turns_to_missing_and_comes_back(copies: Copies) -> None:
    """Goal: a look tells what is there; delete the copy's folder below the store, verify, run."""
    backup = copies.house.backup(copies.tenant)
    copy = copies.add()
    copies.run(copy)
    for path in copies.objects("second", "manifests"):
        path.unlink()
    assert copies.verify(copies.again(copy))["affected"] == [backup.pk]
    assert _states(backup) == {"default": "present", "second": "missing"}
    assert [each.lacks for each in protections([tenant_get("aurora")])] == [
        ("2 of 3 copies (the live data counts as one)", "1 of 2 media (local)", "no copy off site")
    ]
    shutil.rmtree(copies.house.data / "second" / "r")
    copies.run(copies.again(copy))
    assert _states(backup) == {"default": "present", "second": "present"}
    assert copies.verify(copies.again(copy), "deep")["status"] == "passed"


def test_a_store_that_is_away_says_so_and_recovers(copies: Copies) -> None:
    """Goal: an outage is an outage; move the copy's store away, run, bring it back, run."""
    copies.house.backup(copies.tenant)
    copy = copies.add()
    copies.run(copy)
    shutil.move(copies.house.data / "second", copies.house.data / "away")
    ended = copies.run(copies.again(copy), ok=False)
    assert ended.state == "failed"
    assert copies.again(copy).health == "away"
    assert copies.again(copy).error_code == "store.unreachable"
    assert [each[1] for each in copy_signs()][1] == "critical"
    shutil.move(copies.house.data / "away", copies.house.data / "second")
    copies.run(copies.again(copy))
    assert (copies.again(copy).health, copies.again(copy).error_code) == ("whole", "")


def test_a_copy_has_a_retention_of_its_own(copies: Copies) -> None:
    """Goal: it keeps fewer, and drops what was ended for good only; copy two, let its rules keep one, end the other."""
    from tenants.models.backup import ENDED_STATES

    first, second = copies.house.backup(copies.tenant), copies.change("three")
    copy = copies.add()
    copies.run(copy)
    rules = {"incremental_days": 0, "weekly_full_count": 0, "monthly_full_count": 0, "pre_deploy_days": 0}
    Copy.objects.filter(pk=copy.pk).update(rules={**rules, "daily_count": 1})
    ended = copies.run(copies.again(copy))
    assert ended.result["dropped"] == 1
    assert _states(first) == {"default": "present"}
    assert _states(second) == {"default": "present", "second": "present"}
    Copy.objects.filter(pk=copy.pk).update(rules=None)
    copies.run(copies.again(copy))
    assert _states(first)["second"] == "present"
    Backup.objects.filter(pk=first.pk).update(state=ENDED_STATES[1], trashed_at=clock.now())
    assert copies.run(copies.again(copy)).result["dropped"] == 0, "what is in the trash can be taken back"
    Backup.objects.filter(pk=first.pk).update(trashed_at=None)
    Tenant.objects.update(held=True)
    ended = copies.run(copies.again(copy))
    assert (ended.result["dropped"], "is held" in ended.result["not_dropped_because"]) == (0, True)
    Tenant.objects.update(held=False)
    assert copies.run(copies.again(copy)).result["dropped"] == 1
    assert copies.verify(copies.again(copy), "deep")["status"] == "passed"


def test_three_two_one(copies: Copies) -> None:
    """Goal: the rule says what falls short and what to do; add copies, media and a place off site one by one."""
    tenant = tenant_get("aurora")

    def lacks() -> tuple[str, ...]:
        return protections([tenant_get("aurora")])[0].lacks

    assert lacks() == ("there is no good backup yet",)
    copies.house.backup(tenant)
    assert len(lacks()) == 3
    copy = copies.add()
    assert protections([tenant])[0].next_step == "bring the copy up to date: copy run aurora --store second"
    copies.run(copy)
    assert lacks() == ("1 of 2 media (local)", "no copy off site")
    StoreConfig.objects.filter(name="second").update(medium="tape")
    assert lacks() == ("no copy off site",)
    StoreConfig.objects.filter(name="second").update(offsite=True)
    assert lacks() == ()
    assert next(iter(copy_signs()))[1] == "ok"
    copies.change("newer")
    assert len(lacks()) == 3, "a copy that lacks the newest backup does not count"


def test_samples_read_everything_in_time(copies: Copies) -> None:
    """Goal: each day its share, a missed day caught up; hold the clock, read day by day, flip what was not read yet."""
    for number in range(6):
        copies.change(f"{number}")
    copy = copies.add()
    copies.run(copy)
    packs = copies.objects("second", "data") + copies.objects("second", "meta")
    read = 0
    with clock.held(clock.now()) as advance:
        for days in (0, 1, 1, 3, 1):
            advance(datetime.timedelta(days=days))
            done = copies.verify(copies.again(copy), "sample")
            read += done["objects"]
            assert done["status"] == "passed"
        assert read == len(packs), "once round in seven days, the first day's share before any had passed"
        assert copies.verify(copies.again(copy), "sample")["objects"] == 0, "nothing is due twice"
        _flip(packs[0])
        advance(datetime.timedelta(days=7))
        assert copies.verify(copies.again(copy), "sample")["status"] == "failed"


def test_all_copies_in_one_run(copies: Copies) -> None:
    """Goal: one command for many tenants, one failure stops no other; run and sample three, one with its store away."""
    copies.house.backup(copies.tenant)
    copies.add()
    for slug in ("borealis", "cirrus"):
        tenant = copies.house.tenant(slug)
        copies.house.files(tenant)
        copies.house.backup(tenant)
        name = "second" if slug == "borealis" else "third"
        store = StoreConfig.objects.filter(name=name).first() or copies.store(name)
        copy_add(tenant, store, actor=ACTOR)
    shutil.move(copies.house.data / "third", copies.house.data / "away")
    ended = copies.house.run(copies_all_start(what="run", at_once=2, actor=ACTOR, here=True))
    assert ended.result["counts"] == {"succeeded": 2, "failed": 1}
    assert [(each["tenant"], each["store"]) for each in ended.result["failed"]] == [("cirrus", "third")]
    assert BackupCopy.objects.filter(presence="present").count() == 2
    shutil.move(copies.house.data / "away", copies.house.data / "third")
    ended = copies.house.run(copies_all_start(what="structure", at_once=2, actor=ACTOR, here=True))
    assert ended.result["counts"] == {"succeeded": 5, "failed": 1}, "three primaries, two copies, one never made"
    assert copy_get(tenant_get("cirrus"), StoreConfig.objects.get(name="third")).error_code == "repository.missing"


def test_a_run_is_cancelled_between_objects(copies: Copies) -> None:
    """Goal: a copy stops when asked and goes on later; cancel it before it begins, then run it."""
    from operations.services import operation_cancel

    copies.house.backup(copies.tenant)
    copy = copies.add()
    operation = copy_run_start(copy, actor=ACTOR, here=True)
    operation_cancel(operation.pk, actor=ACTOR)
    assert operation_run(operation.pk, here=True).state == "cancelled"
    copies.run(copy)
    assert copies.again(copy).health == "whole"


def test_a_copy_that_locks_keeps_what_its_rules_keep(copies: Copies, s3_server: Any) -> None:
    """Goal: locks follow the copy's retention and keys stay out; copy into a locking bucket, let the backup go, run."""
    backup = copies.house.backup(copies.tenant)
    values = s3_server.values(LOCKED, lock_mode="governance", lock_days="1")
    copy = copies.add(kind="s3", values=values)
    copies.run(copy)
    (line,) = [each for each in backup_copies(backup_get(backup.pk)) if each["role"] == "copy"]
    assert line["state"] == "locked"
    assert line["locked_until"] > (clock.now() + datetime.timedelta(days=6)).isoformat()
    with copy_open(copies.again(copy)) as repository, pytest.raises(ObjectMissing):
        repository.store.stat(f"{repository.prefix}keyring")
    Backup.objects.filter(pk=backup.pk).update(state="deleted", trashed_at=None)
    ended = copies.run(copies.again(copy))
    assert (ended.result["dropped"], ended.state) == (1, "warned")
    assert ended.result["locked"] > 0
    assert "are locked until" in ended.warnings[-1]["message"]


def test_the_nearest_store_is_read_first(copies: Copies) -> None:
    """Goal: a local copy goes before a bucket, a quick bucket before a slow one; order copies by what was measured."""
    rows = {
        name: Copy(tenant=copies.tenant, store=StoreConfig(name=name, kind=kind), position=at, **speed)
        for at, (name, kind, speed) in enumerate(
            [
                ("slow", "s3", {"read_ms": 20.0, "read_bytes_per_second": 1e6}),
                ("far", "s3", {"read_ms": 300.0, "read_bytes_per_second": 100e6}),
                ("unknown", "gcs", {}),
                ("near", "s3", {"read_ms": 5.0, "read_bytes_per_second": 100e6}),
                ("here", "local", {}),
            ]
        )
    }
    assert [copy.store.name for copy in sorted(rows.values(), key=nearness)] == [
        "here",
        "near",
        "far",
        "unknown",
        "slow",
    ]
    copy = copies.add()
    read_measured(copy, 100 << 20, 2.0)
    read_measured(copy, 1000, 0.001)
    assert copies.again(copy).read_bytes_per_second == (100 << 20) / 2


def test_an_erasure_reaches_the_copies(copies: Copies) -> None:
    """Goal: no copy brings an erased subject back; erase one, run the queued copy, restore from the copy alone."""
    backup = copies.house.backup(copies.tenant)
    copies.run(copies.add())
    erasure_add(copies.database, "users", ["7"], actor=ACTOR)
    queued = Operation.objects.get(kind="copy", state="queued")
    Operation.objects.filter(pk=queued.pk).update(here=True)
    copies.house.run(queued)
    shutil.rmtree(copies.house.data / "store")
    target = copies.house.data / "restored.sqlite3"
    copies.house.restore(backup, sources=("db",), targets=(f"path={target}",))
    with sqlite3.connect(target) as connection:
        found = {row[0] for row in connection.execute("SELECT id FROM users")}
    assert found == set(range(200)) - {7}


def test_schedules_queue_one_run_at_a_time(copies: Copies) -> None:
    """Goal: a night that takes longer than a day is not doubled; begin what the schedules begin, twice."""
    from tenants.scheduling import begin

    order = Order("", {}, {}, False, ACTOR, "scheduled")
    for scheduled, what in ((begin.copies, "run"), (begin.samples, "sample"), (begin.structure, "structure")):
        operation = Operation.objects.get(pk=scheduled(order).operation_id)
        assert (operation.kind, operation.params["what"]) == ("copies", what)
        with pytest.raises(Busy, match="still under way"):
            scheduled(order)
