"""The index: chunk id -> place in a pack, in immutable sorted segments (docs/formats/repository.md, "Index").

A segment is found by a fan-out table over the leading bits of the id and a search of the few entries
behind it, in a memory-mapped file, so that nothing is held whole. It can always be rebuilt from packs.

    "LIDX" version:u32 generation:u32 part:u32 fan_bits:u32 packs:u32 entries:u32 superseded:u32
    part              1 when further segments of the same merge follow, which alone make this one count
    superseded x 32   names of the segments whose content this one took over
    packs x 112       name 32, header 80
    (2^fan_bits + 1) x u32   index of the first entry whose id begins with at least these bits
    entries x 52      id 32, pack u32, frame offset u32, frame length u32, offset u32, length u32
    zeros             to the next padded size (engine.pack)

Whoever drops packs from the index writes it anew one generation higher; segments of lower generations are
void. So nothing that a late writer (one that lost its lease) stores afterwards can name packs that are gone.
"""

import heapq
import itertools
import mmap
import os
import struct
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from engine.errors import ObjectDamaged
from engine.pack import ID_BYTES, padded_size
from engine.ports import Buffer
from engine.sealed import HEADER_BYTES

_MAGIC = b"LIDX"
_HEAD = struct.Struct(">4sIIIIIII")
_PLACE = struct.Struct(">IIIII")
_EXTENT = struct.Struct(">32xI12xI")
ENTRY_BYTES = ID_BYTES + _PLACE.size
_PACK_BYTES = 32 + HEADER_BYTES
_CHECK_BYTES = 32
VERSION = 1
ENTRIES_MAX = 1 << 19
"""A merge begins a new segment there (27 MB), so that none is too large to be built in memory."""
_FAN_BITS_MAX = 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk lies: pack (hex name, header), frame, and its part of the frame's payload."""

    pack: str
    header: bytes
    frame_offset: int
    frame_length: int
    offset: int
    length: int


def pack_place(pack_number: int, frame_offset: int, frame_length: int, offset: int, length: int) -> bytes:
    """The last 20 bytes of an entry; offsets and lengths in bytes, the frame\'s as it is stored."""
    return _PLACE.pack(pack_number, frame_offset, frame_length, offset, length)


