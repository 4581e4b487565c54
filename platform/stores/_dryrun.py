"""Read from a store and write nothing."""

import threading
from collections.abc import Iterator, Sequence
from typing import ClassVar

from engine.errors import ObjectExists, ObjectMissing, StoreDenied
from engine.ports import Buffer, ObjectInfo, Store
from stores._keys import check_key


class DryRunStore:
    """A store that is only read: the same code path runs, and nothing is changed.

    Writes raise StoreDenied. With `pretend` they are counted and answered as if they had been done
    (`create` still refuses a key that is taken by other bytes), so that a whole path can run to its end;
    what was pretended cannot be read back.
    """

    kind: ClassVar[str] = "dryrun"

    def __init__(self, store: Store, *, pretend: bool = False) -> None:
        self.inner = store
        self.pretend = pretend
        self.objects_written = 0
        self.bytes_written = 0
        self.objects_deleted = 0
        self._lock = threading.Lock()

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        self._refuse("write", key)
        with self._lock:
            self.objects_written += 1
            self.bytes_written += sum(memoryview(part).nbytes for part in parts)

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        self._refuse("create", key)
        try:
            present = self.inner.get(key)
        except ObjectMissing:
            self.put(key, parts)
            return
        if present != b"".join(parts):
            raise ObjectExists(f"{key} exists already with other content")

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        return self.inner.get(key, offset, length)

    def stat(self, key: str) -> ObjectInfo:
        return self.inner.stat(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        self._refuse("delete", key)
        with self._lock:
            self.objects_deleted += 1

    def close(self) -> None:
        self.inner.close()

    def _refuse(self, doing: str, key: str) -> None:
        check_key(key)
        if not self.pretend:
            raise StoreDenied(f"dry run: would {doing} {key}", hint="run it without --dry-run to change anything")
