"""Backups of the catalogue: whole, of one moment, without any tenant's keys, and cheap."""

import datetime
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.db import connection, models

from access.models import Account, Token
from audit.services import record
from core import clock
from core.errors import Busy
from core.exporting import exports, unnamed
from engine.manifest import Manifest
from engine.progress import NullProgress
from engine.repository import Repository
from engine.sealed import CIPHER_AES_GCM, CIPHER_NONE
from operations.models import Operation
from operations.scheduling.works import Begun, Order
from tenants import wiring
from tenants.catalogue.filling import StoredCatalogue
from tenants.catalogue.places import catalogue_repository, kept_list, newer_unread, repository_found
from tenants.catalogue.writing import OUR_APPS, catalogue_write
from tenants.models import CatalogueStore, DeletionFreeze, Installation, StoreConfig, Tenant
from tenants.owning import catalogue_keyring, installation_get
from tenants.scheduling import begin
from tenants.services.backups import backup_hold
from tenants.services.catalogue_backups import catalogue_backup_start, catalogue_due, to_end
from tenants.services.catalogue_looking import catalogue_list, catalogue_show
from tenants.services.key_rotation import root_rotate_start
from tenants.services.kits import kit_check, kit_make, kit_printed, kit_take
from tenants.services.ownership import place_taken_over
from tenants.services.stores import store_add
from tests.tenants.conftest import ACTOR, House


def _keep(house: House) -> Operation:
    return house.run(catalogue_backup_start(actor=ACTOR, here=True))


def _header(folder: Path) -> dict[str, Any]:
    header = json.loads((folder / "catalogue.json").read_text())
    assert isinstance(header, dict)
    return header


def test_every_model_was_thought_of() -> None:
    """Goal: no row is lost by an adoption because nobody named its model; compare the list with the apps."""
    assert [each.label for each in unnamed(OUR_APPS)] == []


def test_no_column_of_keys_is_kept() -> None:
    """Goal: a shredded tenant cannot come back by it; look at every binary column that is kept."""
    binary = {
        f"{each.label}.{column.name}"
        for each in exports(OUR_APPS)
        for column in each.columns
        if isinstance(column, models.BinaryField)
    }
    sealed_under_tenants_or_root = {
        "audit.Head.seal",
        "audit.CheckpointKey.sealed",
        "operations.HookRun.sealed",
        "tenants.Drill.evidence",
        "tenants.RestorePlan.previews",
        "tenants.RestoreSource.journal",
    }
    assert binary <= sealed_under_tenants_or_root
    assert not {each for each in binary if "keyring" in each}


def test_what_is_kept_holds_no_keys_and_no_secrets(house: House, tmp_path: Path) -> None:
    """Goal: the backup opens no tenant. Method: write the files; look for the keyring and the token's hash in all bytes."""
    tenant = house.tenant()
    house.files(tenant)
    house.backup(tenant)
    account = Account.objects.create(username="ana", is_master=True)
    Token.objects.create(account=account, name="ci", prefix="lst_abc", secret_hash="d" * 64, scopes=["read"])
    folder = tmp_path / "rows"
    header = catalogue_write(folder, installation_get(), NullProgress())
    everything = b"".join(path.read_bytes() for path in folder.iterdir())
    keyring = json.loads(bytes(Tenant.objects.get().keyring))
    for secret in (keyring["id_key"], keyring["signing_seed"], *keyring["epochs"].values(), "d" * 64):
        assert secret.encode() not in everything
    rows = {each["model"]: each for each in header["models"]}
    assert rows["access.Token"]["without"] == ["secret_hash"]
    assert rows["tenants.Tenant"]["without"] == ["keyring"]
    for each in header["models"]:
        assert len((folder / each["file"]).read_text().splitlines()) == each["rows"]
        assert apps.get_model(each["model"])._base_manager.count() == each["rows"]


def test_rows_are_those_of_one_moment(house: House, tmp_path: Path) -> None:
    """Goal: no half of a change. Method: write while another thread adds audit entries; the log must be whole to its head."""
    house.tenant()
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            record("test.noise", message="noise", actor=ACTOR)
        connection.close()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(5):
            header = catalogue_write(tmp_path / str(number), installation_get(), NullProgress())
            entries = next(each["rows"] for each in header["models"] if each["model"] == "audit.Entry")
            assert entries == header["audit"]["size"]
    finally:
        stop.set()
        thread.join()


