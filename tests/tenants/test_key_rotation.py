"""Rotation of root and tenant keys through the services: nothing is locked out on the way, nothing opens afterwards."""

import json
from pathlib import Path

import pytest
from django.db import connection

from core import clock, rootkey
from core.errors import Conflict
from core.rewrapping import sealed_columns
from core.rootkey import RootKeyMissing, root_key
from engine.errors import UsageError, WrongKey
from engine.keys import Keyring, RootKey, keyring_root_id
from engine.ports import Store
from operations.hook_settings import hook_add
from tenants import keyring_places
from tenants.diagnosis import diagnose
from tenants.models import KeyringPlace, RestorePlan, RootRotation, Source, StoreConfig, Tenant
from tenants.services.key_rotation import root_rotate_start, tenant_rotate_start
from tenants.services.keys import key_list, keys_repair, keys_verify
from tenants.services.kits import kit_list, kit_make, kit_take
from tenants.services.plans import plan_targets
from tenants.services.sources import source_add
from tenants.services.stores import store_add
from tenants.services.wishes import targets_seal
from tenants.targets import Targets
from tests.tenants.conftest import ACTOR, House
from tests.tenants.killing import killed

PASSPHRASE = "five words that nobody guesses"


def second_store(house: House, name: str = "second") -> StoreConfig:
    return store_add(name, kind="local", values={"path": str(house.data / name)}, actor=ACTOR)


def secret_source(house: House, tenant: Tenant) -> Source:
    """A source with a password, which the root key seals; it is not tested, so no server has to be there."""
    values = {"dsn": "postgresql://u:hunter2@127.0.0.1:1/none"}
    source, _ = source_add(
        tenant, "crm", kind="postgresql", category="database", values=values, actor=ACTOR, test=False
    )
    return source


def rotate_root(house: House, *, ok: bool = True, given: RootKey | None = None) -> RootRotation:
    rotation, operation = root_rotate_start(actor=ACTOR, given=given, here=True)
    house.run(operation, ok=ok)
    return RootRotation.objects.get(pk=rotation.pk)


def rotate(house: House, tenant: Tenant, *, compromised: bool = False) -> dict:
    operation = tenant_rotate_start(tenant, actor=ACTOR, reason="drill", compromised=compromised, here=True)
    return house.run(operation).result


def names_in_catalogue(key_id: str) -> list[str]:
    """Columns of the catalogue in which something is sealed by this root key, whatever its form."""
    import base64

    raw = b"LRK1" + bytes.fromhex(key_id)
    # 12 bytes are 16 whole characters of base64, wherever a value begins with them.
    forms = [raw, raw.hex().encode(), base64.b64encode(raw)]
    found = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f'SELECT * FROM "{table}"')
            names = [column[0] for column in cursor.description]
            for row in cursor.fetchall():
                for name, value in zip(names, row, strict=True):
                    data = bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
                    if any(form in data for form in forms):
                        found.append(f"{table}.{name}")
    return found


@pytest.fixture
def hotel(house: House) -> Tenant:
    """A tenant with a backup in the first of two stores, and one beside it with a password and a hook."""
    second_store(house)
    tenant = house.tenant()
    house.files(tenant)
    house.backup(tenant)
    other = house.tenant("brisa")
    secret_source(house, other)
    hook_add(
        "tell", operation_kind="backup", event="after", kind="http", tenant=other.slug,
        values={"url": "https://example.org/x", "headers": "X-Key: hunter3"}, actor=ACTOR,
    )  # fmt: skip
    return tenant


