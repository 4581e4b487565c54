"""A file tree as one backup holds it: list it, find a path, read content, walk its chunks."""

import base64
import json
import stat as statmod
import struct
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from engine.chunks import ChunkReader
from engine.errors import ObjectDamaged
from engine.tree_format import (
    STAT,
    Leaf,
    LeafRef,
    Row,
    Stat,
    decode_list,
    decode_root,
    decode_xattrs,
    sort_key,
)
from engine.tree_sum import ZEROS

_LISTS_CACHED_MAX = 8
_EXTENT = struct.Struct("<QQ")
LEAVES_BYTES = 2 << 20
"""Stored bytes of leaves that are read ahead at a time: some 30,000 entries."""
Visit = Callable[[bytes, bool], bool]


class Entry:
    """One file, folder, link, FIFO or device of a tree; `path` is b"" for the root folder."""

    __slots__ = ("row", "stat")

    def __init__(self, row: Row, stat: Stat | None = None) -> None:
        """`stat` is what the row's record says, when that is unpacked already."""
        self.row = row
        self.stat = stat or Stat._make(STAT.unpack(row.stat))

    @property
    def path(self) -> bytes:
        return self.row.path

    @property
    def kind(self) -> int:
        """S_IFREG, S_IFDIR, S_IFLNK, S_IFIFO, S_IFCHR or S_IFBLK."""
        return statmod.S_IFMT(self.stat.mode)

    @property
    def is_file(self) -> bool:
        return statmod.S_ISREG(self.stat.mode)

    @property
    def extra(self) -> Mapping[str, Any]:
        return self.row.extra or {}

    @property
    def mtime_ns(self) -> int:
        return int(self.extra["mtime"]) if "mtime" in self.extra else self.stat.mtime_ns

    @property
    def target(self) -> bytes:
        return base64.b64decode(self.extra["target"])


class TreeView:
    """Implements engine.ports.TreeView. Thread-safe as far as its reader is, but for iteration."""

    def __init__(self, reader: ChunkReader, node: Mapping[str, Any]) -> None:
        self.reader, self.node = reader, node
        self.name: str = node["name"]
        self.facts: Mapping[str, Any] = node["facts"]
        self.file_count: int = node["files"]
        self.entry_count: int = node["entries"]
        self.folder_count: int = node["folders"]
        self.byte_count: int = node["bytes"]
        self.sha256: str = node["sha256"]
        self._lists: OrderedDict[bytes, list[LeafRef]] = OrderedDict()

    @cached_property
    def _root(self) -> list[tuple[bytes, bytes, int]]:
        return decode_root(self.reader.get(bytes.fromhex(self.node["root"])))

    @cached_property
    def _list_keys(self) -> list[bytes]:
        return [sort_key(first) for first, _, _ in self._root]

    def _list(self, chunk: bytes) -> list[LeafRef]:
        refs = self._lists.get(chunk)
        if refs is None:
            refs = self._lists[chunk] = decode_list(self.reader.get(chunk))
            if len(self._lists) > _LISTS_CACHED_MAX:
                self._lists.popitem(last=False)
        return refs

    # ------------------------------------------------------------ listing

    def refs(self, *, backwards: bool = False) -> Iterator[LeafRef]:
        """The leaves in tree order, or from the end."""
        step = -1 if backwards else 1
        for _, chunk, _ in self._root[::step]:
            yield from self._list(chunk)[::step]

    def refs_ahead(self, *, backwards: bool = False) -> Iterator[LeafRef]:
        """As `refs`, for those who read each leaf: where a request to the store is dear, leaves come before they are read."""
        return self.reader.ahead(self.refs(backwards=backwards), lambda ref: (ref.chunk,), window_bytes=LEAVES_BYTES)

    def leaf(self, ref: LeafRef) -> Leaf:
        """Raises DamageError."""
        return Leaf(self.reader.get(ref.chunk))

    def rows(self, *, backwards: bool = False) -> Iterator[Row]:
        """Every row in tree order (folders before what they hold), or from the end; streamed leaf by leaf."""
        for ref in self.refs_ahead(backwards=backwards):
            rows = self.leaf(ref).rows()
            yield from reversed(rows) if backwards else rows

    def entries(self, *, backwards: bool = False) -> Iterator[Entry]:
        """Every entry, streamed as `rows` does."""
        for row in self.rows(backwards=backwards):
            yield Entry(row)

    def ref_at(self, path: bytes) -> LeafRef:
        """The leaf that holds the path if any leaf does."""
        key = sort_key(path)
        number = bisect_right(self._list_keys, key) - 1
        refs = self._list(self._root[max(number, 0)][1])
        return refs[max(bisect_right(refs, key, key=lambda ref: sort_key(ref.first)) - 1, 0)]

    def find(self, path: bytes) -> Entry | None:
        """The entry at exactly this path; reads one leaf."""
        leaf = self.leaf(self.ref_at(path))
        try:
            return Entry(leaf.row(leaf.paths.index(path)))
        except ValueError:
            return None

    def below(self, folder: bytes) -> Iterator[Entry]:
        """Every entry below a folder, without itself; reads only the leaves that may hold some."""
        prefix = folder + b"/" if folder else b""
        begin, started = sort_key(prefix), False
        first = self.ref_at(folder)
        for ref in self.refs():
            started = started or ref.first == first.first
            if not started:
                continue
            key = sort_key(ref.first)
            if key > begin and not ref.first.startswith(prefix):
                return
            for row in self.leaf(ref).rows():
                if row.path.startswith(prefix) and row.path != folder:
                    yield Entry(row)

    # ------------------------------------------------------------ content

    def chunk_ids(self, entry: Entry) -> Iterator[bytes]:
        """Ids of the chunks that hold the file's stretches, one after another."""
        for chunk_id in split_ids(entry.row.ids):
            yield from split_ids(self.reader.get(chunk_id)) if entry.extra.get("lists") else (chunk_id,)

    def extents(self, entry: Entry) -> Sequence[tuple[int, int]]:
        """The stretches (offset, length) that are stored; the rest of the file is a hole."""
        extra, size = entry.extra, entry.stat.size
        if "extents_chunks" in extra:
            packed = b"".join([self.reader.get(bytes.fromhex(chunk)) for chunk in extra["extents_chunks"]])
            extents = list(_EXTENT.iter_unpack(packed))
        elif "extents" in extra:
            extents = [(offset, length) for offset, length in extra["extents"]]
        else:
            return [(0, size)] if size else []
        ends = [0, *(offset + length for offset, length in extents)]
        if ends[-1] > size or any(offset < end for (offset, _), end in zip(extents, ends, strict=False)):
            raise ObjectDamaged("the stretches of a sparse file overlap or pass its end")
        return extents

    def pieces(self, entry: Entry, chunks: Iterator[bytes] | None = None) -> Iterator[tuple[int, memoryview]]:
        """The stored content as (offset, bytes); `chunks` may bring the chunks when they were fetched ahead.

        Raises ObjectDamaged when there is less or more than the recorded stretches.
        """
        source: Iterator[bytes] = chunks or map(self.reader.get, self.chunk_ids(entry))
        held = memoryview(b"")
        for offset, length in self.extents(entry):
            end = offset + length
            while offset < end:
                if not held:
                    held = memoryview(next(source, b""))
                if not held:
                    raise ObjectDamaged("a file's chunks hold less than its size")
                piece, held = held[: end - offset], held[end - offset :]
                yield offset, piece
                offset += len(piece)
        behind = next(source, b"")
        if held or behind:
            raise ObjectDamaged("a file's chunks hold more than its size")

    def read(self, entry: Entry) -> Iterator[memoryview]:
        """The whole content, holes as zeros."""
        position = 0
        for offset, piece in self.pieces(entry):
            yield from zero_run(offset - position)
            yield piece
            position = offset + len(piece)
        yield from zero_run(entry.stat.size - position)

    def xattrs(self, entry: Entry) -> dict[bytes, bytes]:
        """Extended attributes by name; access control lists are among them."""
        if "xattrs_chunk" in entry.extra:
            return decode_xattrs(json.loads(self.reader.get(bytes.fromhex(entry.extra["xattrs_chunk"]))))
        return decode_xattrs(entry.extra.get("xattrs", {}))