def test_every_store_keeps_it_and_says_so(house: House, tmp_path: Path) -> None:
    """Goal: any store is enough. Method: two stores, one of them away for a while; list, show, read it back."""
    house.tenant()
    store_add("second", kind="local", values={"path": str(tmp_path / "second")}, actor=ACTOR)
    first = _keep(house)
    assert [each["store"] for each in first.result["stores"] if each["id"]] == ["default", "second"]
    (tmp_path / "second").rename(tmp_path / "away")
    warned = _keep(house)
    assert (warned.state, [w["code"] for w in warned.warnings]) == ("warned", ["catalogue.not_kept"])
    (tmp_path / "away").rename(tmp_path / "second")
    assert _keep(house).state == "succeeded"
    listed = catalogue_list()
    assert [row["store"] for row in listed.rows].count("default") == 3
    assert [row["store"] for row in listed.rows].count("second") == 2
    shown = catalogue_show()
    assert shown["rows"]["tenants.Tenant"] == 1
    with wiring.store_open(StoreConfig.objects.get(name="second")) as store:
        kept = kept_list(catalogue_repository(store))
        stored = kept[0].opened()
        assert isinstance(stored, StoredCatalogue)
        (row,) = stored.lines("tenants.tenant.jsonl")
        fields = next(each["fields"] for each in stored.header["models"] if each["model"] == "tenants.Tenant")
        assert row[fields.index("slug")] == "aurora"


def test_it_is_kept_when_something_happened_and_not_otherwise(house: House) -> None:
    """Goal: daily, after important changes, and never for nothing. Method: ask what the schedule asks, as time goes by."""
    tenant = house.tenant()
    house.files(tenant)
    assert "no backup of it yet" in catalogue_due()
    _keep(house)
    assert catalogue_due() == ""
    order = Order("", {}, {}, False, ACTOR, "scheduled")
    assert begin.catalogue(order) == Begun(note="nothing new to keep")
    with clock.held(clock.now()) as advance:
        advance(datetime.timedelta(days=3))
        assert catalogue_due() == ""
        first, second = house.backup(tenant), house.backup(tenant)
        assert catalogue_due() == "a day has passed"
    assert first.pk < second.pk
    assert catalogue_due() == ""
    backup_hold(second, held=True, reason="case 12", actor=ACTOR)
    assert "backup.held" in catalogue_due()
    queued = begin.catalogue(order).operation_id
    assert Operation.objects.get(pk=queued).kind == "catalogue"
    with pytest.raises(Busy, match="still under way"):
        begin.catalogue(order)


class _At:
    def __init__(self, at: datetime.datetime) -> None:
        self.taken_at = at.isoformat()


def test_thirty_days_stay() -> None:
    """Goal: bounded. Method: forty days with three each; what stays is the newest of each of thirty days, and three."""
    now = datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC)
    kept: Any = [_At(now - datetime.timedelta(hours=8 * n)) for n in range(120)]
    ending = to_end(kept, now=now)
    left = [each for each in kept if each not in ending]
    assert 30 <= len(left) <= 33
    assert left[:3] == kept[:3]
    assert len(to_end(kept[:3], now=now + datetime.timedelta(days=400))) == 0


