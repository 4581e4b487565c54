"""However many small backups there were, the index stays a few objects: it is read at every start."""

import datetime
import os
import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import ClassVar

import pytest

from engine.errors import ObjectExists, ObjectMissing
from engine.keys import Keyring, RootKey
from engine.ports import Buffer, ObjectInfo
from engine.repository import Repository
from tests.conftest import scale

OBJECTS_MAX = 64
SESSIONS, SESSIONS_SOAK = 400, 10_000
LOOKED_AT_EVERY = 50


class MemoryStore:
    """Objects in memory: ten thousand sessions must not wait for a disk."""

    kind: ClassVar[str] = "memory"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        with self._lock:
            self.objects[key] = b"".join(parts)

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        with self._lock:
            if self.objects.setdefault(key, whole := b"".join(parts)) != whole:
                raise ObjectExists(key)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        if key not in self.objects:
            raise ObjectMissing(key)
        return self.objects[key][offset : None if length is None else offset + length]

    def stat(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, len(self.get(key)), datetime.datetime.now(datetime.UTC))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._lock:
            keys = sorted(key for key in self.objects if key.startswith(prefix))
        yield from (self.stat(key) for key in keys[bisect_left(keys, prefix) :])

    def delete(self, key: str) -> None:
        with self._lock:
            self.objects.pop(key, None)

    def close(self) -> None:
        pass


@pytest.mark.seeded
def test_small_sessions_leave_a_bounded_index() -> None:
    """Goal: 10,000 small backups leave at most 64 index objects; store one chunk in each session, count all along."""
    store, root = MemoryStore(), RootKey.generate()
    keyring = Keyring.create(root, tenant_id="t", repository_id="r")
    repository = Repository.create(store, repository_id="r", tenant_id="t", keyring=keyring, root=root)
    kept: dict[bytes, bytes] = {}
    index_keys: list[str] = []
    for number in range(SESSIONS if scale() == 1 else SESSIONS_SOAK):
        session = repository.sealed.session(workers=1)
        chunk = os.urandom(20)
        kept[session.submit(lambda lane, chunk=chunk: lane.add(chunk)).result()] = chunk
        session.finish()
        if number % LOOKED_AT_EVERY == 0:
            for key in [key for key in store.objects if "/data/" in key]:
                store.objects[key] = b""  # The packs are not what this is about.
        index_keys = [key for key in store.objects if key.startswith("r/r/index/")]
        assert len(index_keys) <= OBJECTS_MAX
    again = Repository(store, keyring, cache=None)
    assert all(chunk_id in again.sealed.index for chunk_id in kept)
    assert len(again.sealed.index.segments) == len(index_keys)
