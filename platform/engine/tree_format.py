"""How a file tree lies in metadata chunks: leaves, lists of leaves, and a root (docs/formats/file-tree.md).

A tree is a flat listing in component-wise order, cut into leaves by the paths alone, so that an unchanged
stretch keeps its bytes whatever happens around it.
"""

import base64
import hashlib
import json
import operator
import os
import stat as statmod
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice, pairwise, repeat
from typing import Any, NamedTuple
from zlib import crc32

from engine.errors import ObjectDamaged

VERSION = 1
STAT = struct.Struct("<IIIIQqqQQ")
LEAF_ANCHOR_MASK = 0x3FF
LEAF_ENTRIES_MAX = 4096
LEAF_WEIGHT_MAX = 1 << 20
LIST_ANCHOR_MASK = 0x3F << 10
LIST_LEAVES_MAX = 512
PATH_BYTES_MAX = 64 << 10
"""Longer paths (thousands of nested folders) are reported as unreadable."""
MODULES_MAX = 1000
ROOT_MODULE, OTHERS_MODULE = b".", b"/others"
NO_SUM = bytes(32)

_LEAF_HEAD = struct.Struct("<4sIIII")
_RECORD, _SUM = struct.Struct(f"{STAT.size}s"), struct.Struct("32s")
_first = operator.itemgetter(0)
_COUNT_HEAD = struct.Struct("<4sI")
_REF = struct.Struct("<32s32sIIIQqII")
_PART = struct.Struct("<IQ32sH")
_LIST_REF = struct.Struct("<32sII")
TIME_MAX = (1 << 63) - 1
"""Times in a stat record lie within; one at the bound stands for any beyond it."""
_U32_MAX = (1 << 32) - 1

stat_fields = operator.attrgetter(
    "st_mode", "st_uid", "st_gid", "st_nlink", "st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_dev"
)

TYPE_LETTERS = {
    statmod.S_IFREG: b"f",
    statmod.S_IFDIR: b"d",
    statmod.S_IFLNK: b"l",
    statmod.S_IFIFO: b"p",
    statmod.S_IFCHR: b"c",
    statmod.S_IFBLK: b"b",
}


class Stat(NamedTuple):
    """The fields of a stat record."""

    mode: int
    uid: int
    gid: int
    links: int
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int


class Row(NamedTuple):
    """One entry as the columns of a leaf hold it."""

    path: bytes
    stat: bytes
    sum: bytes
    ids: bytes
    extra: dict[str, Any] | None


class Part(NamedTuple):
    """What one module contributes to one leaf."""

    module: bytes
    files: int
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class LeafRef:
    """A leaf as its list names it."""

    first: bytes
    chunk: bytes
    stat_sum: bytes
    entries: int
    folders: int
    files: int
    size: int
    changed_ns: int
    parts: tuple[Part, ...]


def sort_key(path: bytes) -> bytes:
    """Bytes by which paths compare in component-wise order."""
    return path.replace(b"/", b"\0")


def show_path(path: bytes) -> str:
    """A path as text: backslashes doubled, bytes that are no UTF-8 as `\\xHH`; injective, valid Unicode."""
    return path.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def pack_stat(info: os.stat_result) -> bytes:
    """The stat record; values out of its range are clamped (see `exact_mtime`)."""
    fields = stat_fields(info)
    try:
        return STAT.pack(*fields)
    except struct.error:
        mode, uid, gid, links, size, mtime, ctime, inode, device = fields
        mtime, ctime = (max(-TIME_MAX, min(TIME_MAX, time)) for time in (mtime, ctime))
        return STAT.pack(mode, uid, gid, min(links, _U32_MAX), size, mtime, ctime, inode, device)


def exact_mtime(info: os.stat_result) -> dict[str, str]:
    """The extra that keeps a modification time before 1678 or after 2261."""
    return {} if -TIME_MAX < info.st_mtime_ns < TIME_MAX else {"mtime": str(info.st_mtime_ns)}


def begins_leaf(path: bytes) -> bool:
    """True for an anchor: a leaf is cut before it whatever came before."""
    return not crc32(path) & LEAF_ANCHOR_MASK


