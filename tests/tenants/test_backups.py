"""Backups in the catalogue: parents, numbers, failures, adoption, holds."""

import datetime
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from audit.models import Entry
from core.errors import Busy, Conflict, NotFound
from core.models import StateChange
from engine.errors import StoreUnreachable, UsageError
from operations import leases
from operations.services import operation_cancel
from tenants import wiring
from tenants.handlers import backup as backup_handler
from tenants.models import Backup, BackupSource, Module, Source, Tenant
from tenants.selectors import backup_get, backup_usable
from tenants.services.backups import (
    BackupWish,
    backup_delete_start,
    backup_export_start,
    backup_hold,
    backup_import_start,
    backup_start,
    backup_verify_start,
    prune_start,
)
from tenants.services.sources import source_add
from tenants.services.tenants import tenant_update
from tests.tenants.conftest import ACTOR, House

EVENT_LOG = Path(__file__).parents[1] / "data" / "eventlog"


def test_a_backup_is_in_the_catalogue_as_its_manifest_says(house: House) -> None:
    """Goal: the catalogue repeats the manifest; take a backup and compare field by field."""
    tenant = house.tenant()
    source = house.files(tenant, a="one", b="twenty-two")
    backup = house.backup(tenant, tags=("nightly",))
    with wiring.repository_open(tenant) as repository:
        document = wiring.manifest_of(repository, backup).document
    assert (backup.state, backup.type, backup.number) == ("succeeded", "full", 1)
    assert backup.size_bytes == document["metadata"]["size_bytes"] == 13
    assert backup.checksums == document["checksums"]
    assert set(backup.checksums) == {"database", "assets", "configurations", "manifest"}
    assert backup.manifest_sha256 == document["checksums"]["manifest"]
    assert document["tags"] == ["nightly"]
    kept = BackupSource.objects.get(backup=backup)
    assert (kept.state, kept.files, kept.size_bytes) == ("kept", 2, 13)
    source.refresh_from_db()
    assert source.last_good_backup_id == backup.pk
    assert source.last_good_at == backup.taken_at
    assert Module.objects.filter(source=source).exists()
    steps = StateChange.objects.filter(subject_id=backup.pk).values_list("from_state", "to_state")
    assert list(steps) == [("running", "succeeded")]
    assert Entry.objects.filter(type="backup.finished").count() == 1


def test_the_first_incremental_becomes_a_full_one_and_says_so(house: House) -> None:
    """Goal: nothing pretends to build on what is not there; begin with an incremental, then take another."""
    tenant = house.tenant()
    house.files(tenant)
    first, second = house.backup(tenant, "incremental"), house.backup(tenant, "incremental")
    assert (first.requested_type, first.type, first.state) == ("incremental", "full", "succeeded")
    assert "full" in first.note
    assert (second.type, second.parent_id, second.note) == ("incremental", first.pk, "")
    third = house.backup(tenant, "full")
    assert (third.type, third.parent_id, third.missed) == ("full", second.pk, 0)


def test_since_chooses_the_parent_by_time(house: House) -> None:
    """Goal: `since` takes the newest backup at or before it; ask for times around two backups."""
    tenant = house.tenant()
    house.files(tenant)
    first, second = house.backup(tenant), house.backup(tenant, "incremental")
    assert first.taken_at is not None
    assert second.taken_at is not None
    at_first = house.backup(tenant, "incremental", since=first.taken_at)
    between = house.backup(tenant, "incremental", since=second.taken_at - datetime.timedelta(microseconds=1))
    before = house.backup(tenant, "incremental", since=first.taken_at - datetime.timedelta(microseconds=1))
    assert (at_first.parent_id, between.parent_id) == (first.pk, first.pk)
    assert (before.parent_id, before.type) == (None, "full")
    assert "at or before" in before.note


def _parents(house: House, backup: Backup) -> dict[str, str | None]:
    """What the manifest says that each source was compared with."""
    with wiring.repository_open(backup.tenant) as repository:
        document = wiring.manifest_of(repository, backup).document
    assert document["parent"] == backup.parent_id
    return {source["name"]: source.get("parent") for source in document["sources"]}


