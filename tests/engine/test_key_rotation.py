"""Rotation of a tenant's keys: old points stay readable, and after a compromise nothing new rests on old chunks."""

import dataclasses
import json

import pytest

from engine.erasures import ErasureLedger, erase
from engine.errors import RepositoryNewer, WrongKey
from engine.keys import Keyring, RootKey, sealed_by
from engine.manifest import Manifest
from engine.progress import NullProgress
from engine.prune import prune
from engine.repository import Repository
from engine.sealed import HEADER
from engine.verify import verify_backup
from tests.engine.memory_source import MemorySource, MemoryTable, backup, content, truth


def rows(count: int, *, salt: str = "") -> dict[int, str]:
    return {n: f"row {n} {salt}" for n in range(count)}


def opened(repository: Repository, keyring: Keyring) -> Repository:
    return Repository.open(repository.store, repository_id="rep_test", keyring=keyring, cache=None)


def packs(repository: Repository) -> dict[str, int]:
    """Key of every pack with the epoch that sealed it."""
    return {
        info.key: HEADER.unpack(repository.store.get(info.key, 0, HEADER.size))[4]
        for folder in ("data", "meta")
        for info in repository.store.list(f"{repository.prefix}{folder}/")
    }


def test_a_new_epoch_writes_and_all_of_them_read(repository: Repository) -> None:
    """Goal: rotation costs no backup; back up, rotate, back up, read both, and reuse what did not change."""
    table = MemoryTable("rows", rows(400))
    source = MemorySource([table], None, b"ddl")
    first = backup(repository, source, number=1)
    was = truth(source)
    old = packs(repository)
    rotated = opened(repository, repository.keyring.rotated())
    table.set(5, "changed")
    second = backup(rotated, source, number=2, parent=first)
    assert second.document["metadata"]["key_id"] == "rep_test/2"
    assert "id_epoch" not in second.document["metadata"]
    assert content(rotated, first) == was
    assert content(rotated, second) == truth(source)
    new = packs(rotated)
    assert set(old.values()) == {1}
    assert {epoch for key, epoch in new.items() if key not in old} == {2}
    assert second.document["sources"][0]["compared_with_parent"]
    with pytest.raises(WrongKey, match="epoch 2"):
        opened(repository, repository.keyring).reader(second).get(_some_chunk(second))


def _some_chunk(manifest: Manifest) -> bytes:
    return bytes.fromhex(manifest.document["sources"][0]["tables"][0]["lists"][0][0])


def test_after_a_compromise_nothing_new_rests_on_old_chunks(repository: Repository) -> None:
    """Goal: ending the old backups ends all that the lost keys open; replace the id key, back up, prune, look at the packs."""
    source = MemorySource([MemoryTable("rows", rows(400))], None, b"ddl")
    first = backup(repository, source, number=1)
    renewed = opened(repository, repository.keyring.rotated(compromised=True))
    assert renewed.keyring.id_epoch == 2
    second = backup(renewed, source, number=2, parent=first)
    third = backup(renewed, source, number=3, parent=second)
    assert second.document["type"] == "full"
    assert second.document["metadata"]["id_epoch"] == 2
    assert third.document["parent"] == second.document["id"]
    for manifest in (first, second, third):
        assert content(renewed, manifest) == truth(source)
        assert not verify_backup(renewed, manifest, deep=True, progress=NullProgress())
    prune(renewed, forget={1: "expired"}, head=3, dry_run=False, progress=NullProgress())
    prune(renewed, forget={}, head=3, dry_run=False, progress=NullProgress())
    assert set(packs(renewed).values()) == {2}
    bare = dataclasses.replace(renewed.keyring, epochs={n: k for n, k in renewed.keyring.epochs.items() if n > 1})
    assert content(opened(repository, bare), third) == truth(source)


def test_repacked_chunks_keep_their_old_names(repository: Repository) -> None:
    """Goal: a prune after a compromise damages nothing; make a pack thin, rotate, repack, read and verify deeply."""
    table = MemoryTable("rows", rows(2_000, salt="x" * 200))
    source = MemorySource([table], None, b"ddl")
    first = backup(repository, source, number=1)
    for n in range(0, 2_000, 2):
        table.set(n, "y" * 200)
    second = backup(repository, source, number=2, parent=first)
    was = truth(source)
    renewed = opened(repository, repository.keyring.rotated(compromised=True))
    before = set(packs(renewed))
    for n in range(3):
        prune(renewed, forget={1: "expired"} if not n else {}, head=2, dry_run=False, progress=NullProgress())
    assert content(renewed, second) == was
    assert not verify_backup(renewed, second, deep=True, progress=NullProgress())
    assert before != set(packs(renewed))


def test_erasures_outlive_a_new_id_key(repository: Repository) -> None:
    """Goal: what was erased stays erased after a compromise; erase before and after it, ask the ledger."""
    erase(repository, [("db", "rows", b"1")])
    renewed = opened(repository, repository.keyring.rotated(compromised=True))
    erase(renewed, [("db", "rows", b"2")])
    ledger = ErasureLedger.load(renewed)
    assert ledger.kept("db", "rows", [b"1", b"2", b"3"]) == [False, False, True]


def test_a_keyring_says_what_it_is(root_key: RootKey) -> None:
    """Goal: an older reader refuses what it would miss, and a stranger's keyring opens nothing; write, read, compare."""
    first = Keyring.create(root_key, tenant_id="t", repository_id="r")
    second = first.rotated()
    third = second.rotated(compromised=True)
    assert json.loads(second.to_bytes(root_key))["version"] == 1
    assert json.loads(third.to_bytes(root_key))["version"] == 2
    assert Keyring.from_bytes(third.to_bytes(root_key), root_key) == third
    assert third.includes(second) and second.includes(first) and not second.includes(third)
    other = Keyring.create(root_key, tenant_id="t", repository_id="other")
    assert not third.includes(other)
    with pytest.raises(WrongKey, match="that of other"):
        Keyring.of(other.to_bytes(root_key), root_key, tenant_id="t", repository_id="r")
    newer = {**json.loads(first.to_bytes(root_key)), "version": 4}
    with pytest.raises(RepositoryNewer):
        Keyring.from_bytes(json.dumps(newer).encode(), root_key)


def test_a_root_key_in_rotation_opens_both_and_seals_with_one() -> None:
    """Goal: no moment of a rotation locks anybody out; seal under the old, under both, open with each."""
    old, new = RootKey.generate(), RootKey.generate()
    both = new.succeeding(old)
    before, during = old.seal(b"secret", "x"), both.seal(b"secret", "x")
    assert (sealed_by(before), sealed_by(during)) == (old.key_id, new.key_id)
    assert both.open(before, "x") == both.open(during, "x") == new.open(during, "x") == b"secret"
    with pytest.raises(WrongKey):
        old.open(during, "x")
    with pytest.raises(WrongKey):
        new.open(before, "x")
