"""What goes wrong inside a session ends it with an error; it never hangs, and nothing is thought stored that is not."""

import os
import threading
from contextlib import suppress

import pytest

from engine import session as session_module
from engine.backup import BackupRequest, SourceInput, backup_run
from engine.errors import ManifestDamaged, StoreError, UsageError
from engine.progress import NullProgress
from engine.repository import Repository
from engine.verify import verify_backup
from stores._faulty import Fault, FaultyStore
from tests.engine.memory_source import MemorySource, MemoryTable, backup, content, truth


def _within(seconds: float, work) -> None:
    """Run work in a thread; fail when it does not come back."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "the session hangs"


def test_cancelled_work_does_not_kill_the_workers(repository):
    """Goal: no hang. Method: cancel queued work, more of it than there are workers, then submit on."""
    session = repository.sealed.session(workers=2)
    gate = threading.Event()
    for _ in range(2):
        session.submit(lambda _lane: gate.wait(10))
    assert all(session.submit(lambda _lane: None).cancel() for _ in range(4))
    ids = []

    def go_on() -> None:
        gate.set()
        ids.extend(session.submit(lambda lane: lane.add(b"after")).result() for _ in range(20))
        session.finish()

    _within(20, go_on)
    assert repository.sealed.reader().get(ids[0]) == b"after"


def test_a_worker_that_cannot_begin_reports_it(repository, monkeypatch):
    """Goal: no hang. Method: no lane can be made; submit more than the queue holds."""
    session = repository.sealed.session(workers=2)

    def no_lane(*_arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(session_module, "Lane", no_lane)
    raised = []

    def submit_all() -> None:
        try:
            for _ in range(50):
                session.submit(lambda lane: lane.add(b"x"))
            session.finish()
        except MemoryError as error:
            raised.append(error)
            session.abort()

    _within(20, submit_all)
    assert raised


def test_an_error_that_a_caller_swallows_still_ends_the_session(repository):
    """Goal: a claimed chunk is stored or the session fails. Method: a pack is refused, the caller carries on."""
    store = FaultyStore(repository.store, [Fault("full", at=1, operations=frozenset({"put"}))])
    faulty = Repository.open(store, repository_id="rep_test", keyring=repository.keyring)
    session = faulty.sealed.session()
    data = os.urandom(3 << 20)
    session.meta.add(b"1" + data[1:])
    with suppress(StoreError):  # Another thread stores the pack: the caller may hear of it here, or later.
        session.meta.add(b"2" + data[1:])
    with pytest.raises(StoreError):
        session.finish()
    session.abort()


def test_metadata_is_asked_for_once(repository):
    """Goal: one request per frame. Method: count what reading a metadata chunk asks of the store."""
    session = repository.sealed.session()
    chunk_id = session.meta.add(b"metadata")
    session.finish()
    store = FaultyStore(repository.store)
    counted = Repository.open(store, repository_id="rep_test", keyring=repository.keyring)
    counted.sealed.index.reload()
    before = len(store.calls)
    assert counted.sealed.reader().get(chunk_id) == b"metadata"
    assert [operation for operation, _ in store.calls[before:]] == ["get"]


@pytest.mark.parametrize("loss", ["damaged", "gone"])
def test_a_second_copy_of_a_chunk_is_found(repository, loss):
    """Goal: what is there is read. Method: store a chunk in two packs, harm one, then the other."""
    ids = set()
    for _ in range(2):
        session = repository.sealed.session(rewriting=True)
        ids.add(session.submit(lambda lane: lane.add(b"twice")).result())
        session.finish()
    (chunk_id,) = ids
    for info in list(repository.store.list(repository.prefix + "data/")):
        original = repository.store.get(info.key)
        if loss == "gone":
            repository.store.delete(info.key)
        else:
            repository.store.put(info.key, [bytes(len(original))])
        fresh = Repository.open(repository.store, repository_id="rep_test", keyring=repository.keyring)
        assert fresh.sealed.reader().get(chunk_id) == b"twice"
        repository.store.put(info.key, [original])


def test_a_pack_of_tiny_chunks_is_closed_early(repository, monkeypatch):
    """Goal: trailers and indexes stay small. Method: store many tiny chunks; count those of each pack."""
    monkeypatch.setattr("engine.pack.PACK_CHUNKS_MAX", 5000)
    session = repository.sealed.session(workers=1)
    work = [
        session.submit(lambda lane, n=n: [lane.add_small(b"%d" % m) for m in range(n, n + 1000)])
        for n in range(0, 20000, 1000)
    ]
    ids = [chunk_id for each in work for chunk_id in each.result()]
    session.finish()
    reader = repository.sealed.reader()
    packs: dict[str, int] = {}
    for chunk_id in ids:
        pack = reader.locate(chunk_id).pack
        packs[pack] = packs.get(pack, 0) + 1
    assert len(packs) >= 2
    assert max(packs.values()) < 5000 + session_module.BUNDLE_CHUNKS_MAX


def test_one_damaged_manifest_hides_no_other(repository):
    """Goal: affected backups are named, others listed. Method: damage one of three; end another during the listing."""
    source = MemorySource([MemoryTable(rows={1: "one"})])
    for number in (1, 2, 3, 4):
        backup(repository, source, number)
    repository.store.put(repository.prefix + "manifests/0000000002", [b"damaged"])
    damaged = []
    listed = []
    for manifest in repository.manifests(on_damage=lambda number, _error: damaged.append(number)):
        listed.append(manifest.number)
        if manifest.number == 1:
            repository.forget(3, "ended meanwhile")
    assert (listed, damaged) == ([1, 4], [2])
    with pytest.raises(ManifestDamaged):
        list(repository.manifests())


def test_a_truncated_pack_shows_without_a_deep_look(repository):
    """Goal: truncation is found by the daily verify. Method: cut each pack to half; sizes alone are asked for."""
    source = MemorySource([MemoryTable(rows={n: "row" * n for n in range(200)})])
    manifest = backup(repository, source, 1)
    for folder in ("data/", "meta/"):
        for info in list(repository.store.list(repository.prefix + folder)):
            original = repository.store.get(info.key)
            repository.store.put(info.key, [original[:100]])
            fresh = Repository.open(repository.store, repository_id="rep_test", keyring=repository.keyring)
            assert verify_backup(fresh, manifest, deep=False, progress=NullProgress())
            repository.store.put(info.key, [original])
    assert content(repository, manifest) == truth(source)


def test_two_sources_of_one_name_are_refused(repository):
    """Goal: no source is lost behind another. Method: two inputs of one name."""
    source = MemorySource([MemoryTable(rows={1: "one"})])
    inputs = [SourceInput("main", "database", "memory", source)] * 2
    request = BackupRequest("bkp_1", 1, "full", "Test", "test")
    with pytest.raises(UsageError):
        backup_run(repository, inputs, request, NullProgress())