def row_weight(row: Row) -> int:
    """What an entry adds to the weight that makes a leaf full."""
    # The second byte of a record bears the kind: only links are worth unpacking it.
    return len(row.path) + (STAT.unpack(row.stat)[4] if row.stat[1] & 0xF0 == 0xA0 else 0)


def stat_sum(paths: Sequence[bytes], stats: Sequence[bytes]) -> bytes:
    """The sum by which a scan knows a leaf of the parent again."""
    digest = hashlib.sha256(b"\0".join(paths))
    digest.update(b"\0")
    digest.update(b"".join(stats))
    return digest.digest()


def module_of(path: bytes, mode: int, *, top_modules: bool) -> bytes:
    """The top-level folder an entry belongs to, or "." for what lies in the root itself."""
    top, slash, _ = path.partition(b"/")
    return top if top_modules and top and (slash or statmod.S_ISDIR(mode)) else ROOT_MODULE


# ---------------------------------------------------------------- leaves


def leaf_parts(
    rows: Sequence[Row], modes: Sequence[int], sizes: Sequence[int], *, top_modules: bool
) -> tuple[Part, ...]:
    """What each module contributes to a leaf with these rows; `modes` and `sizes` are from their stat records."""
    first, last = rows[0].path, rows[-1].path
    module = module_of(first, modes[0], top_modules=top_modules)
    if not top_modules or (module != ROOT_MODULE and last.startswith(module + b"/")):
        return (_part(module, range(len(rows)), rows, modes, sizes),)  # In tree order all between belong to it, too.
    groups: dict[bytes, list[int]] = {}
    for number, (row, mode) in enumerate(zip(rows, modes, strict=True)):
        groups.setdefault(module_of(row.path, mode, top_modules=top_modules), []).append(number)
    return tuple(_part(module, numbers, rows, modes, sizes) for module, numbers in groups.items())


def _part(
    module: bytes, numbers: Sequence[int], rows: Sequence[Row], modes: Sequence[int], sizes: Sequence[int]
) -> Part:
    lines = [TYPE_LETTERS[modes[n] & 0xF000] + rows[n].sum + rows[n].path for n in numbers]
    files = [sizes[n] for n in numbers if modes[n] & 0xF000 == statmod.S_IFREG]
    return Part(module, len(files), sum(files), hashlib.sha256(b"\0".join(lines) + b"\0").digest())