def test_after_a_rotation_nothing_opens_with_the_old_root_key(house: House, hotel: Tenant) -> None:
    """Goal: a root key that got out is worth nothing; rotate, then look for its id in every column and every store."""
    old = root_key()
    kit = kit_make(PASSPHRASE, actor=ACTOR)
    plan = RestorePlan(tenant=hotel, backup=hotel.backups.latest("id"))
    plan.sealed = targets_seal(plan.pk, Targets(plain={}, secret={"crm": {"dsn": "postgresql://u:hunter4@h/x"}}))
    plan.save()
    assert set(names_in_catalogue(old.key_id)) >= {"tenants_restoreplan.sealed", "tenants_source.sealed"}
    assert [row["outdated"] for row in kit_list(limit=9)] == [False]
    rotation = rotate_root(house)
    assert [row["outdated"] for row in kit_list(limit=9)] == [True]
    assert (rotation.running, rotation.old_key_id) == (False, old.key_id)
    assert names_in_catalogue(old.key_id) == []
    if connection.vendor == "sqlite":  # Nor in pages that no row is in any more.
        name = Path(connection.settings_dict["NAME"])
        kept = b"".join(path.read_bytes() for path in name.parent.glob(f"{name.name}*") if path.is_file())
        assert bytes.fromhex(old.key_id) not in kept
        assert b"LRK1".hex().encode() + old.key_id.encode() not in kept
    assert root_key().key_id == rotation.new_key_id != old.key_id
    assert root_key().former is None
    for place in house.data.glob("*/r/*/keyring"):
        assert keyring_root_id(place.read_bytes()) == rotation.new_key_id
        with pytest.raises(WrongKey):
            Keyring.from_bytes(place.read_bytes(), old)
    assert len(list(house.data.glob("*/r/*/keyring"))) >= 2
    assert old.to_text() not in "".join(path.read_text() for path in (house.data / "keys").iterdir())
    assert plan_targets(RestorePlan.objects.get(pk=plan.pk)).secret == {"crm": {"dsn": "postgresql://u:hunter4@h/x"}}
    assert house.backup(hotel, "incremental").parent is not None
    with pytest.raises(rootkey.RootKeyMismatch, match="before a rotation"):
        kit_take(kit, PASSPHRASE, actor=ACTOR)


def test_a_rotation_killed_anywhere_is_ended_by_the_next_call(house: House, hotel: Tenant) -> None:
    """Goal: no kill loses a key; kill a rotation at every step, back up in between with what there is, go on, verify."""
    labels = (
        "key.next_stored", "key.rotation_begun", "key.batch_rewrapped:2", "key.batch_committed:3", "key.places_written",
        "key.rotation_settled", "key.old_file_gone",
    )  # fmt: skip
    for label in labels:
        old = root_key().key_id
        killed(lambda: rotate_root(house), label=label)
        assert house.backup(hotel, "incremental").state == "succeeded", label
        rotation = rotate_root(house)
        assert not rotation.running and rotation.old_key_id == old, label
        assert names_in_catalogue(old) == [], label
        assert keys_verify().findings == (), label
    assert sorted(path.name for path in (house.data / "keys").iterdir()) == ["root.key"]


def test_the_old_root_key_lives_until_the_last_store_is_done(house: House, hotel: Tenant) -> None:
    """Goal: an unreachable store locks nobody out; take a store away, rotate, read with both keys, bring it back."""
    old = root_key()
    away = house.data / "second"
    away.rename(house.data / "elsewhere")
    rotation = rotate_root(house)
    assert rotation.running and "second" in rotation.waiting[0] and "aurora" in rotation.waiting[0]
    assert root_key().former is not None and root_key().former.key_id == old.key_id
    assert key_list()["root_key"]["still_needed"] == old.key_id
    with pytest.raises(Conflict, match="not finished"):
        root_rotate_start(actor=ACTOR, given=RootKey.generate(), here=True)
    assert house.backup(hotel, "incremental").state == "succeeded"
    (house.data / "elsewhere").rename(away)
    rotation = rotate_root(house)
    assert not rotation.running and names_in_catalogue(old.key_id) == []
    assert keys_verify().findings == ()


