"""Mark: which chunks the kept backups need, in which packs they lie, and what that leaves of each pack.

Memory is bounded: a byte for each entry of the index, some 60 for each pack, whatever the backups hold.
"""

import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.chunks import ChunkReader
from engine.errors import ChunkMissing
from engine.index import Segment
from engine.pack_table import PackTable
from engine.repository import Domain
from engine.space import Space
from engine.tombstones import Tombstone

LIVE_SHARE_MIN = 0.25
"""A pack of which less than this share is still needed is rewritten."""
KEEP, DROP, REWRITE, WAIT = range(4)
"""What becomes of a pack: it stays, nothing needs it, little of it is needed, it was dropped before."""
_UNLISTED = -1


@dataclass(slots=True)
class Marked:
    """One segment of the index with what was found out about its entries."""

    segment: Segment
    needed: bytearray
    """1 for each entry whose chunk a backup needs."""
    packs: "array[int]"
    """Number of a pack in the segment -> its ordinal in the table, -1 when the store does not list it."""


class Mark:
    """What backups need, visited chunk by chunk; backups may be visited in several threads."""

    def __init__(self, domain: Domain, table: PackTable, waiting: bytearray) -> None:
        self.table, self._waiting = table, waiting
        self.generation = domain.index.generation
        self.segments = [_marked(segment, table) for segment in domain.index.segments]
        self.for_trash = False
        """Set while backups are walked that lie in the trash."""
        self._live, self._trash = _zeros(len(table)), _zeros(len(table))
        self._lock = threading.Lock()

    def visit(self, chunk_id: bytes, is_meta: bool) -> bool:
        """Mark one chunk; True when what it names has to be walked. Raises ChunkMissing."""
        marked, ordinal, pack, length = self._find(chunk_id)
        if marked.needed[ordinal]:
            return False
        with self._lock:
            if marked.needed[ordinal]:
                return False
            marked.needed[ordinal] = 1
            (self._trash if self.for_trash else self._live)[pack] += length
        return is_meta

    def _find(self, chunk_id: bytes) -> tuple[Marked, int, int, int]:
        """Where the chunk is kept: not in a pack that waits for its deletion, if there is another."""
        waiting: tuple[Marked, int, int, int] | None = None
        lost = ""
        for marked in self.segments:
            ordinal = marked.segment.ordinal(chunk_id)
            if ordinal < 0:
                continue
            number, length = marked.segment.extent(ordinal)
            pack = marked.packs[number]
            if pack == _UNLISTED:
                lost = marked.segment.pack(number)[0]
            elif not self._waiting[pack]:
                return marked, ordinal, pack, length
            else:
                waiting = waiting or (marked, ordinal, pack, length)
        if waiting is not None:
            return waiting
        if lost:
            raise ChunkMissing(
                f"pack {lost[:16]}, which a kept backup needs, is not listed by the store; nothing was deleted",
                hint="repair it from another copy",
            )
        raise ChunkMissing(
            f"chunk {chunk_id.hex()[:16]} of a kept backup is in no index; nothing was deleted",
            hint="run a verify, which rebuilds the index, then prune again",
        )

    def judge(self) -> "Judged":
        """What becomes of each pack, once everything was visited."""
        totals = _zeros(len(self.table))
        for marked in self.segments:
            packs = marked.packs
            for number, length in marked.segment.extents():
                if number < len(packs) and packs[number] != _UNLISTED:
                    totals[packs[number]] += length
        fates = bytearray(len(self.table))
        for ordinal, (live, trash, total) in enumerate(zip(self._live, self._trash, totals, strict=True)):
            needed = live + trash
            if needed:
                fates[ordinal] = KEEP if needed >= LIVE_SHARE_MIN * total else REWRITE
            else:  # One that waits and is still in the index: killed between tombstone and index.
                fates[ordinal] = WAIT if self._waiting[ordinal] and not total else DROP
        return Judged(self.table, fates, self._live, self._trash, totals)

    def thin(self, judged: "Judged") -> Iterator[tuple[int, int, bytes]]:
        """Pack, frame and id of each needed chunk in a pack that is to be rewritten, by segment and id."""
        for marked in self.segments:
            at = marked.needed.find(1)
            while at >= 0:
                pack = marked.packs[marked.segment.extent(at)[0]]
                if judged.fates[pack] == REWRITE:
                    yield pack, marked.segment.place(at).frame_offset, marked.segment.raw(at)[:32]
                at = marked.needed.find(1, at + 1)


@dataclass(frozen=True, slots=True)
class Judged:
    """What becomes of each pack, by its ordinal in the table, and why."""

    table: PackTable
    fates: bytearray
    _live: "array[int]"
    _trash: "array[int]"
    _totals: "array[int]"

    def dropped(self) -> list[int]:
        """Ordinals of packs that leave the index."""
        return [ordinal for ordinal, fate in enumerate(self.fates) if fate in (DROP, REWRITE)]

    def count(self, fate: int) -> int:
        """How many packs this becomes of."""
        return self.fates.count(fate)

    def space(self, waiting: Sequence[int]) -> Space:
        """The bytes as they were found; `waiting` flags packs that were dropped before."""
        live = trash = garbage = entombed = 0
        for ordinal, (_, _, size) in enumerate(self.table):
            total = self._totals[ordinal]
            if waiting[ordinal] and self.fates[ordinal] != KEEP:
                entombed += size
                continue
            needed = size * self._live[ordinal] // total if total else 0
            ended = size * self._trash[ordinal] // total if total else 0
            live, trash, garbage = live + needed, trash + ended, garbage + size - needed - ended
        return Space(self.table.bytes, live, trash, garbage, entombed, packs=len(self.table))

    def kept_space(self) -> Space:
        """The bytes of the packs that stay as they are."""
        live = trash = total = count = 0
        for ordinal, (_, _, size) in enumerate(self.table):
            if self.fates[ordinal] == KEEP:
                whole = self._totals[ordinal]
                live += size * self._live[ordinal] // whole
                trash += size * self._trash[ordinal] // whole
                total, count = total + size, count + 1
        return Space(total, live, trash, total - live - trash, packs=count)

    def rewritten_space(self) -> Space:
        """What the thin packs hold that is needed, as stored bytes: about what they take when they are stored anew."""
        live = trash = 0
        for ordinal, (_, _, size) in enumerate(self.table):
            if self.fates[ordinal] == REWRITE:
                live += size * self._live[ordinal] // self._totals[ordinal]
                trash += size * self._trash[ordinal] // self._totals[ordinal]
        return Space(live + trash, live, trash)


def _zeros(count: int) -> "array[int]":
    return array("Q", bytes(8 * count))


def _marked(segment: Segment, table: PackTable) -> Marked:
    packs = array("q", (table.ordinal(segment.pack(number)[0]) for number in range(segment.pack_count)))
    return Marked(segment, bytearray(segment.count), packs)


@dataclass
class Work:
    """One domain as prune found it."""

    domain: Domain
    table: PackTable
    tombstones: list[Tombstone]
    broken: list[str]
    """Keys of tombstones that cannot be read: they allow nothing and are removed."""
    waiting: bytearray
    """By ordinal 1 for each pack that a tombstone names."""
    mark: Mark
    reader: ChunkReader
    claimed: int
    """The generation in which packs are dropped; 0 for a dry run."""
