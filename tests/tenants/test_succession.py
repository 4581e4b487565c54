"""A tenant's keys got out: what the installation believes of former keys afterwards, with real stores and operations."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from audit.models import Entry
from core.rootkey import root_key
from engine.keys import Keyring
from engine.manifest import Manifest
from tenants.copy_selectors import copy_primary
from tenants.models import Backup, KeyEpoch, Tenant
from tenants.selectors import tenant_get
from tenants.services.backups import BackupWish, backup_start, prune_start
from tenants.services.erasures import erasure_add
from tenants.services.key_rotation import root_rotate_start, tenant_rotate_start
from tenants.services.keys import keys_repair
from tenants.services.ownership import store_reconcile
from tenants.services.stores import store_add
from tenants.services.strangers import strangers_start
from tenants.tenant_sealing import keyring_of
from tests.tenants.conftest import ACTOR, House
from tests.tenants.killing import killed


class Stolen:
    """A tenant with two backups, and what a thief had when its keys got out."""

    def __init__(self, house: House) -> None:
        self.house, self.pk = house, house.tenant().pk
        store_add("second", kind="local", values={"path": str(house.data / "second")}, actor=ACTOR)
        self.source = house.files(self.now)
        self.backups = [house.backup(self.now), house.backup(self.now, "incremental")]
        self.keys: Keyring = keyring_of(self.now)

    @property
    def now(self) -> Tenant:
        return Tenant.objects.select_related("store").get(pk=self.pk)

    def path(self, number: int) -> Path:
        return self.house.data / "store" / "r" / self.now.repository_id / "manifests" / f"{number:010d}"

    def rotate(self, *, ok: bool = True) -> dict[str, Any]:
        operation = tenant_rotate_start(self.now, compromised=True, actor=ACTOR, here=True)
        ended = self.house.run(operation, ok=ok)
        return dict(ended.result or ended.error or {})

    def forge(self, number: int, **more: Any) -> None:
        like = Manifest.read(self.path(1).read_bytes(), self.keys, number=1).document
        document = {**like, "number": number, "id": "bkp_forged", **more}
        document.pop("signature")
        self.path(number).write_bytes(b"".join(Manifest.signed(document, self.keys).parts(self.keys)))

    def take(self) -> None:
        self.house.run(backup_start(self.now, BackupWish(type="full"), actor=ACTOR, here=True)[1])

    def set_aside(self) -> None:
        """As the message says: copy strangers … --set-aside."""
        self.house.run(strangers_start(copy_primary(self.now), actor=ACTOR, here=True))

    def reconcile(self) -> dict[str, Any]:
        brought = store_reconcile(self.now.store, tenant=self.now, take_over=False, actor=ACTOR)
        assert brought.failed == []
        return brought.tenants[0]

    def prune(self) -> str:
        return self.house.run(prune_start(self.now, dry_run=False, actor=ACTOR, here=True), ok=False).state


@pytest.fixture
def stolen(house: House) -> Stolen:
    return Stolen(house)


def test_a_break_is_written_down_and_old_backups_stay(stolen: Stolen) -> None:
    """Goal: rotation costs no backup and leaves a trace. Method: rotate, restore old and new, look at rows and log, prune."""
    stolen.rotate()
    row = KeyEpoch.objects.get(tenant=stolen.pk, epoch=2)
    assert (row.compromised, row.signs_from, len(row.signing_key)) == (True, 3, 64)
    entry = Entry.objects.filter(type="key.rotated").latest("sequence")
    assert (entry.data["trusted_before"], entry.data["signing_key"]) == (False, row.signing_key)
    new = stolen.house.backup(stolen.now)
    for backup in (*stolen.backups, new):
        assert stolen.house.restore(backup).state == "succeeded"
    assert stolen.prune() == "succeeded"


def test_forged_backups_are_no_backups(stolen: Stolen) -> None:
    """Goal: what a thief adds is set aside, what he replaces is lost and said. Method: forge ahead, go on; forge an old one, reconcile."""
    stolen.rotate()
    stolen.forge(3)
    assert stolen.house.backup(stolen.now, ok=False).state == "failed"
    stolen.set_aside()
    killed(stolen.take, label="backup.before_manifest")
    assert stolen.house.backup(stolen.now).number == 4
    stolen.forge(3)  # In the place of a void record, below what was given out.
    assert stolen.reconcile()["adopted"] == []
    stolen.forge(2, tags=["thinned"])
    found = stolen.reconcile()
    assert (found["missing"], found["adopted"], found["replaced"]) == ([stolen.backups[1].pk], [], [])
    assert not Backup.objects.filter(pk="bkp_forged").exists()
    assert stolen.prune() == "failed"
    assert list((stolen.path(1).parent.parent / "damaged").iterdir()), "what lay there is evidence"


def test_what_was_committed_and_not_known_survives_the_break(stolen: Stolen) -> None:
    """Goal: no backup is lost to a rotation. Method: kill a backup behind its commit, rotate; with the primary away it is refused."""
    killed(stolen.take, label="backup.manifest_stored")
    store = stolen.house.data / "store"
    store.rename(stolen.house.data / "away")
    assert stolen.rotate(ok=False)["code"].startswith("store.")
    assert not KeyEpoch.objects.filter(tenant=stolen.pk, epoch=2).exists()
    (stolen.house.data / "away").rename(store)
    stolen.rotate()
    third = Backup.objects.get(tenant=stolen.pk, number=3)
    assert third.origin == "adopted" and stolen.house.restore(third).state == "succeeded"
    store.rename(stolen.house.data / "away")  # All numbers are settled: the other store will do.
    assert stolen.rotate()["waiting"] == ["default"]
    (stolen.house.data / "away").rename(store)
    assert stolen.house.backup(stolen.now).state == "succeeded"


def test_a_rotation_killed_on_the_way_is_repeated(stolen: Stolen) -> None:
    """Goal: no half break. Method: kill it where the store knows the new key alone; rotate again; back up, forge, restore."""
    killed(stolen.rotate, label="key.epoch_stored")
    assert stolen.house.backup(stolen.now).state == "succeeded"
    stolen.rotate()
    stolen.forge(4)
    stolen.set_aside()
    assert stolen.house.backup(stolen.now).number == 4
    for backup in Backup.objects.filter(tenant=stolen.pk, state="succeeded").order_by("number"):
        assert stolen.house.restore(backup).state == "succeeded"


def test_the_ledger_is_restated_after_a_break(house: House) -> None:
    """Goal: what was erased stays erased, whoever writes to the ledger. Method: erase, rotate, look at the numbers, restore."""
    tenant = house.tenant()
    source = house.database(tenant, rows=20)
    backup = house.backup(tenant)
    erasure_add(source, "users", ["3"], actor=ACTOR, reason="asked for")
    before = tenant_get("aurora").erasures_number
    house.run(tenant_rotate_start(tenant, compromised=True, actor=ACTOR, here=True))
    assert (before, tenant_get("aurora").erasures_number) == (1, 2)
    out = house.data / "out"
    out.mkdir()
    assert house.restore(backup, targets=(f"path={out}/db.sqlite3",)).state == "succeeded"
    with sqlite3.connect(out / "db.sqlite3") as database:
        assert database.execute("SELECT count(*) FROM users WHERE id = 3").fetchone() == (0,)


def test_a_thief_of_the_former_root_key_adds_no_keys_while_it_is_replaced(stolen: Stolen) -> None:
    """Goal: an unfinished rotation is no door. Method: begin one that waits, put a keyring with a key of ours in a store, repair."""
    former, keys = root_key(), keyring_of(stolen.now)
    (stolen.house.data / "second").rename(stolen.house.data / "away")
    stolen.house.run(root_rotate_start(actor=ACTOR, here=True)[1])
    assert root_key().former is not None
    mine = keys.rotated().succeeded(since=1, at="2026-11-22T00:00:00+00:00", reason="adopted").to_bytes(former)
    place = stolen.path(1).parent.parent / "keyring"
    place.write_bytes(mine)
    keys_repair(stolen.now, actor=ACTOR)
    stolen.reconcile()
    assert keyring_of(stolen.now) == keys and place.read_bytes() != mine
    (stolen.house.data / "away").rename(stolen.house.data / "second")


def test_what_was_never_given_out_is_not_made_ours_by_a_break(stolen: Stolen) -> None:
    """Goal: a backup forged before the rotation gets no blessing from it. Method: forge ahead, rotate, take it away, rotate; rubbish."""
    stolen.forge(3)
    assert stolen.rotate(ok=False)["code"] == "catalogue.unreconciled"
    assert not Backup.objects.filter(pk="bkp_forged").exists()
    stolen.path(3).write_bytes(b"rubbish keeps nobody from replacing keys")
    assert stolen.rotate()["epoch"] == 2
