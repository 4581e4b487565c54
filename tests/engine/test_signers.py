"""Signing keys that take the place of one another: what a thief of the former ones can still pass off, and what not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from engine.erasures import ErasureLedger, erase, ledger_restate
from engine.errors import ManifestDamaged, ObjectDamaged
from engine.keys import Keyring, RootKey
from engine.manifest import Manifest
from engine.progress import NullProgress
from engine.repository import Repository
from engine.sealed import CIPHER_AES_GCM, CIPHER_NONE
from engine.selections import selection_read, selection_write
from engine.signers import Known, known_newest
from engine.verify import verify_backup
from engine.verify_store import store_verify_structure
from tests.engine.memory_source import MemorySource, MemoryTable, backup, content, truth
from tests.formats.golden import GOLDEN, PASSPHRASE, ROOT_KEY, open_repository
from tests.formats.test_reader import run as reader

AT = "2026-11-22T12:00:00+00:00"


def opened(repository: Repository, keyring: Keyring) -> Repository:
    return Repository.open(repository.store, repository_id=repository.repository_id, keyring=keyring, cache=None)


def broken(repository: Repository, *kept: Manifest, since: int, erasures: int = 0) -> Repository:
    """The repository after a compromise: it is known what `kept` were."""
    known = Known({each.number: each.sha256 for each in kept}, erasures=erasures)
    keyring = repository.keyring.rotated(compromised=True).succeeded(
        since=since, at=AT, reason="compromised", known=known
    )
    return opened(repository, keyring)


def forged(thief: Keyring, like: Manifest, number: int, *, cipher: int = CIPHER_AES_GCM, **more: Any) -> list[bytes]:
    """A manifest like that one, as somebody with these keys makes it."""
    document = {**like.document, "number": number, **more}
    document.pop("signature")
    return Manifest.signed(document, thief).parts(thief, cipher=cipher)


def place(repository: Repository, folder: str, number: int) -> str:
    return f"{repository.prefix}{folder}/{number:010d}"


@pytest.fixture
def source() -> MemorySource:
    return MemorySource([MemoryTable("rows", {n: f"row {n}" for n in range(200)})], None, b"ddl")


def test_a_thief_of_former_keys_passes_off_nothing(repository: Repository, source: MemorySource) -> None:
    """Goal: after a break only what was there is believed. Method: forge with the old keys at old, free and new numbers."""
    first = backup(repository, source, number=1)
    second = backup(repository, source, number=2, parent=first)
    repository.void(3, "its session is gone")
    thief = repository.keyring
    ours = broken(repository, first, second, since=5)
    third = backup(ours, source, number=5, parent=second)
    for manifest in (first, second, third):
        assert content(ours, manifest) == truth(source)
        assert verify_backup(ours, ours.manifest(manifest.number), deep=True, progress=NullProgress()) == []
    assert [each.kind for each in (ours.manifest(3), ours.manifest(5))] == ["void", "manifest"]
    known = ours.store.get(place(ours, "manifests", 1))
    for cipher in (CIPHER_AES_GCM, CIPHER_NONE):
        for number, said in ((1, "not the one"), (4, "was not there"), (5, "from number 5 on"), (9, "from number 5")):
            ours.store.put(place(ours, "manifests", number), forged(thief, first, number, cipher=cipher, tags=["new"]))
            with pytest.raises(ManifestDamaged, match=said):
                ours.manifest(number)
    ours.store.put(place(ours, "manifests", 1), [known])
    assert ours.manifest(1).sha256 == first.sha256
    report = store_verify_structure(ours, {1: first.sha256, 4: "", 5: third.sha256}, progress=NullProgress())
    assert sorted(report.affected) == [4, 5]


def test_a_header_of_another_epoch_helps_nobody(repository: Repository, source: MemorySource) -> None:
    """Goal: the key is bound to the epoch. Method: write the new epoch, and none at all, into a plain forged manifest."""
    first = backup(repository, source, number=1)
    ours = broken(repository, first, since=2)
    blob = bytearray(b"".join(forged(repository.keyring, first, 2, cipher=CIPHER_NONE)))
    for epoch in (0, 2, 3, 2**32 - 1):
        blob[8:12] = epoch.to_bytes(4, "big")
        ours.store.put(place(ours, "manifests", 2), [bytes(blob)])
        with pytest.raises(ManifestDamaged):
            ours.manifest(2)


def test_a_thief_ends_nothing(repository: Repository, source: MemorySource) -> None:
    """Goal: loss is not passed off as retention. Method: forge forget, void and checkpoint records; delete the manifest."""
    first, second = (backup(repository, source, number=n) for n in (1, 2))
    backup(repository, source, number=3)
    repository.forget(3, "expired")
    ours = broken(repository, first, second, since=4)
    manifest = ours.store.get(place(ours, "manifests", 1))
    thief = opened(repository, repository.keyring)
    thief.forget(1, "expired")
    with pytest.raises(ManifestDamaged, match="is kept"):
        ours.forgotten(1)
    ours.store.delete(place(ours, "forgets", 1))
    thief.gaps_close(head=3, kept=[2])
    assert (ours.forgotten(1), ours.forgotten(3)) == (False, True)
    with pytest.raises(ManifestDamaged, match="no signed record"):
        list(ours.chain(3))
    thief.void(1, "its session is gone")
    with pytest.raises(ManifestDamaged, match="is kept"):
        ours.manifest(1)
    ours.store.put(place(ours, "manifests", 1), [manifest])
    assert [each.number for each in ours.chain(3)] == [1, 2]
    thief.gaps_close(head=4, kept=[])
    assert not ours.forgotten(4)  # A number of after the break.
    ours.forget(2, "expired")
    assert ours.forgotten(2)


def test_a_thinned_out_promise_is_not_trusted(repository: Repository, source: MemorySource) -> None:
    """Goal: a copy's promise is as good as its key. Method: read one of before the break, then one of after it."""
    first = backup(repository, source, number=1)
    selection_write(repository, copy="cpy", head=1, kept=[1], after=0)
    ours = broken(repository, first, since=2)
    said = selection_read(ours)
    assert (said.serial, said.trusted) == (1, False)
    selection_write(ours, copy="cpy", head=1, kept=[1], after=1)
    assert selection_read(ours).trusted
    adopted = opened(ours, ours.keyring.rotated().succeeded(since=2, at=AT, reason="adopted"))
    assert selection_read(adopted).trusted


