"""The contract at its edges: large objects, long listings, every character, many writers, bulk deletions."""

import random
import string
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import stores
from engine.errors import ObjectExists, ObjectMissing, UsageError
from engine.ports import Store
from stores._keys import KEY_LENGTH_MAX, PART_LENGTH_MAX
from tests.contract.conftest import Place

MIB = 1 << 20
LARGE_BYTES = 64 * MIB
"""engine.pack.PACK_BYTES_MAX: nothing that the engine writes is larger."""
EDGES = (1, 31 << 10, 256 << 10, MIB, 8 * MIB, 32 * MIB, LARGE_BYTES)
"""Where some kind of store cuts what it sends or reads."""


def test_the_largest_object(place: Place, rng: random.Random) -> None:
    """Goal: 64 MiB are one object, in whatever blocks it travels; read it whole and at every edge, and create another."""
    store = place()
    size = MIB if store.kind in ("retry", "faulty") else LARGE_BYTES  # Wrappers cut nothing.
    whole = rng.randbytes(size)
    store.create("packs/large", [whole[: size // 3], memoryview(whole)[size // 3 :]])
    assert store.get("packs/large") == whole
    for edge in (each for each in EDGES if each <= size):
        for offset, length in ((edge - 1, 2), (edge, 1), (max(0, edge - 9), 18)):
            assert store.get("packs/large", offset, length) == whole[offset : offset + length]
    assert store.get("packs/large", size - 9, None) == store.get("packs/large", size - 9, 1 << 40) == whole[-9:]
    with pytest.raises(ObjectExists):
        store.create("packs/large", [whole[:-1]])
    assert store.stat("packs/large").size == size


def test_one_of_two_large_creators_wins(place: Place) -> None:
    """Goal: what goes up in several requests is committed by one; let two create 33 MiB under one key."""
    size = MIB if place().kind in ("retry", "faulty") else 33 * MIB
    contents = [bytes([number]) * size for number in (1, 2)]
    stores_ = [place(), place()]
    start = threading.Barrier(2)

    def race(number: int) -> bool:
        start.wait()
        try:
            stores_[number].create("race/large", [contents[number]])
        except ObjectExists:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(race, range(2)))
    assert sorted(won) == [False, True]
    assert place().get("race/large") == contents[won.index(True)]


def test_creators_of_the_same_bytes_all_succeed(place: Place) -> None:
    """Goal: a repeat that races with its own first try is no conflict; let four create one object at once."""
    start = threading.Barrier(4)

    def race(store: Store) -> None:
        for number in range(4):
            start.wait()
            store.create(f"same/{number}", [b"same bytes"])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(race, [place() for _ in range(4)]))
    assert [info.key for info in place().list("same/")] == [f"same/{number}" for number in range(4)]


def test_every_character_of_a_key(store: Store) -> None:
    """Goal: no character that a key may have is changed on its way; use each first, last, alone and as a folder."""
    letters = string.ascii_letters + string.digits + "_=-"
    keys = {
        *letters,
        *(f"a{letter}" for letter in letters + "."),
        f"all/{letters}",
        "a..b/c=.d-",
        "--/-",
        "==/=",
        "__/_",
    }
    keys |= {"k" * PART_LENGTH_MAX, "/".join(["p" * 101] * 5), "xx/" * 160 + "y"}
    keys = {f"in/{key}" for key in keys}
    assert KEY_LENGTH_MAX - 10 < max(map(len, keys)) <= KEY_LENGTH_MAX
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, [key.encode()]), keys))
    assert [info.key for info in store.list("in/")] == sorted(keys)
    assert store.get("in/all/" + letters) == b"in/all/" + letters.encode()


def test_pages_end_where_they_may(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: no key is lost or doubled between two pages; list numbers of keys around a page's, from every prefix."""
    store = place()
    module: Any = __import__(type(store).__module__, fromlist=["x"])
    if hasattr(module, "PAGE_OBJECTS"):
        monkeypatch.setattr(module, "PAGE_OBJECTS", 5)
    for count in range(12):
        assert [info.key for info in store.list("p/")] == [f"p/{number:02d}" for number in range(count)]
        assert [info.key for info in store.list("p/0")] == [f"p/{number:02d}" for number in range(min(count, 10))]
        store.put(f"p/{count:02d}", [b"x"])


def test_a_long_listing(place: Place) -> None:
    """Goal: more keys than any server gives at once, in order; write them by many threads, in several folders."""
    store = place()
    count = 1_050 if store.kind == "gcs" else 260
    keys = sorted(f"l/{number % 3}/{number % 5}/{number:04d}" for number in range(count))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, [b""]), keys))
    assert [info.key for info in store.list("l/")] == keys
    assert [info.key for info in store.list("l/1/")] == [key for key in keys if key.startswith("l/1/")]


def test_reading_while_it_goes(place: Place) -> None:
    """Goal: a reader gets all of an object or none; delete and create it while others read."""
    writer, reader = place(), place()
    content = b"x" * 500_000
    done = threading.Event()

    def read() -> int:
        seen = 0
        while not done.is_set():
            try:
                assert reader.get("k") == content
                seen += 1
            except ObjectMissing:
                pass
        return seen

    with ThreadPoolExecutor(1) as pool:
        counted = pool.submit(read)
        try:
            for _ in range(15):
                writer.create("k", [content])
                writer.delete("k")
        finally:
            done.set()
        assert counted.result() >= 0


def test_many_are_deleted_as_one_is(store: Store) -> None:
    """Goal: a bulk deletion, where the kind has one, is the same promise; delete some, some that are gone, and no key."""
    delete_many: Callable[[list[str]], None] | None = getattr(store, "delete_many", None)
    if delete_many is None:
        pytest.skip("this kind deletes one at a time")
    for name in ("a/1", "a/2", "b/1", "c"):
        store.put(name, [b"x"])
    delete_many(["a/1", "b/1", "b/2", "none/at/all"])
    delete_many([])
    assert [info.key for info in store.list("")] == ["a/2", "c"]
    with pytest.raises(UsageError):
        delete_many(["../x"])


def test_a_missing_sdk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: the operator learns what to install; open each kind whose SDK is an extra without it."""
    for kind, module in {"gcs": "google.auth", "azure": "azure.storage.blob", "sftp": "paramiko"}.items():
        adapter: Any = stores.load_all().get(kind)
        values: dict[str, Any]
        values = {
            "gcs": {"bucket": "some-bucket", "anonymous": True},
            "azure": {"container": "some", "account": "acc", "account_key": "AAAA"},
            "sftp": {"host": "localhost", "user": "u", "folder": "f", "password": "p"},
        }[kind]  # type: ignore[assignment]
        with monkeypatch.context() as patch:
            for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, module, None)
            with pytest.raises(UsageError) as caught:
                adapter(adapter.Config(**values))
        assert f"lastro[{kind}]" in caught.value.hint
