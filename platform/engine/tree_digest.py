"""A tree's digest computed from a folder on disk: what a restore or a check compares with the manifest."""

import hashlib
import os
import stat as statmod
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engine.tree_folders import Folders
from engine.tree_format import NO_SUM, STAT, LeafRef, Row, Totals, encode_leaf
from engine.tree_scan import Exclude, TreeScan
from engine.tree_small import open_file
from engine.tree_sum import file_sum
from engine.tree_write import LeafCutter


def entry_sum(folders: Folders, path: bytes, mode: int) -> bytes:
    """The sum (engine.tree_format) of what lies at the path. Raises OSError."""
    kind = statmod.S_IFMT(mode)
    if kind in (statmod.S_IFDIR, statmod.S_IFIFO):
        return NO_SUM
    folder, name = folders.of(path)
    if kind == statmod.S_IFLNK:
        return hashlib.sha256(os.readlink(name, dir_fd=folder)).digest()
    if kind != statmod.S_IFREG:
        device = os.lstat(name, dir_fd=folder).st_rdev
        return hashlib.sha256(b"%d:%d" % (os.major(device), os.minor(device))).digest()
    descriptor = open_file(folder, name)
    try:
        return file_sum(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def tree_digest_of_folder(root: bytes, exclude: Exclude | None = None, *, top_modules: bool = True) -> dict[str, Any]:
    """Entries, files, bytes, sha256 and modules as backup_tree would record them now.

    Raises OSError when anything cannot be read: a digest of a part would prove nothing.
    """
    totals = Totals()
    cutter = LeafCutter(lambda rows: totals.add(encode_leaf(rows, top_modules=top_modules)[1]), _never)
    descriptor = os.open(os.path.realpath(root), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def sums(part: list[tuple[bytes, bytes]]) -> list[Row]:
        with Folders(descriptor) as folders:
            return [Row(p, s, entry_sum(folders, p, STAT.unpack(s)[0]), b"", None) for p, s in part]

    try:
        with ThreadPoolExecutor(os.cpu_count() or 2, "digest") as pool:
            for span in TreeScan(descriptor, exclude=exclude, problem=_raise):
                pairs = list(zip(span.paths, span.stats, strict=True))
                for rows in pool.map(sums, [pairs[i : i + 128] for i in range(0, len(pairs), 128)]):
                    cutter.add_rows(rows)
        cutter.end()
    finally:
        os.close(descriptor)
    return {
        "entries": totals.entries,
        "files": totals.files,
        "bytes": totals.bytes,
        "sha256": totals.sha256,
        "modules": totals.modules(),
    }


def _raise(code: str, path: bytes, error: OSError) -> None:
    raise error


def _never(ref: LeafRef) -> None:
    raise AssertionError("a digest holds no references")