def test_a_backup_that_runs_through_a_rotation_is_kept(
    house: House, hotel: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: nobody has to stop work; begin a rotation in the middle of a backup, which then ends, and the rotation after it."""
    from tenants.handlers import backup as handler

    seen: list[RootRotation] = []
    run = handler.backup_run

    def rotating(*args: object) -> object:
        seen.append(rotate_root(house))
        return run(*args)

    monkeypatch.setattr(handler, "backup_run", rotating)
    backup = house.backup(hotel, "incremental")
    monkeypatch.undo()
    assert backup.state == "succeeded"
    assert seen[0].running and "began before" in seen[0].waiting[0]
    assert not rotate_root(house).running
    assert keys_verify().findings == ()
    assert house.restore(backup, targets=(f"path={house.data}/back",)).state == "succeeded"


def test_a_root_key_of_the_environment_is_rotated_by_the_environment(house: House, settings: object) -> None:
    """Goal: keys that Lastro does not keep are never written down; rotate from one variable to another."""
    old, new = RootKey.generate(), RootKey.generate()
    settings.LASTRO_ROOT_KEY = old.to_text()  # type: ignore[attr-defined]
    house.files(tenant := house.tenant())
    with pytest.raises(UsageError, match="from the environment") as caught:
        root_rotate_start(actor=ACTOR, here=True)
    assert "LASTRO_ROOT_KEY_OLD_FILE" in caught.value.hint
    settings.LASTRO_ROOT_KEY = new.to_text()  # type: ignore[attr-defined]
    root_key.cache_clear()
    with pytest.raises(rootkey.RootKeyMismatch, match=old.key_id):
        root_key()
    settings.LASTRO_ROOT_KEY_OLD = old.to_text()  # type: ignore[attr-defined]
    assert root_key().key_id == old.key_id
    assert not rotate_root(house).running
    settings.LASTRO_ROOT_KEY_OLD = ""  # type: ignore[attr-defined]
    root_key.cache_clear()
    assert root_key().key_id == new.key_id
    assert house.backup(tenant).state == "succeeded"
    assert not (house.data / "keys" / "root.key").exists()


def test_a_host_without_the_old_key_says_so(house: House, hotel: Tenant, settings: object) -> None:
    """Goal: half a rotation on the wrong host fails in words; begin one, take the old key away, go on, give it back."""
    old = root_key()
    killed(lambda: rotate_root(house), label="key.rotation_begun")
    standing = house.data / "keys" / "root.key"
    standing.rename(standing.with_suffix(".away"))
    root_key.cache_clear()
    _, operation = root_rotate_start(actor=ACTOR, here=True)
    ended = house.run(operation, ok=False)
    assert ended.error["code"] == RootKeyMissing.code and old.key_id in ended.error["detail"]
    standing.with_suffix(".away").rename(standing)
    assert not rotate_root(house).running


def test_two_rotations_at_once_are_one(house: House, hotel: Tenant) -> None:
    """Goal: a race makes no third key; let a rotation begin between the look and the writing of another one."""
    first, second = root_rotate_start(actor=ACTOR, here=True), root_rotate_start(actor=ACTOR, here=True)
    assert first[0].pk == second[0].pk
    with pytest.raises(Conflict, match="begun meanwhile"):
        rootkey.root_key_switch(old=first[0].old_key_id, new="f" * 16)
    house.run(first[1])
    assert house.run(second[1]).result["finished"]
    assert RootRotation.objects.count() == 1


def test_every_column_that_the_root_key_seals_is_known(house: House) -> None:
    """Goal: no rotation forgets anything; every column called like a sealed one is named, or is sealed by another key."""
    from django.apps import apps

    named = {f"{each.model}.{each.column}".lower() for each in sealed_columns()}
    by_tenant_keys = {"operations.hookrun.sealed"}
    found = {
        f"{model._meta.label}.{field.name}".lower()
        for model in apps.get_models()
        for field in model._meta.get_fields()
        if field.name in ("sealed", "keyring", "seal")
    }
    assert found - by_tenant_keys == named


def test_a_tenants_new_epoch_reaches_the_stores_first(house: House, hotel: Tenant) -> None:
    """Goal: no backup depends on the catalogue alone; rotate, kill before the catalogue knows, lose stores, look."""
    killed(lambda: rotate(house, hotel), label="key.epoch_stored")
    hotel.refresh_from_db()
    newer = keys_verify(hotel)
    assert {each.state for each in newer.findings} == {"newer"}
    assert keys_repair(hotel, actor=ACTOR).taken == (hotel.slug,)
    assert rotate(house, hotel)["epoch"] == 3
    backup = house.backup(hotel, "incremental")
    assert backup.key_id.endswith("/3") and backup.parent is not None
    (house.data / "second").rename(house.data / "elsewhere")
    assert rotate(house, hotel)["waiting"] == ["second"]
    (house.data / "store").rename(house.data / "gone")
    operation = tenant_rotate_start(hotel, actor=ACTOR, here=True)
    assert house.run(operation, ok=False).error["code"].startswith("store.")
    (house.data / "gone").rename(house.data / "store")
    (house.data / "elsewhere").rename(house.data / "second")
    assert key_list(hotel)["data"][0]["epoch"] == 4
    assert keys_repair(hotel, actor=ACTOR).failed == ()
    assert keys_verify(hotel).findings == ()


def test_a_late_rotation_brings_no_destroyed_keys_back(
    house: House, hotel: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: shredded is shredded. Method: a worker that was asleep puts its keyring after the tenant was shredded."""
    real = keyring_places.keyring_store

    def late(blob: bytes, repository_id: str, store: Store) -> str:
        Tenant.objects.filter(pk=hotel.pk).update(keyring=b"", shredded_at=clock.now())
        keyring_places.keyring_purge(repository_id, store)
        return real(blob, repository_id, store)

    monkeypatch.setattr("tenants.services.key_rotation.keyring_store", late)
    operation = house.run(tenant_rotate_start(hotel, actor=ACTOR, here=True), ok=False)
    assert operation.error is not None and operation.error["code"] == "keys.destroyed"
    assert not list(house.data.glob(f"**/{hotel.repository_id}/keyring"))


def test_after_a_compromise_the_next_backup_stores_everything_anew(house: House, hotel: Tenant) -> None:
    """Goal: old chunks are not built on; rotate with --compromised, back up, restore old and new."""
    old = house.backup(hotel, "incremental")
    stored = old.stored_bytes
    assert rotate(house, hotel, compromised=True)["compromised"]
    new = house.backup(hotel, "incremental")
    assert (new.type, new.stored_bytes > stored) == ("full", True)
    assert house.backup(hotel, "incremental").parent_id == new.pk
    for backup in (old, new):
        target = f"path={house.data}/{backup.pk}"
        assert house.restore(backup, targets=(target,)).state == "succeeded"
    ring = json.loads((house.data / "second" / "r" / hotel.repository_id / "keyring").read_bytes())
    assert (ring["version"], sorted(ring["id_keys"]), sorted(ring["successors"])) == (3, ["2"], ["2"])


def test_ten_thousand_tenants_are_rotated_in_bounded_memory(house: House, tmp_path: Path) -> None:
    """Goal: size costs time, not memory; rotate over many rows (a tenth here, all in a soak), look at the peak."""
    import resource

    from tests.conftest import scale

    first, root = house.tenant("t-first"), root_key()
    rows = []
    for n in range(100 * min(scale(), 100)):
        tenant = Tenant(
            slug=f"t{n:05d}", name="t", store=first.store, repository_id=f"rep_{n:05d}", repository_ready=True
        )
        tenant.keyring = Keyring.create(root, tenant_id=tenant.pk, repository_id=tenant.repository_id).to_bytes(root)
        rows.append(tenant)
    Tenant.objects.bulk_create(rows)
    count = len(rows)
    del rows
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rotation = rotate_root(house)
    assert not rotation.running
    assert rotation.rewrapped["keyrings of tenants"] == count + 1
    assert KeyringPlace.objects.filter(state="written", root_key_id=rotation.new_key_id).count() == count + 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    assert names_in_catalogue(root.key_id) == []


def test_doctor_tells_of_a_rotation_that_waits_and_of_kits_that_are_old(house: House, hotel: Tenant) -> None:
    """Goal: nobody relies on a kit that opens nothing; make one, take a store away, rotate, read doctor, finish, read again."""

    def said(name: str) -> str:
        return " ".join(f"{sign.status}: {sign.message} {sign.hint}" for sign in diagnose() if sign.name == name)

    kit_make(PASSPHRASE, actor=ACTOR)
    assert "warning" not in said("recovery kit")
    (house.data / "second").rename(house.data / "elsewhere")
    rotation = rotate_root(house)
    assert f"{rotation.old_key_id} is still needed" in said("root key rotation")
    (house.data / "elsewhere").rename(house.data / "second")
    rotate_root(house)
    assert said("root key rotation") == ""
    assert "opens nothing any more" in said("recovery kit")
