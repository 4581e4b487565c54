"""Reading chunks back: located by the index, authenticated, decompressed, and compared with their id."""

import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property
from typing import TypeVar

from blake3 import blake3

from engine.errors import ChunkMissing, DamageError, ObjectDamaged, ObjectMissing
from engine.index import Place, Segment
from engine.index_set import IndexSet
from engine.keys import Keyring
from engine.pack import PACK_BYTES_MAX, pack_envelope, read_frame
from engine.ports import Buffer, Store
from engine.read_ahead import WINDOW_BYTES, ReadAhead, is_dear
from engine.sealed import KIND_AT, Envelope, Kind

T = TypeVar("T")

CACHE_BYTES_MAX = {Kind.DATA_PACK: 16 << 20, Kind.META_PACK: 8 << 20}
"""Decoded frames, of content and of metadata by themselves: the one must not crowd out the other."""
ALONE_BYTES = 128 << 10
"""A chunk of this size that has a frame of its own is hardly ever wanted twice, and would crowd out bundles that are."""
META_WINDOW_BYTES, META_GAP_BYTES = 1 << 20, 256 << 10
"""Who reads on in a pack of metadata mostly goes on: leaves lie in the order of the tree."""
META_WINDOWS_MAX = 4
_ENVELOPES_MAX = 256
_PACKS_MAX = 16
_FRAME = slice(32, 44)
"""Where an index entry names the pack and the frame (engine.index)."""
_PART, _PART_AT = struct.Struct(">II"), 44


FrameKey = tuple[str, int]
"""Pack and offset of a frame."""


