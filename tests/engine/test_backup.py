"""Backups of a source with a table, a tree and a document: exact, incremental, fenced, pruned."""

import contextlib
import random
from pathlib import Path

import pytest

from engine.errors import BackupMissing, ChunkMissing, LastroError, ManifestDamaged, SessionFenced, StoreError
from engine.progress import NullProgress
from engine.prune import prune
from engine.repository import Repository
from engine.verify import verify_backup
from stores._faulty import Fault, FaultyStore
from tests.engine.memory_source import MemorySource, MemoryTable, backup, content, truth


@pytest.fixture
def source(tmp_path: Path) -> MemorySource:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "small.txt").write_text("hello")
    (tree / "big.bin").write_bytes(random.Random(1).randbytes(3_000_000))
    table = MemoryTable("rows", {n: f"text {n}" for n in range(3000)})
    return MemorySource([table], tree, b"create table rows")


def _change(source: MemorySource, rng: random.Random) -> None:
    (table,) = source.tables()
    for _ in range(rng.randrange(1, 20)):
        table.set(rng.randrange(4000), f"changed {rng.random()}")
        table.remove(rng.randrange(4000))
    tree = source._tree
    assert tree
    (tree / f"file{rng.randrange(30)}").write_bytes(rng.randbytes(rng.choice([0, 10, 300_000])))
    for old in list(tree.glob("file*"))[:1]:
        old.unlink()
    source.document = rng.randbytes(50)


def reopened(repository: Repository) -> Repository:
    return Repository.open(repository.store, repository_id=repository.repository_id, keyring=repository.keyring)


def test_a_chain_of_backups_restores_each_on_its_own(repository, source):
    """Fulls and incrementals over random changes: every one reads back what the source was then."""
    rng, wanted, parent = random.Random(7), [], None
    for number in range(1, 13):
        parent = backup(repository, source, number, parent=parent, full=number % 5 == 0)
        wanted.append((parent, truth(source)))
        _change(source, rng)
    fresh = reopened(repository)
    for manifest, expected in wanted:
        again = fresh.manifest(manifest.number)
        assert again.sha256 == manifest.sha256
        assert content(fresh, again) == expected
        assert verify_backup(fresh, again, deep=True, progress=NullProgress()) == []


def test_nothing_changed_stores_next_to_nothing(repository, source):
    """An incremental without changes reuses all metadata and data."""
    first = backup(repository, source, 1)
    second = backup(repository, source, 2, parent=first)
    assert second.document["metadata"]["stored_bytes"] < 4096
    assert second.document["checksums"]["database"] == first.document["checksums"]["database"]
    assert second.document["type"] == "incremental"


def test_plain_and_encrypted_backups_never_mix(repository, source):
    """A change of encryption starts anew: another domain, no parent."""
    first = backup(repository, source, 1)
    second = backup(repository, source, 2, parent=first, encrypt=False)
    assert second.document["parent"] is None
    assert content(reopened(repository), second) == truth(source)
    assert verify_backup(repository, second, deep=True, progress=NullProgress()) == []


def test_a_fenced_session_cannot_commit(repository, source):
    """Its number is closed by a void record first: the late commit is refused, the next number works."""
    repository.void(1, "lease lost")
    with pytest.raises(SessionFenced):
        backup(repository, source, 1)
    manifest = backup(repository, source, 2)
    assert [m.number for m in reopened(repository).manifests()] == [2]
    assert repository.void(2, "too late").sha256 == manifest.sha256


def test_a_lost_reply_to_the_commit_is_settled_by_the_same_bytes(repository, source):
    """The manifest is there although the store said it failed: void finds it."""
    faulty = FaultyStore(repository.store, [Fault("lost_reply", operations=frozenset({"create"}))])
    shaky = Repository(faulty, repository.keyring, cache=None)
    with pytest.raises(StoreError):
        backup(shaky, source, 1)
    found = repository.void(1, "reply lost")
    assert found.kind == "manifest"
    assert content(repository, found) == truth(source)


def test_every_bit_of_a_manifest_counts(repository, source, tmp_path):
    """Flips and truncations of a manifest are errors, always."""
    backup(repository, source, 1)
    path = tmp_path / "store" / "r" / "rep_test" / "manifests" / "0000000001"
    original = path.read_bytes()
    for at in range(len(original)):
        changed = bytearray(original)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        with pytest.raises(LastroError):
            repository.manifest(1)
    for length in range(0, len(original), 3):
        path.write_bytes(original[:length])
        with pytest.raises(ManifestDamaged):
            repository.manifest(1)