def test_a_thief_erases_nothing_and_brings_nothing_back(repository: Repository) -> None:
    """Goal: the ledger holds. Method: restate it after the break; forge records behind it and in the place of old ones."""
    erase(repository, [("db", "rows", b"1")])
    ours = broken(repository, since=1, erasures=1)
    assert ledger_restate(ours) == 2
    repository.store.delete(f"{ours.prefix}erasures/0000000002")
    erase(opened(repository, repository.keyring), [("db", "rows", b"2")])
    with pytest.raises(ManifestDamaged, match="had got out"):
        ErasureLedger.load(ours)
    repository.store.delete(f"{ours.prefix}erasures/0000000002")
    assert ledger_restate(ours) == 2
    repository.store.put(f"{ours.prefix}erasures/0000000001", [b"nothing of ours"])
    assert ErasureLedger.load(ours, at_least=2).kept("db", "rows", [b"1", b"2"]) == [False, True]


def test_a_trusted_key_vouches_for_its_successor(
    repository: Repository, source: MemorySource, root_key: RootKey
) -> None:
    """Goal: whoever knows the first public key can follow. Method: adopt, check the signatures without any secret, alter it."""
    first = backup(repository, source, number=1)
    once = repository.keyring.rotated().succeeded(since=2, at=AT, reason="adopted")
    twice = once.rotated().succeeded(since=4, at=AT, reason="adopted")
    ring = json.loads(twice.to_bytes(root_key))
    key = bytes.fromhex(ring["public_key"])
    for epoch in ("2", "3"):
        signer = ring["signers"][epoch]
        statement = twice.successors[int(epoch)].statement("rep_test", int(epoch))
        Ed25519PublicKey.from_public_bytes(key).verify(bytes.fromhex(signer["signed_by_former"]), statement)
        key = bytes.fromhex(signer["public_key"])
    assert Keyring.from_bytes(twice.to_bytes(root_key), root_key) == twice
    assert twice.includes(once) and once.includes(repository.keyring) and not once.includes(twice)
    for name, value in (("public_key", "00" * 32), ("signed_by_former", None)):
        altered = {**ring, "signers": {**ring["signers"], "2": {**ring["signers"]["2"], name: value}}}
        with pytest.raises(ObjectDamaged, match="in clear"):
            Keyring.from_bytes(json.dumps(altered).encode(), root_key)
    assert opened(repository, twice).manifest(1).sha256 == first.sha256
    repository.store.put(place(repository, "manifests", 2), forged(repository.keyring, first, 2))
    with pytest.raises(ManifestDamaged, match="from number 2 on"):
        opened(repository, twice).manifest(2)


def test_a_keyring_stays_small(root_key: RootKey) -> None:
    """Goal: a break after many backups fits. Method: more digests than are kept; the newest stay, those of kept backups first."""
    kept = {n: f"{n:064x}" for n in range(1, 10_001)}
    known = known_newest(Known(kept, dict.fromkeys(range(20000, 40000), "f" * 64)))
    assert (len(known.kept), len(known.ended), min(known.ended)) == (10_000, 10_000, 30_000)
    keyring = Keyring.create(root_key, tenant_id="t", repository_id="r").rotated()
    blob = keyring.succeeded(since=40_001, at=AT, reason="compromised", known=known).to_bytes(root_key)
    assert len(blob) < 2 << 20


@pytest.mark.parametrize("attack", ["none", "after the break", "before the break", "other keyring"])
def test_the_reader_judges_alike(tmp_path: Path, attack: str) -> None:
    """Goal: the document is enough to refuse a forgery. Method: break the golden repository's keys, forge, list it."""
    top = Path(shutil.copytree(GOLDEN, tmp_path / "golden"))
    repository = open_repository(top / "store")
    there = [repository.manifest(n) for n in (1, 2, 4)]
    ours = broken(repository, *there, since=5)
    ring = top / "store" / "r" / ours.repository_id / "keyring"
    ring.write_bytes(ours.keyring.to_bytes(ROOT_KEY))
    assert json.loads(ring.read_bytes())["version"] == 3
    number = {"after the break": 5, "before the break": 2}.get(attack)
    if number:
        ours.store.put(place(ours, "manifests", number), forged(repository.keyring, there[0], number, id="bkp_forged"))
    if attack == "other keyring":
        ring.parent.rename(ring.parent.with_name("rep_other"))
    done = reader(top / "store", top / "kit.json", "list", passphrase=PASSPHRASE)
    assert "bkp_forged" not in done.stdout
    assert done.returncode == (0 if attack == "none" else 1)
    said = {"none": "", "other keyring": "in the place of rep_other"}.get(attack, "of a former key")
    assert said in done.stderr
