"""Writers that lost their lease and go on: what they leave behind must never mislead those who came after them."""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from engine.errors import SessionFenced, StoreError
from engine.ports import Store
from engine.progress import NullProgress
from engine.prune import prune
from engine.rebuild import index_rebuild
from engine.repository import Repository
from engine.verify import verify_backup
from stores._faulty import WRITES, Fault, FaultyStore
from tests.engine.memory_source import MemorySource, MemoryTable, backup, content, truth


def _again(repository: Repository) -> Repository:
    """The repository as another process sees it."""
    return Repository.open(repository.store, repository_id=repository.repository_id, keyring=repository.keyring)


def _prune(repository: Repository, head: int = 0) -> None:
    prune(_again(repository), forget={}, head=head, dry_run=False, progress=NullProgress())


def _store(repository: Repository, chunk: bytes) -> bytes:
    session = _again(repository).sealed.session()
    chunk_id = session.submit(lambda lane: lane.add(chunk)).result()
    session.finish()
    return chunk_id


def test_index_of_a_late_session_names_no_swept_packs(repository):
    """Goal: dedup only against what exists. Method: prune between the packs of a session and its index segment."""
    chunk = os.urandom(5000)
    late = repository.sealed.session()
    late.submit(lambda lane: lane.add(chunk)).result()
    for kind, builders in late._open.items():
        while builders:
            late._store_pack(kind, builders.pop())
    _prune(repository)
    with pytest.raises(SessionFenced):
        late.finish()
    chunk_id = _store(repository, chunk)
    assert _again(repository).sealed.reader().get(chunk_id) == chunk


def test_late_merge_brings_no_dropped_packs_back(repository, monkeypatch):
    """Goal: a merge of old segments is void after a prune. Method: merge by a session that began before it."""
    chunks = [os.urandom(100 + n) for n in range(5)]
    for chunk in chunks:
        _store(repository, chunk)
    late = _again(repository)
    before = late.sealed.index.segments
    _prune(repository)
    assert len(before) == 5
    monkeypatch.setattr("engine.index_set.SEGMENTS_MAX", 1)
    late.sealed.index.compact()
    ids = [_store(repository, chunk) for chunk in chunks]
    reader = _again(repository).sealed.reader()
    assert [reader.get(i) for i in ids] == chunks


class _Interrupted(MemorySource):
    """A source during whose reading something else happens."""

    def __init__(self, tables: list[MemoryTable], meanwhile) -> None:
        super().__init__(tables)
        self._meanwhile = meanwhile

    def finish(self):
        self._meanwhile()
        return super().finish()


def test_a_session_overtaken_by_a_prune_does_not_commit(repository):
    """Goal: no manifest over swept chunks. Method: dedup against garbage that a prune takes before the commit."""
    table = MemoryTable(rows={n: f"row {n}" for n in range(50)})
    abandoned = _again(repository).sealed.session()
    with pytest.raises(RuntimeError):  # Leaves its chunks as garbage that is in the index.
        _abandon(repository, table)
    abandoned.abort()
    with pytest.raises(SessionFenced):
        backup(repository, _Interrupted([table], lambda: _prune(repository)), number=1)
    assert repository.numbers() == []
    manifest = backup(repository, MemorySource([table]), number=1)
    assert verify_backup(_again(repository), manifest, deep=True, progress=NullProgress()) == []


def _abandon(repository: Repository, table: MemoryTable) -> None:
    def stop(*_args: object, **_more: object) -> None:
        raise RuntimeError("killed")

    other = _again(repository)
    other.commit = stop
    backup(other, MemorySource([table]), number=1)


class _HookStore:
    """Any store; runs something once, just before the first matching operation."""

    kind = "hook"

    def __init__(self, inner: Store, operation: str, prefix: str, meanwhile: Callable[[], object]) -> None:
        self._inner, self._operation, self._prefix, self._meanwhile = inner, operation, prefix, meanwhile

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._inner, name)

        def hooked(key: Any, *rest: Any) -> Any:
            first = key if isinstance(key, str) else next(iter(key), "")
            if name == self._operation and first.startswith(self._prefix):
                self._operation = ""
                self._meanwhile()
            return real(key, *rest)

        return hooked if callable(real) else real