def test_each_source_has_a_parent_of_its_own(house: House) -> None:
    """Goal: the newest backup of each source counts, failed reads and `since` too; follow two sources and a new one."""
    tenant = house.tenant()
    one, two = house.files(tenant, "one"), house.database(tenant, "two")
    both = house.backup(tenant)
    alone = house.backup(tenant, "incremental", sources=("one",))
    third = house.backup(tenant, "incremental")
    assert (third.parent_id, third.note) == (alone.pk, "")
    assert _parents(house, third) == {"one": alone.pk, "two": both.pk}
    assert house.folder(two).rename(house.data / "away")
    warned = house.backup(tenant, "incremental")
    assert (warned.state, _parents(house, warned)) == ("warned", {"one": third.pk})
    (house.data / "away").rename(house.folder(two))
    house.files(tenant, "three")
    fifth = house.backup(tenant, "incremental")
    assert _parents(house, fifth) == {"one": warned.pk, "two": third.pk, "three": None}
    assert (fifth.type, fifth.note) == ("incremental", "read in full, not in the parent: three")
    earlier = house.backup(tenant, "incremental", since=alone.taken_at)
    assert _parents(house, earlier) == {"one": alone.pk, "two": both.pk, "three": None}
    assert house.folder(one).is_dir()
    for backup in (third, fifth, earlier):
        assert house.run(backup_verify_start(backup, deep=True, actor=ACTOR, here=True)).result["status"] == "passed"


def test_a_parent_that_is_lost_makes_a_backup_dearer_not_impossible(house: House) -> None:
    """Goal: damage in one backup stops no other; flip a bit of the newest manifest, take the next backup."""
    tenant = house.tenant()
    house.files(tenant)
    first = house.backup(tenant)
    (path,) = (house.data / "store").rglob("manifests/0000000001")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    second = house.backup(tenant, "incremental")
    assert (second.state, second.type, second.parent_id) == ("warned", "full", None)
    assert [warning["code"] for warning in second.warnings] == ["backup.parent_lost"]
    assert first.pk in second.warnings[0]["message"]
    assert house.run(backup_verify_start(second, deep=True, actor=ACTOR, here=True)).result["status"] == "passed"


def test_chosen_sources_only(house: House) -> None:
    """Goal: a backup of one source leaves the others' age alone; take one of both sources, then of one."""
    tenant = house.tenant()
    one, two = house.files(tenant, "one"), house.files(tenant, "two")
    both = house.backup(tenant)
    alone = house.backup(tenant, "incremental", sources=("one",))
    one.refresh_from_db()
    two.refresh_from_db()
    assert (one.last_good_backup_id, two.last_good_backup_id) == (alone.pk, both.pk)
    assert list(alone.sources.values_list("name", flat=True)) == ["one"]
    with pytest.raises(NotFound, match="three"):
        backup_start(tenant, BackupWish(sources=("three",)), actor=ACTOR, here=True)


def test_a_tenant_without_sources_has_nothing_to_back_up(house: House) -> None:
    """Goal: an empty backup never exists; ask for one, and leave out the only source."""
    tenant = house.tenant()
    with pytest.raises(UsageError) as caught:
        backup_start(tenant, BackupWish(), actor=ACTOR, here=True)
    assert "source add" in caught.value.hint
    Source.objects.filter(pk=house.files(tenant).pk).update(enabled=False)
    with pytest.raises(UsageError):
        backup_start(tenant, BackupWish(), actor=ACTOR, here=True)
    assert not Backup.objects.exists()


def test_a_source_that_fails_leaves_a_warned_backup_of_the_others(house: House) -> None:
    """Goal: a partial backup never looks complete; take one folder of two away."""
    tenant = house.tenant()
    good, gone = house.files(tenant, "good"), house.files(tenant, "gone")
    whole = house.backup(tenant)
    shutil.rmtree(house.folder(gone))
    partial = house.backup(tenant, "incremental")
    assert partial.state == "warned"
    states = dict(partial.sources.values_list("name", "state"))
    assert states == {"good": "kept", "gone": "missing"}
    assert partial.sources.get(name="gone").error
    gone.refresh_from_db()
    good.refresh_from_db()
    assert (good.last_good_backup_id, gone.last_good_backup_id) == (partial.pk, whole.pk)


def test_a_backup_of_nothing_readable_fails_and_leaves_no_manifest(house: House) -> None:
    """Goal: no acknowledgement without data; take the only folder away, then bring it back."""
    tenant = house.tenant()
    source = house.files(tenant)
    folder = house.folder(source)
    folder.rename(folder.with_name("away"))
    failed = house.backup(tenant, ok=False)
    assert (failed.state, failed.manifest_sha256) == ("failed", "")
    assert failed.error
    assert failed.error_hint
    with pytest.raises(NotFound, match="failed"):
        backup_usable(failed.pk)
    folder.with_name("away").rename(folder)
    again = house.backup(tenant)
    with wiring.repository_open(tenant) as repository:
        assert [repository.manifest(n).kind for n in (1, 2)] == ["void", "manifest"]
        assert repository.manifest(2).document["previous"] == repository.manifest(1).sha256
    assert again.number == 2


