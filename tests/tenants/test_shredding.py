"""Shredding: after it all keys, kits and old versions together open nothing of the tenant, and nobody beside it notices."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.db import connection

from audit.verification import audit_verify
from core.errors import Busy, ConfirmationNeeded, Conflict, NotFound
from core.rootkey import root_key
from engine.certificate import certificate_check
from engine.errors import LastroError, ObjectDamaged, WrongKey
from engine.keys import Keyring
from engine.kit import kit_open
from tenants import wiring
from tenants.diagnosis import diagnose
from tenants.keyring_places import place_put
from tenants.models import Backup, KeyringPlace, Restore, ShredCertificate, StoreConfig, Tenant
from tenants.services.backups import BackupWish, backup_hold, backup_start
from tenants.services.clearing import CLEARED
from tenants.services.drills import check_add, drill_start
from tenants.services.keys import keys_settle, keys_verify
from tenants.services.kits import kit_make
from tenants.services.shredding import (
    Held,
    certificate_get,
    certificate_verify,
    installation_public_key,
    shred_start,
)
from tenants.services.sources import source_add
from tenants.services.stores import store_add
from tenants.services.tenants import tenant_add, tenant_reinstate
from tenants.shredded import KeysDestroyed
from tests.services.seaweed import VERSIONED, seaweed
from tests.tenants.conftest import ACTOR, House
from tests.tenants.killing import killed

Content = Callable[[Path], dict[str, bytes]]
CANARIES = ("okapi", "quetzal", "zanzibar", "narwhal", "hunter2secret", "pangolin")
PASSPHRASE = "five words that nobody guesses"


def shred(house: House, tenant: Tenant, *, ok: bool = True) -> ShredCertificate:
    operation = shred_start(tenant, confirmed=tenant.slug, reason="contract ended", actor=ACTOR, here=True)
    house.run(operation, ok=ok)
    return certificate_get(tenant)


def lived(house: House, slug: str) -> Tenant:
    """A tenant with a life: files, a database, passwords, backups of both sorts, plan, restore, drill, failures."""
    tenant = house.tenant(slug)
    files = house.files(tenant, okapi="narwhal narwhal", b="two")
    path = house.data / slug / "crm.sqlite3"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE zanzibar (id INTEGER PRIMARY KEY, name TEXT)")
        database.executemany("INSERT INTO zanzibar VALUES (?, ?)", [(n, f"quetzal {n}") for n in range(50)])
    crm, _ = source_add(tenant, "crm", kind="sqlite", category="database", values={"path": str(path)}, actor=ACTOR)
    dsn = "postgresql://u:hunter2secret@127.0.0.1:1/pangolin"
    source_add(tenant, "far", kind="postgresql", category="database", values={"dsn": dsn}, actor=ACTOR, test=False)
    backup = house.backup(tenant)
    house.backup(tenant, encrypt=False)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE zanzibar SET name = 'quetzal changed' WHERE id < 9")
    house.plan(backup, sources=("crm",))
    assert house.restore(backup, sources=("crm",)).state == "succeeded"
    check_add(crm, "count", kind="sql", ask="SELECT name FROM zanzibar WHERE id = 1", expected="quetzal 1", actor=ACTOR)
    _, operation = drill_start(tenant, actor=ACTOR, sources=("crm",), here=True)
    house.run(operation, ok=False)
    (house.folder(files) / "okapi").unlink()
    keys_settle(tenant)
    return tenant


def catalogue_bytes() -> bytes:
    """Everything in the catalogue's storage: SQLite's files as they are, PostgreSQL's rows."""
    if connection.vendor == "sqlite":
        name = Path(connection.settings_dict["NAME"])
        return b"".join(path.read_bytes() for path in name.parent.glob(f"{name.name}*") if path.is_file())
    found = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f'SELECT * FROM "{table}"')
            found += [bytes(v) if isinstance(v, memoryview) else str(v).encode() for row in cursor for v in row]
    return b"\0".join(found)


def rows_of(tenant: Tenant) -> dict[str, list[Any]]:
    """Every row of the models that shredding touches, as they are for this tenant."""
    found = {each.model: list(each.rows(tenant).order_by("pk").values()) for each in CLEARED}
    found["tenants.Tenant"] = list(Tenant.objects.filter(pk=tenant.pk).values())
    return found