def split_ids(ids: bytes) -> list[bytes]:
    """Chunk ids out of their concatenation."""
    return [ids[i : i + 32] for i in range(0, len(ids), 32)]


def zero_run(length: int) -> Iterator[memoryview]:
    """So many zeros, piece by piece."""
    while length > 0:
        yield memoryview(ZEROS)[: min(length, len(ZEROS))]
        length -= len(ZEROS)


# ---------------------------------------------------------------- walking


def walk_tree(reader: ChunkReader, node: Mapping[str, Any], visit: Visit) -> None:
    """Call visit(chunk id, is metadata) for every chunk a tree's node reaches.

    A metadata chunk for which it answers False was seen before, and what it names is not visited again.
    """
    root = bytes.fromhex(node["root"])
    if not visit(root, True):
        return
    for _, chunk, _ in decode_root(reader.get(root)):
        if not visit(chunk, True):
            continue
        for ref in decode_list(reader.get(chunk)):
            if visit(ref.chunk, True):
                _walk_leaf(reader, Leaf(reader.get(ref.chunk)), visit)


def _walk_leaf(reader: ChunkReader, leaf: Leaf, visit: Visit) -> None:
    lists = {int(number) for number, extra in leaf.extras.items() if "lists" in extra}
    for extra in leaf.extras.values():
        for chunk in (*extra.get("extents_chunks", ()), *((extra["xattrs_chunk"],) if "xattrs_chunk" in extra else ())):
            visit(bytes.fromhex(chunk), True)
    if not lists:
        for chunk_id in split_ids(leaf.ids):
            visit(chunk_id, False)
        return
    for number in range(len(leaf)):
        for chunk_id in split_ids(leaf.row(number).ids):
            if number not in lists:
                visit(chunk_id, False)
            elif visit(chunk_id, True):
                for content_id in split_ids(reader.get(chunk_id)):
                    visit(content_id, False)