def test_a_commit_whose_record_was_lost_is_adopted(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: what is committed in the store is never lost to the catalogue; fail between the two."""
    tenant = house.tenant()
    house.files(tenant)

    def fails(*args: Any, **kwargs: Any) -> None:
        raise StoreUnreachable("the network went")

    with monkeypatch.context() as patched:
        patched.setattr(backup_handler, "backup_committed", fails)
        lost = house.backup(tenant, ok=False, tags=("kept",))
    assert lost.state == "failed"
    after = house.backup(tenant, "incremental")
    lost = backup_get(lost.pk)
    assert (lost.state, lost.origin, lost.number) == ("succeeded", "adopted", 1)
    assert lost.checksums["manifest"] == lost.manifest_sha256
    assert (after.number, after.parent_id) == (2, lost.pk)
    steps = list(StateChange.objects.filter(subject_id=lost.pk).values_list("to_state", flat=True))
    assert steps == ["failed", "succeeded"]
    assert house.restore(lost, targets=(f"path={house.data}/out",)).state == "succeeded"


def test_a_catalogue_that_lost_its_last_rows_takes_them_from_the_store(house: House) -> None:
    """Goal: a power cut may cost rows, never a backup; forget a backup's rows and its number, take another."""
    tenant = house.tenant()
    house.files(tenant)
    house.backup(tenant)
    gone = house.backup(tenant, "incremental", tags=("t",))
    Source.objects.update(last_good_backup=None)
    Backup.objects.filter(pk=gone.pk).delete()
    Tenant.objects.update(number_reserved=1, numbers_closed=1)
    after = house.backup(tenant, "incremental")
    found = backup_get(gone.pk)
    assert (found.state, found.number, found.tags, found.manifest_sha256) == (
        "succeeded",
        2,
        ["t"],
        gone.manifest_sha256,
    )
    assert (after.number, after.parent_id) == (3, found.pk)


def test_one_backup_of_a_tenant_at_a_time(house: House) -> None:
    """Goal: two sessions never meet in one repository; hold the tenant's lease and ask, then ask for another tenant."""
    aurora, boreal = house.tenant("aurora"), house.tenant("boreal")
    house.files(aurora)
    house.files(boreal)
    leases.lease_take("tenant:aurora", holder="opr_other")
    backup, operation = backup_start(aurora, BackupWish(), actor=ACTOR, here=True)
    with pytest.raises(Busy):
        house.run(operation)
    assert backup_get(backup.pk).state == "failed"
    assert house.backup(boreal).state == "succeeded"
    leases.lease_release("tenant:aurora", holder="opr_other")
    assert house.backup(aurora).state == "succeeded"


def test_a_cancelled_backup_that_never_ran_is_failed_not_running(house: House) -> None:
    """Goal: nothing runs for ever; cancel a queued backup."""
    tenant = house.tenant()
    house.files(tenant)
    backup, operation = backup_start(tenant, BackupWish(), actor=ACTOR)
    operation_cancel(operation.pk, actor=ACTOR)
    assert (backup_get(backup.pk).state, backup_get(backup.pk).error_code) == ("failed", "operation.not_run")


def test_a_held_or_last_good_backup_is_not_deleted(house: House) -> None:
    """Goal: what must stay stays; hold one, try the newest, then delete the freed one and prune."""
    tenant = house.tenant()
    source = house.files(tenant)
    first = house.backup(tenant)
    (house.folder(source) / "a").write_text("other")
    last = house.backup(tenant, "incremental")
    backup_hold(first, held=True, reason="a court asked", actor=ACTOR)
    with pytest.raises(Conflict, match="a court asked"):
        backup_delete_start(backup_get(first.pk), actor=ACTOR, here=True)
    with pytest.raises(Conflict, match="last good"):
        backup_delete_start(last, actor=ACTOR, here=True)
    backup_hold(backup_get(first.pk), held=False, reason="", actor=ACTOR)
    house.run(backup_delete_start(backup_get(first.pk), actor=ACTOR, here=True))
    assert backup_get(first.pk).state == "deleted"
    pruned = house.run(prune_start(tenant, dry_run=False, actor=ACTOR, here=True))
    assert pruned.result["bytes_after"] <= pruned.result["bytes_before"]
    assert house.run(backup_verify_start(last, deep=True, actor=ACTOR, here=True)).result["status"] == "passed"
    assert house.restore(last, targets=(f"path={house.data}/out",)).state == "succeeded"
    assert (house.data / "out" / "a").read_text() == "other"


def test_an_imported_package_does_not_make_a_source_look_protected(house: House) -> None:
    """Goal: an old package does not reset the age of the last good backup; export a log, wait, import it again."""
    tenant = house.tenant()
    folder = house.data / "events"
    shutil.copytree(EVENT_LOG, folder)
    source, _ = source_add(
        tenant, "log", kind="eventlog", category="database", values={"path": str(folder)}, actor=ACTOR
    )
    backup = house.backup(tenant)
    house.run(backup_export_start(backup, str(house.data / "out"), actor=ACTOR, here=True))
    package = next((house.data / "out").glob("backup-eventlog-*.tar.gz"))
    imported, operation = backup_import_start(source, str(package), actor=ACTOR, here=True)
    house.run(operation)
    source.refresh_from_db()
    assert backup_get(imported.pk).state == "succeeded"
    assert source.last_good_backup_id == backup.pk


def _flip(house: House) -> None:
    """Change one bit in the middle of every data pack."""
    packs = [path for path in (house.data / "store").rglob("data/*/*") if path.is_file()]
    assert packs
    for pack in packs:
        content = bytearray(pack.read_bytes())
        content[len(content) // 2] ^= 1
        pack.write_bytes(content)


def test_after_damage_the_next_backup_is_whole_and_mends_the_others(house: House) -> None:
    """Goal: no backup builds on what is known to be damaged; damage the packs, verify, back up, verify all."""
    tenant = house.tenant()
    noise = random.Random(3)
    source = house.files(tenant, a=noise.randbytes(40_000).hex(), b=noise.randbytes(400_000).hex())
    first = house.backup(tenant)
    second = house.backup(tenant, "incremental")
    _flip(house)
    found = house.run(backup_verify_start(first, deep=True, actor=ACTOR, here=True)).result
    assert found["status"] == "failed"
    assert found["findings"][0]["code"].startswith("damage.")
    assert found["quarantined_packs"] >= 1
    assert found["affected"] == [second.pk]
    assert backup_get(first.pk).damaged
    assert backup_get(second.pk).damaged
    assert list((house.data / "store").rglob("damaged/*"))
    third = house.backup(tenant, "incremental")
    assert (third.parent_id, third.type) == (None, "full")
    for backup in (third, second, first):
        assert house.run(backup_verify_start(backup, deep=True, actor=ACTOR, here=True)).result["status"] == "passed"
    assert not Backup.objects.filter(damaged=True).exists()
    house.restore(first, targets=(f"path={house.data}/out",))
    assert (house.data / "out" / "b").read_bytes() == (house.folder(source) / "b").read_bytes()


def test_encrypted_and_plain_backups_do_not_build_on_one_another(house: House) -> None:
    """Goal: the two domains never mix; alternate, and look at the parents and at the stored bytes."""
    tenant = house.tenant()
    house.files(tenant, a="findme" * 2_000)
    sealed = house.backup(tenant)
    plain = house.backup(tenant, "incremental", encrypt=False, compress=False)
    again = house.backup(tenant, "incremental")
    assert (plain.parent_id, plain.type, again.parent_id) == (None, "full", sealed.pk)
    readable = {"plain" in p.parts: b"findme" in p.read_bytes() for p in (house.data / "store").rglob("data/*/*")}
    assert readable == {True: True, False: False}
    assert house.restore(plain, targets=(f"path={house.data}/out",)).state == "succeeded"


def test_a_backup_records_what_its_tenant_runs(house: House) -> None:
    """Goal: a backup says which platform it fits; set the version, back up, look into the manifest's row."""
    tenant = house.tenant()
    house.files(tenant)
    assert house.backup(tenant).platform_version == ""
    tenant = tenant_update(tenant, platform_version="2.4.1", name="Aurora Hotels", actor=ACTOR)
    backup = house.backup(tenant)
    assert backup.platform_version == "2.4.1"
    assert Tenant.objects.get(pk=tenant.pk).name == "Aurora Hotels"
    for wrong in ({}, {"platform_version": "2 4"}, {"name": ""}):
        with pytest.raises(UsageError):
            tenant_update(tenant, actor=ACTOR, **wrong)
