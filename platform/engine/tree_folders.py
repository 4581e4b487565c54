"""Folders below a root, opened one name at a time and never through a symbolic link.

Names inside a tenant's tree may change while we walk it: descending by file descriptors with
O_NOFOLLOW keeps every operation below the root, and works for paths longer than PATH_MAX.
"""

import os
from types import TracebackType
from typing import Self

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FOLDERS_OPEN_MAX = 48
"""Open folders kept per walker; a deeper path gives up the shallow ones and descends again later."""


class Folders:
    """Not thread-safe. `root` stays the caller's; everything opened here is closed by `close`."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._open: list[tuple[bytes, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self, path: bytes) -> int:
        """A descriptor of the folder, valid until the next call. Raises OSError."""
        opened = self._open
        while opened:
            base, descriptor = opened[-1]
            if path == base:
                return descriptor
            if path.startswith(base) and path[len(base)] == 0x2F:
                break
            os.close(descriptor)
            opened.pop()
        base, descriptor = opened[-1] if opened else (b"", self._root)
        rest = path[len(base) :].strip(b"/")
        for name in rest.split(b"/") if rest else ():
            descriptor = os.open(name, FOLDER_FLAGS, dir_fd=descriptor)
            base = base + b"/" + name if base else name
            opened.append((base, descriptor))
            if len(opened) > FOLDERS_OPEN_MAX:
                os.close(opened.pop(0)[1])
        return descriptor

    def of(self, path: bytes) -> tuple[int, bytes]:
        """The folder that holds the path, and the path's last name."""
        folder, _, name = path.rpartition(b"/")
        return self.open(folder), name

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop()[1])
