"""An attacker with every root key there ever was, every kit, and every byte that is left, against a shredded tenant."""

import base64
import datetime
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core import clock
from core.rootkey import root_key
from engine.errors import LastroError
from engine.keys import Keyring, RootKey
from engine.kit import kit_open
from operations.services import operation_run
from tenants import wiring
from tenants.catalogue.places import catalogue_repository, kept_list
from tenants.models import KeyringPlace, StoreConfig, Tenant
from tenants.services.catalogue_backups import catalogue_backup_start
from tenants.services.keys import keys_repair
from tenants.services.kits import kit_make
from tenants.services.stores import store_add
from tenants.services.tenants import tenant_add
from tests.services.seaweed import LOCKED, VERSIONED, seaweed
from tests.tenants.conftest import ACTOR, House
from tests.tenants.test_key_rotation import rotate, rotate_root
from tests.tenants.test_shredding import PASSPHRASE, catalogue_bytes, shred

SEALED_BYTES = 4 + 8 + 32 + 32 + 16
"""A sealed secret of 32 bytes."""


def sealed_in(blob: bytes) -> Iterator[bytes]:
    """Whatever a root key may have sealed in these bytes: as it is, in hex, in base64."""
    for found in re.finditer(b"LRK1", blob):
        yield blob[found.start() : found.start() + SEALED_BYTES]
    for found in re.finditer(b"4c524b31[0-9a-f]{100,}", blob):
        yield bytes.fromhex(found[0][: SEALED_BYTES * 2].decode())
    for found in re.finditer(rb"TFJLM[A-Za-z0-9+/=]{80,}", blob):
        yield base64.b64decode(found[0][: len(found[0]) // 4 * 4] + b"====")[:SEALED_BYTES]


def opened(blobs: list[bytes], roots: list[RootKey], tenant: Tenant) -> int:
    """How many keys of the tenant come out of the bytes, whatever is tried."""
    names = ["id", "signing", *(f"{sort}-{n}" for sort in ("epoch", "id") for n in range(1, 6))]
    count = 0
    for sealed in {each for blob in blobs for each in sealed_in(blob)}:
        for root in roots:
            for name in names:
                try:
                    root.open(sealed, f"keyring:{tenant.pk}:{tenant.repository_id}:{name}")
                except (LastroError, ValueError):
                    continue
                count += 1
    return count


def left_over(house: House, server: Any, values: dict[str, str]) -> list[bytes]:
    """All bytes of the installation: the data folder, the catalogue, every version in the bucket, the catalogue's backups."""
    blobs = [path.read_bytes() for path in sorted(house.data.rglob("*")) if path.is_file()]
    blobs.append(catalogue_bytes())
    page = server.admin.list_object_versions(Bucket=VERSIONED, Prefix=values["prefix"])
    assert not page.get("IsTruncated")
    for item in page.get("Versions", []):
        found = server.admin.get_object(Bucket=VERSIONED, Key=item["Key"], VersionId=item["VersionId"])
        blobs.append(found["Body"].read())
    with wiring.store_open(StoreConfig.objects.get(is_default=True)) as store:
        for kept in kept_list(catalogue_repository(store)):
            stored = kept.opened()
            names = [each["file"] for each in stored.header["models"]]
            blobs.append("\n".join(str(line) for name in names for line in stored.lines(name)).encode())
    return blobs


@pytest.mark.usefixtures("s3_server")
def test_all_that_is_left_opens_nothing(house: House, tmp_path: Path) -> None:
    """Goal: the promise of shredding; gather root keys, kits, catalogue backups and versions before and after, try them all."""
    server = seaweed()
    assert server is not None
    values = server.values(bucket=VERSIONED)
    store_add("bucket", kind="s3", values=values, actor=ACTOR)
    tenant, other = house.tenant(), house.tenant("brisa")
    for each in (tenant, other):
        house.files(each)
        house.backup(each)
    roots, kits = [root_key()], [kit_make(PASSPHRASE, actor=ACTOR)]
    rotate(house, tenant)
    rotate_root(house)
    rotate(house, tenant, compromised=True)
    keys_repair(actor=ACTOR)
    house.backup(tenant)
    operation_run(catalogue_backup_start(actor=ACTOR, here=True).pk, here=True)
    kits.append(kit_make(PASSPHRASE, actor=ACTOR))
    roots.append(root_key())
    roots += [kit_open(kit, PASSPHRASE)[0] for kit in kits]
    assert KeyringPlace.objects.filter(tenant=tenant, state="written").count() == 2
    before = left_over(house, server, values)
    found = opened(before, roots, tenant)
    assert found >= 6, "the attack itself must work while the keys are there"
    assert shred(house, tenant).state == "complete"
    operation_run(catalogue_backup_start(actor=ACTOR, here=True).pk, here=True)
    after = left_over(house, server, values)
    assert opened(after, roots, tenant) == 0
    assert opened(after, roots, Tenant.objects.get(pk=other.pk)) >= 3
    assert Keyring.from_bytes(bytes(Tenant.objects.get(pk=other.pk).keyring), root_key())


@pytest.mark.usefixtures("s3_server")
def test_what_locks_keep_is_said_with_its_date(house: House) -> None:
    """Goal: WORM and shredding live together; back up both ways into a locked bucket, shred, read the certificate."""
    server = seaweed()
    assert server is not None
    values = server.values(bucket=LOCKED, lock_days="1", lock_mode="governance")
    store_add("vault", kind="s3", values=values, actor=ACTOR)
    tenant = tenant_add("aurora", name="Aurora", actor=ACTOR, store_name="vault")
    house.files(tenant, secret="narwhal")
    house.backup(tenant)
    sealed_only = shred(house, tenant)
    assert sealed_only.state == "complete"
    assert any("no key opens them" in note for note in sealed_only.document["notes"])
    other = tenant_add("brisa", name="Brisa", actor=ACTOR, store_name="vault")
    house.files(other, plain="narwhal")
    house.backup(other, encrypt=False)
    certificate = shred(house, other)
    assert certificate.state == "pending"
    (pending, *_) = certificate.document["pending"]
    assert pending["place"] == "store vault" and "without encryption" in pending["what"]
    until = datetime.datetime.fromisoformat(pending["until"])
    assert until > clock.now()
    assert [each["place"] for each in certificate.document["destroyed"]] == ["catalogue", "store default"]
