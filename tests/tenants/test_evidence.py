"""What contradicts a backup of the catalogue: newer keys, owners, kits, tenants' backups and other stores."""

import datetime

import pytest

from core import clock
from core.rootkey import root_key
from engine.owner import owner_raise
from tenants import wiring
from tenants.catalogue import evidence
from tenants.catalogue.evidence import KitKnown, contradictions, none_contradicted
from tenants.catalogue.places import catalogue_repository, kept_list
from tenants.models import Tenant
from tenants.owning import catalogue_keyring, installation_get
from tenants.services.adopting_places import keyrings_put_back, keyrings_take
from tenants.services.catalogue_backups import catalogue_backup_start
from tenants.services.key_rotation import root_rotate_start, tenant_rotate_start
from tenants.services.kits import kit_knows, kit_make, kit_printed
from tenants.services.stores import store_add, store_get
from tenants.tenant_sealing import keyring_of
from tests.tenants.conftest import ACTOR, House

PASSPHRASE = "five words that nobody guesses"


class Kept:
    """A house whose catalogue was kept once, in two stores."""

    def __init__(self, house: House) -> None:
        self.house, self.tenant = house, house.tenant()
        house.files(self.tenant)
        store_add("second", kind="local", values={"path": str(house.data / "second")}, actor=ACTOR)
        house.backup(self.tenant)
        self.keep()
        self.repository_id = installation_get().repository_id

    def keep(self) -> None:
        self.house.run(catalogue_backup_start(actor=ACTOR, here=True))

    def rolled_back(self, *, store: str = "default") -> None:
        """Newest backups of the catalogue are gone from a store, but for the first."""
        folder = self.house.data / {"default": "store"}.get(store, store) / "r" / self.repository_id / "manifests"
        for path in folder.iterdir():
            if path.name != "0000000001":
                path.unlink()

    def said(self, known: KitKnown | None = None) -> list[str]:
        """As an adoption of the default store on a clean host would find it."""
        with wiring.store_open(store_get("default")) as store:
            newest = kept_list(catalogue_repository(store))[0]
            return list(contradictions(newest, newest.opened(), known))


@pytest.fixture
def kept(house: House) -> Kept:
    return Kept(house)


def test_what_happens_every_day_contradicts_nothing(kept: Kept) -> None:
    """Goal: a night's loss is adopted without a word. Method: back up, add a tenant, make a kit, some hours after the catalogue."""
    with clock.held(clock.now() + datetime.timedelta(hours=20)):
        kept.house.backup(kept.tenant, "incremental")
        kept.house.files(kept.house.tenant("boreal"))
        kept.house.backup(Tenant.objects.get(slug="boreal"))
        known = kit_knows(kit_make(PASSPHRASE, actor=ACTOR), PASSPHRASE)
        assert known is not None and kept.said(known) == []
    kept.keep()
    assert kept.said(known) == []


def test_newer_keys_contradict(kept: Kept) -> None:
    """Goal: keys that a thief has not are the proof. Method: rotate the root key, keep the catalogue, take that backup away."""
    kept.house.run(root_rotate_start(actor=ACTOR, here=True)[1])
    assert "renewed since (epoch 2)" in kept.said()[0], "before the next backup of the catalogue, too"
    kept.keep()
    assert kept.said() == []
    kept.rolled_back()
    assert "renewed since (epoch 2)" in kept.said()[0]


def test_no_store_ever_has_the_old_keys_under_the_new_root_key(kept: Kept) -> None:
    """Goal: nothing to put back. Method: look at the keyring of the catalogue in each store, and in the row, at each step."""
    rotation, operation = root_rotate_start(actor=ACTOR, here=True)
    before = catalogue_keyring(installation_get())
    assert (before.epoch, sorted(before.successors)) == (2, [2])
    assert before.successors[2].known is not None, "a break: nobody vouches for it"
    kept.house.run(operation)
    for store in ("store", "second"):
        ring = (kept.house.data / store / "r" / kept.repository_id / "keyring").read_text()
        assert rotation.new_key_id in ring and '"successors"' in ring


