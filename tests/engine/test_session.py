"""Sessions, chunks, index: what goes in comes out, once, or is reported as damaged."""

import os
import random
import threading

import pytest

from engine.errors import ChunkMissing, DamageError, LastroError, ObjectDamaged, StoreError, StoreFull
from engine.index import Segment, encode_segment, merge_segments, pack_place
from engine.progress import NullProgress
from engine.rebuild import index_rebuild
from engine.repository import Repository
from engine.session import Session
from stores._faulty import Fault, FaultyStore
from stores.local import LocalConfig, LocalStore


def _write(repository: Repository, chunks: list[bytes], *, encrypted: bool = True) -> tuple[list[bytes], Session]:
    session = repository.domain(encrypted=encrypted).session(workers=2)
    futures = [session.submit(lambda lane, c=c: lane.add_small(c) if len(c) < 1000 else lane.add(c)) for c in chunks]
    ids = [future.result() for future in futures]
    session.finish()
    return ids, session


def _chunks(seed: int, count: int) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(rng.choice([0, 1, 40, 999, 5000])) * rng.choice([1, 3]) for _ in range(count)]


@pytest.mark.parametrize("encrypted", [True, False])
def test_chunks_come_back(repository, encrypted):
    """Write chunks of all sizes through both ways in, read each back in another process's view."""
    chunks = _chunks(1, 400)
    ids, _ = _write(repository, chunks, encrypted=encrypted)
    fresh = Repository.open(repository.store, repository_id="rep_test", keyring=repository.keyring)
    reader = fresh.domain(encrypted=encrypted).reader()
    assert [reader.get(i) for i in ids] == chunks


def test_the_same_chunk_is_stored_once(repository):
    """Dedup holds within a session, across threads and across sessions; domains never mix."""
    chunk = os.urandom(500_000)
    _, first = _write(repository, [chunk] * 40)
    assert first.stored_bytes < 600_000
    ids, second = _write(repository, [chunk])
    assert second.stored_bytes == 0
    plain_ids, plain = _write(repository, [chunk], encrypted=False)
    assert plain_ids != ids
    assert plain.stored_bytes > 500_000


def test_plain_domain_is_plain_and_sealed_is_not(repository, tmp_path):
    """A canary shows in the store only when encryption was switched off."""
    canary = b"canary-" + os.urandom(40).hex().encode()

    def stored() -> bytes:
        return b"".join(p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file())

    _write(repository, [canary])
    assert canary not in stored()
    session = repository.plain.session(compress=False)
    session.meta.add(canary)
    session.finish()
    assert canary in stored()


def test_every_flip_and_truncation_is_detected(repository, tmp_path):
    """Flip each bit and cut at each length of every small object: exact bytes or a typed error."""
    chunks = [b"alpha" * 9, b"beta" * 50]
    ids, _ = _write(repository, chunks)
    for path in sorted(p for p in (tmp_path / "store" / "r").rglob("*") if p.is_file() and p.name != "keyring"):
        original = path.read_bytes()
        header_and_ends = [*range(200), *range(len(original) - 60, len(original))]
        for at in (a for a in header_and_ends if a < len(original)):
            changed = bytearray(original)
            changed[at] ^= 1 << (at % 8)
            path.write_bytes(changed)
            _exact_or_typed(repository, ids, chunks)
        for length in (*range(0, 200, 7), len(original) - 1):
            path.write_bytes(original[:length])
            _exact_or_typed(repository, ids, chunks)
        path.write_bytes(original)
    _exact_or_typed(repository, ids, chunks, errors_allowed=False)


def _exact_or_typed(repository, ids, chunks, *, errors_allowed=True):
    try:
        fresh = Repository.open(repository.store, repository_id="rep_test", keyring=repository.keyring)
        assert [fresh.sealed.reader().get(i) for i in ids] == chunks
    except LastroError:
        assert errors_allowed


