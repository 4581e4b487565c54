"""Paths by the million in a file without a name, read forwards and backwards."""

import os
import tempfile
import zlib
from collections.abc import Iterator
from types import TracebackType
from typing import Self

BLOCK_PATHS = 4096


class PathSpool:
    """Paths in the order of their adding; `folder` should lie where there is room, on the target's file system."""

    def __init__(self, folder: bytes) -> None:
        self._file = tempfile.TemporaryFile(dir=os.fsdecode(folder))  # noqa: SIM115 - closed by `close`.
        self._blocks: list[tuple[int, int]] = []
        self._open: list[bytes] = []
        self._end = 0
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self._count

    def add(self, path: bytes) -> None:
        """Append a path."""
        self._open.append(path)
        self._count += 1
        if len(self._open) >= BLOCK_PATHS:
            self._flush()

    def _flush(self) -> None:
        packed = zlib.compress(b"\0".join(self._open), 1)
        self._file.seek(self._end)
        self._file.write(packed)
        self._blocks.append((self._end, len(packed)))
        self._end += len(packed)
        self._open = []

    def __iter__(self) -> Iterator[bytes]:
        for offset, length in self._blocks:
            yield from self._block(offset, length)
        yield from self._open

    def __reversed__(self) -> Iterator[bytes]:
        yield from reversed(self._open)
        for offset, length in reversed(self._blocks):
            yield from reversed(self._block(offset, length))

    def _block(self, offset: int, length: int) -> list[bytes]:
        self._file.seek(offset)
        return zlib.decompress(self._file.read(length)).split(b"\0")

    def close(self) -> None:
        """The paths are gone."""
        self._file.close()
