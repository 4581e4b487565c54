"""Wrap a store without hiding what it can do beyond storing: locks, versions, bulk deletion, its free space.

What a store can do is asked by isinstance and by attribute, so a wrapper must have exactly the methods of what it wraps.
"""

import datetime
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Self, TypeVar, cast

from engine.ports import Buffer, LockingStore, ObjectInfo, Store, VersionedStore

T = TypeVar("T")
Doing = Literal["read", "write", "delete"]


class StoreWrapper:
    """Passes every call through `_call`, which a wrapper replaces."""

    def __new__(cls, store: Store, *args: Any, **options: Any) -> Self:
        parts = tuple(part for part, fits in _PARTS if fits(store))
        return cast(Self, object.__new__(_with(cls, parts)))

    def __init__(self, store: Store) -> None:
        self.inner = store

    @property
    def remote(self) -> bool:
        """As the wrapped store's (stores.StoreAdapter)."""
        return bool(getattr(self.inner, "remote", True))

    def _call(self, doing: Doing, key: str, call: Callable[[], T]) -> T:
        return call()

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        self._call("write", key, lambda: self.inner.put(key, parts))

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        self._call("write", key, lambda: self.inner.create(key, parts))

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._call("read", key, lambda: self.inner.get(key, offset, length))

    def stat(self, key: str) -> ObjectInfo:
        return self._call("read", key, lambda: self.inner.stat(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        self._call("delete", key, lambda: self.inner.delete(key))

    def close(self) -> None:
        self.inner.close()


class _Bulk(StoreWrapper):
    def delete_many(self, keys: Sequence[str]) -> None:
        self._call("delete", ",".join(keys[:1]), lambda: cast(Any, self.inner).delete_many(keys))


class _Measured(StoreWrapper):
    def free_bytes(self) -> int:
        return self._call("read", "", lambda: int(cast(Any, self.inner).free_bytes()))


class _Locking(StoreWrapper):
    @property
    def lock_days(self) -> int:
        return cast(LockingStore, self.inner).lock_days

    def locked_until(self, key: str) -> datetime.datetime | None:
        return self._call("read", key, lambda: cast(LockingStore, self.inner).locked_until(key))

    def lock(self, key: str, until: datetime.datetime) -> None:
        self._call("write", key, lambda: cast(LockingStore, self.inner).lock(key, until))


class _Versioned(StoreWrapper):
    def purge(self, key: str) -> int:
        return self._call("delete", key, lambda: cast(VersionedStore, self.inner).purge(key))


class _Remembering(StoreWrapper):
    def keys_kept(self, prefix: str) -> Iterator[str]:
        """Streamed past the wrapper: what is seen twice after a failure does no harm to who deletes."""
        return cast(Iterator[str], cast(Any, self.inner).keys_kept(prefix))


class _Clearing(StoreWrapper):
    def clear_stale(self) -> int:
        return self._call("delete", "unfinished", lambda: int(cast(Any, self.inner).clear_stale()))


_PARTS: tuple[tuple[type[StoreWrapper], Callable[[Store], bool]], ...] = (
    (_Bulk, lambda store: hasattr(store, "delete_many")),
    (_Measured, lambda store: hasattr(store, "free_bytes")),
    (_Locking, lambda store: isinstance(store, LockingStore)),
    (_Versioned, lambda store: isinstance(store, VersionedStore)),
    (_Remembering, lambda store: hasattr(store, "keys_kept")),
    (_Clearing, lambda store: hasattr(store, "clear_stale")),
)


_made: dict[tuple[type[StoreWrapper], tuple[type[StoreWrapper], ...]], type[StoreWrapper]] = {}


def _with(cls: type[StoreWrapper], parts: tuple[type[StoreWrapper], ...]) -> type[StoreWrapper]:
    """The wrapper's class with the methods of those parts; its own come first."""
    if (cls, parts) not in _made:
        _made[cls, parts] = type(cls.__name__, (cls, *parts), {"__doc__": cls.__doc__, "__module__": cls.__module__})
    return _made[cls, parts]