def test_old_ones_end_and_their_chunks_go(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: retention frees what it ends. Method: keep only what is newest; count manifests and read the rest."""
    house.tenant()
    monkeypatch.setattr("tenants.services.catalogue_backups.DAYS_KEPT", 0)
    for _ in range(5):
        ended = _keep(house).result["stores"][0]["ended"]
    assert ended == 1
    assert len(catalogue_list().rows) == 3
    assert catalogue_show()["number"] == 5
    assert CatalogueStore.objects.get().number_reserved == 5


def test_what_lies_under_a_number_far_beyond_is_passed_over(house: House) -> None:
    """Goal: nobody who may write to the store hides the backups of the catalogue. Method: rubbish under the last number."""
    house.tenant()
    _keep(house)
    row = StoreConfig.objects.get()
    with wiring.store_open(row) as store:
        repository = catalogue_repository(store)
        store.put(f"{repository.prefix}manifests/9999999999", [b"rubbish"])
        kept = kept_list(repository)
        assert ([each.manifest.number for each in kept], newer_unread(repository, kept)) == ([1], [9_999_999_999])
    assert place_taken_over(row) == 0
    assert CatalogueStore.objects.get().number_reserved == 2
    _keep(house)
    assert catalogue_show()["number"] == 3


def test_nothing_ends_by_a_clock_that_is_not_trusted(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a clock that jumped ends no backup of the catalogue. Method: keep five under a freeze, only the newest wanted."""
    house.tenant()
    monkeypatch.setattr("tenants.services.catalogue_backups.DAYS_KEPT", 0)
    DeletionFreeze.objects.create(code="clock.stepped", reason="it was set")
    for _ in range(5):
        assert _keep(house).result["stores"][0]["ended"] == 0
    assert len(catalogue_list().rows) == 5


# ---------------------------------------------------------------- kits

PASSPHRASE = "five words that nobody guesses"


def test_kits_are_remembered_and_judged(house: House) -> None:
    """Goal: an operator knows what a kit is worth. Method: make one, add a tenant, print one, check each."""
    house.tenant()
    first = kit_make(PASSPHRASE, actor=ACTOR)
    house.tenant("boreal")
    page = kit_printed(PASSPHRASE, actor=ACTOR, html=True)
    checked = kit_check(first, PASSPHRASE)
    assert (checked.current, checked.newest, checked.named, checked.unnamed) == (True, False, ["aurora"], ["boreal"])
    assert str(house.data / "store").encode() in page
    printed = kit_check(page, PASSPHRASE)
    assert (printed.current, printed.newest, printed.printable) == (True, True, True)
    assert kit_take(page, PASSPHRASE, actor=ACTOR)[1] is False
    assert Installation.objects.get().pk.encode() in page


def test_after_a_rotation_of_the_root_key_old_and_new_backups_open(house: House) -> None:
    """Goal: catalogue backups outlive a leaked root key, and what comes is under keys of its own. Method: rotate between two."""
    house.tenant()
    _keep(house)
    before = catalogue_keyring(installation_get())
    _, rotation = root_rotate_start(actor=ACTOR, here=True)
    house.run(rotation)
    assert "key." in catalogue_due()
    _keep(house)
    after = catalogue_keyring(installation_get())
    assert (after.epoch, after.id_epoch) == (2, 2)
    assert after.includes(before)
    with wiring.store_open(StoreConfig.objects.get()) as store:
        found = repository_found(store, after.repository_id)  # By what lies in the store and today's root key alone.
        assert found.keyring == after
        assert [each.opened().header["format"] for each in kept_list(found)] == ["lastro-catalogue"] * 2


@pytest.mark.parametrize("cipher", [CIPHER_AES_GCM, CIPHER_NONE])
def test_who_has_a_former_root_key_forges_no_newer_backup(house: House, cipher: int) -> None:
    """Goal: after a rotation old keys make nothing that an adoption takes. Method: sign one more with them, sealed or not."""
    house.tenant()
    _keep(house)
    stolen = catalogue_keyring(installation_get())
    house.run(root_rotate_start(actor=ACTOR, here=True)[1])
    _keep(house)
    with wiring.store_open(StoreConfig.objects.get()) as store:
        thief = Repository(store, stolen, cache=None)
        document = {name: value for name, value in thief.manifest(1).document.items() if name != "signature"}
        document["checksums"] = {name: value for name, value in document["checksums"].items() if name != "manifest"}
        forged = Manifest.signed({**document, "number": 3, "id": "cbk_forged"}, stolen)
        store.create(f"{thief.prefix}manifests/{3:010d}", forged.parts(stolen, cipher=cipher))
        found = repository_found(store, stolen.repository_id)
        kept = kept_list(found)
        assert ([each.manifest.number for each in kept], newer_unread(found, kept)) == ([2, 1], [3])