@pytest.fixture
def hotel(house: House) -> Tenant:
    store_add("second", kind="local", values={"path": str(house.data / "second")}, actor=ACTOR)
    return lived(house, "aurora")


def test_nothing_of_the_tenant_opens_and_nobody_beside_it_notices(
    house: House, hotel: Tenant, content: Content
) -> None:
    """Goal: promise 2; keep all that an attacker could, shred, try everything, compare the neighbour byte by byte."""
    other = lived(house, "brisa")
    root, kit, ring = root_key(), kit_make(PASSPHRASE, actor=ACTOR), bytes(hotel.keyring)
    secrets = Keyring.from_bytes(ring, root)
    stolen = content(house.data / "store" / "r" / hotel.repository_id)
    beside = [content(house.data / name / "r" / other.repository_id) for name in ("store", "second")]
    rows = rows_of(other)
    assert all(word.encode() in catalogue_bytes() for word in ("zanzibar", "quetzal"))

    certificate = shred(house, hotel)
    assert certificate.state == "complete"
    kept = catalogue_bytes()
    sealed = [json.loads(ring)[name].encode() for name in ("id_key", "signing_seed")]
    for value in (*sealed, ring, secrets.id_key, secrets.signing_seed, *secrets.epochs.values()):
        assert value not in kept
    assert [key for key in content(house.data) if hotel.repository_id in key] == []
    opened, _ = kit_open(kit, PASSPHRASE)
    for name, blob in stolen.items():
        if name != "keyring":
            with pytest.raises((LastroError, ValueError)):
                Keyring.from_bytes(blob, opened)
    assert [content(house.data / name / "r" / other.repository_id) for name in ("store", "second")] == beside
    assert rows_of(other) == rows
    assert keys_verify().findings == ()
    good = Backup.objects.filter(tenant=other, encrypt=True).latest("id")
    assert house.restore(good, sources=("crm",)).state == "succeeded"
    assert audit_verify().intact


def test_the_catalogue_holds_no_canary_of_its_data(house: House, hotel: Tenant) -> None:
    """Goal: what is gone is gone from the catalogue's file, too; look for words of the data in its raw bytes."""
    before = catalogue_bytes()
    assert {word for word in CANARIES if word.encode() in before} >= {"quetzal", "zanzibar"}
    shred(house, hotel)
    after = catalogue_bytes()
    assert [word for word in CANARIES if word.encode() in after] == []


def test_what_is_asked_of_a_shredded_tenant_is_answered_with_its_date(house: House, hotel: Tenant) -> None:
    """Goal: no error at night is a riddle; shred, then ask for all that needs keys, and for its slug."""
    backup, restore = (
        Backup.objects.filter(tenant=hotel).latest("id"),
        Restore.objects.filter(tenant=hotel).latest("id"),
    )
    shred(house, hotel)
    hotel.refresh_from_db()
    date = f"{hotel.shredded_at:%Y-%m-%d}"
    from tenants.selectors import backup_usable
    from tenants.services.key_rotation import tenant_rotate_start

    asked: list[Callable[[], object]] = [
        lambda: backup_start(hotel, BackupWish(), actor=ACTOR, here=True),
        lambda: backup_usable(backup.pk),
        lambda: tenant_rotate_start(hotel, actor=ACTOR, here=True),
        lambda: tenant_reinstate(hotel, actor=ACTOR),
        lambda: wiring.repository_open(hotel).__enter__(),
        lambda: house.restore(backup),
        lambda: house.undo(restore),
    ]
    for ask in asked:
        with pytest.raises(KeysDestroyed, match=date):
            ask()
    with pytest.raises(Conflict, match="shredded"):
        tenant_add("aurora", name="Again", actor=ACTOR)
    assert shred(house, hotel).number == 2
    kit_make(PASSPHRASE, actor=ACTOR)
    named = " ".join(f"{sign.message} {sign.hint}" for sign in diagnose() if sign.status == "critical")
    assert "aurora" not in named


