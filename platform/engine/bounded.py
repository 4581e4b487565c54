"""Reading what a person names, which may be anything, without waiting or reading for ever."""

import errno
import os
import select
import time

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
