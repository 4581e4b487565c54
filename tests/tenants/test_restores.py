"""Restores: confirmed, saved first, told exactly, and never where nobody asked."""

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import connectors.files
from connectors.files import FilesConnector
from core.errors import Busy, ConfirmationNeeded, Conflict, NotFound
from engine.errors import SourceChanged, SourceDenied, SourceError, TargetError, UsageError
from engine.ports import Check
from operations.hook_settings import hook_add
from operations.models import Hook, Operation
from operations.services import operation_retry, operation_run
from tenants.models import Backup, Restore, Source, Validation
from tenants.places import target_of_others_checked
from tenants.selectors import backup_usable, restore_get
from tenants.services.backups import backup_delete_start
from tenants.services.restore_recording import checks_of
from tenants.services.restores import RestoreWish, restore_start
from tenants.services.sources import source_add
from tests.tenants.conftest import ACTOR, House

Content = Callable[[Path], dict[str, bytes]]


def _start(backup: Backup, **wish: Any) -> tuple[Restore, Operation]:
    return restore_start(backup, RestoreWish(**wish), actor=ACTOR, here=True)


def test_in_place_everything_is_what_it_was(house: House, content: Content) -> None:
    """Goal: a lost, a changed and a stray file are put right; the state before is kept, and can be had again."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant, a="one", b="two"))
    backup, want = house.backup(tenant), content(folder)
    (folder / "a").unlink()
    (folder / "b").write_text("changed")
    (folder / "c").write_text("stray")
    broken = content(folder)
    restore = house.restore(backup)
    assert content(folder) == want
    assert (restore.state, restore.in_place) == ("succeeded", True)
    saved = restore.safety_backup
    assert saved is not None
    assert (saved.tags, saved.trigger, saved.state) == (["safety"], "safety", "succeeded")
    house.restore(saved)
    assert content(folder) == broken
    validation = Validation.objects.filter(restore=restore).get()
    assert validation.status == "passed"
    assert {check["name"] for check in checks_of(validation)} >= {"checksum_verification"}


@pytest.mark.parametrize("second", ["", "/inner"])
def test_two_sources_never_share_a_target(house: House, second: str) -> None:
    """Goal: no source lands in another's folder; name one folder, or one inside the other, for two."""
    tenant = house.tenant()
    house.files(tenant, "one")
    house.files(tenant, "two")
    out = house.data / "out"
    with pytest.raises(UsageError, match="overlap"):
        _start(house.backup(tenant), targets=(f"one.path={out}", f"two.path={out}{second}"), confirmed=None)
    assert not out.exists()


@pytest.mark.parametrize("where", ["", "/inner", "/.."])
def test_another_tenants_place_is_never_a_target(house: House, content: Content, where: str) -> None:
    """Goal: a slug confirms for its own tenant alone; name a folder of another one's, one inside it, and one around it."""
    tenant, other = house.tenant(), house.tenant("boreal")
    house.files(tenant)
    theirs = house.folder(house.files(other, c="theirs"))
    with pytest.raises(UsageError, match="assets of tenant boreal lives at"):
        _start(house.backup(tenant), targets=(f"path={theirs}{where}",), confirmed="aurora")
    assert content(theirs) == {"c": b"theirs"}


def test_another_tenants_schema_is_never_a_target(house: House) -> None:
    """Goal: the same for a schema, before anything is dropped. Method: check a target against a source that has it."""
    tenant, other = house.tenant(), house.tenant("boreal")
    own, theirs = (
        Source.objects.create(
            tenant=each, name="db", kind="postgresql", category="database", config={"schema": each.slug}
        )
        for each in (tenant, other)
    )
    with pytest.raises(UsageError, match="db of tenant boreal lives at schema boreal"):
        target_of_others_checked(own, {"schema": "boreal"})
    target_of_others_checked(own, {"schema": "elsewhere"})
    target_of_others_checked(theirs, {"schema": "boreal"})


