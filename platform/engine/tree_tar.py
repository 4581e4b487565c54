"""Write a tree as a portable tar: PAX format, which GNU tar, bsdtar and Python read.

Sparse files use GNU's sparse format 1.0 (its manual, "Storing Sparse Files"), extended attributes the
SCHILY.xattr keys, times their full precision, hard links what they are. Names that are no UTF-8 are
written as they are, marked hdrcharset=BINARY.
"""

import stat as statmod
import tarfile
from collections.abc import Iterator
from typing import Protocol

from engine.errors import DamageError
from engine.ports import Buffer
from engine.progress import Progress
from engine.tree_format import Row, show_path
from engine.tree_sum import Extents
from engine.tree_view import Entry, TreeView

_BLOCK = 512
_RECORD = 20 * _BLOCK
_TYPES = {
    statmod.S_IFREG: tarfile.REGTYPE,
    statmod.S_IFDIR: tarfile.DIRTYPE,
    statmod.S_IFLNK: tarfile.SYMTYPE,
    statmod.S_IFIFO: tarfile.FIFOTYPE,
    statmod.S_IFCHR: tarfile.CHRTYPE,
    statmod.S_IFBLK: tarfile.BLKTYPE,
}


class Output(Protocol):
    def write(self, data: Buffer, /) -> object: ...


def write_tar(view: TreeView, output: Output, progress: Progress) -> None:
    """Stream the whole tree; every path begins with `./`. Raises DamageError."""
    written = _write_entries(view, output, progress)
    end = 2 * _BLOCK
    output.write(bytes(end + -(written + end) % _RECORD))


def _write_entries(view: TreeView, output: Output, progress: Progress) -> int:
    written = 0
    first_links: dict[tuple[int, int], Row] = {}
    for entry in view.entries():
        progress.check()
        stat, first = entry.stat, None
        if entry.is_file and stat.links > 1:
            first = first_links.setdefault((stat.device, stat.inode), entry.row)
            same = first is not entry.row and (first.sum, first.stat) == (entry.row.sum, entry.row.stat)
            first = first if same else None
        try:
            for piece in _member(view, entry, first):
                output.write(piece)
                written += len(piece)
        except DamageError as error:
            raise type(error)(f"{show_path(entry.path)}: {error.message}", hint=error.hint) from error
        progress.advance(items=1, bytes=stat.size if entry.is_file and not first else 0)
    return written


def _member(view: TreeView, entry: Entry, first: Row | None) -> Iterator[Buffer]:
    info = _header(view, entry)
    if first is not None:
        info.type, info.linkname = tarfile.LNKTYPE, _name(first.path)
        yield _encoded(info)
        return
    if not entry.is_file:
        yield _encoded(info)
        return
    extents = view.extents(entry)
    size = entry.stat.size
    if sum(length for _, length in extents) == size:
        info.size = size
        yield _encoded(info)
        stored = size
    else:
        table = _sparse_map(extents, size)
        stored = len(table) + sum(length for _, length in extents)
        yield _encoded(_as_sparse(info, entry.path, size, stored))
        yield table
    for _, piece in view.pieces(entry):
        yield piece
    yield bytes(-stored % _BLOCK)


def _header(view: TreeView, entry: Entry) -> tarfile.TarInfo:
    stat = entry.stat
    info = tarfile.TarInfo(_name(entry.path))
    info.type, info.mode = _TYPES[entry.kind], statmod.S_IMODE(stat.mode)
    info.uid, info.gid = stat.uid, stat.gid
    headers = {"mtime": _time(entry.mtime_ns)}
    if entry.kind == statmod.S_IFLNK:
        info.linkname = _text(entry.target)
    elif "rdev" in entry.extra:
        info.devmajor, info.devminor = entry.extra["rdev"]
    for name, value in view.xattrs(entry).items():
        headers["SCHILY.xattr." + _text(name)] = _text(value)
    info.pax_headers = headers
    return info


def _as_sparse(info: tarfile.TarInfo, path: bytes, size: int, stored: int) -> tarfile.TarInfo:
    folder, _, name = path.rpartition(b"/")
    info.pax_headers = {
        **info.pax_headers,
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": _name(path),
        "GNU.sparse.realsize": str(size),
    }
    info.name = _name((folder + b"/" if folder else b"") + b"GNUSparseFile.0/" + name)
    info.size = stored
    return info


def _sparse_map(extents: Extents, size: int) -> bytes:
    """The table before a sparse file's data: decimal numbers, one a line, padded to a block."""
    pairs = list(extents)
    if not pairs or sum(pairs[-1]) < size:
        pairs.append((size, 0))  # Says how long the file is when it ends in a hole.
    lines = [str(len(pairs)), *(str(number) for pair in pairs for number in pair)]
    table = "".join([line + "\n" for line in lines]).encode()
    return table + bytes(-len(table) % _BLOCK)


def _name(path: bytes) -> str:
    return "./" + _text(path) if path else "./"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _time(ns: int) -> str:
    seconds, rest = divmod(abs(ns), 10**9)
    return f"{'-' if ns < 0 else ''}{seconds}.{rest:09d}"


def _encoded(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
