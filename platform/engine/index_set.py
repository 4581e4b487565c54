"""The segments of one repository's index: loading, looking up, adding, keeping their number bounded."""

import datetime
import hashlib
import secrets
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from engine.errors import (
    ObjectDamaged,
    ObjectExists,
    ObjectLocked,
    ObjectMissing,
    SessionFenced,
    StoreDenied,
    StoreUnreachable,
)
from engine.faults import kill_point
from engine.index import ENTRIES_MAX, Place, Segment, cached_segment, encode_segment, merge_segments
from engine.keys import Keyring
from engine.pack import ID_BYTES
from engine.ports import Store
from engine.sealed import Kind, open_object, seal_object

SEGMENTS_MAX = 16
"""More small segments than this are merged at the end of a session; 16 and a logarithm remain."""
SEGMENT_BYTES_MAX = 128 << 20
_RELOADS_MAX = 5
Claim = Callable[[int], None]
CLAIMS_MAX = 1_000
"""A prune that finds more generations claimed ahead of the index than this stops: something else is wrong."""


_CLAIM_BYTES_MAX = 64
_HEAD_DIGITS_MAX = 10


class IndexSet:
    """Thread-safe for lookups; writing belongs to one session at a time."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        keyring: Keyring,
        *,
        cipher: int,
        cache: Path | None,
        on_claim: Claim = lambda number: None,
        on_taken: Claim = lambda number: None,
    ) -> None:
        self._store, self._prefix, self._keyring, self._cipher = store, prefix, keyring, cipher
        self._claims = prefix.removesuffix("index/") + "generations/"
        self._cache = cache
        self._on_claim, self._on_taken = on_claim, on_taken
        self._segments: tuple[Segment, ...] | None = None
        self._void: frozenset[str] = frozenset()
        self._unread: frozenset[str] = frozenset()
        self._generation_seen = 0
        self._lock = threading.Lock()
        self._append_only = False
        self.left: set[str] = set()
        """Names of segments that are not needed any more and that the store did not let us delete."""
        self.damaged: list[str] = []
        """Messages about segments that could not be read; their chunks are found again from pack trailers."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        if self._segments is None:
            self.reload()
        assert self._segments is not None
        return self._segments

    @property
    def generation(self) -> int:
        """How often packs were dropped from the index, as of the segments at hand."""
        return max((s.generation for s in self.segments), default=0)

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
        unlisted = set(known)
        unread: set[str] = set()
        for info in self._store.list(self._prefix):
            name = info.key.rpartition("/")[2]
            unlisted.discard(name)
            try:
                found.append(known.get(name) or cached_segment(name, None, self._cache) or self._fetch(name))
            except ObjectDamaged as error:
                self.damaged.append(error.message)
                unread.add(name)
        # A listing may end early. Whoever drops what it lacked would lose the entries of what is there.
        found += [known[name] for name in sorted(unlisted) if self._is_there(name)]
        gone = frozenset[str]().union(*(s.superseded for s in found))
        generation = max((s.generation for s in found if not s.part), default=0)
        live = tuple(s for s in found if s.name not in gone and s.generation == generation)
        self._unread = frozenset(unread)
        self._void = frozenset(s.name for s in found) - {s.name for s in live}
        self._generation_seen = max((s.generation for s in found), default=0)
        return live

    def _is_there(self, name: str) -> bool:
        try:
            self._store.stat(self._prefix + name)
        except ObjectMissing:
            return False
        return True

    def _fetch(self, name: str) -> Segment:
        blob = self._store.get(self._prefix + name, 0, SEGMENT_BYTES_MAX + 1)
        if hashlib.sha256(blob).hexdigest() != name:
            raise ObjectDamaged(f"index {name} is not what was written", hint="it is rebuilt from the packs")
        _, content = open_object(self._keyring, blob, f"index {name}", Kind.INDEX, cipher=self._cipher)
        segment = cached_segment(name, content, self._cache)
        assert segment is not None
        return segment

    def find(self, chunk_id: bytes) -> Place | None:
        """Where the chunk lies; the newest segment wins. None when no loaded segment knows it."""
        return next(self.places(chunk_id), None)

    def places(self, chunk_id: bytes) -> Iterator[Place]:
        """Every place of the chunk; it has several when it was stored anew."""
        for segment in self.segments:
            ordinal = segment.ordinal(chunk_id)
            if ordinal >= 0:
                yield segment.place(ordinal)

    def __contains__(self, chunk_id: bytes) -> bool:
        return any(segment.ordinal(chunk_id) >= 0 for segment in self.segments)

    def write(self, packs: Sequence[tuple[str, bytes]], entries: Sequence[bytes], *, generation: int) -> int:
        """Store one new segment durably; its size in the store.

        `generation` is the one in which the packs were stored. Raises SessionFenced when a prune is known to
        have raised it since: it may have taken the packs for garbage.
        """
        self._refuse_overtaken(generation)
        segment, size = self._put(encode_segment(packs, entries, generation=generation))
        with self._lock:
            self._segments = (segment, *(self._segments or ()))
        return size

    def check_generation(self, generation: int) -> None:
        """Raise SessionFenced when the store's index is of another generation by now."""
        self.reload()
        self._refuse_overtaken(generation)

    def claim_generation(self, *, head: int = 0) -> int:
        """Claim the next generation for a writer that will drop packs, and return it.

        `head`, the highest number of a backup that the writer knows of, is kept beside the claim: whoever finds the
        claims by name learns from the last one how far the chain reaches, whatever a listing says. To be called before the index and the packs are looked at. The store gives each number away once, so of two
        writers the one with the lower number is told by `check_claim`, or had ended before the other one looked.
        """
        self.reload()
        token = b"%s %d" % (secrets.token_hex(16).encode(), head)
        for generation in range(self._generation_seen + 1, self._generation_seen + 1 + CLAIMS_MAX):
            self._on_claim(generation)
            try:
                self._store.create(self._claim_key(generation), [token])
            except ObjectExists:
                self._on_taken(generation)
                continue
            kill_point("index.generation_claimed")
            return generation
        raise ObjectDamaged(
            f"{CLAIMS_MAX} generations of the index are claimed and none of them is there",
            hint="verify the newest backup; the index is rebuilt from the packs then",
        )

    def claims_after(self, generation: int) -> tuple[int, int]:
        """The last claimed generation from this one on, asked by name, and the highest head that a later claim kept."""
        head = 0
        while True:
            try:
                body = self._store.get(self._claim_key(generation + 1), 0, _CLAIM_BYTES_MAX)
            except ObjectMissing:
                return generation, head
            generation += 1
            known = body.partition(b" ")[2]
            head = max(head, int(known) if known.isdigit() and len(known) <= _HEAD_DIGITS_MAX else 0)

    def check_claim(self, generation: int) -> None:
        """Raise SessionFenced when another writer has claimed a later generation; to be asked before deleting."""
        try:
            self._store.stat(self._claim_key(generation + 1))
        except ObjectMissing:
            return
        raise SessionFenced(
            "another prune has begun since; nothing was deleted", hint="the operation was taken over; start it again"
        )

    def claimed_at(self, generation: int) -> datetime.datetime:
        """When this generation was claimed, by the store's own clock."""
        return self._store.stat(self._claim_key(generation)).modified

    def _claim_key(self, generation: int) -> str:
        return f"{self._claims}{generation:010d}"

    def _refuse_overtaken(self, generation: int) -> None:
        if self.generation > generation:
            raise SessionFenced(
                "chunks were pruned while this session was writing", hint="the operation was taken over; start it again"
            )

    def _put(self, content: bytes) -> tuple[Segment, int]:
        parts = seal_object(self._keyring, Kind.INDEX, content, cipher=self._cipher)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        name, size = digest.hexdigest(), sum(map(len, parts))
        self._store.put(self._prefix + name, parts)
        kill_point("index.stored")
        segment = cached_segment(name, content, self._cache)
        assert segment is not None
        return segment, size

    def _replace(self, replaced: Sequence[Segment], contents: Iterable[bytes]) -> int:
        # A kill may have left segments that an old one took over; once that is gone nothing would hide them, and
        # their entries name packs that a prune has dropped. Deleting is idempotent, a listing may lie.
        gone = self._drop_all(sorted(frozenset[str]().union(*(old.superseded for old in replaced))))
        written = [self._put(content) for content in contents]
        dropped = {s.name for s in replaced}
        with self._lock:
            kept = (s for s in self._segments or () if s.name not in dropped)
            self._segments = (*(segment for segment, _ in written), *kept)
        bared = [old.name for old in replaced if old.superseded <= gone]
        self.left.update(dropped.difference(bared))
        self._drop_all(bared)
        return sum(size for _, size in written)

    def _drop_all(self, names: Sequence[str]) -> set[str]:
        """Delete such segments, in one request where the store can; the names of those that went."""
        many = getattr(self._store, "delete_many", None)
        if names and many is not None and not self._append_only:
            with suppress(StoreDenied):  # Then each is asked for, to know which ones stay.
                many([self._prefix + name for name in names])
                self._note_dropped(names)
                return set(names)
        return {name for name in names if self._drop(name)}

    def _note_dropped(self, names: Sequence[str]) -> None:
        kill_point("index.superseded_deleted")
        self.left.difference_update(names)

    def _drop(self, name: str) -> bool:
        """Delete a segment that others hide, if the store lets us: an append-only one keeps it, hidden for ever."""
        if self._append_only:
            self.left.add(name)
            return False
        try:
            self._store.delete(self._prefix + name)
        except ObjectLocked:
            self.left.add(name)
            return False
        except StoreDenied:
            self._append_only = True  # Asked once: a refusal must not become a storm of them.
            self.left.add(name)
            return False
        self._note_dropped([name])
        return True

    def compact(self) -> int:
        """Merge small segments when there are more than SEGMENTS_MAX; bytes stored anew.

        Grows geometrically, so that each entry is rewritten a logarithmic number of times.
        """
        small = [s for s in self.segments if s.count < ENTRIES_MAX // 2]
        if len(small) <= SEGMENTS_MAX:
            return 0
        chosen: list[Segment] = []
        total = 0
        for segment in sorted(small, key=lambda s: s.count):
            if len(chosen) >= 2 and segment.count > 2 * total:
                break
            chosen.append(segment)
            total += segment.count
        return self._replace(chosen, merge_segments(chosen, generation=self.generation))

    def put_first(self, names: Container[str]) -> int:
        """Have the places in the segments of these names be those that count, also after later merges; bytes stored anew.

        For chunks that were stored anew because their old place is lost.
        """
        first = [s for s in self.segments if s.name in names]

        def known(segment: Segment) -> bool:
            return any(segment.ordinal(entry[:ID_BYTES]) >= 0 for each in first for entry in each.entries())

        others = [s for s in self.segments if s.name not in names and known(s)]
        if not others:
            return 0
        merged = [*first, *others]
        return self._replace(merged, merge_segments(merged, generation=self.generation))

    def rewrite(self, *, drop: Container[str], generation: int, claimed: int) -> int:
        """Leave out the entries of these packs and raise the generation to the claimed one; prune does it before deleting.

        `generation` is the one that the caller decided upon; raises SessionFenced when another writer has
        raised it since. Whatever a late session stores from now on is void.
        """
        self.check_generation(generation)
        if self._generation_seen >= claimed:
            raise SessionFenced("the index was written anew by another prune", hint="start the operation again")
        segments, void = self.segments, self._void
        keep = {name for name in self.pack_names() if name not in drop}
        size = self._replace(segments, merge_segments(segments, keep_pack=keep, generation=claimed))
        self._drop_all(sorted(void))
        self._void = frozenset()
        return size

    def drop_damaged(self) -> None:
        """Delete the segments that cannot be read; only after a rebuild that found all their packs."""
        if self.damaged:
            for name in self._unread:
                self._drop(name)
            self._unread, self.damaged = frozenset(), []

    def pack_names(self) -> set[str]:
        """Hex names of all packs that the index knows."""
        return {name for segment in self.segments for name, _ in segment.packs()}

    def forget_cached(self, names: Iterable[str] = ()) -> None:
        """Drop cache files of segments that are no longer in use."""
        if self._cache is None:
            return
        # What a store would not delete is listed again the next time, and must not be fetched for that.
        used = {s.name for s in self.segments} | self._void | self.left | set(names)
        with suppress(OSError):  # Another process clears it too, or it was removed: it is only a cache.
            for path in self._cache.iterdir():
                if path.name not in used:
                    path.unlink(missing_ok=True)
