"""Carry what stays from the old tree into the staged one, by hard links.

Nothing is moved: until the swap the old tree is whole, after it the new one is, and what was carried are
the very same files in both, also for those who have them open.
"""

import errno
import os
import shutil
import stat as statmod
from collections.abc import Iterable
from contextlib import suppress

from engine.errors import StalePlan
from engine.progress import Progress
from engine.tree_compare import TreePlan
from engine.tree_folders import Folders
from engine.tree_format import show_path
from engine.tree_swap import copy_metadata

CHECK_EVERY = 1 << 12
_NO_LINKS = (errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


def carry_over(old: int, new: int, plan: TreePlan, progress: Progress) -> None:
    """Link what the plan keeps from folder `old` into folder `new`, where the folders that come back are already.

    What exists in `new` stays. Raises StalePlan when something to carry is gone, OSError otherwise.
    """
    with Folders(old) as sources, Folders(new) as targets:
        for path in plan.folders:
            if path:
                parent, name = targets.of(path)
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=parent)
        for number, path in enumerate(plan.links):
            if not number % CHECK_EVERY:
                progress.check()
            try:
                (source, name), (target, _) = sources.of(path), targets.of(path)
                _link(source, target, name)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise _gone(path) from error
        carry_apart(sources, targets, plan.apart)


def seal_carried(old: int, new: int, plan: TreePlan) -> None:
    """Give folders that stay their own owner, attributes, mode and times: once nothing is made in them any more."""
    with Folders(old) as sources, Folders(new) as targets:
        for path in reversed(plan.folders):
            copy_metadata(_place(sources, path), _place(targets, path))


def carry_apart(sources: Folders, targets: Folders, paths: Iterable[bytes]) -> None:
    """Link files and whole folders, whatever is in them: it may come and go meanwhile. Raises OSError."""
    for path in paths:
        levels, made = [path], list[bytes]()
        while levels:
            here = levels.pop()
            try:
                (source, name), (target, _) = sources.of(here), targets.of(here)
                if not statmod.S_ISDIR(os.lstat(name, dir_fd=source).st_mode):
                    _link(source, target, name)
                    continue
                below = os.listdir(sources.open(here))
            except FileNotFoundError:
                continue
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=targets.of(here)[0])
                made.append(here)
            levels += [here + b"/" + os.fsencode(child) for child in sorted(below, reverse=True)]
        for folder in reversed(made):  # Times of folders last: linking into them has changed them.
            copy_metadata(_place(sources, folder), _place(targets, folder))


def _place(folders: Folders, path: bytes) -> bytes:
    return b"/proc/self/fd/%d/" % folders.open(path)


def _link(source: int, target: int, name: bytes) -> None:
    try:
        os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _copy(source, target, name, error)


def _copy(source: int, target: int, name: bytes, refused: OSError) -> None:
    """A file system without links, or a file with too many; never one that would lose its owner by it."""
    info = os.lstat(name, dir_fd=source)
    plain = statmod.S_ISREG(info.st_mode) or statmod.S_ISLNK(info.st_mode)
    if not plain or os.geteuid() not in (0, info.st_uid):
        raise refused
    copy = b"/proc/self/fd/%d/%s" % (target, name)
    shutil.copy2(b"/proc/self/fd/%d/%s" % (source, name), copy, follow_symlinks=False)
    if os.geteuid() == 0:
        os.chown(copy, info.st_uid, info.st_gid, follow_symlinks=False)
        if not statmod.S_ISLNK(info.st_mode):
            os.chmod(copy, statmod.S_IMODE(info.st_mode))


def _gone(path: bytes) -> StalePlan:
    return StalePlan(f"{show_path(path)} was to stay and is gone", hint="preview it again")