def encode_leaf(rows: Sequence[Row], *, top_modules: bool) -> tuple[bytes, LeafRef]:
    """The leaf's bytes, and its reference, in which the chunk id is still empty."""
    paths, stats = [row.path for row in rows], [row.stat for row in rows]
    names, records, ids = b"\0".join(paths), b"".join(stats), b"".join([row.ids for row in rows])
    extras = {str(i): row.extra for i, row in enumerate(rows) if row.extra}
    table = json.dumps(extras, separators=(",", ":"), sort_keys=True).encode() if extras else b""
    data = b"".join(
        [
            _LEAF_HEAD.pack(b"LTL1", len(rows), len(names), len(ids) // 32, len(table)),
            names,
            records,
            b"".join([row.sum for row in rows]),
            struct.pack(f"<{len(rows)}I", *[len(row.ids) // 32 for row in rows]),
            ids,
            table,
        ]
    )
    modes, _, _, _, sizes, _, ctimes, _, _ = zip(*STAT.iter_unpack(records), strict=True)
    parts = leaf_parts(rows, modes, sizes, top_modules=top_modules)
    files, size = sum(part.files for part in parts), sum(part.size for part in parts)
    folders = sum(mode & 0xF000 == statmod.S_IFDIR for mode in modes)
    return data, LeafRef(paths[0], b"", stat_sum(paths, stats), len(rows), folders, files, size, max(ctimes), parts)


class Leaf:
    """A decoded leaf. Raises ObjectDamaged for bytes that are none, and for names that could escape."""

    def __init__(self, data: bytes) -> None:
        try:
            self._decode(data)
        except (struct.error, ValueError) as error:
            raise ObjectDamaged("a leaf of a file tree is not readable") from error

    def _decode(self, data: bytes) -> None:
        magic, count, names_length, id_count, extras_length = _LEAF_HEAD.unpack_from(data)
        position = _LEAF_HEAD.size
        sections = []
        for length in (names_length, STAT.size * count, 32 * count, 4 * count, 32 * id_count, extras_length):
            sections.append(data[position : position + length])
            position += length
        names, self._stats, self._sums, counts, self.ids, extras = sections
        if magic != b"LTL1" or not count or position != len(data):
            raise ValueError("not a leaf of format 1")
        self.paths = names.split(b"\0")
        ends = list(accumulate(struct.unpack(f"<{count}I", counts), initial=0))
        self._id_ends = [end * 32 for end in ends]
        if len(self.paths) != count or ends[-1] != id_count:
            raise ValueError("the columns of a leaf differ in length")
        self.extras: dict[str, dict[str, Any]] = json.loads(extras) if extras else {}
        _refuse_hostile(self.paths, names)

    def __len__(self) -> int:
        return len(self.paths)

    def stat(self, number: int) -> bytes:
        return self._stats[number * STAT.size : (number + 1) * STAT.size]

    def folders(self) -> list[int]:
        """Numbers of the entries that are folders."""
        modes = [fields[0] for fields in STAT.iter_unpack(self._stats)]
        return [number for number, mode in enumerate(modes) if mode & 0xF000 == statmod.S_IFDIR]

    def row(self, number: int) -> Row:
        """One entry by its number."""
        return Row(
            self.paths[number],
            self.stat(number),
            self._sums[number * 32 : (number + 1) * 32],
            self.ids[self._id_ends[number] : self._id_ends[number + 1]],
            self.extras.get(str(number)),
        )

    def rows(self) -> list[Row]:
        """Every entry, in order."""
        ids, ends, count = self.ids, self._id_ends, len(self.paths)
        columns = (
            self.paths,
            map(_first, _RECORD.iter_unpack(self._stats)),
            map(_first, _SUM.iter_unpack(self._sums)),
            [ids[begin:end] for begin, end in pairwise(ends)] if ids else repeat(b"", count),
            [self.extras.get(str(number)) for number in range(count)] if self.extras else repeat(None, count),
        )
        # Past the constructors of named tuples, which are Python code: a restore does this for every file.
        return list(map(partial(tuple.__new__, Row), zip(*columns, strict=True)))

    def stats(self) -> list[Stat]:
        """Every entry's stat record unpacked, in order."""
        return list(map(partial(tuple.__new__, Stat), STAT.iter_unpack(self._stats)))


def _refuse_hostile(paths: Sequence[bytes], names: bytes) -> None:
    """Paths must be relative, clean and strictly ascending; checked for a whole leaf at C speed."""
    if paths[0] == b"":
        paths, names = paths[1:], names[1:]
        if not paths:
            return
    inside = b"/" + names.replace(b"\0", b"/") + b"/"
    if b"//" in inside or b"/./" in inside or b"/../" in inside:
        raise ValueError("a path that would leave the tree")
    keys = [path.replace(b"/", b"\0") for path in paths]
    if not all(map(operator.lt, keys, keys[1:])):
        raise ValueError("paths out of order")


# ---------------------------------------------------------------- lists and root


def ends_list(first: bytes) -> bool:
    """True when a leaf with this first path begins a new list."""
    return not crc32(first) & LIST_ANCHOR_MASK


def encode_list(refs: Sequence[LeafRef]) -> bytes:
    """The list that names these leaves, at least one."""
    out = [_COUNT_HEAD.pack(b"LTN1", len(refs))]
    out += [
        _REF.pack(r.chunk, r.stat_sum, r.entries, r.folders, r.files, r.size, r.changed_ns, len(r.first), len(r.parts))
        for r in refs
    ]
    out += [ref.first for ref in refs]
    parts = [part for ref in refs for part in ref.parts]
    out += [_PART.pack(part.files, part.size, part.digest, len(part.module)) for part in parts]
    out += [part.module for part in parts]
    return b"".join(out)


def decode_list(data: bytes) -> list[LeafRef]:
    """Raises ObjectDamaged."""
    try:
        heads, position = _decode_heads(data, b"LTN1", _REF)
        firsts, position = _split(data, position, [head[7] for head in heads])
        part_count = sum(head[8] for head in heads)
        fixed = [_PART.unpack_from(data, position + i * _PART.size) for i in range(part_count)]
        modules, position = _split(data, position + part_count * _PART.size, [part[3] for part in fixed])
        if position != len(data):
            raise ValueError("bytes behind the end")
    except (struct.error, ValueError) as error:
        raise ObjectDamaged("a list of a file tree is not readable") from error
    parts = iter([Part(m, files, size, digest) for m, (files, size, digest, _) in zip(modules, fixed, strict=True)])
    return [
        LeafRef(first, chunk, known, entries, folders, files, size, changed_ns, tuple(islice(parts, count)))
        for first, (chunk, known, entries, folders, files, size, changed_ns, _, count) in zip(
            firsts, heads, strict=True
        )
    ]


def encode_root(lists: Sequence[tuple[bytes, bytes, int]]) -> bytes:
    """`lists` are (first path, chunk id, leaves)."""
    out = [_COUNT_HEAD.pack(b"LTR1", len(lists))]
    out += [_LIST_REF.pack(chunk, leaves, len(first)) for first, chunk, leaves in lists]
    return b"".join(out + [first for first, _, _ in lists])


def decode_root(data: bytes) -> list[tuple[bytes, bytes, int]]:
    """The inverse of encode_root. Raises ObjectDamaged."""
    try:
        heads, position = _decode_heads(data, b"LTR1", _LIST_REF)
        firsts, position = _split(data, position, [head[2] for head in heads])
        if position != len(data):
            raise ValueError("bytes behind the end")
    except (struct.error, ValueError) as error:
        raise ObjectDamaged("the root of a file tree is not readable") from error
    return [(first, chunk, leaves) for first, (chunk, leaves, _) in zip(firsts, heads, strict=True)]


def _decode_heads(data: bytes, magic: bytes, record: struct.Struct) -> tuple[list[tuple[Any, ...]], int]:
    found, count = _COUNT_HEAD.unpack_from(data)
    end = _COUNT_HEAD.size + count * record.size
    if found != magic or not count or end > len(data):
        raise ValueError("not what it should be")
    return list(record.iter_unpack(data[_COUNT_HEAD.size : end])), end


def _split(data: bytes, position: int, lengths: Sequence[int]) -> tuple[list[bytes], int]:
    ends = list(accumulate(lengths, initial=position))
    if ends[-1] > len(data):
        raise ValueError("truncated")
    return [data[begin:end] for begin, end in pairwise(ends)], ends[-1]


# ---------------------------------------------------------------- extras


def encode_xattrs(xattrs: dict[bytes, bytes]) -> dict[str, str]:
    """Extended attributes as JSON: names as latin-1, values as base64."""
    return {name.decode("latin-1"): base64.b64encode(value).decode() for name, value in sorted(xattrs.items())}


def decode_xattrs(encoded: dict[str, str]) -> dict[bytes, bytes]:
    """The inverse of encode_xattrs."""
    return {name.encode("latin-1"): base64.b64decode(value) for name, value in encoded.items()}


class Totals:
    """Files, bytes and digests of a tree and its modules, taken up leaf by leaf."""

    def __init__(self) -> None:
        self.entries = self.folders = self.files = self.bytes = 0
        self._sum = hashlib.sha256()
        self._modules: dict[bytes, list[Any]] = {}

    def add(self, ref: LeafRef) -> None:
        """Take up the next leaf, in tree order."""
        self.entries += ref.entries
        self.folders += ref.folders
        self.files += ref.files
        self.bytes += ref.size
        for part in ref.parts:
            self._sum.update(part.digest)
            known = part.module in self._modules or len(self._modules) < MODULES_MAX
            module = self._modules.setdefault(part.module if known else OTHERS_MODULE, [0, 0, hashlib.sha256()])
            module[0] += part.files
            module[1] += part.size
            module[2].update(part.digest)

    @property
    def sha256(self) -> str:
        return self._sum.hexdigest()

    def modules(self) -> list[dict[str, Any]]:
        """As the manifest lists them; `paths` are written by show_path."""
        return [
            {
                "name": show_path(module),
                "files": files,
                "bytes": size,
                "sha256": digest.hexdigest(),
                "paths": [] if module in (ROOT_MODULE, OTHERS_MODULE) else [show_path(module)],
            }
            for module, (files, size, digest) in self._modules.items()
        ]