def test_another_tenants_database_is_never_a_target(house: House) -> None:
    """Goal: the same for a database that would be built anew; write its DSN in several ways."""
    tenant, other = house.tenant(), house.tenant("boreal")
    more = {"kind": "postgresql", "category": "database", "actor": ACTOR, "test": False}
    for each, dsn in ((tenant, "postgresql://u:p@127.0.0.1:1/mine"), (other, "postgresql://u:p@localhost:5999/theirs")):
        source_add(each, "db", values={"dsn": dsn}, **more)
    own, theirs = (Source.objects.get(tenant=each, name="db") for each in (tenant, other))
    for dsn in (
        "host=127.0.0.1 port=5999 dbname=theirs",
        "postgresql://other@[::1]:5999/theirs",
        "host=/tmp port=5999 dbname=theirs",
    ):
        with pytest.raises(UsageError, match="db of tenant boreal lives at that database"):
            target_of_others_checked(own, {"dsn": dsn})
        target_of_others_checked(theirs, {"dsn": dsn})
    for dsn in (
        "host=localhost port=5999 dbname=copy",
        "host=localhost port=5998 dbname=theirs",
        "host=192.0.2.1 port=5999 dbname=theirs",
    ):
        target_of_others_checked(own, {"dsn": dsn})


def test_a_safety_backup_does_not_stand_in_for_a_good_one(house: House) -> None:
    """Goal: the data that a restore threw away protects nobody; restore, then try to delete what was restored from."""
    tenant = house.tenant()
    source = house.files(tenant)
    backup = house.backup(tenant)
    (house.folder(source) / "a").unlink()
    house.restore(backup)
    source.refresh_from_db()
    assert source.last_good_backup_id == backup.pk
    with pytest.raises(Conflict, match="last good"):
        backup_delete_start(backup, actor=ACTOR, here=True)


@pytest.mark.parametrize("given", [None, "", "Aurora", "boreal", "aurora "])
def test_in_place_only_the_right_slug_confirms(house: House, content: Content, given: str | None) -> None:
    """Goal: nothing is overwritten by a slip; give anything but the slug, then look for traces."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant))
    backup = house.backup(tenant)
    (folder / "a").write_text("newer")
    before = content(folder)
    with pytest.raises(ConfirmationNeeded):
        _start(backup, confirmed=given)
    assert content(folder) == before
    assert not Restore.objects.exists()


def test_in_place_never_without_a_safety_backup(house: House) -> None:
    """Goal: the state before can always be had again; try to leave the safety backup out."""
    tenant = house.tenant()
    house.files(tenant)
    with pytest.raises(UsageError, match="safety"):
        _start(house.backup(tenant), confirmed="aurora", safety_backup=False)


def test_a_folder_that_is_gone_is_restored_and_said(house: House, content: Content) -> None:
    """Goal: a total loss does not stop its own recovery; delete the folder, restore in place."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant))
    backup, want = house.backup(tenant), content(folder)
    shutil.rmtree(folder)
    restore = house.restore(backup)
    assert content(folder) == want
    assert (restore.state, restore.safety_backup) == ("succeeded", None)
    assert restore.warnings[0]["code"] == "restore.nothing_saved" or any(
        each["code"] == "restore.nothing_saved" for each in restore.warnings
    )


@pytest.mark.parametrize("kind", [SourceChanged, SourceDenied])
def test_data_that_is_there_but_unreadable_is_not_overwritten(
    house: House, content: Content, monkeypatch: pytest.MonkeyPatch, kind: type[SourceError]
) -> None:
    """Goal: no safety backup, no restore, while there is something to save; let the reading fail."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant))
    backup = house.backup(tenant)
    (folder / "a").write_text("newer")
    before = content(folder)

    def refuse(_connector: FilesConnector, _progress: object) -> None:
        raise kind("not now")

    monkeypatch.setattr(FilesConnector, "open", refuse)
    restore = house.restore(backup, ok=False)
    assert (restore.state, restore.error_code) == ("failed", kind.code)
    assert content(folder) == before


def test_another_place_is_not_overwritten_unless_confirmed(house: House, content: Content) -> None:
    """Goal: what exists at a target stays; restore to a new folder, to it again, then with the slug."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant))
    backup, want = house.backup(tenant), content(folder)
    out = house.data / "out"
    target = (f"path={out}",)
    assert house.restore(backup, targets=target, confirmed=None).safety_backup is None
    assert content(out) == want
    (out / "mine").write_text("mine")
    refused = house.restore(backup, targets=target, confirmed=None, ok=False)
    assert (refused.state, refused.error_code) == ("failed", "target.occupied")
    assert (out / "mine").exists()
    house.restore(backup, targets=target, confirmed="aurora")
    assert content(out) == want
    with pytest.raises(ConfirmationNeeded):
        _start(backup, targets=target, confirmed="boreal")


