"""A copy that becomes the primary and lacks what it had promised: that is loss, and is said."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.keys import Keyring
from engine.selections import selection_read, selection_write
from stores.local import LocalConfig, LocalStore
from tenants import wiring
from tenants.copy_opening import copy_on
from tenants.models import Backup, Tenant
from tenants.selectors import backup_get
from tenants.services.adopting import store_adopt
from tenants.services.backups import prune_start
from tenants.services.copies import copy_add, copy_run_start
from tenants.services.key_rotation import tenant_rotate_start
from tenants.services.losses import loss_accept_start
from tenants.services.stores import store_add
from tests.tenants.conftest import ACTOR, House
from tests.tenants.killing import killed


class Promising:
    """Three backups in the primary; a copy that was given, and promised, the first two."""

    def __init__(self, house: House) -> None:
        self.house, self.tenant = house, house.tenant()
        self.source = house.files(self.tenant)
        self.second = store_add("second", kind="local", values={"path": str(house.data / "second")}, actor=ACTOR)
        self.copy = copy_add(self.tenant, self.second, actor=ACTOR, afterwards=False)
        self.backups = [self.taken("one"), self.taken("two")]
        house.run(copy_run_start(self.copy, actor=ACTOR, here=True))
        self.copy.refresh_from_db()
        self.backups.append(self.taken("three"))

    def taken(self, text: str) -> Backup:
        (self.house.folder(self.source) / "a").write_text(text)
        return self.house.backup(Tenant.objects.get(pk=self.tenant.pk), "incremental")

    def path(self, folder: str, number: int) -> Path:
        return self.house.data / "second" / "r" / self.tenant.repository_id / folder / f"{number:010d}"

    def primary_emptied(self) -> None:
        """Its disk is new: it answers, and holds nothing."""
        shutil.rmtree(self.house.data / "store")
        LocalStore.make(LocalConfig(path=str(self.house.data / "store"))).close()

    def adopted(self) -> dict[str, Any]:
        done = store_adopt("second", kind="", values={}, actor=ACTOR)
        assert done.failed == []
        (found,) = done.tenants
        return found

    def ids(self, *numbers: int) -> list[str]:
        return [self.backups[number - 1].pk for number in numbers]


@pytest.fixture
def promising(house: House) -> Promising:
    return Promising(house)


def test_what_was_promised_and_is_gone_is_missing(promising: Promising) -> None:
    """Goal: loss is told from intent. Method: delete a promised manifest by hand, adopt, accept the loss, prune, restore."""
    promising.path("manifests", 1).unlink()
    promising.primary_emptied()
    found = promising.adopted()
    assert (found["missing"], found["ended"]) == (promising.ids(1), promising.ids(3))
    lost = backup_get(promising.backups[0].pk)
    assert (lost.state, lost.damaged) == ("succeeded", True)
    house, tenant = promising.house, Tenant.objects.get(pk=promising.tenant.pk)
    assert house.restore(promising.backups[1]).state == "succeeded"
    assert (
        house.run(prune_start(tenant, dry_run=False, actor=ACTOR, here=True), ok=False).error["code"]
        == "damage.manifest"
    )
    house.run(loss_accept_start(lost, actor=ACTOR, reason="gone", here=True))
    assert house.run(prune_start(tenant, dry_run=False, actor=ACTOR, here=True)).state == "succeeded"


@pytest.mark.parametrize("how", ["deleted", "altered", "rolled back"])
def test_a_promise_that_cannot_be_read_promised_everything(promising: Promising, how: str) -> None:
    """Goal: whoever deletes the promise gains nothing. Method: lose, damage or roll back the selection and a manifest; adopt."""
    promising.path("manifests", 2).unlink()
    newest = promising.path("selections", promising.copy.selection)
    if how == "altered":
        newest.write_bytes(b"nothing of ours")
    else:
        newest.unlink()
    if how == "deleted":
        shutil.rmtree(newest.parent)
    promising.primary_emptied()
    found = promising.adopted()
    assert (found["missing"], found["ended"]) == (promising.ids(2, 3), [])


def test_a_promise_thinned_out_by_former_keys_is_not_believed(promising: Promising) -> None:
    """Goal: a thief of the signing key hides no loss. Method: sign a thinner selection with it after the rotation, adopt."""
    thief: Keyring
    with wiring.store_open(promising.second) as store:
        thief = copy_on(promising.copy, store).keyring
    rotation = tenant_rotate_start(promising.tenant, compromised=True, actor=ACTOR, here=True)
    promising.house.run(rotation)
    with wiring.store_open(promising.second) as store:
        repository = copy_on(promising.copy, store)
        repository.keyring = thief
        after = selection_read(repository).serial
        selection_write(repository, copy="cpy", head=3, kept=[2], after=after)
    promising.path("manifests", 1).unlink()
    promising.primary_emptied()
    assert promising.adopted()["missing"] == promising.ids(1, 3)


def test_a_promise_outlives_a_kill(promising: Promising) -> None:
    """Goal: what was promised is known after the selections are gone. Method: kill the adoption behind that, run it again."""
    promising.path("manifests", 1).unlink()
    promising.primary_emptied()
    killed(promising.adopted, label="reconcile.taken_over")
    assert not list(promising.path("selections", 1).parent.glob("*"))
    assert promising.adopted()["missing"] == promising.ids(1)
    assert backup_get(promising.backups[0].pk).damaged