def test_newer_owners_kits_and_backups_contradict(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: each sign is seen. Method: keys, an owner, a kit, and backups of a tenant from after the catalogue's newest."""
    kept.house.run(tenant_rotate_start(kept.tenant, actor=ACTOR, here=True))
    assert kept.said() == ["the keys of aurora are in epoch 2, it knows 1"]
    with wiring.store_open(store_get("default")) as store:
        owner_raise(catalogue_repository(store), reason="adopted")
    assert "has had owner 2 since" in kept.said()[0]
    operation = kept.house.run(tenant_rotate_start(kept.tenant, actor=ACTOR, here=True))
    assert (operation.result or {})["waiting"] == ["default"], "who was left for dead puts no keys there"
    now, catalogue = clock.now(), kept.repository_id
    assert "a backup of" in kept.said(KitKnown(now, catalogue, 1, 1, now + datetime.timedelta(hours=1)))[0]
    assert "and no backup since" in kept.said(KitKnown(now + datetime.timedelta(days=3), catalogue, 1, 1, None))[0]
    assert "epoch 7" in kept.said(KitKnown(now, catalogue, 7, 1, None))[0]
    assert "by owner 3" in kept.said(KitKnown(now, catalogue, 1, 3, None))[0]
    assert "whose catalogue is cat_other" in kept.said(KitKnown(now, "cat_other", 1, 1, None))[0]


def test_backups_long_after_the_catalogue_contradict(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: days without a backup of the catalogue are no coincidence. Method: a backup of a tenant, and no patience."""
    kept.house.backup(kept.tenant, "incremental")
    assert kept.said() == []
    monkeypatch.setattr(evidence, "PATIENCE", datetime.timedelta(0))
    assert "aurora was backed up until" in kept.said()[0]


def test_a_store_that_was_rolled_back_is_told_from_one_that_was_not(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: two stores under two credentials help. Method: keep the catalogue again, roll one store back, judge it."""
    kept.keep()
    assert kept.said() == []
    kept.rolled_back()
    monkeypatch.setattr(evidence, "CADENCE", datetime.timedelta(0))
    (said,) = kept.said()
    assert "store second has one of" in said and "adopt that store" in said


def test_a_store_without_any_backup_is_asked_why(kept: Kept) -> None:
    """Goal: clearing it all helps nobody. Method: delete or overwrite every backup of the catalogue; with and without a kit."""
    known = kit_knows(kit_make(PASSPHRASE, actor=ACTOR), PASSPHRASE)
    paper = kit_printed(PASSPHRASE, actor=ACTOR, html=False)
    assert kit_knows(paper, PASSPHRASE) is None
    assert [each.split(" ")[2] for each in none_contradicted(None, known)] == ["knows"]
    assert none_contradicted(None, None) == []
    folder = kept.house.data / "store" / "r" / kept.repository_id / "manifests"
    (folder / "0000000001").write_bytes(b"rubbish")
    with wiring.store_open(store_get("default")) as store:
        (said,) = none_contradicted(catalogue_repository(store), None)
    assert "none" in said or "no backup among them" in said


def test_an_epoch_that_nobody_has_stops_no_adoption(kept: Kept) -> None:
    """Goal: rubbish is passed over. Method: a newer object whose header names an epoch of nobody."""
    folder = kept.house.data / "store" / "r" / kept.repository_id / "manifests"
    blob = bytearray((folder / "0000000001").read_bytes())
    blob[8:12] = (77).to_bytes(4, "big")
    (folder / "0000000002").write_bytes(blob)
    assert kept.said() == []


def test_keys_of_another_owner_are_not_overwritten(kept: Kept) -> None:
    """Goal: no installation locks another out. Method: a keyring with more keys in the store; keep the catalogue; look."""
    installation = installation_get()
    newer = catalogue_keyring(installation).rotated()
    place = kept.house.data / "store" / "r" / kept.repository_id / "keyring"
    place.write_bytes(newer.to_bytes(root_key()))
    kept.keep()
    assert catalogue_keyring(installation_get()) == newer
    assert '"2"' in (kept.house.data / "second" / "r" / kept.repository_id / "keyring").read_text()


def test_a_former_keyring_that_was_put_back_is_passed_over_or_named(kept: Kept) -> None:
    """Goal: a replayed keyring gains nothing. Method: rotate, put the former keyring back into one store, then into both; adopt."""
    (store, second) = (
        kept.house.data / name / "r" / kept.tenant.repository_id / "keyring" for name in ("store", "second")
    )
    former = store.read_bytes()
    kept.house.run(tenant_rotate_start(kept.tenant, compromised=True, actor=ACTOR, here=True))
    tenant = Tenant.objects.get(pk=kept.tenant.pk)
    newer = keyring_of(tenant)

    def taken() -> list[str]:
        Tenant.objects.filter(pk=tenant.pk).update(keyring=b"")  # As an adoption finds it.
        with wiring.store_open(store_get("default")) as place:
            assert keyrings_take(store_get("default"), place, notes.append) == []
        return keyrings_put_back(notes.append)

    notes: list[str] = []
    store.write_bytes(former)
    assert (taken(), keyring_of(Tenant.objects.get(pk=tenant.pk))) == ([], newer)
    second.write_bytes(former)
    assert taken() == ["aurora"]
    assert "every store holds a former keyring" in notes[-1]
