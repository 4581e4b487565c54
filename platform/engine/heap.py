"""Where the C library keeps freed memory: in one heap for all threads.

glibc gives each thread a heap of its own. Our threads pass blocks of megabytes around, so that each heap keeps
what another one needs: a tenth more memory, and a third more page faults. The one lock is no loss: they take
few and large blocks, or run under the interpreter's own lock.
"""

import ctypes
import functools

_M_ARENA_MAX = -8
"""malloc.h of glibc; mallopt(3)."""


@functools.cache
def share_heap() -> None:
    """Have threads started from now on share one heap; without effect where the C library is another."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