@pytest.mark.parametrize(
    ("operation", "folder"),
    [("list", "tombstones/"), ("put", "index/"), ("create", "tombstones/"), ("delete_many", "index/")],
)
def test_a_late_prune_deletes_nothing_of_a_newer_backup(repository, operation, folder):
    """Goal: prune is fenced too. Method: a backup builds on garbage and commits while a late prune dooms it."""
    table = MemoryTable(rows={n: f"row {n}" for n in range(50)})
    with pytest.raises(RuntimeError):
        _abandon(repository, table)
    newer = []

    def overtake() -> None:
        newer.append(backup(_again(repository), MemorySource([table]), number=1))

    stalled = _again(repository)
    stalled.store = _HookStore(repository.store, operation, repository.prefix + folder, overtake)
    stalled = Repository.open(stalled.store, repository_id="rep_test", keyring=repository.keyring)
    with suppress(SessionFenced):
        prune(stalled, forget={}, head=0, dry_run=False, progress=NullProgress())
    fresh = _again(repository)
    found = verify_backup(fresh, newer[0], deep=True, progress=NullProgress())
    assert [f for f in found if f.code != "damage.index"] == []
    assert content(fresh, newer[0]) == truth(MemorySource([table]))


def test_a_rebuild_beside_a_prune_names_no_swept_packs(repository):
    """Goal: the same for an index rebuilt by verify. Method: a prune runs between its listing and its segment."""
    chunk = os.urandom(5000)
    _store(repository, chunk)
    for info in list(repository.store.list(repository.prefix + "index/")):
        repository.store.delete(info.key)
    store = _HookStore(repository.store, "put", repository.prefix + "index/", lambda: _prune(repository))
    late = Repository.open(store, repository_id="rep_test", keyring=repository.keyring)
    with suppress(SessionFenced):
        index_rebuild(late, late.sealed, NullProgress(), skip=frozenset())
    chunk_id = _store(repository, chunk)
    assert _again(repository).sealed.reader().get(chunk_id) == chunk


def test_a_prune_between_the_last_look_and_the_manifest_ends_the_backup(repository):
    """Goal: no gap between looking and committing. Method: garbage is swept just before the manifest is created."""
    table = MemoryTable(rows={n: f"row {n}" for n in range(50)})
    with pytest.raises(RuntimeError):
        _abandon(repository, table)
    store = _HookStore(repository.store, "create", repository.prefix + "manifests/", lambda: _prune(repository))
    late = Repository.open(store, repository_id="rep_test", keyring=repository.keyring)
    with pytest.raises(SessionFenced):
        backup(late, MemorySource([table]), number=1)
    assert repository.numbers() == []
    assert repository.forgotten(1)


def test_a_backup_that_neither_listing_nor_catalogue_shows_is_kept(repository):
    """Goal: nothing is deleted on absence. Method: the listing ends early, the catalogue lost its last write."""
    tables = [MemoryTable(rows={n: f"{name} {n}" for n in range(50)}) for name in ("first", "second")]
    backup(repository, MemorySource([tables[0]]), number=1)
    newest = backup(repository, MemorySource([tables[1]]), number=2)
    store = FaultyStore(repository.store, [Fault("truncated_list", times=9, prefix=repository.prefix + "manifests/")])
    lied_to = Repository.open(store, repository_id="rep_test", keyring=repository.keyring)
    prune(lied_to, forget={}, head=1, dry_run=False, progress=NullProgress())
    assert content(_again(repository), newest) == truth(MemorySource([tables[1]]))


def test_a_prune_killed_between_tombstone_and_index_is_finished_by_the_next(repository):
    """Goal: a rerun ends. Method: die before the index is written anew; prune again; nothing of the garbage is left."""
    table = MemoryTable(rows={n: f"row {n}" for n in range(50)})
    with pytest.raises(RuntimeError):
        _abandon(repository, table)
    store = FaultyStore(repository.store, [Fault("dead", prefix=repository.prefix + "index/", operations=WRITES)])
    dying = Repository.open(store, repository_id="rep_test", keyring=repository.keyring)
    with pytest.raises(StoreError):
        prune(dying, forget={}, head=0, dry_run=False, progress=NullProgress())
    assert len(list(repository.store.list(repository.prefix + "tombstones/"))) == 1
    _prune(repository)
    left = [
        info.key
        for folder in ("data/", "meta/", "tombstones/")
        for info in repository.store.list(repository.prefix + folder)
    ]
    assert left == []
