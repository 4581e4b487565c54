"""Walk a folder in tree order and cut what is found into the spans that become leaves.

This loop runs once per file of every backup, changed or not, so it does little per file: one lstat,
one pack, one crc32. Nothing but folders is opened here.
"""

import errno
import os
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from zlib import crc32

from engine.tree_folders import Folders
from engine.tree_format import (
    LEAF_ANCHOR_MASK,
    LEAF_ENTRIES_MAX,
    LEAF_WEIGHT_MAX,
    PATH_BYTES_MAX,
    STAT,
    pack_stat,
    stat_fields,
)

STAGING_BEGIN, STAGING_END = b".lastro-", (b"-staging", b"-journal")
"""Names that begin and end so are restores' own staging folders and journals, never part of a tree."""


def is_staging_name(name: bytes) -> bool:
    """True for a top-level name that a restore of ours made."""
    return name.startswith(STAGING_BEGIN) and name.endswith(STAGING_END)


Exclude = Callable[[bytes, bool], bool]


@dataclass(slots=True)
class Span:
    """Consecutive entries as found, cut where a leaf is cut."""

    paths: list[bytes]
    stats: list[bytes]


def _ignore(code: str, path: bytes, error: OSError) -> None:
    pass


class TreeScan:
    """Iterate over the spans of the folder behind the descriptor `root`.

    `problem(code, path, error)` hears of entries left out: `file.vanished`, `file.unreadable`; `socket(path,
    record)` of sockets, which no tree holds. Both hear of a path before the span is given that follows it. A folder
    that cannot be listed stays, empty. Raises OSError only when the root itself cannot be read.
    """

    def __init__(
        self,
        root: int,
        *,
        exclude: Exclude | None = None,
        one_file_system: bool = False,
        problem: Callable[[str, bytes, OSError], None] = _ignore,
        socket: Callable[[bytes, bytes], None] | None = None,
    ) -> None:
        self._root = root
        self._exclude = exclude
        self._one_file_system = one_file_system
        self._problem = problem
        self._socket = socket
        self.sockets = 0

    def __iter__(self) -> Iterator[Span]:
        info = os.fstat(self._root)
        device = info.st_dev
        span, weight = Span([b""], [pack_stat(info)]), 0
        with Folders(self._root) as folders:
            levels = [(b"", 0, iter(_names(self._root)))]
            # Everything the loop touches is local: attribute look-ups were a fifth of its time.
            lstat, fields_of, pack, exclude, crc_of = os.lstat, stat_fields, STAT.pack, self._exclude, crc32
            while levels:
                prefix, crc, names = levels[-1]
                try:
                    folder = folders.open(prefix[:-1])
                except OSError as error:  # The folder was moved away while its children were walked.
                    self._left_out(prefix[:-1], error)
                    levels.pop()
                    continue
                paths, stats = span.paths, span.stats
                for name in names:
                    try:
                        info = lstat(name, dir_fd=folder)
                    except OSError as error:
                        self._left_out(prefix + name, error)
                        continue
                    fields = fields_of(info)
                    kind = fields[0] & 0xF000
                    path = prefix + name
                    if kind == 0xC000:
                        self.sockets += 1
                        if self._socket is not None:
                            self._socket(path, pack_stat(info))
                        continue
                    if exclude is not None and exclude(path, kind == 0x4000):
                        continue
                    try:
                        record = pack(*fields)
                    except struct.error:
                        record = pack_stat(info)
                    if (
                        not crc_of(name, crc) & LEAF_ANCHOR_MASK
                        or len(paths) >= LEAF_ENTRIES_MAX
                        or weight >= LEAF_WEIGHT_MAX
                    ):
                        yield span
                        span, weight = Span([], []), 0
                        paths, stats = span.paths, span.stats
                    weight += len(path)
                    paths.append(path)
                    stats.append(record)
                    if kind == 0x4000:
                        if self._one_file_system and info.st_dev != device:
                            continue
                        below = self._list(folders, path)
                        if below:
                            prefix = path + b"/"
                            levels.append((prefix, crc32(prefix), iter(below)))
                            break
                        folder = folders.open(levels[-1][0][:-1])
                    elif kind == 0xA000:
                        weight += fields[4]
                else:
                    levels.pop()
        yield span

    def _list(self, folders: Folders, path: bytes) -> list[bytes]:
        try:
            if len(path) > PATH_BYTES_MAX:
                raise OSError(errno.ENAMETOOLONG, "nested too deeply")
            return _names(folders.open(path))
        except OSError as error:
            self._left_out(path, error)
            return []

    def _left_out(self, path: bytes, error: OSError) -> None:
        code = "file.vanished" if isinstance(error, FileNotFoundError) else "file.unreadable"
        self._problem(code, path, error)


def count_entries(root: int) -> int:
    """How many entries the folder behind the descriptor holds, itself included. Raises OSError.

    Counts what the folders list on disk and asks for no entry's stat record, which a scan would.
    """
    total, waiting = 1, [b""]
    with Folders(root) as folders:
        while waiting:
            path = waiting.pop()
            with os.scandir(folders.open(path)) as listing:
                prefix = path + b"/" if path else b""
                found = list(listing)
                total += len(found)
                waiting += [prefix + os.fsencode(each.name) for each in found if each.is_dir(follow_symlinks=False)]
    return total


def _names(folder: int) -> list[bytes]:
    """Names in a folder, sorted, without our own staging."""
    found = os.listdir(folder)
    if not found:
        return found  # type: ignore[return-value]
    names = os.fsencode("\0".join(found)).split(b"\0")
    names.sort()
    begin, end = bisect_left(names, STAGING_BEGIN), bisect_left(names, STAGING_BEGIN + b"\xff")
    if begin != end:
        names[begin:end] = [name for name in names[begin:end] if not is_staging_name(name)]
    return names
