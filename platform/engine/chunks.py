"""Reading chunks back: located by the index, authenticated, decompressed, and compared with their id."""

import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from blake3 import blake3

from engine.errors import ChunkMissing, DamageError, ObjectDamaged, ObjectMissing
from engine.index import Place, Segment
from engine.index_set import IndexSet
from engine.keys import Keyring
from engine.pack import pack_envelope, read_frame
from engine.ports import Buffer, Store
from engine.sealed import KIND_AT, Envelope, Kind

CACHE_BYTES_MAX = 24 << 20
_ENVELOPES_MAX = 256
_PACKS_MAX = 16
_FRAME = slice(32, 44)
"""Where an index entry names the pack and the frame (engine.index)."""
_PART, _PART_AT = struct.Struct(">II"), 44


def _none(name: str) -> bool:
    return False


def bears_id(data: Buffer, chunk_id: bytes, id_keys: Sequence[bytes]) -> bool:
    """Whether the id is that of these bytes under any of the id keys: old chunks keep the names they were given."""
    return any(blake3(data, key=key).digest() == chunk_id for key in id_keys)


class ChunkReader:
    """Thread-safe. Decoded frames are kept in a small least-recently-used cache."""

    def __init__(
        self, store: Store, prefix: str, keyring: Keyring, index: IndexSet, *, id_keys: Sequence[bytes]
    ) -> None:
        self._store, self._prefix, self._keyring, self._index = store, prefix, keyring, index
        self._id_keys = id_keys
        self._lock = threading.Lock()
        self._frames: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._frames_bytes = 0
        self._envelopes: OrderedDict[str, Envelope] = OrderedDict()
        self._gone: set[str] = set()
        self.whole_packs: Callable[[str], bool] = _none
        """Which packs of metadata are small enough to be read whole at once; asked by name."""
        self._packs: OrderedDict[str, bytes] = OrderedDict()

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
        with self._lock:
            payload = self._frames.get(key)
            if payload is not None:
                self._frames.move_to_end(key)
                return payload
        payload = self._read(place)
        with self._lock:
            if key not in self._frames:
                self._frames[key] = payload
                self._frames_bytes += len(payload)
            while self._frames_bytes > CACHE_BYTES_MAX and len(self._frames) > 1:
                _, old = self._frames.popitem(last=False)
                self._frames_bytes -= len(old)
        return payload

    def _read(self, place: Place) -> bytes:
        name = f"pack {place.pack[:16]}"
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
        return read_frame(self._envelope(place, name), place.frame_offset, sealed, name)

    def _sealed(self, key: str, place: Place) -> bytes:
        """The stored bytes of a frame; of a small pack of metadata all frames come along."""
        if place.header[KIND_AT] != Kind.META_PACK or not self.whole_packs(place.pack):
            return self._store.get(key, place.frame_offset, place.frame_length)
        with self._lock:
            pack = self._packs.get(place.pack)
        if pack is None:
            pack = self._store.get(key)
            with self._lock:
                self._packs[place.pack] = pack
                while len(self._packs) > _PACKS_MAX:
                    self._packs.popitem(last=False)
        return pack[place.frame_offset : place.frame_offset + place.frame_length]

    def _envelope(self, place: Place, name: str) -> Envelope:
        with self._lock:
            envelope = self._envelopes.get(place.pack)
            if envelope is None:
                envelope = self._envelopes[place.pack] = pack_envelope(self._keyring, place.header, name)
                if len(self._envelopes) > _ENVELOPES_MAX:
                    self._envelopes.popitem(last=False)
            return envelope