class _Frames:
    """Decoded frames, the least recently used going first. Its user has a lock."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max, self._bytes = bytes_max, 0
        self._frames: OrderedDict[FrameKey, bytes] = OrderedDict()

    def get(self, key: FrameKey) -> bytes | None:
        payload = self._frames.get(key)
        if payload is not None:
            self._frames.move_to_end(key)
        return payload

    def add(self, key: FrameKey, payload: bytes) -> None:
        self._frames[key] = payload
        self._bytes += len(payload)
        while self._bytes > self._bytes_max and len(self._frames) > 1:
            _, old = self._frames.popitem(last=False)
            self._bytes -= len(old)


def _none(name: str) -> bool:
    return False


def bears_id(data: Buffer, chunk_id: bytes, id_keys: Sequence[bytes]) -> bool:
    """Whether the id is that of these bytes under any of the id keys: old chunks keep the names they were given."""
    return any(blake3(data, key=key).digest() == chunk_id for key in id_keys)


class ChunkReader:
    """Thread-safe. Decoded frames are kept in a small least-recently-used cache; a frame is read by one thread at a time."""

    def __init__(
        self, store: Store, prefix: str, keyring: Keyring, index: IndexSet, *, id_keys: Sequence[bytes]
    ) -> None:
        self._store, self._prefix, self._keyring, self._index = store, prefix, keyring, index
        self._id_keys = id_keys
        self._lock = threading.Lock()
        self._frames = _Frames(CACHE_BYTES_MAX[Kind.DATA_PACK])
        self._meta_frames = _Frames(CACHE_BYTES_MAX[Kind.META_PACK])
        self._reading: dict[FrameKey, Future[bytes]] = {}
        self._envelopes: OrderedDict[str, Envelope] = OrderedDict()
        self._gone: set[str] = set()
        self.whole_packs: Callable[[str], bool] = _none
        """Which packs of metadata are small enough to be read whole at once; asked by name."""
        self._packs: OrderedDict[str, bytes] = OrderedDict()
        self._windows: OrderedDict[str, tuple[int, memoryview]] = OrderedDict()
        self._noted: tuple[Segment, bytes, Place] | None = None

    def ahead(
        self, items: Iterable[T], ids_of: Callable[[T], Iterable[bytes]], *, window_bytes: int = WINDOW_BYTES
    ) -> Generator[T, None, None]:
        """Yield the items; where a request to the store is dear, what they will need is on its way before.

        `ids_of` gives the chunks that are wanted for an item by whoever works on it, now or a little later. Close it when
        it is not used up.
        """
        if not is_dear(self._store):
            yield from items
            return
        yield from self._read_ahead.stream(items, ids_of, window_bytes=window_bytes)

    @cached_property
    def _read_ahead(self) -> ReadAhead:
        return ReadAhead(self._store, find=self._find, has=self._has, key_of=self._key_of)

    def _key_of(self, place: Place) -> str:
        """Where the pack lies by its header, which proves nothing yet."""
        folder = "meta" if place.header[KIND_AT] == Kind.META_PACK else "data"
        return f"{self._prefix}{folder}/{place.pack[:2]}/{place.pack}"

    def _find(self, chunk_id: bytes) -> Place | None:
        """Where the frame of a chunk lies by the index at hand; chunks of one frame mostly come one after another."""
        found = self.frame_of(chunk_id)
        if found is None:
            return None
        segment, frame = found
        noted = self._noted
        if noted is not None and noted[0] is segment and noted[1] == frame:
            return noted[2]
        place = segment.place(segment.ordinal(chunk_id))
        self._noted = segment, frame, place
        return place

    def locate(self, chunk_id: bytes) -> Place:
        """Raises ChunkMissing when no index segment, old or new, knows the chunk."""
        place = self._index.find(chunk_id)
        if place is None:
            self._index.reload()
            place = self._index.find(chunk_id)
        if place is None:
            raise ChunkMissing(
                f"chunk {chunk_id.hex()[:16]} is in no index",
                hint="run a verify, which rebuilds the index from the packs; another copy may still hold it",
            )
        return place

    def frame_of(self, chunk_id: bytes) -> tuple[Segment, bytes] | None:
        """What stands for the frame that holds the chunk, by the index at hand: equal for chunks of one frame."""
        for segment in self._index.segments:
            ordinal = segment.ordinal(chunk_id)
            if ordinal >= 0:
                return segment, segment.raw(ordinal)[_FRAME]
        return None

    def get(self, chunk_id: bytes) -> bytes:
        """The chunk's bytes. Raises ChunkMissing or ObjectDamaged, never returns other bytes."""
        place = self.locate(chunk_id)
        try:
            return self._chunk(place, chunk_id)
        except DamageError as error:
            if isinstance(error, ChunkMissing) and place.pack not in self._gone:
                self._gone.add(place.pack)
                self._index.reload()  # The pack may have been repacked since the index was loaded.
            for other in self._index.places(chunk_id):
                if other != place:
                    with suppress(DamageError):
                        return self._chunk(other, chunk_id)
            raise

    def get_many(self, chunk_ids: Iterable[bytes]) -> dict[bytes, bytes]:
        """Several chunks at once, read in the order in which they lie: one look at each frame.

        They are authenticated with their frames, but not compared with their ids: the caller has sums of its own,
        and asks `get` for what does not bear them out. All are held in memory together, so the caller bounds how
        many. Raises what `get` raises.
        """
        found: dict[bytes, bytes] = {}
        frames: dict[tuple[Segment, bytes], list[tuple[bytes, int]]] = {}
        segments = self._index.segments
        for chunk_id in set(chunk_ids):
            for segment in segments:
                ordinal = segment.ordinal(chunk_id)
                if ordinal >= 0:
                    frame = segment.raw(ordinal)[_FRAME]
                    frames.setdefault((segment, frame), []).append((chunk_id, ordinal))
                    break
            else:
                found[chunk_id] = self.get(chunk_id)
        for (segment, _), chunks in frames.items():
            try:
                payload = self.frame(segment.place(chunks[0][1]))
            except DamageError:
                # Damaged or moved: it knows where else to look and what to say.
                found.update((chunk_id, self.get(chunk_id)) for chunk_id, _ in chunks)
                continue
            for chunk_id, ordinal in chunks:
                offset, length = _PART.unpack_from(segment.raw(ordinal), _PART_AT)
                found[chunk_id] = payload[offset : offset + length]
        return found

    def _chunk(self, place: Place, chunk_id: bytes) -> bytes:
        payload = self.frame(place)
        data = payload[place.offset : place.offset + place.length] if len(payload) != place.length else payload
        if not bears_id(data, chunk_id, self._id_keys):
            raise ObjectDamaged(f"pack {place.pack[:16]}: chunk {chunk_id.hex()[:16]} is not what was written")
        return data

    def frame(self, place: Place) -> bytes:
        """The decoded frame that holds the place."""
        key = (place.pack, place.frame_offset)
        frames = self._meta_frames if place.header[KIND_AT] == Kind.META_PACK else self._frames
        own: Future[bytes] | None = None
        with self._lock:
            payload = frames.get(key)
            if payload is not None:
                return payload
            reading = self._reading.get(key)
            if reading is None:
                own = self._reading[key] = Future()
        if own is not None:
            return self._read_for_all(key, place, own, frames)
        assert reading is not None
        return reading.result() or self._read(place)

    def _has(self, key: FrameKey) -> bool:
        with self._lock:
            return self._frames.get(key) is not None or self._meta_frames.get(key) is not None or key in self._reading

    def _read_for_all(self, key: FrameKey, place: Place, own: "Future[bytes]", frames: "_Frames") -> bytes:
        """Read a frame and keep it; those who wait for it get it too, or b"" to see for themselves what is wrong."""
        payload = b""
        try:
            payload = self._read(place)
        finally:
            with self._lock:
                del self._reading[key]
                if payload and (len(payload) < ALONE_BYTES or len(payload) != place.length):
                    frames.add(key, payload)
            own.set_result(payload)
        return payload

    def _read(self, place: Place) -> bytes:
        name = f"pack {place.pack[:16]}"
        sealed = self._read_ahead.take(place) if is_dear(self._store) else None
        if sealed is None:
            return read_frame(self._envelope(place, name), place.frame_offset, self._fetched(place, name), name)
        return read_frame(self._envelope(place, name), place.frame_offset, sealed, name)

    def _fetched(self, place: Place, name: str) -> Buffer:
        # The header tells the folder, so that a store is not asked twice; it proves nothing yet, hence the other.
        folders = ("meta", "data") if place.header[KIND_AT] == Kind.META_PACK else ("data", "meta")
        for folder in folders:
            try:
                sealed = self._sealed(f"{self._prefix}{folder}/{place.pack[:2]}/{place.pack}", place)
                break
            except ObjectMissing:
                continue
        else:
            raise ChunkMissing(f"{name} is gone from the store", hint="another copy may still hold it")
        if len(sealed) != place.frame_length:
            raise ObjectDamaged(f"{name}: truncated", hint="another copy may still hold it")
        return sealed

    def _sealed(self, key: str, place: Place) -> Buffer:
        """The stored bytes of a frame; of a small pack of metadata all frames come along, of any the next ones where that pays."""
        if place.header[KIND_AT] != Kind.META_PACK:
            return self._store.get(key, place.frame_offset, place.frame_length)
        if not self.whole_packs(place.pack):
            return self._read_on(key, place)
        with self._lock:
            pack = self._packs.get(place.pack)
        if pack is None:
            pack = self._store.get(key, 0, PACK_BYTES_MAX)
            with self._lock:
                self._packs[place.pack] = pack
                while len(self._packs) > _PACKS_MAX:
                    self._packs.popitem(last=False)
        return pack[place.frame_offset : place.frame_offset + place.frame_length]

    def _read_on(self, key: str, place: Place) -> Buffer:
        """A frame of metadata; with those behind it when it follows one that was read, and a request is dear."""
        begin, length = place.frame_offset, place.frame_length
        with self._lock:
            at, window = self._windows.get(place.pack, (begin, memoryview(b"")))
        if at <= begin and begin + length <= at + len(window):
            return window[begin - at : begin - at + length]
        follows = at < begin <= at + len(window) + META_GAP_BYTES and is_dear(self._store)
        data = memoryview(self._store.get(key, begin, max(length, META_WINDOW_BYTES) if follows else length))
        with self._lock:
            self._windows[place.pack] = begin, data
            self._windows.move_to_end(place.pack)
            while len(self._windows) > META_WINDOWS_MAX:
                self._windows.popitem(last=False)
        return data[:length]

    def _envelope(self, place: Place, name: str) -> Envelope:
        with self._lock:
            envelope = self._envelopes.get(place.pack)
            if envelope is None:
                envelope = self._envelopes[place.pack] = pack_envelope(self._keyring, place.header, name)
                if len(self._envelopes) > _ENVELOPES_MAX:
                    self._envelopes.popitem(last=False)
            return envelope
