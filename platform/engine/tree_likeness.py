"""Whether two entries of file trees are the same thing, reading content only where the records leave it open."""

import stat as statmod
from typing import Any

from engine import tree_backup
from engine.errors import ChunkMissing
from engine.tree_digest import entry_sum
from engine.tree_folders import Folders
from engine.tree_format import STAT, Row, Stat
from engine.tree_small import read_xattrs
from engine.tree_view import Entry, TreeView


def kind_of(record: bytes) -> int:
    """The S_IF… kind in a stat record, without unpacking it."""
    return (record[1] & 0xF0) << 8


def row_is_folder(row: Row | None) -> bool:
    """True for a row of a folder."""
    return row is not None and kind_of(row.stat) == statmod.S_IFDIR


class Live:
    """An entry of a folder on disk, whose content is looked at once at the most."""

    __slots__ = ("_folders", "_stat", "_sum", "_xattrs", "path", "record", "twin")

    def __init__(self, path: bytes, record: bytes, folders: Folders) -> None:
        self.path, self.record, self._folders = path, record, folders
        self.twin: Row | None = None
        """A row whose record proves that it describes this very entry, unchanged since."""
        self._stat: Stat | None = None
        self._sum: bytes | None = None
        self._xattrs: dict[bytes, bytes] | None = None

    @property
    def stat(self) -> Stat:
        if self._stat is None:
            self._stat = Stat._make(STAT.unpack(self.record))
        return self._stat

    @property
    def is_folder(self) -> bool:
        return kind_of(self.record) == statmod.S_IFDIR

    def sum(self) -> bytes:
        """Raises OSError."""
        if self._sum is None:
            self._sum = entry_sum(self._folders, self.path, self.stat.mode)
        return self._sum

    def xattrs(self) -> dict[bytes, bytes]:
        """Raises OSError."""
        if self._xattrs is None:
            folder, name = self._folders.of(self.path)
            self._xattrs = read_xattrs(b"/proc/self/fd/%d/%s" % (folder, name or b"."))
        return self._xattrs


class Likeness:
    """Compares entries of a folder with rows of these trees, and rows with one another."""

    def __init__(self, *views: TreeView | None) -> None:
        self._views = [view for view in views if view is not None]

    def live_is(self, live: Live, row: Row, *, with_time: bool) -> bool:
        """Whether the entry on disk is what the row describes; one that cannot be read is not.

        `with_time` counts the time of modification of files and links. Times of folders never count, for
        whoever puts a name there changes them.
        """
        twin = live.twin
        if twin is row:
            return True
        found, kept = live.stat, Stat._make(STAT.unpack(row.stat))
        if (found.mode, found.uid, found.gid) != (kept.mode, kept.uid, kept.gid):
            return False
        folder = live.is_folder
        if statmod.S_ISREG(found.mode) and found.size != kept.size:
            return False
        if with_time and not folder and found.mtime_ns != kept.mtime_ns:
            return False
        if twin is not None:
            return rows_alike(twin, row)
        try:
            return (folder or live.sum() == row.sum) and live.xattrs() == self._xattrs(row)
        except OSError:
            return False

    def _xattrs(self, row: Row) -> dict[bytes, bytes]:
        if not row.extra:
            return {}
        for view in self._views[1:]:
            try:
                return view.xattrs(Entry(row))
            except ChunkMissing:  # A reader knows the chunks of its own backup.
                continue
        return self._views[0].xattrs(Entry(row))


def settled_ns(view: TreeView) -> int:
    """What bears an earlier ctime than this and the row's record is the very entry that was backed up."""
    return int(view.node["scanned_at_ns"]) - tree_backup.CLOCK_GRAIN_NS


def rows_alike(one: Row | None, other: Row | None) -> bool:
    """Whether two stored entries are the same but for their times and places on disk."""
    if one is None or other is None:
        return one is other
    if one.sum != other.sum:
        return False
    mine, its = Stat._make(STAT.unpack(one.stat)), Stat._make(STAT.unpack(other.stat))
    return (mine.mode, mine.uid, mine.gid) == (its.mode, its.uid, its.gid) and attributes(one) == attributes(other)


def attributes(row: Row) -> dict[str, Any]:
    """A row's extended attributes as they are recorded: in it, or the chunk that holds them."""
    return {key: row.extra[key] for key in ("xattrs", "xattrs_chunk") if key in row.extra} if row.extra else {}
