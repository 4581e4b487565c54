"""Keep transfers to and from a store below a rate, shared by all threads of the process."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, runtime_checkable

from engine.ports import Buffer, Store
from stores._wrapper import StoreWrapper

BURST_SECONDS = 0.5
"""What was not used for so long may be made up for at once."""
WAIT_SECONDS_MAX = 1.0
"""So often a waiting thread asks whether to go on."""


class TokenBucket:
    """A rate in bytes per second. Takers queue up: each waits until what was taken before it has trickled off."""

    def __init__(
        self,
        bytes_per_second: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        assert bytes_per_second > 0, "no limit means no bucket"
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self.bytes_per_second = bytes_per_second
        self._free_at = clock() - BURST_SECONDS

    def take(self, count: int, check: Callable[[], None] = lambda: None) -> None:
        """Return when `count` bytes may pass; `check` is called about once a second and may raise to stop waiting."""
        with self._lock:
            now = self._clock()
            begin = max(self._free_at, now - BURST_SECONDS)
            self._free_at = end = begin + count / self.bytes_per_second
        while (left := end - self._clock()) > 0:
            check()
            self._sleep(min(left, WAIT_SECONDS_MAX))


@runtime_checkable
class PacedStore(Protocol):
    """A store that paces its own transfers piece by piece: evener than whole objects between pauses."""

    pace: Callable[[int], None] | None
    """Called with the number of bytes before they are sent and after they were received."""


class ThrottleStore(StoreWrapper):
    """A store whose transfers wait for a bucket: an object goes at the line's speed, the next one later.

    The bytes of objects count; requests and listings do not.
    """

    kind: ClassVar[str] = "throttle"

    def __init__(self, store: Store, bucket: TokenBucket, *, check: Callable[[], None] = lambda: None) -> None:
        super().__init__(store)
        self._bucket, self._check = bucket, check

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        self._take(parts)
        super().put(key, parts)

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        self._take(parts)
        super().create(key, parts)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        data = super().get(key, offset, length)
        self._bucket.take(len(data), self._check)
        return data

    def _take(self, parts: Sequence[Buffer]) -> None:
        self._bucket.take(sum(memoryview(part).nbytes for part in parts), self._check)


_buckets: dict[str, TokenBucket] = {}
_buckets_lock = threading.Lock()


def throttled(store: Store, name: str, bytes_per_second: int, *, check: Callable[[], None] = lambda: None) -> Store:
    """The store under the limit that all stores opened under this name in this process share; 0 is no limit."""
    if not bytes_per_second:
        return store
    with _buckets_lock:
        bucket = _buckets.get(name)
        if bucket is None or bucket.bytes_per_second != bytes_per_second:
            bucket = _buckets[name] = TokenBucket(bytes_per_second)
    if isinstance(store, PacedStore):
        store.pace = lambda count: bucket.take(count, check)
        return store
    return ThrottleStore(store, bucket, check=check)
