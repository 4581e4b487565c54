"""What every kind of store promises; docs/house.md tells how a new kind joins."""

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.errors import ObjectExists, ObjectMissing, UsageError
from engine.ports import Store
from stores import load_all
from stores._probe import probe_store
from tests.contract.conftest import Place, kinds
from tests.services.kinds import KINDS

WEIRD_KEYS = [
    "", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/../b", "a/./b", ".tmp/a", "a/.b", ".hidden",
    "a b", "a\nb", "a\0b", "a\\b", "é", "a/\u202eb", "a:b", "a*", "a?", "a%2fb", "~a", "a'b", 'a"b', "a;b", "$a",
    "x" * 201, "/".join(["part"] * 200),
]  # fmt: skip


def test_every_kind_has_a_place() -> None:
    """Goal: no adapter escapes the suite; compare the registry with the places."""
    assert set(kinds()) <= set(KINDS), "add the missing kinds to KINDS in tests/services/kinds.py"


def test_every_kind_declares_itself() -> None:
    """Goal: forms and documentation can be made from the registry; look at each declaration."""
    for adapter in load_all():
        assert adapter.label
        assert adapter.Config.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert adapter.__doc__


def test_probe_accepts_it(store: Store) -> None:
    """Goal: the probe at `store add` accepts what the contract accepts, and leaves nothing; run it."""
    probe = probe_store(store)
    assert probe.usable
    assert probe.conditional
    assert probe.deletes
    assert list(store.list("")) == []


def test_put_then_get(store: Store) -> None:
    """Goal: bytes come back as they were put, whatever buffers they were in."""
    store.put("a/b", [b"one", bytearray(b"two"), memoryview(b"three"), b""])
    assert store.get("a/b") == b"onetwothree"


def test_put_replaces(store: Store) -> None:
    """Goal: a put wins over what was there, also when it is shorter."""
    store.put("k", [b"long content"])
    store.put("k", [b"short"])
    assert store.get("k") == b"short"
    assert store.stat("k").size == 5


def test_create_refuses_a_taken_key(store: Store) -> None:
    """Goal: a conditional create never overwrites; create twice with other bytes of the same and another length."""
    store.create("manifests/1", [b"first"])
    for other in (b"other", b"", b"first and more", b"firs"):
        with pytest.raises(ObjectExists):
            store.create("manifests/1", [other])
    assert store.get("manifests/1") == b"first"


def test_create_repeated_with_the_same_bytes_succeeds(store: Store) -> None:
    """Goal: a lost reply can be repeated; create twice, cut into other parts."""
    store.create("k", [b"con", b"tent"])
    store.create("k", [b"content"])
    assert store.get("k") == b"content"


def test_create_after_put_and_delete(store: Store) -> None:
    """Goal: create sees what put wrote, and a deleted key is free again."""
    store.put("k", [b"put"])
    with pytest.raises(ObjectExists):
        store.create("k", [b"created"])
    store.delete("k")
    store.create("k", [b"created"])
    assert store.get("k") == b"created"


def test_missing_objects(store: Store) -> None:
    """Goal: absence is one typed error; ask for keys beside, below and above an object."""
    store.put("a/b", [b"x"])
    for key in ("a/c", "a", "z/y/x", "a/b/c"):
        with pytest.raises(ObjectMissing):
            store.get(key)
        with pytest.raises(ObjectMissing):
            store.stat(key)
        store.delete(key)
    assert store.get("a/b") == b"x"


def test_deleted_is_gone(store: Store) -> None:
    """Goal: after a delete the object is neither read nor listed; a second delete is no error."""
    store.put("k", [b"x"])
    store.delete("k")
    store.delete("k")
    with pytest.raises(ObjectMissing):
        store.get("k")
    assert list(store.list("")) == []


RANGES = [
    (0, None), (0, 0), (0, 1), (5, 10), (99, 1), (99, 50), (100, 1), (101, 1), (1000, None), (0, 1 << 40), (37, None),
]  # fmt: skip


def test_ranges(store: Store) -> None:
    """Goal: a range is exact and shorter only at the end; compare with slices of what was put."""
    content = bytes(range(100))
    store.put("k", [content])
    for offset, length in RANGES:
        assert store.get("k", offset, length) == content[offset : None if length is None else offset + length]


def test_empty_object(store: Store) -> None:
    """Goal: nothing is something; an object of no bytes exists."""
    store.create("k", [])
    assert store.get("k") == b""
    assert store.stat("k").size == 0
    assert [info.key for info in store.list("")] == ["k"]


def test_big_object_in_many_parts(store: Store, rng: random.Random) -> None:
    """Goal: packs of tens of MiB in thousands of parts survive; write one and read it whole and in ranges."""
    tiny = [rng.randbytes(rng.randrange(0, 40)) for _ in range(3000)]
    large = [rng.randbytes(5 << 20) for _ in range(5)]
    parts = tiny[:1500] + large + tiny[1500:]
    whole = b"".join(parts)
    store.create("packs/big", parts)
    assert store.stat("packs/big").size == len(whole)
    assert store.get("packs/big") == whole
    for _ in range(5):
        offset, length = rng.randrange(len(whole)), rng.randrange(1 << 20)
        assert store.get("packs/big", offset, length) == whole[offset : offset + length]


