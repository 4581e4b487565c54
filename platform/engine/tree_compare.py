"""Compare a folder on disk with a tree of a backup: what a restore will create, replace, remove or find equal."""

import heapq
import os
import stat as statmod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from engine.ports import FileChange
from engine.progress import Progress
from engine.tree_digest import entry_sum
from engine.tree_folders import Folders
from engine.tree_format import STAT, Row, Stat, sort_key
from engine.tree_scan import Exclude, TreeScan
from engine.tree_view import TreeView


@dataclass(slots=True)
class Comparison:
    """What changes among files, links and devices (folders are not counted), and what the backup leaves alone."""

    changes: FileChange
    excluded: list[bytes] = field(default_factory=list)


def compare_folder(view: TreeView, folder: int, exclude: Exclude | None, progress: Progress) -> Comparison:
    """Compare the folder behind the descriptor with what the view holds.

    A file with the backup's own stat record is equal; one with equal size, time, mode and owner is read.
    """
    excluded: list[bytes] = []

    def leave_out(path: bytes, is_folder: bool) -> bool:
        if exclude is None or not exclude(path, is_folder):
            return False
        excluded.append(path)
        return True

    counts: Counter[str] = Counter()
    before = _keyed_disk(TreeScan(folder, exclude=leave_out if exclude else None), progress)
    after = ((sort_key(row.path), 1, row.path, row.stat, row) for row in view.rows())
    with Folders(folder) as folders:
        last: tuple[Any, ...] | None = None
        for item in heapq.merge(before, after, key=itemgetter(0, 1)):
            if item[1] == 0:
                _count_removed(counts, last)
                last = item
                continue
            if last is not None and last[2] == item[2]:
                _count_both(counts, folders, last[3], item[4])
            else:
                _count_removed(counts, last)
                if not _is_folder(item[3]):
                    counts["created"] += 1
            last = None
        _count_removed(counts, last)
    return Comparison(FileChange(**counts), excluded)


def _keyed_disk(scan: TreeScan, progress: Progress) -> Iterator[tuple[Any, ...]]:
    for span in scan:
        progress.check()
        for path, stat in zip(span.paths, span.stats, strict=True):
            yield sort_key(path), 0, path, stat, None


def _is_folder(stat: bytes) -> bool:
    return statmod.S_ISDIR(STAT.unpack(stat)[0])


def _count_removed(counts: Counter[str], item: tuple[Any, ...] | None) -> None:
    if item is not None and not _is_folder(item[3]):
        counts["removed"] += 1


def _count_both(counts: Counter[str], folders: Folders, stat: bytes, row: Row) -> None:
    if _is_folder(stat) or _is_folder(row.stat):
        counts["removed"] += not _is_folder(stat)
        counts["created"] += not _is_folder(row.stat)
        return
    counts["unchanged" if _equal(folders, stat, row) else "replaced"] += 1


def _equal(folders: Folders, stat: bytes, row: Row) -> bool:
    if stat == row.stat:
        return True
    found, kept = Stat._make(STAT.unpack(stat)), Stat._make(STAT.unpack(row.stat))
    if (found.mode, found.uid, found.gid, found.size, found.mtime_ns) != (
        kept.mode, kept.uid, kept.gid, kept.size, kept.mtime_ns,
    ):  # fmt: skip
        return False
    try:
        return entry_sum(folders, row.path, found.mode) == row.sum
    except OSError:
        return False


def open_folder(path: bytes) -> int:
    """A descriptor of a folder. Raises OSError."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
