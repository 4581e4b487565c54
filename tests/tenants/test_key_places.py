"""Keyrings in their places: enough of them, never where they cannot be deleted, and put right when they are not."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core.rootkey import root_key
from engine.errors import ForeignKeyring, ObjectDamaged, UsageError, WrongKey
from engine.keys import Keyring, RootKey
from tenants import wiring
from tenants.diagnosis import diagnose
from tenants.models import KeyringPlace, StoreConfig, Tenant
from tenants.services.keys import keys_repair, keys_verify
from tenants.services.kits import kit_make
from tenants.services.stores import store_add, store_update
from tenants.services.tenants import tenant_add
from tests.services.seaweed import seaweed
from tests.tenants.conftest import ACTOR, House
from tests.tenants.killing import killed

PASSPHRASE = "five words that nobody guesses"
READER = Path(__file__).resolve().parents[2] / "docs" / "formats" / "reader.py"
weed = pytest.mark.usefixtures("s3_server")


def keyring_file(house: House, tenant: Tenant, store: str = "store") -> Path:
    return house.data / store / "r" / tenant.repository_id / "keyring"


def signs(name: str) -> dict[str, str]:
    return {sign.status: f"{sign.message} {sign.hint}" for sign in diagnose() if sign.name == name}


def test_each_backup_puts_the_keyring_where_it_is_missing(house: House) -> None:
    """Goal: a store that is added or was away gets the keys without being asked; add one, lose it, back up."""
    tenant = house.tenant()
    house.files(tenant)
    assert "nowhere else" in signs("keyrings")["warning"]
    store_add("second", kind="local", values={"path": str(house.data / "second")}, actor=ACTOR)
    house.backup(tenant)
    assert keyring_file(house, tenant, "second").read_bytes() == keyring_file(house, tenant).read_bytes()
    assert "whoever gets into one store" in signs("keyrings")["warning"]
    assert {place.state for place in KeyringPlace.objects.all()} == {"written"}
    keyring_file(house, tenant, "second").unlink()
    assert [(each.place, each.state) for each in keys_verify().findings] == [("store second", "missing")]
    assert "still to be put" in signs("keyrings")["warning"]
    house.backup(tenant)
    assert keys_verify().findings == ()


def test_what_is_wrong_with_a_keyring_is_told_apart_and_put_right(house: House) -> None:
    """Goal: each fault has its own name and its cure; alter, swap, wrap by a stranger, lose, in stores and catalogue."""
    store_add("second", kind="local", values={"path": str(house.data / "second")}, actor=ACTOR)
    tenant, other = house.tenant(), house.tenant("brisa")
    keys_repair(actor=ACTOR)
    place, right = keyring_file(house, tenant, "second"), bytes(tenant.keyring)
    stranger = Keyring.create(RootKey.generate(), tenant_id=tenant.pk, repository_id=tenant.repository_id)
    twin = Keyring.create(root_key(), tenant_id=tenant.pk, repository_id=tenant.repository_id)
    wrong = {
        "damaged": right.replace(b'"1": "4c', b'"1": "4d'),
        "foreign": bytes(other.keyring),
        "wrong_root_key": stranger.to_bytes(RootKey.generate()),
    }
    for state, blob in wrong.items():
        place.write_bytes(blob)
        found = keys_verify().findings
        assert [(each.place, each.state, each.serious) for each in found] == [("store second", state, True)]
        assert "not what was put there" in signs("keyrings")["critical"]
        assert keys_repair(actor=ACTOR).failed == ()
        assert (place.read_bytes(), keys_verify().findings) == (right, ())
    place.write_bytes(twin.to_bytes(root_key()))
    assert [each.state for each in keys_verify().findings] == ["foreign"]
    for state, blob in wrong.items():
        Tenant.objects.filter(pk=tenant.pk).update(keyring=blob)
        keys_repair(tenant, actor=ACTOR)
        place.write_bytes(twin.to_bytes(root_key())) if state == "damaged" else None
        tenant.refresh_from_db()
        assert Keyring.from_bytes(bytes(tenant.keyring), root_key()) == Keyring.from_bytes(right, root_key()), state
        keys_repair(tenant, actor=ACTOR)
    assert keys_verify().findings == ()


def test_no_work_is_done_with_a_strangers_or_altered_keyring(house: House) -> None:
    """Goal: nothing is sealed by keys that are not the tenant's; put a neighbour's keyring into the catalogue, open."""
    tenant, other = house.tenant(), house.tenant("brisa")
    cases = {bytes(other.keyring): ForeignKeyring, b"{}": ObjectDamaged}
    cases[
        Keyring.create(r := RootKey.generate(), tenant_id=tenant.pk, repository_id=tenant.repository_id).to_bytes(r)
    ] = WrongKey
    for blob, error in cases.items():
        tenant.keyring = blob
        with pytest.raises(error):
            wiring.repository_open(tenant).__enter__()


def test_a_store_that_keeps_no_keys_loses_those_it_has(house: House) -> None:
    """Goal: what an operator decides holds for keys already there; take the right from a store, repair, look."""
    row = store_add("second", kind="local", values={"path": str(house.data / "second")}, actor=ACTOR)
    tenant = house.tenant()
    keys_repair(actor=ACTOR)
    assert keyring_file(house, tenant, "second").exists()
    store_update(row, about={"keeps_keys": "no"}, actor=ACTOR)
    assert keys_repair(actor=ACTOR).removed == 1
    assert not keyring_file(house, tenant, "second").exists()
    assert keyring_file(house, tenant).exists()


def test_without_a_store_for_keys_no_tenant_is_added(house: House) -> None:
    """Goal: no backup depends on the catalogue alone; forbid keys everywhere, add a tenant, read why not."""
    house.tenant("brisa")
    StoreConfig.objects.update(keeps_keys=False)
    with pytest.raises(UsageError, match="no store keeps the keys") as caught:
        house.tenant()
    assert "cannot be shredded" in caught.value.hint
    assert not Tenant.objects.filter(slug="aurora").exists()


@weed
def test_a_locked_primary_keeps_no_keys(house: House, tmp_path: Path) -> None:
    """Goal: a key that cannot be deleted cannot be shredded; keep backups in a locked bucket, look for keys, read them there."""
    from tests.services.seaweed import LOCKED

    server = seaweed()
    assert server is not None
    values = server.values(bucket=LOCKED, lock_days="1", lock_mode="governance")
    row = store_add("vault", kind="s3", values=values, actor=ACTOR)
    assert row.keeps_keys is False
    tenant = tenant_add("aurora", name="Aurora", actor=ACTOR, store_name="vault")
    source = house.files(tenant)
    backup = house.backup(tenant)
    assert server.count(LOCKED, values["prefix"], "/keyring") == 0
    assert keyring_file(house, tenant).exists()
    # Told by hand that it should, it still does not.
    StoreConfig.objects.filter(pk=row.pk).update(keeps_keys=True)
    keys_repair(actor=ACTOR)
    assert server.count(LOCKED, values["prefix"], f"{tenant.repository_id}/keyring") == 0
    assert [(each.place, each.state) for each in keys_verify().findings] == [("store vault", "locked")]
    (house.folder(source) / "a").unlink()
    assert house.restore(backup).state == "succeeded"
    assert (house.folder(source) / "a").read_text() == "one"


def test_the_reader_takes_keyrings_from_another_store(
    house: House, content: Callable[[Path], dict[str, bytes]]
) -> None:
    """Goal: the kit suffices although keys lie elsewhere; move them away, list and extract without Lastro."""
    tenant = house.tenant()
    source = house.files(tenant)
    backup = house.backup(tenant)
    kit = house.data / "kit.json"
    kit.write_bytes(kit_make(PASSPHRASE, actor=ACTOR))
    elsewhere = house.data / "keys-elsewhere" / "r" / tenant.repository_id
    elsewhere.mkdir(parents=True)
    keyring_file(house, tenant).rename(elsewhere / "keyring")

    def read(*args: object, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "LASTRO_KIT_PASSPHRASE": PASSPHRASE, **more}
        argv = [sys.executable, str(READER), str(house.data / "store"), str(kit), *map(str, args)]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)

    assert "holds no repository" in read("list").stderr
    there = {"LASTRO_KEYRINGS": str(house.data / "keys-elsewhere")}
    assert backup.pk in read("list", **there).stdout
    done = read("extract", backup.pk, house.data / "out", **there)
    assert done.returncode == 0, done.stderr
    assert set(content(house.data / "out").values()) == set(content(house.folder(source)).values())


@weed
def test_a_place_killed_between_purge_and_put_is_mended(house: House) -> None:
    """Goal: no crash costs a place for good; rotate with a versioned bucket, kill after its old versions went, repair."""
    from tests.services.seaweed import VERSIONED
    from tests.tenants.test_key_rotation import rotate, rotate_root

    server = seaweed()
    assert server is not None
    store_add("bucket", kind="s3", values=server.values(bucket=VERSIONED), actor=ACTOR)
    tenant = house.tenant()
    keys_repair(actor=ACTOR)
    killed(lambda: rotate_root(house), label="key.place_purged")
    assert {each.state for each in keys_verify().findings} <= {"missing", "outdated"}
    assert not rotate_root(house).running
    assert rotate(house, tenant)["waiting"] == []
    assert keys_verify().findings == ()
    assert json.loads(bytes(Tenant.objects.get(pk=tenant.pk).keyring))["version"] == 1


@weed
def test_a_locked_bucket_does_not_hold_up_a_rotation(house: House) -> None:
    """Goal: what cannot be replaced is put beside; back up the catalogue into a locked bucket, rotate, find its keyring there."""
    from operations.services import operation_run
    from tenants.catalogue.places import repository_found
    from tenants.owning import installation_get
    from tenants.services.catalogue_backups import catalogue_backup_start
    from tests.services.seaweed import LOCKED
    from tests.tenants.test_key_rotation import rotate_root

    server = seaweed()
    assert server is not None
    row = store_add(
        "vault", kind="s3", values=server.values(bucket=LOCKED, lock_days="1", lock_mode="governance"), actor=ACTOR
    )
    house.tenant()
    assert operation_run(catalogue_backup_start(actor=ACTOR, here=True).pk, here=True).state == "succeeded"
    assert not rotate_root(house).running
    assert operation_run(catalogue_backup_start(actor=ACTOR, here=True).pk, here=True).state == "succeeded"
    row.refresh_from_db()
    with wiring.store_open(row) as store:
        assert len(list(store.list(f"r/{installation_get().repository_id}/keyrings/"))) >= 1
        assert len(repository_found(store, installation_get().repository_id).numbers()) == 2
