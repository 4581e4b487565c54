"""Try again what may succeed the next time, with growing random waits and a deadline."""

import random
import time
from collections.abc import Callable, Iterator
from typing import ClassVar, TypeVar

from engine.errors import StoreError
from engine.ports import ObjectInfo, Store
from stores._wrapper import Doing, StoreWrapper

T = TypeVar("T")

DEADLINE_SECONDS = 120.0
WAIT_FIRST_SECONDS = 0.2
WAIT_SECONDS_MAX = 20.0
TRIES_MAX = 50


def _ignore(error: StoreError, wait_seconds: float) -> None:
    """Nobody listens."""


def _carry_on() -> None:
    """Nobody wants to stop."""


class RetryStore(StoreWrapper):
    """A store whose retryable errors are tried again; refusals, absence and a full disk pass at once.

    Repeating is safe for every operation: `create` with the same bytes succeeds by contract. Waits are
    drawn from 0 to the bound ("full jitter"), so that many workers do not come back together. A listing
    goes on behind the last key it gave. `check` is called before each wait and may raise to stop it;
    `on_retry` hears of each.
    """

    kind: ClassVar[str] = "retry"

    def __init__(
        self,
        store: Store,
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
        wait_first_seconds: float = WAIT_FIRST_SECONDS,
        wait_seconds_max: float = WAIT_SECONDS_MAX,
        tries_max: int = TRIES_MAX,
        on_retry: Callable[[StoreError, float], None] = _ignore,
        check: Callable[[], None] = _carry_on,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        super().__init__(store)
        self._deadline_seconds = deadline_seconds
        self._wait_first_seconds = wait_first_seconds
        self._wait_seconds_max = wait_seconds_max
        self._tries_max = tries_max
        self._on_retry = on_retry
        self._check = check
        self._clock = clock
        self._sleep = sleep
        self._draw = draw

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        last = ""
        patience = _Patience(self)
        while True:
            try:
                for info in self.inner.list(prefix):
                    if info.key > last:
                        last = info.key
                        patience = _Patience(self)  # progress: the deadline counts from the last success
                        yield info
                return
            except StoreError as error:
                patience.wait_or_raise(error)

    def _call(self, doing: Doing, key: str, call: Callable[[], T]) -> T:
        patience = _Patience(self)
        while True:
            try:
                return call()
            except StoreError as error:
                patience.wait_or_raise(error)


class _Patience:
    """What is left of one operation's tries and time."""

    def __init__(self, store: RetryStore) -> None:
        self._store = store
        self._tries = 0
        self._ends = store._clock() + store._deadline_seconds

    def wait_or_raise(self, error: StoreError) -> None:
        """Wait before the next try; raise the error when it is final or the time or the tries are used up."""
        store = self._store
        self._tries += 1
        if not error.retryable or self._tries >= store._tries_max:
            raise error
        bound = min(store._wait_seconds_max, store._wait_first_seconds * 2 ** (self._tries - 1))
        wait = store._draw(0.0, bound)
        if store._clock() + wait > self._ends:
            raise error
        store._check()
        store._on_retry(error, wait)
        store._sleep(wait)