def test_several_sources_spread_over_one_folder(house: House, content: Content) -> None:
    """Goal: `path=DIR` means DIR/<source>; restore two sources, and one of them to a place of its own."""
    tenant = house.tenant()
    folders = {name: house.folder(house.files(tenant, name)) for name in ("one", "two")}
    backup = house.backup(tenant)
    house.restore(backup, targets=(f"path={house.data}/out",))
    assert {name: content(house.data / "out" / name) for name in folders} == {
        name: content(folder) for name, folder in folders.items()
    }
    house.restore(backup, targets=(f"one.path={house.data}/a", f"two.path={house.data}/b"))
    assert content(house.data / "b") == content(folders["two"])
    house.restore(backup, sources=("two",), targets=(f"path={house.data}/c",))
    assert content(house.data / "c") == content(folders["two"])


@pytest.mark.parametrize(
    "targets",
    [
        ("one.path=/tmp/x",),  # two would be left without a target, and must not fall back to its own place
        ("path",),
        ("=x",),
        ("colour=red",),
        ("three.path=/tmp/x",),
        ("one.colour=red", "two.path=/tmp/y"),
        ("one.path=/tmp/x", "one.path=/tmp/y", "two.path=/tmp/z"),
        ("one.path={data}", "two.path=/tmp/z"),
        ("one.path=/tmp/z", "two.path={data}/store"),
        ("one.path=/tmp/z", "two.path={data}/store/r/x"),
        ("path={data}/keys",),
        ("one.path=/", "two.path=/tmp/z"),
    ],
)
def test_targets_that_cannot_be_right(house: House, targets: tuple[str, ...]) -> None:
    """Goal: a target is refused before anything happens; try what is unknown, partial, or our own data."""
    tenant = house.tenant()
    house.files(tenant, "one")
    house.files(tenant, "two")
    backup = house.backup(tenant)
    with pytest.raises(UsageError):
        _start(backup, targets=tuple(each.format(data=house.data) for each in targets), confirmed="aurora")
    assert not Restore.objects.exists()


def test_only_what_the_backup_holds_is_touched(house: House, content: Content) -> None:
    """Goal: a restore of a backup of one source leaves the others alone; change both, restore the one."""
    tenant = house.tenant()
    one, two = house.folder(house.files(tenant, "one")), house.folder(house.files(tenant, "two"))
    want = content(one)
    backup = house.backup(tenant, sources=("one",))
    (one / "a").write_text("x")
    (two / "a").write_text("x")
    house.restore(backup)
    assert content(one) == want
    assert (two / "a").read_text() == "x"
    with pytest.raises(UsageError, match="does not hold"):
        _start(backup, sources=("two",), confirmed="aurora")


def test_what_is_not_there_cannot_be_restored(house: House) -> None:
    """Goal: an unknown backup is not found; ask for one."""
    with pytest.raises(NotFound):
        backup_usable("bkp_nope")