def test_index_is_rebuilt_from_packs_alone(repository, tmp_path):
    """Lose every segment and the cache; the trailers give all chunks back."""
    chunks = _chunks(2, 300)
    ids, _ = _write(repository, chunks)
    for path in (tmp_path / "store" / "r" / "rep_test" / "index").iterdir():
        path.unlink()
    fresh = Repository.open(repository.store, repository_id="rep_test", keyring=repository.keyring)
    with pytest.raises(ChunkMissing):
        fresh.sealed.reader().get(ids[0])
    index_rebuild(fresh, fresh.sealed, NullProgress(), skip=frozenset())
    reader = fresh.sealed.reader()
    assert [reader.get(i) for i in ids] == chunks


def test_segments_stay_bounded(repository):
    """Two hundred small sessions leave a bounded number of segments, and every chunk."""
    ids = [_write(repository, [n.to_bytes(4, "big") * 10])[0][0] for n in range(200)]
    assert len(list(repository.store.list("r/rep_test/index/"))) <= 24
    fresh = Repository.open(repository.store, repository_id="rep_test", keyring=repository.keyring)
    reader = fresh.sealed.reader()
    assert [reader.get(i)[:4] for i in ids] == [n.to_bytes(4, "big") for n in range(200)]


def test_segment_finds_exactly_its_ids():
    """Many sizes of segment: each id in it is found, ids beside it are not; merging keeps all."""
    rng = random.Random(3)
    header = bytes(80)
    for count in (0, 1, 2, 7, 8, 9, 300, 5000):
        entries = sorted(rng.randbytes(32) + pack_place(0, n, 1, 2, 3) for n in range(count))
        segment = Segment("aa" * 32, encode_segment([("bb" * 32, header)], entries))
        assert all(segment.raw(segment.ordinal(e[:32])) == e for e in entries)
        assert all(segment.ordinal(rng.randbytes(32)) == -1 for _ in range(200))
        other = Segment("cc" * 32, encode_segment([("dd" * 32, header)], [bytes(32) + pack_place(0, 9, 9, 9, 9)]))
        merged = Segment("ee" * 32, b"".join(merge_segments([segment, other])))
        assert merged.count == count + 1
        assert merged.superseded == {"aa" * 32, "cc" * 32}
        assert merged.place(merged.ordinal(bytes(32))).pack == "dd" * 32


def test_a_workers_error_reaches_the_caller(repository):
    """One failing task ends the session; its error is the one raised, and threads end."""
    session = repository.sealed.session(workers=2)
    before = threading.active_count()

    def fail(_lane):
        raise StoreFull("no room")

    def keep_submitting():
        for _ in range(100):
            session.submit(fail)

    with pytest.raises(StoreFull):
        keep_submitting()
    with pytest.raises(StoreFull):
        session.finish()
    session.abort()
    assert threading.active_count() <= before


def test_damaged_cache_is_ignored(repository, tmp_path):
    """Corrupt every cached segment: it is fetched again from the store."""
    chunks = _chunks(5, 50)
    ids, _ = _write(repository, chunks)
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1] + b"\0")
    fresh = Repository.open(
        repository.store, repository_id="rep_test", keyring=repository.keyring, cache=tmp_path / "cache"
    )
    assert [fresh.sealed.reader().get(i) for i in ids] == chunks


def test_a_chunk_swapped_for_another_is_damage(repository, tmp_path):
    """Packs exchanged under each other's name do not give other content."""
    (a,), _ = _write(repository, [b"a" * 3000])
    (b,), _ = _write(repository, [b"b" * 3000])
    reader = repository.sealed.reader()
    one, two = (
        tmp_path / "store" / "r/rep_test/data" / p[:2] / p for p in (reader.locate(a).pack, reader.locate(b).pack)
    )
    left, right = one.read_bytes(), two.read_bytes()
    one.write_bytes(right)
    two.write_bytes(left)
    for chunk_id in (a, b):
        with pytest.raises(ObjectDamaged):
            repository.sealed.reader().get(chunk_id)