def test_list_is_sorted_by_key(store: Store, rng: random.Random) -> None:
    """Goal: the order is that of the keys as text, also where a folder's name sorts apart from its keys."""
    if store.kind == "s3":
        pytest.skip("SeaweedFS walks folders (docs/testing.md); test_s3.py holds the order against moto")
    keys = ["a", "b/x", "b-c", "b.c", "b0", "b=/y", "b_/z", "b/x-", "b/x.y", "b/y/1", "b/y-1", "B", "-", "_", "0/1/2/3"]
    keys += [f"p/{rng.randrange(16**2):02x}/{rng.randrange(16**6):06x}" for _ in range(60)]
    keys = sorted(set(keys))
    for key in rng.sample(keys, len(keys)):
        store.put(key, [key.encode()])
    listed = list(store.list(""))
    assert [info.key for info in listed] == keys
    assert all(info.size == len(info.key) for info in listed)
    assert all(info.modified.utcoffset() is not None for info in listed)


def test_list_by_every_prefix(store: Store) -> None:
    """Goal: a prefix is plain text, not a folder; compare with startswith for each prefix of each key."""
    other = "packs_old/x" if store.kind == "s3" else "packs-old/x"  # See test_list_is_sorted_by_key.
    keys = sorted(["packs/ab/abcd", "packs/ab/abff", "packs/ac/acaa", other, "pac", "manifests/1", "manifests/10"])
    for key in keys:
        store.put(key, [b""])
    prefixes = {key[:end] for key in keys for end in range(len(key) + 1)} | {"none/", "packs/ab/abcd0", "manifests/1/"}
    for prefix in sorted(prefixes):
        assert [info.key for info in store.list(prefix)] == [key for key in keys if key.startswith(prefix)], prefix


def test_list_survives_changes_meanwhile(store: Store) -> None:
    """Goal: a listing while others write and delete gives what stayed; change the store between two items."""
    for number in range(20):
        store.put(f"k/{number:02d}", [b""])
    seen = []
    for info in store.list("k/"):
        seen.append(info.key)
        if len(seen) == 5:
            for number in range(10, 15):
                store.delete(f"k/{number:02d}")
            store.put("k/99", [b""])
    stayed = {f"k/{number:02d}" for number in (*range(10), *range(15, 20))}
    assert stayed <= set(seen)
    assert seen == sorted(seen)


def test_weird_keys_are_refused(store: Store) -> None:
    """Goal: no key escapes the store or means something else elsewhere; try each with every operation."""
    operations: Sequence[Callable[[str], object]] = (
        lambda key: store.put(key, [b"x"]),
        lambda key: store.create(key, [b"x"]),
        store.get,
        store.stat,
        store.delete,
    )
    for key in WEIRD_KEYS:
        for operation in operations:
            with pytest.raises(UsageError):
                operation(key)
    assert list(store.list("")) == []


def test_weird_prefixes_are_refused(store: Store) -> None:
    """Goal: a listing never leaves the store; ask with prefixes that no key has."""
    for prefix in ("/", "../", "a//", "a/../", ".", "a b", "é", "\0"):
        with pytest.raises(UsageError):
            list(store.list(prefix))


def test_long_keys(store: Store) -> None:
    """Goal: keys up to the documented lengths work; use the longest part and the longest key."""
    for key in ("x" * 200, "/".join(["p" * 100] * 5)):
        store.create(key, [b"x"])
        assert [info.key for info in store.list(key)] == [key]


def test_one_of_many_creators_wins(place: Place) -> None:
    """Goal: the commit is decided by the store; let threads with stores of their own race for the same keys."""
    racers, keys = 4, 25 if place().kind == "local" else 4  # A contested key can take SeaweedFS a second.
    stores = [place() for _ in range(racers)]
    start = threading.Barrier(racers)

    def race(number: int) -> list[bool]:
        won = []
        for key in range(keys):
            start.wait()
            try:
                stores[number].create(f"race/{key}", [f"{number}".encode() * 1000])
                won.append(True)
            except ObjectExists:
                won.append(False)
        return won

    with ThreadPoolExecutor(racers) as pool:
        results = list(pool.map(race, range(racers)))
    for key in range(keys):
        winners = [number for number in range(racers) if results[number][key]]
        assert len(winners) == 1
        assert stores[0].get(f"race/{key}") == f"{winners[0]}".encode() * 1000


def test_readers_see_objects_whole(place: Place) -> None:
    """Goal: no reader meets half an object; replace one while others read and list it."""
    writer, reader = place(), place()
    contents = [bytes([letter]) * size for letter, size in ((65, 300_000), (66, 1_000_000))]
    writer.put("k", [contents[0]])
    done = threading.Event()

    def read() -> int:
        reads = 0
        while not done.is_set() and reads < 2000:
            assert reader.get("k") in contents
            assert [info.size for info in reader.list("k")] in ([300_000], [1_000_000])
            reads += 1
        return reads

    with ThreadPoolExecutor(1) as pool:
        counted = pool.submit(read)
        try:
            for number in range(30):
                writer.put("k", [contents[number % 2]])
        finally:
            done.set()
        assert counted.result() > 0


def test_another_opener_sees_everything(place: Place) -> None:
    """Goal: nothing lives in the opened object only; write with one, read with the next."""
    first = place()
    first.create("a/b/c", [b"x"])
    first.close()
    assert place().get("a/b/c") == b"x"


def test_parallel_writers_of_different_keys(store: Store) -> None:
    """Goal: one store serves many threads; write and read back from eight."""

    def work(number: int) -> None:
        for n in range(10):
            key = f"w/{number}/{n}"
            store.create(key, [key.encode()])
            assert store.get(key) == key.encode()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(list(store.list("w/"))) == 80
