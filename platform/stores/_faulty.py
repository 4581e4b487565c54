"""A store that fails on purpose: shipped, so that every test of every layer lies in the same ways.

Each Fault strikes at the Nth matching operation. Operations are counted over all threads in the order
in which they begin; with one thread a run is repeated exactly.
"""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from engine.errors import StoreDenied, StoreError, StoreFull, StoreUnreachable
from engine.ports import Buffer, ObjectInfo, Store

FaultKind = Literal[
    "error", "denied", "full", "torn", "lost_reply", "dead",
    "stale_list", "truncated_list", "broken_list",
    "truncated_get", "empty_get", "flipped_get", "slow",
]  # fmt: skip
Operation = Literal["put", "create", "get", "stat", "list", "delete"]

WRITES: frozenset[Operation] = frozenset({"put", "create", "delete"})
_FITTING: dict[str, frozenset[Operation]] = {
    "torn": frozenset({"put", "create"}),
    "lost_reply": WRITES,
    "stale_list": frozenset({"list"}),
    "truncated_list": frozenset({"list"}),
    "broken_list": frozenset({"list"}),
    "truncated_get": frozenset({"get"}),
    "empty_get": frozenset({"get"}),
    "flipped_get": frozenset({"get"}),
}
_ALL: frozenset[Operation] = frozenset({"put", "create", "get", "stat", "list", "delete"})
STALE_CHANGES = 8


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to fail, `times` in a row, from the `at`-th (from 1) of the operations that it fits.

    - `error`: StoreUnreachable, nothing done. `denied`, `full`: StoreDenied, StoreFull, nothing done.
    - `torn`: half of the bytes stay under the key, then StoreUnreachable: a store that breaks its promise.
    - `lost_reply`: the write is done, then StoreUnreachable.
    - `dead`: this and every later operation fails, as for a killed writer.
    - `stale_list`: the newest changes (STALE_CHANGES of them) do not show: new keys are missing, deleted ones present.
    - `truncated_list`: ends in silence half-way. `broken_list`: gives half and raises StoreUnreachable.
    - `truncated_get`, `empty_get`, `flipped_get`: half of the bytes, none, or one bit changed, in silence.
    - `slow`: waits `seconds` first.
    """

    kind: FaultKind
    at: int = 1
    times: int = 1
    operations: frozenset[Operation] = field(default=_ALL)
    prefix: str = ""
    seconds: float = 0.0

    def fits(self, operation: Operation, key: str) -> bool:
        """Tell whether the fault counts this operation."""
        return (
            operation in self.operations and operation in _FITTING.get(self.kind, _ALL) and key.startswith(self.prefix)
        )


class FaultyStore:
    """Any store with faults. `calls` holds what was asked of it: (operation, key)."""

    kind: ClassVar[str] = "faulty"

    def __init__(self, store: Store, faults: Sequence[Fault] = (), *, seed: int = 0) -> None:
        self.inner = store
        self.faults = list(faults)
        self.calls: list[tuple[Operation, str]] = []
        self.dead = False
        self._passages: dict[int, int] = {}
        self._random = random.Random(seed)  # noqa: S311 - a seed that repeats a failure is wanted
        self._lock = threading.Lock()
        self._changes: list[tuple[str, ObjectInfo | None]] = []

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        self._write("put", key, parts)

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        self._write("create", key, parts)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        fault = self._begin("get", key)
        data = self.inner.get(key, offset, length)
        if fault is None or not data:
            return data
        if fault.kind == "truncated_get":
            return data[: len(data) // 2]
        if fault.kind == "empty_get":
            return b""
        if fault.kind == "flipped_get":
            with self._lock:
                bit = self._random.randrange(len(data) * 8)
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            return bytes(changed)
        return data

    def stat(self, key: str) -> ObjectInfo:
        self._begin("stat", key)
        return self.inner.stat(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        fault = self._begin("list", prefix)
        if fault is None or fault.kind == "slow":
            return self.inner.list(prefix)
        if fault.kind == "stale_list":
            return iter(self._stale(prefix))
        return self._half(prefix, breaks=fault.kind == "broken_list")

    def delete(self, key: str) -> None:
        fault = self._begin("delete", key)
        self._remember(key)
        self.inner.delete(key)
        if fault is not None and fault.kind == "lost_reply":
            raise StoreUnreachable(f"injected: the reply to delete {key} was lost")

    def close(self) -> None:
        self.inner.close()

    # ------------------------------------------------------------ inner parts

    def _begin(self, operation: Operation, key: str) -> Fault | None:
        """Count the operation; raise what strikes before it, return what strikes in it."""
        with self._lock:
            self.calls.append((operation, key))
            struck = None
            for number, fault in enumerate(self.faults):
                if fault.fits(operation, key):
                    passage = self._passages[number] = self._passages.get(number, 0) + 1
                    if fault.at <= passage < fault.at + fault.times:
                        struck = struck or fault
            self.dead = self.dead or (struck is not None and struck.kind == "dead")
            dead = self.dead
        if dead:
            raise StoreUnreachable(f"injected: dead at {operation} {key}")
        if struck is None:
            return None
        if struck.kind == "slow":
            time.sleep(struck.seconds)
        errors: dict[str, type[StoreError]] = {"error": StoreUnreachable, "denied": StoreDenied, "full": StoreFull}
        if struck.kind in errors:
            raise errors[struck.kind](f"injected: {struck.kind} at {operation} {key}")
        return struck

    def _write(self, operation: Literal["put", "create"], key: str, parts: Sequence[Buffer]) -> None:
        fault = self._begin(operation, key)
        write = self.inner.put if operation == "put" else self.inner.create
        self._remember(key)
        if fault is not None and fault.kind == "torn":
            whole = b"".join(parts)
            write(key, [whole[: len(whole) // 2]])
            raise StoreUnreachable(f"injected: torn {operation} of {key}")
        write(key, parts)
        if fault is not None and fault.kind == "lost_reply":
            raise StoreUnreachable(f"injected: the reply to {operation} {key} was lost")

    def _remember(self, key: str) -> None:
        """Keep how the key looked before a change, for listings that lag behind."""
        if not any(fault.kind == "stale_list" for fault in self.faults):
            return
        before = next((info for info in self.inner.list(key) if info.key == key), None)
        with self._lock:
            self._changes.append((key, before))
            del self._changes[:-STALE_CHANGES]

    def _stale(self, prefix: str) -> Sequence[ObjectInfo]:
        seen = {info.key: info for info in self.inner.list(prefix)}
        with self._lock:
            changes = [change for change in reversed(self._changes) if change[0].startswith(prefix)]
        for key, before in changes:
            if before is None:
                seen.pop(key, None)
            else:
                seen[key] = before
        return [seen[key] for key in sorted(seen)]

    def _half(self, prefix: str, *, breaks: bool) -> Iterator[ObjectInfo]:
        found = list(self.inner.list(prefix))
        yield from found[: len(found) // 2]
        if breaks:
            raise StoreUnreachable(f"injected: listing {prefix} broke off")