def test_a_hold_or_running_work_refuses_and_nothing_is_destroyed(house: House, content: Content) -> None:
    """Goal: a legal hold outranks everything; hold a backup, then the tenant, then let something run, look at the bytes."""
    tenant = house.tenant()
    house.files(tenant)
    backup = house.backup(tenant)
    with pytest.raises(ConfirmationNeeded):
        shred_start(tenant, confirmed="brisa", reason="x", actor=ACTOR, here=True)
    before = content(house.data / "store")
    backup_hold(backup, held=True, reason="trial", actor=ACTOR)
    with pytest.raises(Held, match="trial"):
        shred(house, tenant)
    backup_hold(backup, held=False, reason="", actor=ACTOR)
    Tenant.objects.filter(pk=tenant.pk).update(held=True, held_reason="court order")
    tenant.refresh_from_db()
    with pytest.raises(Held, match="court order"):
        shred(house, tenant)
    Tenant.objects.filter(pk=tenant.pk).update(held=False)
    operation = shred_start(tenant, confirmed=tenant.slug, reason="x", actor=ACTOR, here=True)
    Backup.objects.filter(pk=backup.pk).update(held=True)  # It came in between.
    assert house.run(operation, ok=False).error["code"] == "keys.held"
    Backup.objects.filter(pk=backup.pk).update(held=False)
    backup_start(tenant, BackupWish(), actor=ACTOR)
    with pytest.raises(Busy):
        shred(house, tenant)
    assert content(house.data / "store") == before
    with pytest.raises(NotFound, match="its keys are there"):
        certificate_get(tenant)


def test_a_killed_shredding_is_ended_by_the_next_call(house: House, hotel: Tenant, content: Content) -> None:
    """Goal: no step can be the last; kill it at each one, go on after each, compare the final certificate with the rest."""
    for label in (
        "shred.begun", "shred.catalogue_cleared", "shred.place_purged:2", "shred.rows_cleared",
        "shred.catalogue_compacted",
    ):  # fmt: skip
        killed(lambda: shred(house, hotel), label=label)
    assert not ShredCertificate.objects.exists()
    certificate = shred(house, hotel)
    assert certificate.state == "complete"
    places = {each["place"] for each in certificate.document["destroyed"]}
    assert places >= {"catalogue", "store default", "store second"}
    assert [key for key in content(house.data) if hotel.repository_id in key] == []
    assert [word for word in CANARIES if word.encode() in catalogue_bytes()] == []


def test_a_keyring_on_its_way_is_destroyed_on_arrival(house: House, hotel: Tenant, content: Content) -> None:
    """Goal: nobody who began before brings a key back; hold a tenant's row from before, shred, put its keyring again."""
    row = StoreConfig.objects.get(name="second")
    shred(house, hotel)
    assert hotel.shredded_at is None  # As whoever loaded the row before has it.
    with wiring.store_open(row) as store:
        place_put(hotel, row, store)
    assert [key for key in content(house.data) if hotel.repository_id in key] == []
    assert not KeyringPlace.objects.filter(tenant=hotel).exists()


def test_an_unreachable_store_keeps_it_pending_until_it_is_back(house: House, hotel: Tenant) -> None:
    """Goal: the certificate claims no more than was done; take a store away, shred, bring it back, shred again."""
    (house.data / "second").rename(house.data / "elsewhere")
    first = shred(house, hotel)
    assert first.state == "pending"
    assert {each["place"] for each in first.document["pending"]} == {"store second"}
    (house.data / "elsewhere").rename(house.data / "second")
    second = shred(house, hotel)
    assert (second.state, second.number, second.document["pending"]) == ("complete", 2, [])
    assert second.document["supersedes"] == first.sha256
    assert second.document["reason"] == first.document["reason"] == "contract ended"
    assert {each["place"] for each in second.document["destroyed"]} >= {"catalogue", "store default", "store second"}


def test_a_certificate_is_verified_without_the_catalogue(house: House, hotel: Tenant) -> None:
    """Goal: anybody can check it with the public key alone; verify, alter each part, sign by another installation."""
    document = shred(house, hotel).document
    blob, key = json.dumps(document).encode(), installation_public_key()
    assert certificate_check(blob, public_key=key) == certificate_verify(blob) == document
    for name in document:
        value = document[name]
        altered = {**document, name: f"{value}x" if isinstance(value, str) else [value, "x"]}
        with pytest.raises(LastroError):
            certificate_check(json.dumps(altered).encode(), public_key=key)
    stranger = Keyring.create(root_key(), tenant_id="x", repository_id="y")
    with pytest.raises(WrongKey):
        certificate_check(blob, public_key=stranger.public_key.hex())
    with pytest.raises(ObjectDamaged):
        certificate_check(b"[]", public_key=key)


