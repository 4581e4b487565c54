"""Carry what a backup does not hold (excluded paths) from the old tree into the staged one, by hard links.

Nothing is moved: until the swap the old tree is whole, after it the new one is, and the carried files
are the very same files in both.
"""

import errno
import os
import shutil
import stat as statmod
from collections.abc import Iterable

from engine.errors import TargetError
from engine.tree_folders import Folders
from engine.tree_format import show_path
from engine.tree_swap import copy_metadata


def carry_over(old: int, new: int, paths: Iterable[bytes]) -> int:
    """Link the entries at `paths`, whole folders too, from folder `old` into folder `new`; how many there were.

    What exists in `new` already stays. Raises TargetError when a file of the backup lies where a folder
    above a carried entry must be, OSError otherwise.
    """
    count = 0
    with Folders(old) as sources, Folders(new) as targets:
        for path in paths:
            _make_parents(sources, targets, path)
            count += _carry(sources, targets, path)
    return count


def _make_parents(sources: Folders, targets: Folders, path: bytes) -> None:
    names = path.split(b"/")[:-1]
    for depth in range(1, len(names) + 1):
        folder = b"/".join(names[:depth])
        try:
            targets.open(folder)
        except FileNotFoundError:
            _make_like(sources, targets, folder)
        except (NotADirectoryError, OSError) as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise TargetError(
                f"{show_path(path)} is not part of the backup and cannot be kept: "
                f"{show_path(folder)} is a file in the backup",
                hint="move it away, or restore to another folder with --target path=DIR",
            ) from error


def _make_like(sources: Folders, targets: Folders, folder: bytes) -> None:
    parent, name = targets.of(folder)
    os.mkdir(name, 0o700, dir_fd=parent)
    copy_metadata(b"/proc/self/fd/%d/" % sources.open(folder), b"/proc/self/fd/%d/" % targets.open(folder))


def _carry(sources: Folders, targets: Folders, path: bytes) -> int:
    count, levels = 0, [path]
    made: list[bytes] = []
    while levels:
        here = levels.pop()
        source, name = sources.of(here)
        target, _ = targets.of(here)
        if not statmod.S_ISDIR(os.lstat(name, dir_fd=source).st_mode):
            count += _link(source, target, name)
            continue
        try:
            os.mkdir(name, 0o700, dir_fd=target)
            made.append(here)
        except FileExistsError:
            pass
        below = os.listdir(sources.open(here))
        levels += [here + b"/" + os.fsencode(child) for child in sorted(below, reverse=True)]
    for folder in reversed(made):  # Times of folders last: linking into them has changed them.
        copy_metadata(b"/proc/self/fd/%d/" % sources.open(folder), b"/proc/self/fd/%d/" % targets.open(folder))
    return count


def _link(source: int, target: int, name: bytes) -> int:
    try:
        os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except FileExistsError:
        return 0
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        origin, copy = b"/proc/self/fd/%d/%s" % (source, name), b"/proc/self/fd/%d/%s" % (target, name)
        shutil.copy2(origin, copy, follow_symlinks=False)
    return 1