def test_prune_keeps_what_is_kept_and_frees_the_rest(repository, source):
    """Forget all but two of ten backups: these two stay exact, the store shrinks, numbers stay accounted for."""
    rng, made, parent = random.Random(11), {}, None
    for number in range(1, 11):
        parent = backup(repository, source, number, parent=parent)
        made[number] = (parent, truth(source))
        _change(source, rng)
    size = sum(info.size for info in repository.store.list("r/"))
    ending = {n: "retention" for n in made if n not in (4, 9)}
    dry = prune(repository, forget=ending, head=10, dry_run=True, progress=NullProgress())
    assert sum(info.size for info in repository.store.list("r/")) == size
    report = prune(repository, forget=ending, head=10, dry_run=False, progress=NullProgress())
    assert report.forgotten == dry.forgotten == tuple(ending)
    assert sum(info.size for info in repository.store.list("r/")) < size
    fresh = reopened(repository)
    for number in (4, 9):
        assert content(fresh, fresh.manifest(number)) == made[number][1]
        assert verify_backup(fresh, fresh.manifest(number), deep=True, progress=NullProgress()) == []
    with pytest.raises(BackupMissing):
        fresh.manifest(3)
    last = backup(fresh, source, 11, parent=fresh.manifest(9))
    assert content(reopened(repository), last) == truth(source)


def test_prune_stops_at_a_gap_and_at_a_lost_pack(repository, source, tmp_path):
    """A manifest that vanished, or a needed pack that is not listed, ends prune before it deletes."""
    first = backup(repository, source, 1)
    backup(repository, source, 2, parent=first)
    folder = tmp_path / "store" / "r" / "rep_test"
    manifest = (folder / "manifests" / "0000000001").read_bytes()
    (folder / "manifests" / "0000000001").unlink()
    with pytest.raises(ManifestDamaged):
        prune(repository, forget={2: "x"}, head=2, dry_run=False, progress=NullProgress())
    (folder / "manifests" / "0000000001").write_bytes(manifest)
    needed = {info.key for info in repository.store.list("r/rep_test/data/")}
    (lost,) = [key for key in needed if key == max(needed)]
    blob = repository.store.get(lost)
    repository.store.delete(lost)
    with pytest.raises(ChunkMissing):
        prune(repository, forget={}, head=2, dry_run=False, progress=NullProgress())
    repository.store.put(lost, [blob])
    assert content(reopened(repository), repository.manifest(2)) == truth(source)


@pytest.mark.parametrize("kind", ["truncated_list", "stale_list"])
@pytest.mark.parametrize("at", range(1, 12))
def test_a_lying_list_costs_no_kept_backup(repository, source, kind, at):
    """Whichever listing of prune lies: it stops or goes on, and the backup that is kept stays exact."""
    first = backup(repository, source, 1)
    _change(source, random.Random(at))
    expected = truth(source)
    backup(repository, source, 2, parent=first)
    lying = Repository(FaultyStore(repository.store, [Fault(kind, at=at, times=2)]), repository.keyring, cache=None)
    with contextlib.suppress(LastroError):
        prune(lying, forget={1: "retention"}, head=2, dry_run=False, progress=NullProgress())
    prune(repository, forget={1: "retention"}, head=2, dry_run=False, progress=NullProgress())
    assert content(reopened(repository), repository.manifest(2)) == expected


def test_verify_names_the_damaged_part(repository, source, tmp_path):
    """A flipped bit in the largest pack is found, with the part that suffers; structural finds a lost pack."""
    manifest = backup(repository, source, 1)
    packs = sorted((tmp_path / "store").rglob("data/*/*"), key=lambda p: p.stat().st_size)
    content_before = packs[-1].read_bytes()
    changed = bytearray(content_before)
    changed[len(changed) // 2] ^= 1
    packs[-1].write_bytes(changed)
    findings = verify_backup(reopened(repository), manifest, deep=True, progress=NullProgress())
    assert [f.code for f in findings] == ["damage.object"]
    assert "main/files" in findings[0].parts
    packs[-1].unlink()
    assert verify_backup(reopened(repository), manifest, deep=False, progress=NullProgress())
    with pytest.raises(LastroError):
        content(reopened(repository), manifest)


def test_verify_rebuilds_a_lost_index(repository, source, tmp_path):
    """All segments gone: verify says so, rebuilds, and the backup reads again."""
    manifest = backup(repository, source, 1)
    for path in (tmp_path / "store" / "r" / "rep_test" / "index").iterdir():
        path.unlink()
    fresh = reopened(repository)
    with pytest.raises(ChunkMissing):
        content(fresh, manifest)
    assert [f.code for f in verify_backup(fresh, manifest, deep=False, progress=NullProgress())] == ["damage.index"]
    assert content(reopened(repository), manifest) == truth(source)
