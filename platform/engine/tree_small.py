"""Open entries below a folder, and read many small files in one go."""

import errno
import os
import stat as statmod
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from engine.progress import Progress
from engine.tree_folders import Folders
from engine.tree_format import STAT, TIME_MAX, stat_fields

SMALL_BYTES = 256 << 10
"""Files below are one chunk each, bundled with their neighbours."""
WAITING_SECONDS_MIN, WAITING_RATIO = 0.05, 4
"""A batch of small files that took longer, and so many times its processor time, was waited for."""
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

Job = tuple[bytes, bytes]
"""An entry to be described and, for a file, read: its path and the stat record of the scan."""


class Turns:
    """Lets the threads of one backup read small files one at a time, unless it is the disk that they wait for.

    From memory a small read is nothing but calls too short to be worth a change of threads: two threads at it spend
    a third of their time on handing the interpreter to each other, while one reads as fast as the others hash,
    compress and encrypt. A slow disk is faster with several requests.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Read one batch inside."""
        with nullcontext() if self._waiting else self._lock:
            wall, used = time.monotonic(), time.thread_time()
            yield
            wall, used = time.monotonic() - wall, time.thread_time() - used
        self._waiting = wall > WAITING_SECONDS_MIN and wall > WAITING_RATIO * used


def read_small(
    folders: Folders, jobs: Sequence[Job], progress: Progress
) -> dict[int, tuple[bytes, dict[bytes, bytes]]]:
    """Content and attributes, by job number, of the small files that still were what the scan saw when read.

    The scan's record takes the place of one from before the read. All others are left to be read with more care.
    """
    found: dict[int, tuple[bytes, dict[bytes, bytes]]] = {}
    unpack, pack, fields_of, pread, fstat, close = STAT.unpack, STAT.pack, stat_fields, os.pread, os.fstat, os.close
    for number, (path, stat) in enumerate(jobs):
        mode, _, _, _, size, mtime, _, _, _ = unpack(stat)
        if mode & 0xF000 != statmod.S_IFREG or size >= SMALL_BYTES or not -TIME_MAX < mtime < TIME_MAX:
            continue
        try:
            descriptor = open_file(*folders.of(path))
            try:
                data = pread(descriptor, size + 1, 0) if size else b""
                progress.advance(bytes=len(data))
                if pack(*fields_of(fstat(descriptor))) == stat and len(data) == size:
                    found[number] = data, read_xattrs(descriptor)
            finally:
                close(descriptor)
        except (OSError, struct.error):
            continue  # Not a file any more, unreadable, or beyond the record: the caller finds out which.
    return found


def read_xattrs(where: int | bytes) -> dict[bytes, bytes]:
    """Extended attributes of an open file, or of a path without following a link; ACLs are among them."""
    follow = isinstance(where, int)
    try:
        names = os.listxattr(where, follow_symlinks=follow)
        return {os.fsencode(name): os.getxattr(where, name, follow_symlinks=follow) for name in names} if names else {}
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENODATA, errno.EINVAL):
            return {}
        raise


def open_file(folder: int, name: bytes) -> int:
    """Open without changing the access time where we may. Raises OSError."""
    try:
        return os.open(name, _OPEN_FLAGS | os.O_NOATIME, dir_fd=folder)
    except PermissionError:
        return os.open(name, _OPEN_FLAGS, dir_fd=folder)
