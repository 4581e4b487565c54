"""Remove a folder we staged or replaced, whatever its depth, without leaving its file system."""

import errno
import os
import stat as statmod

from engine.tree_folders import FOLDER_FLAGS, Folders


def remove_tree(parent: int, name: bytes) -> None:
    """Remove the folder `name` in the folder `parent`; nothing when it does not exist.

    Never follows a link and never enters another file system: a mount below raises OSError (EXDEV).
    """
    try:
        root = os.open(name, FOLDER_FLAGS, dir_fd=parent)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        os.unlink(name, dir_fd=parent)
        return
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        root = os.open(name, FOLDER_FLAGS, dir_fd=parent)
    try:
        _empty(root)
    finally:
        os.close(root)
    os.rmdir(name, dir_fd=parent)


def _empty(root: int) -> None:
    device = os.fstat(root).st_dev
    with Folders(root) as folders:
        levels = [(b"", iter(_remove_files(root)))]
        while levels:
            path, below = levels[-1]
            name = next(below, None)
            if name is None:
                levels.pop()
                if path:
                    folder, last = folders.of(path)
                    os.rmdir(last, dir_fd=folder)
                continue
            child = path + b"/" + name if path else name
            folder = _enter(folders, path, child, name)
            if os.fstat(folder).st_dev != device:
                raise OSError(errno.EXDEV, "another file system is mounted there", child)
            levels.append((child, iter(_remove_files(folder))))


def _enter(folders: Folders, path: bytes, child: bytes, name: bytes) -> int:
    try:
        return folders.open(child)
    except PermissionError:  # A folder of ours that we locked ourselves out of.
        os.chmod(name, 0o700, dir_fd=folders.open(path))
        return folders.open(child)


def _remove_files(folder: int) -> list[bytes]:
    """Unlink what is no folder; names of the folders that stay."""
    found = os.listdir(folder)
    names = os.fsencode("\0".join(found)).split(b"\0") if found else []
    if names and os.geteuid() != 0 and not os.fstat(folder).st_mode & statmod.S_IWUSR:
        os.fchmod(folder, 0o700)
    below = []
    for name in names:
        if statmod.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
            below.append(name)
        else:
            os.unlink(name, dir_fd=folder)
    return below