def test_every_text_about_a_tenant_is_cleared_or_said_to_stay() -> None:
    """Goal: a new column cannot slip through; compare the models that lead to a tenant with what shredding clears."""
    stays = {
        # Who did what, when, why: the account of a tenant that is gone.
        "created_by", "reason", "actor", "operation_id", "trigger", "held_reason", "error_code", "note_by", "set_by",
        # Names that operators gave, ids, kinds, and the digest of a manifest that nobody has.
        "id", "slug", "name", "kind", "state", "type", "requested_type", "origin", "mode", "category", "criticality",
        "key_id", "manifest_sha256", "platform_version", "repository_id", "status", "health", "presence", "sources",
        # Which stores, and numbers and ids of backups, as in the audit log.
        "before_name", "after_name", "account",
    }  # fmt: skip
    cleared = {each.model: set(each.fields or ()) for each in CLEARED}
    whole = {each.model for each in CLEARED if each.fields is None}
    of_keys = {"KeyringPlace", "KeyEpoch", "DestroyedKey", "ShredCertificate"}
    left = []
    for model in apps.get_app_config("tenants").get_models():
        label = model._meta.label
        if model.__name__ in of_keys or label in whole or not _leads_to_tenant(model, set()):
            continue
        texts = {
            field.name
            for field in model._meta.get_fields()
            if field.concrete and field.get_internal_type() in ("CharField", "TextField", "JSONField", "BinaryField")
        }
        left += [f"{label}.{name}" for name in sorted(texts - cleared.get(label, set()) - stays)]
    assert left == [], "clear these in tenants/services/clearing.py, or say here why they stay"


def _leads_to_tenant(model: Any, seen: set[Any]) -> bool:
    """Whether a row of the model belongs to one tenant."""
    if model in seen or model is Tenant:
        return False
    targets = {field.related_model for field in model._meta.get_fields() if field.many_to_one and field.concrete}
    return Tenant in targets or any(_leads_to_tenant(target, {*seen, model}) for target in targets)


@pytest.mark.usefixtures("s3_server")
def test_every_version_in_a_bucket_goes(house: House) -> None:
    """Goal: old versions open nothing; back up to a versioned bucket, rotate keys, shred, look at all versions there."""
    from tests.tenants.test_key_rotation import rotate, rotate_root

    server = seaweed()
    assert server is not None
    values = server.values(bucket=VERSIONED)
    store_add("bucket", kind="s3", values=values, actor=ACTOR)
    tenant = tenant_add("aurora", name="Aurora", actor=ACTOR, store_name="bucket")
    house.files(tenant)
    backup = house.backup(tenant)
    house.backup(tenant, encrypt=False)
    rotate(house, tenant)
    rotate_root(house)
    server.admin.put_object(  # A version that somebody brought back from elsewhere.
        Bucket=VERSIONED, Key=f"{values['prefix']}/r/{tenant.repository_id}/keyring", Body=b"older"
    )
    plain = next(key for key in _versions(server, values, "plain/data"))
    server.admin.delete_object(Bucket=VERSIONED, Key=plain)  # As a prune did once: only a version is left.
    assert len(_versions(server, values, "keyring")) >= 2
    certificate = shred(house, tenant)
    assert certificate.state == "complete", certificate.document["pending"]
    assert _versions(server, values, "keyring") == []
    assert _versions(server, values, "plain/") == []
    entry = next(each for each in certificate.document["destroyed"] if each["what"].endswith("/keyring"))
    assert (entry["place"], entry["versions"] >= 2) == ("store bucket", True)
    assert backup.key_id.endswith("/1")


def _versions(server: Any, values: dict[str, str], part: str) -> list[str]:
    page = server.admin.list_object_versions(Bucket=VERSIONED, Prefix=values["prefix"])
    found = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
    return [item["Key"] for item in found if f"/{part}" in item["Key"]]
