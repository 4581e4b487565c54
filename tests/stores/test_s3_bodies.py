"""How bodies go up to a bucket: as they are, signed by the sum that their writer knows, and refused before they are sent."""

import hashlib
import random
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from engine.adapters import parse_config
from engine.errors import ObjectMissing, StoreDenied, StoreUnreachable
from engine.ports import Buffer, HashedParts
from stores._s3 import upload
from stores._throttle import throttled
from stores.s3 import S3Store
from tests.services.seaweed import READER, Seaweed

MIB = 1 << 20


@pytest.fixture
def store(s3_store_values: dict[str, str]) -> Iterator[S3Store]:
    with closing(S3Store(parse_config(S3Store.Config, s3_store_values))) as store:
        yield store


def _pack(rng: random.Random, size: int = 12 * MIB) -> list[bytes]:
    return [rng.randbytes(80), *(rng.randbytes(size // 16) for _ in range(16)), b"", rng.randbytes(31)]


def _known(parts: Sequence[Buffer]) -> HashedParts:
    return HashedParts(parts, sha256=hashlib.sha256(b"".join(parts)).hexdigest())


def test_what_arrives_is_what_was_given(store: S3Store, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: every form of parts arrives whole, in one request or in parts, with a known sum and without, put and created."""
    monkeypatch.setattr(upload, "SINGLE_BYTES_MAX", 11 * MIB)
    monkeypatch.setattr(upload, "PART_BYTES", 5 * MIB)
    for number, size in enumerate((0, 70_000, MIB, 12 * MIB)):
        parts: list[Buffer] = list(_pack(rng, size))
        wanted = b"".join(parts)
        forms: list[Sequence[Buffer]] = [parts, [memoryview(wanted)], [bytearray(wanted), b""], _known(parts)]
        for given in forms:
            store.put(f"r/{number}", given)
            assert store.get(f"r/{number}") == wanted
            store.delete(f"r/{number}")
            store.create(f"r/{number}", given)
            store.create(f"r/{number}", given)
            assert store.get(f"r/{number}") == wanted


def test_requests_are_signed_with_the_sum_of_their_body(store: S3Store, rng: random.Random) -> None:
    """Goal: the signed header is the SHA-256 of the body, whoever computed it; seen in the requests that leave the SDK."""
    signed: list[str] = []

    def seen(request: Any, **rest: Any) -> None:
        signed.append(str(request.headers["X-Amz-Content-SHA256"]))

    store._client.meta.events.register("before-send.s3.PutObject", seen)
    parts = _pack(rng, MIB)
    known = _known(parts)
    for given in (parts, known, [b"".join(parts)]):
        store.put("r/signed", given)
    assert signed[0].strip("b'") == known.sha256 and len(set(signed)) == 1


def test_what_was_altered_on_its_way_is_refused(store: S3Store, rng: random.Random) -> None:
    """Goal: the CRC-32 in the signed headers is compared by the server with what came, and nothing of it stays."""

    def alter(request: Any, **rest: Any) -> None:
        request.body._views[1] = memoryview(bytes(len(request.body._views[1])))

    store._client.meta.events.register("before-send.s3.PutObject", alter)
    with pytest.raises(StoreUnreachable, match=r"Digest|Checksum"):
        store.put("r/altered", _known(_pack(rng, MIB)))
    with pytest.raises(ObjectMissing):
        store.stat("r/altered")


def test_a_known_sum_is_not_computed(store: S3Store, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a pack, named by its sum, is not hashed a second time; nor joined, so that no copy of it is made."""
    known = _known(_pack(rng))
    store.put("r/warm", known)
    monkeypatch.setattr("stores._s3.body.hashlib.sha256", None)
    tracemalloc.start()
    try:
        store.put("r/pack", known)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * MIB
    monkeypatch.undo()
    assert store.get("r/pack") == b"".join(known)


def test_a_refusal_comes_before_the_body(s3_server: Seaweed, rng: random.Random) -> None:
    """Goal: who may only read hears so, however large the body is, and is not told of a broken connection."""
    values = s3_server.values(who=READER)
    with closing(S3Store(parse_config(S3Store.Config, values))) as store:
        for size in (1, 300_000, 12 * MIB):
            with pytest.raises(StoreDenied):
                store.put("r/pack", _known(_pack(rng, size)))


def test_only_large_bodies_ask_first(store: S3Store, rng: random.Random) -> None:
    """Goal: a small object takes one round trip; seen in the requests that leave the SDK."""
    asked: dict[int, Any] = {}

    def seen(request: Any, **rest: Any) -> None:
        asked[len(request.body or b"")] = request.headers.get("Expect")

    store._client.meta.events.register("before-send.s3.PutObject", seen)
    small, large = _pack(rng, 1000), _pack(rng, MIB)
    store.put("r/small", small)
    store.put("r/large", large)
    assert asked[sum(map(len, small))] is None
    assert asked[sum(map(len, large))] in (b"100-continue", "100-continue")


def test_the_limit_holds_on_the_way_up(store: S3Store, rng: random.Random) -> None:
    """Goal: what is sent is paced piece by piece, once: not when it is hashed, and not twice."""
    taken: list[int] = []
    parts = _pack(rng, MIB)
    limited = throttled(store, "bodies", 1 << 40, check=lambda: None)
    assert limited is store
    store.pace = taken.append
    store.put("r/paced", parts)
    assert sum(taken) == sum(map(len, parts)) and max(taken) <= 256 << 10
    store.pace = None
    assert store.get("r/paced") == b"".join(parts)
