"""The segments of one repository's index: loading, looking up, adding, keeping their number bounded."""

import hashlib
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.errors import ObjectDamaged, ObjectMissing, StoreUnreachable
from engine.faults import kill_point
from engine.index import Place, Segment, cached_segment, encode_segment, merge_segments
from engine.keys import Keyring
from engine.ports import Store
from engine.sealed import Kind, open_object, seal_object

SEGMENTS_MAX = 16
"""More segments than this are merged at the end of a session; 16 and a logarithm remain."""
_RELOADS_MAX = 5


class IndexSet:
    """Thread-safe for lookups; writing belongs to one session at a time."""

    def __init__(self, store: Store, prefix: str, keyring: Keyring, *, cipher: int, cache: Path | None) -> None:
        self._store, self._prefix, self._keyring, self._cipher = store, prefix, keyring, cipher
        self._cache = cache
        self._segments: tuple[Segment, ...] | None = None
        self._lock = threading.Lock()
        self.damaged: list[str] = []
        """Messages about segments that could not be read; their chunks are found again from pack trailers."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        if self._segments is None:
            self.reload()
        assert self._segments is not None
        return self._segments

    def reload(self) -> None:
        """Read the store's listing again. A segment that vanished meanwhile was superseded: list once more."""
        with self._lock:
            for _ in range(_RELOADS_MAX):
                self.damaged = []
                try:
                    self._segments = self._load()
                    return
                except ObjectMissing:
                    continue
            raise StoreUnreachable("the index keeps changing while it is read", hint="try again")

    def _load(self) -> tuple[Segment, ...]:
        known = {s.name: s for s in self._segments or ()}
        found: list[Segment] = []
        for info in self._store.list(self._prefix):
            name = info.key.rpartition("/")[2]
            try:
                found.append(known.get(name) or cached_segment(name, None, self._cache) or self._fetch(name))
            except ObjectDamaged as error:
                self.damaged.append(error.message)
        gone = frozenset[str]().union(*(s.superseded for s in found))
        return tuple(s for s in found if s.name not in gone)

    def _fetch(self, name: str) -> Segment:
        blob = self._store.get(self._prefix + name)
        if hashlib.sha256(blob).hexdigest() != name:
            raise ObjectDamaged(f"index {name} is not what was written", hint="it is rebuilt from the packs")
        _, content = open_object(self._keyring, blob, f"index {name}", Kind.INDEX)
        segment = cached_segment(name, content, self._cache)
        assert segment is not None
        return segment

    def find(self, chunk_id: bytes) -> Place | None:
        """Where the chunk lies; the newest segment wins. None when no loaded segment knows it."""
        for segment in self.segments:
            ordinal = segment.ordinal(chunk_id)
            if ordinal >= 0:
                return segment.place(ordinal)
        return None

    def __contains__(self, chunk_id: bytes) -> bool:
        return any(segment.ordinal(chunk_id) >= 0 for segment in self.segments)

    def write(self, packs: Sequence[tuple[str, bytes]], entries: Sequence[bytes]) -> int:
        """Store one new segment durably; its size in the store."""
        return self._write(encode_segment(packs, entries), replaced=())

    def _write(self, content: bytes, *, replaced: Sequence[Segment]) -> int:
        before = self.segments
        for old in replaced:
            # A kill may have left segments that `old` took over; once `old` is gone nothing would hide them,
            # and their entries name packs that a prune has dropped. Deleting is idempotent, a listing may lie.
            for name in old.superseded:
                self._store.delete(self._prefix + name)
        parts = seal_object(self._keyring, Kind.INDEX, content, cipher=self._cipher)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        name = digest.hexdigest()
        self._store.put(self._prefix + name, parts)
        kill_point("index.stored")
        segment = cached_segment(name, content, self._cache)
        assert segment is not None
        dropped = {s.name for s in replaced}
        with self._lock:
            self._segments = (segment, *(s for s in before if s.name not in dropped))
        for old in replaced:
            self._store.delete(self._prefix + old.name)
            kill_point("index.superseded_deleted")
        return sum(map(len, parts))

    def compact(self) -> int:
        """Merge small segments when there are more than SEGMENTS_MAX; bytes stored anew.

        Grows geometrically, so that each entry is rewritten a logarithmic number of times.
        """
        if len(self.segments) <= SEGMENTS_MAX:
            return 0
        chosen: list[Segment] = []
        total = 0
        for segment in sorted(self.segments, key=lambda s: s.count):
            if len(chosen) >= 2 and segment.count > 2 * total:
                break
            chosen.append(segment)
            total += segment.count
        return self._write(merge_segments(chosen), replaced=chosen)

    def rewrite(self, *, keep_pack: frozenset[str]) -> int:
        """Leave only entries of these packs, in one segment; what prune does after a sweep."""
        segments = self.segments
        if not segments:
            return 0
        return self._write(merge_segments(segments, keep_pack=keep_pack), replaced=segments)

    def pack_names(self) -> set[str]:
        """Hex names of all packs that the index knows."""
        return {name for segment in self.segments for name, _ in segment.packs()}

    def forget_cached(self, names: Iterable[str] = ()) -> None:
        """Drop cache files of segments that are no longer in use."""
        if self._cache is None or not self._cache.is_dir():
            return
        used = {s.name for s in self.segments} | set(names)
        for path in self._cache.iterdir():
            if path.name not in used:
                path.unlink(missing_ok=True)