def encode_segment(
    packs: Sequence[tuple[str, bytes]],
    entries: Sequence[bytes],
    superseded: Iterable[str] = (),
    *,
    generation: int = 0,
    part: bool = False,
) -> bytes:
    """Build a segment from (pack name, header) rows and 52-byte entries sorted by id."""
    gone = sorted(superseded)
    bits = min(_FAN_BITS_MAX, max(0, (len(entries) // 8).bit_length()))
    fan, position, count = [0], 0, len(entries)
    for bucket in range(1, 1 << bits):
        edge = (bucket << (32 - bits)).to_bytes(4, "big")
        while position < count and entries[position][:4] < edge:
            position += 1
        fan.append(position)
    fan.append(count)
    head = _HEAD.pack(_MAGIC, VERSION, generation, part, bits, len(packs), count, len(gone))
    table = b"".join(bytes.fromhex(name) + header for name, header in packs)
    edges = struct.pack(f">{len(fan)}I", *fan)
    parts = [head, *map(bytes.fromhex, gone), table, edges, *entries]
    size = sum(map(len, parts))
    parts.append(bytes(padded_size(size) - size))  # The size in the store would tell how many chunks there are.
    return b"".join(parts)


class Segment:
    """One read-only segment over bytes or a memory map."""

    def __init__(self, name: str, data: bytes | mmap.mmap) -> None:
        self.name, self._data = name, data
        try:
            magic, version, self.generation, part, *sizes = _HEAD.unpack_from(data)
        except struct.error:
            raise ObjectDamaged(f"index {name}: truncated") from None
        self.part = bool(part)
        self._bits, self.pack_count, self.count, superseded = sizes
        if magic != _MAGIC or version != VERSION or self._bits > _FAN_BITS_MAX:
            raise ObjectDamaged(f"index {name}: not a version {VERSION} segment")
        self._gone_at = _HEAD.size
        self._packs_at = self._gone_at + 32 * superseded
        self._fan_at = self._packs_at + _PACK_BYTES * self.pack_count
        self._entries_at = self._fan_at + 4 * ((1 << self._bits) + 1)
        if self._entries_at + ENTRY_BYTES * self.count > len(data):
            raise ObjectDamaged(f"index {name}: truncated")
        if data[self._entries_at - 4 : self._entries_at] != self.count.to_bytes(4, "big"):
            raise ObjectDamaged(f"index {name}: its fan-out table does not fit")
        self.superseded = frozenset(bytes(data[at : at + 32]).hex() for at in range(self._gone_at, self._packs_at, 32))

    def ordinal(self, chunk_id: bytes) -> int:
        """Position of the id among the entries, -1 when it is not here."""
        bucket = int.from_bytes(chunk_id[:4], "big") >> (32 - self._bits)
        first, last = struct.unpack_from(">II", self._data, self._fan_at + 4 * bucket)
        begin, end = self._entries_at + ENTRY_BYTES * first, self._entries_at + ENTRY_BYTES * last
        at = self._data.find(chunk_id, begin, end)
        while at >= 0 and (at - begin) % ENTRY_BYTES:
            at = self._data.find(chunk_id, at + 1, end)
        return -1 if at < 0 else (at - self._entries_at) // ENTRY_BYTES

    def pack(self, number: int) -> tuple[str, bytes]:
        """Hex name and header of a pack by its number here. Raises ObjectDamaged."""
        if number >= self.pack_count:
            raise ObjectDamaged(f"index {self.name}: entry names pack {number} of {self.pack_count}")
        at = self._packs_at + _PACK_BYTES * number
        return bytes(self._data[at : at + 32]).hex(), bytes(self._data[at + 32 : at + _PACK_BYTES])

    def packs(self) -> list[tuple[str, bytes]]:
        """Hex name and header of every pack, by number."""
        return [self.pack(n) for n in range(self.pack_count)]

    def pack_number(self, entry: bytes) -> int:
        """The number of an entry's pack here. Raises ObjectDamaged when there is no such pack."""
        number = int.from_bytes(entry[32:36], "big")
        if number >= self.pack_count:
            raise ObjectDamaged(f"index {self.name}: entry names pack {number} of {self.pack_count}")
        return number

    def raw(self, ordinal: int) -> bytes:
        """The 52 bytes of one entry."""
        at = self._entries_at + ENTRY_BYTES * ordinal
        return bytes(self._data[at : at + ENTRY_BYTES])

    def extent(self, ordinal: int) -> tuple[int, int]:
        """Number here of one entry's pack, and the plain length of its chunk. Raises ObjectDamaged."""
        number, length = _EXTENT.unpack_from(self._data, self._entries_at + ENTRY_BYTES * ordinal)
        if number >= self.pack_count:
            raise ObjectDamaged(f"index {self.name}: entry names pack {number} of {self.pack_count}")
        return number, length

    def extents(self) -> Iterator[tuple[int, int]]:
        """What `extent` says of every entry, in id order; the numbers of packs are not checked."""
        step = 4096 * ENTRY_BYTES
        end = self._entries_at + ENTRY_BYTES * self.count
        for at in range(self._entries_at, end, step):
            yield from _EXTENT.iter_unpack(bytes(self._data[at : min(at + step, end)]))

    def place(self, ordinal: int) -> Place:
        """Where the chunk of one entry lies."""
        number, *rest = _PLACE.unpack_from(self._data, self._entries_at + ENTRY_BYTES * ordinal + ID_BYTES)
        return Place(*self.pack(number), *rest)

    def entries(self) -> Iterator[bytes]:
        """Every 52-byte entry in id order; 4,096 at a time come out of the map."""
        step = 4096 * ENTRY_BYTES
        end = self._entries_at + ENTRY_BYTES * self.count
        for at in range(self._entries_at, end, step):
            block = bytes(self._data[at : min(at + step, end)])
            yield from (block[i : i + ENTRY_BYTES] for i in range(0, len(block), ENTRY_BYTES))


def merge_segments(
    segments: Sequence[Segment], *, keep_pack: Container[str] | None = None, generation: int = 0
) -> Iterator[bytes]:
    """Yield segments of at most ENTRIES_MAX entries with the content of these; packs outside `keep_pack` are dropped.

    Of equal ids the entry of the first segment stays. The last one supersedes them all: until it is stored,
    they count.
    """
    names: list[tuple[str, bytes]] = []
    local: dict[bytes, bytes] = {}
    merged: list[bytes] = []
    last = b""
    for entry in heapq.merge(*(_renumbered(s, names, keep_pack) for s in segments), key=lambda e: e[:32]):
        if entry[:32] == last:
            continue
        if len(merged) == ENTRIES_MAX:
            packs = [names[int.from_bytes(n, "big")] for n in local]
            yield encode_segment(packs, merged, generation=generation, part=True)
            local, merged = {}, []
        last, number = entry[:32], entry[32:36]
        merged.append(last + local.setdefault(number, len(local).to_bytes(4, "big")) + entry[36:])
    packs = [names[int.from_bytes(n, "big")] for n in local]
    yield encode_segment(packs, merged, (s.name for s in segments), generation=generation)


def _renumbered(segment: Segment, names: list[tuple[str, bytes]], keep_pack: Container[str] | None) -> Iterator[bytes]:
    """Entries whose pack number is one of `names`, to which this segment's packs are added."""
    mapping: list[bytes | None] = []
    for pack in segment.packs():
        kept = keep_pack is None or pack[0] in keep_pack
        mapping.append(len(names).to_bytes(4, "big") if kept else None)
        names.append(pack)
    for entry in segment.entries():
        number = mapping[segment.pack_number(entry)]
        if number is not None:
            yield entry[:32] + number + entry[36:]


def cached_segment(name: str, content: Buffer | None, folder: Path | None) -> Segment | None:
    """Map a segment from the cache folder, writing it there first when `content` is given.

    The file ends with a BLAKE3 of the rest: a cache that was damaged counts as absent (None).
    Without a folder the content stays in memory.
    """
    if folder is None:
        return None if content is None else Segment(name, bytes(content))
    if content is None:
        return _mapped(name, folder, check=True)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = folder / f".{name}.{os.getpid()}.{next(_scratch)}"
        with open(scratch, "wb") as handle:
            handle.write(content)
            handle.write(blake3(content).digest())
        os.replace(scratch, folder / name)
    except OSError:
        # A full disk, or another process that clears the cache: the cache is a convenience, the content is here.
        return Segment(name, bytes(content))
    return _mapped(name, folder, check=False) or Segment(name, bytes(content))


def _mapped(name: str, folder: Path, *, check: bool) -> Segment | None:
    try:
        with open(folder / name, "rb") as handle:
            mapped = mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        return None
    if len(mapped) < _CHECK_BYTES or (check and not _check(mapped)):
        return None
    try:
        return Segment(name, mapped)
    except ObjectDamaged:
        return None  # Of an earlier version perhaps; the store's object decides.


_scratch = itertools.count()


def _check(mapped: mmap.mmap) -> bool:
    view = memoryview(mapped)
    try:
        return blake3(view[:-_CHECK_BYTES]).digest() == bytes(view[-_CHECK_BYTES:])
    finally:
        view.release()
