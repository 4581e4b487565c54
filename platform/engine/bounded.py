"""Reading what may be anything, a file that a person names or an object of a hostile store, without waiting or reading for ever."""

import errno
import os
import select
import time

from engine.errors import ObjectDamaged
from engine.ports import Store

PIPE_SECONDS_MAX = 10.0
"""How long a pipe is waited for: `<(program)` of a shell takes its time, a forgotten FIFO gives nothing."""


def read_bounded(path: str, *, bytes_max: int) -> bytes:
    """Read a small file or a pipe to its end. Raises OSError, also for one that is too long or stays silent."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        pieces: list[bytes] = []
        size, until = 0, time.monotonic() + PIPE_SECONDS_MAX
        while size <= bytes_max:
            if not select.select([fd], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError(errno.ETIMEDOUT, "nothing came out of it")
            piece = os.read(fd, min(1 << 20, bytes_max + 1))
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
            size += len(piece)
        raise OSError(errno.EFBIG, f"it is longer than {bytes_max} bytes")
    finally:
        os.close(fd)


def object_read(store: Store, key: str, *, bytes_max: int, name: str) -> bytes:
    """Read an object whole. Raises ObjectDamaged for one that is longer than anything that is ever written there."""
    blob = store.get(key, 0, bytes_max + 1)
    if len(blob) > bytes_max:
        raise ObjectDamaged(
            f"{name} is longer than {bytes_max} bytes, which nothing of its kind is",
            hint="somebody put it there; another copy may hold what was written",
        )
    return blob