def test_other_tenants_key_opens_nothing(repository, root_key, tmp_path):
    """A pack moved into another repository does not open there."""
    from engine.keys import Keyring

    ids, _ = _write(repository, [b"mine" * 100])
    keyring = Keyring.create(root_key, tenant_id="ten_other", repository_id="rep_other")
    store = LocalStore.make(LocalConfig(path=str(tmp_path / "store")))
    other = Repository.create(store, repository_id="rep_other", tenant_id="ten_other", keyring=keyring, root=root_key)
    for info in list(store.list("r/rep_test/")):
        if "/index/" in info.key or "/data/" in info.key:
            store.put(info.key.replace("rep_test", "rep_other"), [store.get(info.key)])
    with pytest.raises(DamageError):
        other.sealed.reader().get(ids[0])


def test_a_merge_of_many_entries_makes_several_segments(repository, monkeypatch):
    """Goal: no segment grows without bound. Method: bound them to 40 entries; merge, rewrite, read, merge again."""
    monkeypatch.setattr("engine.index.ENTRIES_MAX", 40)
    monkeypatch.setattr("engine.index_set.ENTRIES_MAX", 40)
    chunks = [n.to_bytes(4, "big") * 10 for n in range(300)]
    ids = [i for at in range(0, 300, 10) for i in _write(repository, chunks[at : at + 10])[0]]
    index = repository.sealed.index
    index.rewrite(drop=(), generation=index.generation, claimed=index.claim_generation())
    for _ in range(2):
        fresh = Repository.open(repository.store, repository_id="rep_test", keyring=repository.keyring)
        assert [fresh.sealed.reader().get(i) for i in ids] == chunks
        assert all(segment.count <= 40 for segment in fresh.sealed.index.segments)
        assert len(list(repository.store.list("r/rep_test/index/"))) == len(fresh.sealed.index.segments) <= 10
        fresh.sealed.index.compact()


def test_a_half_written_rewrite_counts_for_nothing(repository, monkeypatch):
    """Goal: the index is never half. Method: stop a rewrite of several segments at each of its writes."""
    monkeypatch.setattr("engine.index.ENTRIES_MAX", 40)
    chunks = [n.to_bytes(4, "big") * 10 for n in range(100)]
    ids, _ = _write(repository, chunks)
    for at in (1, 2, 3, 4):
        store = FaultyStore(repository.store, [Fault("dead", at=at, operations=frozenset({"put", "delete"}))])
        dying = Repository.open(store, repository_id="rep_test", keyring=repository.keyring)
        index = dying.sealed.index
        claimed = index.claim_generation()
        with pytest.raises(StoreError):
            index.rewrite(drop=(), generation=index.generation, claimed=claimed)
        fresh = Repository.open(repository.store, repository_id="rep_test", keyring=repository.keyring)
        assert [fresh.sealed.reader().get(i) for i in ids] == chunks


def test_a_damaged_segment_is_reported_once(repository, tmp_path):
    """Goal: what was mended is no finding any more. Method: damage a segment, rebuild, look again in a fresh view."""
    ids, _ = _write(repository, [b"chunk"])
    path = next((tmp_path / "store" / "r" / "rep_test" / "index").iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    fresh = Repository.open(repository.store, repository_id="rep_test", keyring=repository.keyring)
    index_rebuild(fresh, fresh.sealed, NullProgress(), skip=frozenset())
    again = Repository.open(repository.store, repository_id="rep_test", keyring=repository.keyring)
    assert again.sealed.reader().get(ids[0]) == b"chunk"
    assert again.sealed.index.damaged == []


def test_the_cache_may_vanish_or_refuse_at_any_time(repository, tmp_path, monkeypatch):
    """Goal: the cache is a convenience. Method: another process removes each file as it is made; a file is in its place."""
    ids, _ = _write(repository, [b"chunk"])
    real = os.replace

    def vanish(source, target):
        real(source, target)
        os.unlink(target)

    monkeypatch.setattr("engine.index.os.replace", vanish)
    for cache in (tmp_path / "vanishing", tmp_path / "store" / "r" / "rep_test" / "config"):
        fresh = Repository.open(repository.store, repository_id="rep_test", keyring=repository.keyring, cache=cache)
        assert fresh.sealed.reader().get(ids[0]) == b"chunk"
