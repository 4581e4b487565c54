"""A catalogue that was restored from an older one deletes nothing before it is reconciled with the stores."""

import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from core.errors import Unreconciled
from engine.errors import TakenOver
from engine.owner import owner_raise
from operations.models import Operation
from stores._faulty import Fault, FaultyStore
from tenants import wiring
from tenants.catalogue.places import catalogue_repository
from tenants.models import Backup, BackupState, Installation, Tenant
from tenants.owning import mirror_of
from tenants.services.backups import backup_delete_start, backup_hold, prune_start
from tenants.services.catalogue_backups import catalogue_backup_start
from tenants.services.erasures import erasure_add
from tenants.services.ownership import store_reconcile
from tenants.transitions import backup_transition
from tests.conftest import Rounds
from tests.tenants.conftest import ACTOR, House

HISTORY = 50


class Shelf:
    """Copies of the whole catalogue, as a careful operator's nightly copy of its file would be."""

    def __init__(self) -> None:
        if connection.vendor != "sqlite":
            pytest.skip("the catalogue is copied as a file")
        self._copies: list[sqlite3.Connection] = []

    def keep(self) -> None:
        copy = sqlite3.connect(":memory:")
        connection.ensure_connection()
        connection.connection.backup(copy)
        self._copies.append(copy)

    def put_back(self, age: int) -> None:
        """The catalogue as it was `age` commits ago; 0 is the newest copy."""
        self._copies[-1 - age].backup(connection.connection)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Make every listing end early from now on."""
    real = wiring.store_wrapped

    def lie() -> None:
        faults = [Fault("truncated_list", times=100_000)]
        monkeypatch.setattr(wiring, "store_wrapped", lambda row, store: FaultyStore(real(row, store), faults))

    yield lie
    monkeypatch.undo()


def _objects(house: House) -> set[str]:
    top = house.data / "store" / "r"
    return {
        str(path.relative_to(top)) for path in top.rglob("*") if path.is_file() and "/generations/" not in str(path)
    }


def _prune(house: House, tenant: Tenant, *, ok: bool = True) -> Operation:
    return house.run(prune_start(tenant, dry_run=False, actor=ACTOR, here=True), ok=ok)


def _reconcile(tenant: Tenant, *, take_over: bool = False) -> dict[str, Any]:
    tenant = Tenant.objects.select_related("store").get(pk=tenant.pk)
    brought = store_reconcile(tenant.store, tenant=None, take_over=take_over, actor=ACTOR)
    assert brought.failed == []
    (answer,) = brought.tenants
    return answer


def _refused(ended: Operation) -> None:
    assert ended.error["code"] == "catalogue.unreconciled", ended.error
    assert "store reconcile default --tenant aurora" in ended.error["hint"]


@pytest.mark.seeded
def test_nothing_is_deleted_by_a_catalogue_of_any_age(
    house: House, shelf: Shelf, lying: Callable[[], None], rng: random.Random, rounds: Rounds
) -> None:
    """Goal: 0 deletions before reconciliation. Method: 50 commits of every sort, then go back 1 to 50, prune at once."""
    tenant = house.tenant()
    source = house.files(tenant, a="one")
    _history(house, shelf, tenant, house.folder(source), rng)
    ages = rng.sample(range(1, HISTORY + 1), min(HISTORY, len(rounds(6))))
    shelf.keep()
    before = _objects(house)
    lying()
    for age in ages:
        shelf.put_back(age)
        tenant.refresh_from_db()
        _refused(_prune(house, tenant, ok=False))
        assert before <= _objects(house), f"a catalogue {age} commits old deleted something"


def _history(house: House, shelf: Shelf, tenant: Tenant, folder: Path, rng: random.Random) -> None:
    """Backups, deletions, ends by the dozen, prunes and holds, a copy of the catalogue before each."""
    for number in range(HISTORY):
        shelf.keep()
        good = list(Backup.objects.filter(tenant=tenant, state="succeeded").order_by("number"))
        step = "expire" if number in (24, 40) else rng.choice(["backup", "backup", "backup", "delete", "prune", "hold"])
        if number < 20 or (step in ("delete", "hold") and len(good) < 3):
            step = "backup"
        if step == "backup":
            (folder / f"f{rng.randrange(5)}").write_bytes(rng.randbytes(3000))
            house.backup(tenant, "incremental")
        elif step == "delete":
            chosen = rng.choice(good[:-1])
            house.run(backup_delete_start(chosen, actor=ACTOR, here=True, now=True))
        elif step == "hold":
            backup_hold(good[0], held=False, reason="case", actor=ACTOR)
            house.run(catalogue_backup_start(actor=ACTOR, here=True))
        elif step == "expire":
            for each in good[:-2]:
                backup_transition(each, to=BackupState.EXPIRED)
            _prune(house, tenant)
        else:
            _prune(house, tenant)


def test_reconciling_takes_over_what_the_store_knows(house: House, shelf: Shelf) -> None:
    """Goal: a restored catalogue loses nothing. Method: go back behind backups, an end and an erasure; reconcile."""
    tenant = house.tenant()
    source = house.database(tenant)
    first, second = house.backup(tenant), house.backup(tenant)
    house.run(catalogue_backup_start(actor=ACTOR, here=True))
    shelf.keep()
    third, fourth = house.backup(tenant, "incremental"), house.backup(tenant)
    house.run(backup_delete_start(first, actor=ACTOR, here=True, now=True))
    erasure_add(source, "users", ["7"], actor=ACTOR)
    shelf.put_back(0)
    _refused(_prune(house, tenant, ok=False))
    fifth = house.backup(tenant, "incremental")  # Protection goes on meanwhile, and takes over what it comes upon.
    _refused(_prune(house, tenant, ok=False))
    generation = Installation.objects.get().generation
    found = _reconcile(tenant)
    assert (found["ended"], found["missing"], found["erasures"]) == ([first.pk], [], 1)
    good = Backup.objects.filter(tenant=tenant, state="succeeded").order_by("number").values_list("pk", flat=True)
    assert list(good) == [second.pk, third.pk, fourth.pk, fifth.pk]
    assert Installation.objects.get().generation == generation + 1
    assert mirror_of(tenant).behind_since is None
    assert _prune(house, tenant).state == "succeeded"
    restored = house.restore(third)
    assert restored.state == "succeeded", restored.error
    assert _reconcile(tenant)["adopted"] == []


def test_a_backup_that_the_store_lost_is_named_and_its_number_stays_free(house: House) -> None:
    """Goal: reconciling covers up no loss. Method: take manifests away, the newest and one between."""
    tenant = house.tenant()
    house.files(tenant)
    backups = [house.backup(tenant, "incremental") for _ in range(3)]
    folder = house.data / "store" / "r" / tenant.repository_id / "manifests"
    for gone in (backups[1], backups[2]):
        (folder / f"{gone.number:010d}").unlink()
    found = _reconcile(tenant)
    assert found["missing"] == [backups[1].pk, backups[2].pk]
    assert not list(folder.glob(f"{backups[2].number:010d}"))
    ended = _prune(house, tenant, ok=False)
    assert ended.error["code"] == "damage.manifest"


def test_a_store_with_another_owner_is_neither_written_nor_swept(house: House) -> None:
    """Goal: two installations never work on one store. Method: raise the owner as another one would; go on; take over."""
    tenant = house.tenant()
    source = house.files(tenant)
    backup = house.backup(tenant)
    house.backup(tenant)
    house.run(catalogue_backup_start(actor=ACTOR, here=True))
    tenant = Tenant.objects.select_related("store").get(pk=tenant.pk)
    with wiring.store_open(tenant.store) as store:
        owner_raise(catalogue_repository(store), reason="adopted elsewhere")
    before = _objects(house)
    (house.folder(source) / "a").write_text("other")
    failed = house.backup(tenant, "incremental", ok=False)
    assert (failed.state, failed.error_code) == ("failed", "repository.taken_over")
    for operation in (
        prune_start(tenant, dry_run=False, actor=ACTOR, here=True),
        backup_delete_start(backup, actor=ACTOR, here=True, now=True),
        catalogue_backup_start(actor=ACTOR, here=True),
    ):
        ended = house.run(operation, ok=False)
        assert ended.error["code"] in ("repository.taken_over", "catalogue.conflict"), ended.error
    assert {key for key in _objects(house) - before if "/manifests/" not in key} == set()
    with pytest.raises(TakenOver, match="--take-over"):
        _reconcile(tenant)
    _reconcile(tenant, take_over=True)
    assert Installation.objects.get().generation == 3
    assert house.backup(tenant, "incremental").state == "succeeded"
    assert _prune(house, tenant).state == "succeeded"


def test_a_restored_catalogue_supersedes_none_of_its_backups(house: House, shelf: Shelf) -> None:
    """Goal: an older catalogue is never kept as the newest. Method: go back behind a backup of it; try to keep it."""
    tenant = house.tenant()
    house.files(tenant)
    house.run(catalogue_backup_start(actor=ACTOR, here=True))
    shelf.keep()
    house.run(catalogue_backup_start(actor=ACTOR, here=True))
    shelf.put_back(0)
    ended = house.run(catalogue_backup_start(actor=ACTOR, here=True), ok=False)
    assert ended.error["code"] == Unreconciled.code
    _refused(_prune(house, tenant, ok=False))
    _reconcile(tenant)
    assert house.run(catalogue_backup_start(actor=ACTOR, here=True)).state == "succeeded"
