"""Chunks that are stored anew while the index has so many segments that it is about to be merged."""

from pathlib import Path

import pytest

from engine.index_set import SEGMENTS_MAX
from engine.keys import Keyring, RootKey
from engine.progress import NullProgress
from engine.prune import prune
from engine.repository import Repository
from engine.verify import verify_backup
from stores.local import LocalConfig, LocalStore
from tests.engine.memory_source import MemorySource, backup, content, truth


@pytest.mark.parametrize("backups", [SEGMENTS_MAX - 1, SEGMENTS_MAX, SEGMENTS_MAX + 1])
def test_prune_keeps_what_it_stored_anew(tmp_path: Path, backups: int) -> None:
    """Goal: the kept backup stays exact. Method: of each backup's pack it needs one small file; end all others, prune."""
    root = RootKey.generate()
    store = LocalStore.make(LocalConfig(path=str(tmp_path / "store")))
    keyring = Keyring.create(root, tenant_id="t", repository_id="r")
    Repository.create(store, repository_id="r", tenant_id="t", keyring=keyring, root=root)
    tree = tmp_path / "tree"
    tree.mkdir()
    source = MemorySource([], tree, b"ddl")
    for number in range(1, backups + 1):
        (tree / f"kept{number}").write_bytes(bytes([number]) * 2_000)
        (tree / "passing").write_bytes(number.to_bytes(4, "big") * 300_000)
        manifest = backup(Repository(store, keyring, cache=None), source, number)
    expected = truth(source)
    ended = dict.fromkeys(range(1, backups), "retention")
    report = prune(
        Repository(store, keyring, cache=None), forget=ended, head=backups, dry_run=False, progress=NullProgress()
    )
    assert report.packs_rewritten > backups // 2
    repository = Repository(store, keyring, cache=None)
    assert verify_backup(repository, manifest, deep=True, progress=NullProgress()) == []
    assert content(repository, manifest) == expected
    prune(repository, forget={}, head=backups, dry_run=False, progress=NullProgress())


def test_a_chunk_brought_from_elsewhere_stays_where_it_was_put(tmp_path: Path) -> None:
    """Goal: a lost pack's place never comes back. Method: store chunks, store them anew, then merge the index often."""
    root = RootKey.generate()
    store = LocalStore.make(LocalConfig(path=str(tmp_path / "store")))
    keyring = Keyring.create(root, tenant_id="t", repository_id="r")
    repository = Repository.create(store, repository_id="r", tenant_id="t", keyring=keyring, root=root)
    chunks = [bytes([number]) * 100 for number in range(3)]
    for number in range(3):
        index = repository.sealed.index
        before = {segment.name for segment in index.segments}
        session = repository.sealed.session(workers=1, rewriting=True)
        ids = session.submit(lambda lane: [lane.add(chunk) for chunk in chunks]).result()
        session.finish()
        newest = {segment.name for segment in index.segments} - before
        index.put_first(newest)
        places = {place.pack for each in ids if (place := index.find(each)) is not None}
        for other in range(SEGMENTS_MAX + 3):
            session = repository.sealed.session(workers=1)
            session.submit(
                lambda lane, at=(number, other): [lane.add(b"%d %d %d" % (*at, n)) for n in range(3)]
            ).result()
            session.finish()
        repository = Repository(store, keyring, cache=None)
        assert {place.pack for each in ids for place in repository.sealed.index.places(each)} == places
