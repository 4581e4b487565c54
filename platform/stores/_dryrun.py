"""Read from a store and write nothing."""

import threading
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar, cast

from engine.errors import ObjectExists, ObjectMissing, StoreDenied
from engine.ports import Buffer, Store
from stores._keys import check_key
from stores._wrapper import Doing, StoreWrapper

T = TypeVar("T")


class DryRunStore(StoreWrapper):
    """A store that is only read: the same code path runs, and nothing is changed.

    Writes raise StoreDenied. With `pretend` they are counted and answered as if they had been done
    (`create` still refuses a key that is taken by other bytes), so that a whole path can run to its end;
    what was pretended cannot be read back.
    """

    kind: ClassVar[str] = "dryrun"

    def __init__(self, store: Store, *, pretend: bool = False) -> None:
        super().__init__(store)
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

    def delete_many(self, keys: Sequence[str]) -> None:
        """Count them, or refuse."""
        for key in keys:
            self.delete(key)

    def _call(self, doing: Doing, key: str, call: Callable[[], T]) -> T:
        if doing == "read":
            return call()
        self._refuse(doing, key)
        with self._lock:
            self.objects_deleted += doing == "delete"
        return cast(T, 1)  # `purge` tells how many versions there were; nothing else has an answer.

    def _refuse(self, doing: str, key: str) -> None:
        check_key(key)
        if not self.pretend:
            raise StoreDenied(f"dry run: would {doing} {key}", hint="run it without --dry-run to change anything")
