"""Read ahead from a store where a request is dear: neighbouring frames come in one, before they are asked for.

Whoever knows what will be wanted next says so (`ReadAhead.stream`); stretches of packs are then fetched side by side and
kept, within a bound, until their frames are taken. It only brings bytes: what does not come, or not whole, is read by
whoever wants it as if there were no reading ahead, so that errors and other copies are met in one place.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

from engine.errors import DamageError, ObjectMissing
from engine.index import Place
from engine.ports import Store

WINDOW_BYTES = 8 << 20
"""Stored bytes that are planned together, about a pack: while one window is used, the next one is on its way."""
WINDOW_CHUNKS_MAX = 8192
"""Of tiny files a window would hold more rows than bytes."""
WINDOWS_KEPT = 3
GAP_BYTES_MAX = 512 << 10
"""What lies between two frames is read along when it takes less time than another request."""
SPAN_BYTES_MAX = 16 << 20
HELD_BYTES_MAX = 48 << 20
"""Stored bytes that are here or on their way; what does not fit is read when it is wanted."""
REQUESTS = 4

T = TypeVar("T")
Key = tuple[str, int]
"""Pack and offset of a frame."""


def is_dear(store: Store) -> bool:
    """Whether a request to this store takes so long that it should bring as much as it can."""
    return bool(getattr(store, "remote", True))


class _Span:
    """A stretch of one pack that is here or on its way, and how many of its frames are not yet taken."""

    __slots__ = ("begin", "bytes", "frames", "left", "object_key")

    def __init__(self, object_key: str, places: list[Place]) -> None:
        self.object_key, self.begin = object_key, places[0].frame_offset
        self.bytes = places[-1].frame_offset + places[-1].frame_length - self.begin
        self.frames = [(place.pack, place.frame_offset) for place in places]
        self.left = len(places)


class ReadAhead:
    """The stretches of one repository's packs that were asked for before they are wanted. Thread-safe.

    `find` gives the place of a chunk, or None; `has` whether a frame need not be read; `key_of` the object of a place.
    """

    def __init__(
        self,
        store: Store,
        *,
        find: Callable[[bytes], Place | None],
        has: Callable[[Key], bool],
        key_of: Callable[[Place], str],
    ) -> None:
        self._store, self._find, self._has, self._key_of = store, find, has, key_of
        self._lock = threading.Lock()
        self._frames: dict[Key, tuple[_Span, Future[bytes]]] = {}
        self._held_bytes = 0

    def take(self, place: Place) -> memoryview | None:
        """The stored bytes of a frame, once; None when they are not here, or not all of them.

        Waits for those on their way. Raises what their request raised, unless reading again may tell more.
        """
        with self._lock:
            found = self._frames.pop((place.pack, place.frame_offset), None)
            if found is None:
                return None
            span, future = found
            span.left -= 1
            if not span.left:
                self._held_bytes -= span.bytes
        try:
            data = memoryview(future.result())
        except (ObjectMissing, DamageError, CancelledError):
            return None
        begin = place.frame_offset - span.begin
        sealed = data[begin : begin + place.frame_length]
        return sealed if len(sealed) == place.frame_length else None

    def stream(
        self, items: Iterable[T], ids_of: Callable[[T], Iterable[bytes]], *, window_bytes: int = WINDOW_BYTES
    ) -> Generator[T, None, None]:
        """Yield the items while what they need (ids_of) is fetched, one window ahead of them."""
        pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="ahead")
        windows: deque[list[_Span]] = deque()
        source, ended = iter(items), False
        try:
            now = self._plan(pool, windows, source, ids_of, window_bytes)
            while now:
                following = self._plan(pool, windows, source, ids_of, window_bytes)
                yield from now
                now = following
            ended = True
        finally:
            # What was given last is still being worked on, and is taken from here.
            pool.shutdown(wait=not ended, cancel_futures=not ended)
            if not ended:
                if isinstance(source, Generator):
                    source.close()  # It may read ahead, too.
                for window in windows:
                    self._drop(window)

    # ------------------------------------------------------------ planning

    def _plan(
        self,
        pool: ThreadPoolExecutor,
        windows: deque[list[_Span]],
        source: Iterator[T],
        ids_of: Callable[[T], Iterable[bytes]],
        window_bytes: int,
    ) -> list[T]:
        """Take the items of the next window, and begin to fetch what they need."""
        items: list[T] = []
        wanted: dict[Key, Place] = {}
        size = chunks = 0
        while size < window_bytes and chunks < WINDOW_CHUNKS_MAX and (following := list(islice(source, 1))):
            items += following
            for chunk_id in ids_of(following[0]):
                chunks += 1
                place = self._find(chunk_id)
                if place is None:
                    continue
                key = place.pack, place.frame_offset
                if key not in wanted and key not in self._frames and not self._has(key):
                    wanted[key] = place
                    size += place.frame_length
        if wanted:
            windows.append([span for places in _stretches(wanted.values()) if (span := self._begin(pool, places))])
            if len(windows) > WINDOWS_KEPT:
                self._drop(windows.popleft())
        return items

    def _begin(self, pool: ThreadPoolExecutor, places: list[Place]) -> _Span | None:
        span = _Span(self._key_of(places[0]), places)
        with self._lock:
            if self._held_bytes + span.bytes > HELD_BYTES_MAX:
                return None
            self._held_bytes += span.bytes
        future = pool.submit(self._store.get, span.object_key, span.begin, span.bytes)
        with self._lock:
            for key in span.frames:
                if key in self._frames:  # Two streams met in one frame: it is taken once.
                    span.left -= 1
                else:
                    self._frames[key] = span, future
            if not span.left:
                self._held_bytes -= span.bytes
        return span

    def _drop(self, window: list[_Span]) -> None:
        """Forget what of a window nobody took."""
        with self._lock:
            for span in window:
                for key in span.frames:
                    if span.left and (found := self._frames.get(key)) is not None and found[0] is span:
                        del self._frames[key]
                        span.left -= 1
                        if not span.left:
                            self._held_bytes -= span.bytes


def _stretches(places: Iterable[Place]) -> Iterator[list[Place]]:
    """Frames of one pack that lie close together, in their order."""
    ordered = iter(sorted(places, key=lambda place: (place.pack, place.frame_offset)))
    run: list[Place] = []
    for place in chain(ordered, (None,)):
        if run and (place is None or not _adjoins(run, place)):
            yield run
            run = []
        if place is not None:
            run.append(place)


def _adjoins(run: list[Place], place: Place) -> bool:
    last = run[-1]
    gap = place.frame_offset - last.frame_offset - last.frame_length
    end = place.frame_offset + place.frame_length
    return place.pack == last.pack and gap <= GAP_BYTES_MAX and end - run[0].frame_offset <= SPAN_BYTES_MAX
