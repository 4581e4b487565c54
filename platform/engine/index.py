"""The index: chunk id -> place in a pack, in immutable sorted segments (docs/formats/repository.md, "Index").

A segment is found by a fan-out table over the leading bits of the id and a search of the few entries
behind it, in a memory-mapped file, so that nothing is held whole. It can always be rebuilt from packs.

    "LIDX" version:u32 fan_bits:u32 packs:u32 entries:u32 superseded:u32
    superseded x 32   names of the segments whose content this one took over
    packs x 112       name 32, header 80
    (2^fan_bits + 1) x u32   index of the first entry whose id begins with at least these bits
    entries x 52      id 32, pack u32, frame offset u32, frame length u32, offset u32, length u32
"""

import heapq
import itertools
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from engine.errors import ObjectDamaged
from engine.pack import ID_BYTES
from engine.ports import Buffer
from engine.sealed import HEADER_BYTES

_MAGIC = b"LIDX"
_HEAD = struct.Struct(">4sIIIII")
_PLACE = struct.Struct(">IIIII")
ENTRY_BYTES = ID_BYTES + _PLACE.size
_PACK_BYTES = 32 + HEADER_BYTES
_CHECK_BYTES = 32
VERSION = 1


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
    packs: Sequence[tuple[str, bytes]], entries: Sequence[bytes], superseded: Iterable[str] = ()
) -> bytes:
    """Build a segment from (pack name, header) rows and 52-byte entries sorted by id."""
    gone = sorted(superseded)
    bits = min(16, max(0, (len(entries) // 8).bit_length()))
    fan, position, count = [0], 0, len(entries)
    for bucket in range(1, 1 << bits):
        edge = (bucket << (32 - bits)).to_bytes(4, "big")
        while position < count and entries[position][:4] < edge:
            position += 1
        fan.append(position)
    fan.append(count)
    head = _HEAD.pack(_MAGIC, VERSION, bits, len(packs), count, len(gone))
    table = b"".join(bytes.fromhex(name) + header for name, header in packs)
    return b"".join(
        (head, b"".join(map(bytes.fromhex, gone)), table, struct.pack(f">{len(fan)}I", *fan), b"".join(entries))
    )


class Segment:
    """One read-only segment over bytes or a memory map."""

    def __init__(self, name: str, data: bytes | mmap.mmap) -> None:
        self.name, self._data = name, data
        try:
            magic, version, self._bits, self.pack_count, self.count, superseded = _HEAD.unpack_from(data)
        except struct.error:
            raise ObjectDamaged(f"index {name}: truncated") from None
        self._gone_at = _HEAD.size
        self._packs_at = self._gone_at + 32 * superseded
        self._fan_at = self._packs_at + _PACK_BYTES * self.pack_count
        self._entries_at = self._fan_at + 4 * ((1 << self._bits) + 1)
        if magic != _MAGIC or version != VERSION or self._entries_at + ENTRY_BYTES * self.count > len(data):
            raise ObjectDamaged(f"index {name}: not a version {VERSION} segment")
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

    def raw(self, ordinal: int) -> bytes:
        """The 52 bytes of one entry."""
        at = self._entries_at + ENTRY_BYTES * ordinal
        return bytes(self._data[at : at + ENTRY_BYTES])

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


def merge_segments(segments: Sequence[Segment], *, keep_pack: frozenset[str] | None = None) -> bytes:
    """One segment with the content of several, superseding them; packs outside `keep_pack` are dropped.

    Of equal ids the entry of the first segment stays.
    """
    numbers: dict[str, int] = {}
    packs: list[tuple[str, bytes]] = []

    def renumbered(segment: Segment) -> Iterator[bytes]:
        mapping: list[bytes | None] = []
        for name, header in segment.packs():
            if keep_pack is not None and name not in keep_pack:
                mapping.append(None)
                continue
            if name not in numbers:
                numbers[name] = len(packs)
                packs.append((name, header))
            mapping.append(numbers[name].to_bytes(4, "big"))
        for entry in segment.entries():
            number = mapping[int.from_bytes(entry[32:36], "big")]
            if number is not None:
                yield entry[:32] + number + entry[36:]

    merged: list[bytes] = []
    last = b""
    for entry in heapq.merge(*map(renumbered, segments), key=lambda e: e[:32]):
        if entry[:32] != last:
            merged.append(entry)
            last = entry[:32]
    return encode_segment(packs, merged, (s.name for s in segments))


def cached_segment(name: str, content: Buffer | None, folder: Path | None) -> Segment | None:
    """Map a segment from the cache folder, writing it there first when `content` is given.

    The file ends with a BLAKE3 of the rest: a cache that was damaged counts as absent (None).
    Without a folder the content stays in memory.
    """
    if folder is None:
        return None if content is None else Segment(name, bytes(content))
    path = folder / name
    if content is not None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = folder / f".{name}.{os.getpid()}.{next(_scratch)}"
        with open(scratch, "wb") as handle:
            handle.write(content)
            handle.write(blake3(content).digest())
        os.replace(scratch, path)
    try:
        with open(path, "rb") as handle:
            mapped = mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        return None
    if len(mapped) < _CHECK_BYTES or (content is None and not _check(mapped)):
        return None
    return Segment(name, mapped)


_scratch = itertools.count()


def _check(mapped: mmap.mmap) -> bool:
    view = memoryview(mapped)
    try:
        return blake3(view[:-_CHECK_BYTES]).digest() == bytes(view[-_CHECK_BYTES:])
    finally:
        view.release()