def test_an_error_before_the_first_commit_changes_nothing(
    house: House, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: all or nothing over several sources; let the third of three refuse to be prepared, then do it again."""
    tenant = house.tenant()
    folders = {name: house.folder(house.files(tenant, name)) for name in ("alfa", "beta", "gama")}
    backup = house.backup(tenant)
    want = {name: content(folder) for name, folder in folders.items()}
    for folder in folders.values():
        (folder / "a").write_text("changed")
    changed = {name: content(folder) for name, folder in folders.items()}
    real = FilesConnector.prepare

    def failing(self: FilesConnector, view: Any, request: Any, progress: Any) -> Any:
        if view.name == "gama":
            raise TargetError("the disk is gone", hint="look at it.")
        return real(self, view, request, progress)

    with monkeypatch.context() as patched:
        patched.setattr(FilesConnector, "prepare", failing)
        restore = house.restore(backup, ok=False)
    assert (restore.state, restore.error_code) == ("failed", "target.failed")
    assert set(restore.sources.values_list("state", flat=True)) == {"old"}
    assert {name: content(folder) for name, folder in folders.items()} == changed
    again = operation_retry(restore.operation_id, actor=ACTOR, here=True)
    assert operation_run(again.pk, here=True).state == "succeeded"
    assert {name: content(folder) for name, folder in folders.items()} == want
    after = restore_get(restore.pk)
    assert after.state == "succeeded"
    assert after.safety_backup_id != restore.safety_backup_id, "what was done between the attempts was not saved"


def test_one_restore_of_a_tenant_at_a_time(house: House) -> None:
    """Goal: a restore asked for twice by mistake is not done twice; ask again while one waits, and for another tenant."""
    tenant = house.tenant()
    house.files(tenant)
    backup = house.backup(tenant)
    restore, operation = _start(backup, confirmed="aurora")
    with pytest.raises(Busy) as refused:
        _start(backup, confirmed="aurora")
    assert refused.value.operation == operation.pk
    assert Restore.objects.count() == 1
    other = house.tenant("boreal")
    house.files(other)
    assert house.restore(house.backup(other)).state == "succeeded"
    house.run(operation)
    assert restore_get(restore.pk).state == "succeeded"
    assert house.restore(backup).state == "succeeded"


def test_checks_that_do_not_pass_change_nothing(
    house: House, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: what is not proven is not applied; let a prepared restore report a failed check."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant))
    backup = house.backup(tenant)
    (folder / "a").write_text("newer")
    before = content(folder)
    real, failed = connectors.files._report, (Check("data_integrity", False, 2, 1, "a row is missing"),)
    monkeypatch.setattr(connectors.files, "_report", lambda done: replace(real(done), checks=failed))
    restore = house.restore(backup, ok=False)
    assert (restore.state, restore.error_code) == ("failed", "restore.checks_failed")
    assert Validation.objects.get(restore=restore).status == "failed"
    assert Operation.objects.get(pk=restore.operation_id).error["exit"] == 7
    assert content(folder) == before
    unjudged = house.restore(backup, validate=False)
    assert unjudged.state == "succeeded"
    assert "restore.check_failed" in {each["code"] for each in unjudged.warnings}


def test_damage_in_the_store_leaves_the_target_as_it_was(house: House, content: Content) -> None:
    """Goal: exact bytes or a typed error; damage every data pack, restore in place."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant, a=random.Random(1).randbytes(30_000).hex()))
    backup = house.backup(tenant)
    for pack in [p for p in (house.data / "store").rglob("data/*/*") if p.is_file()]:
        damaged = bytearray(pack.read_bytes())
        damaged[len(damaged) // 2] ^= 4
        pack.write_bytes(damaged)
    (folder / "a").write_text("newer")
    before = content(folder)
    restore = house.restore(backup, ok=False)
    assert restore.state == "failed"
    assert restore.error_code.startswith("damage.")
    assert content(folder) == before


def test_a_manifest_of_another_time_is_refused(house: House) -> None:
    """Goal: a store that was rolled back is found out; put another backup's manifest in the place of one."""
    tenant = house.tenant()
    house.files(tenant)
    first, second = house.backup(tenant), house.backup(tenant)
    Backup.objects.filter(pk=second.pk).update(manifest_sha256="0" * 64)
    refused = house.restore(backup_usable(second.pk), ok=False)
    assert refused.error_code == "damage.manifest"
    folder = house.data / "store" / "r" / tenant.repository_id / "manifests"
    (folder / f"{first.number:010d}").write_bytes((folder / f"{second.number:010d}").read_bytes())
    assert house.restore(first, ok=False).error_code == "damage.manifest"


def test_a_hook_that_stops_a_restore_leaves_nothing_waiting(house: House, content: Content) -> None:
    """Goal: a restore that a hook refused is over, and its plan can be run; let a hook ask a server that is not there."""
    tenant = house.tenant()
    folder = house.folder(house.files(tenant))
    backup = house.backup(tenant)
    (folder / "a").write_text("newer")
    before = content(folder)
    plan = house.plan(backup)
    hook_add(
        "stop the application",
        event="before",
        operation_kind="restore",
        kind="http",
        values={"url": "http://127.0.0.1:9/stop"},
        actor=ACTOR,
        timeout_seconds=2,
    )
    refused = house.run_plan(plan, ok=False)
    assert (refused.state, refused.error_code) == ("cancelled", "operation.not_run")
    assert content(folder) == before
    Hook.objects.all().delete()
    assert house.run_plan(plan).state == "succeeded"
    assert content(folder) != before


def test_a_folder_for_all_sources_need_not_be_there(house: House, content: Content) -> None:
    """Goal: looking at a copy takes one command at night; restore two kinds into a folder two levels below what there is."""
    tenant = house.tenant()
    house.files(tenant)
    house.database(tenant)
    backup = house.backup(tenant)
    out = house.data / "look" / "here"
    assert house.restore(backup, targets=(f"path={out}",), confirmed=None).state == "succeeded"
    assert (set(content(out / "assets")), (out / "db").is_file()) == ({"a", "b"}, True)
    assert out.stat().st_mode & 0o777 == 0o700
