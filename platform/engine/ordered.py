"""Ask for many things at a time, and take the answers in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")
WAITING_MAX = 2
"""Answers held for each request under way: more would only take memory."""


def in_order(call: Callable[[A], B], items: Iterable[A], *, at_once: int) -> Generator[B]:
    """Yield call(item) for each item, in order; at most `at_once` calls run at a time, few answers wait.

    Raises what the call for the next item in order raised. To be closed when it is not read to its end.
    """
    if at_once <= 1:
        yield from map(call, items)
        return
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(at_once, thread_name_prefix="ask") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(call, item))
                if len(waiting) > at_once * WAITING_MAX:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
