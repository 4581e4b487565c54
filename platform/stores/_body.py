"""Bodies on their way: up, made of many buffers that are never joined; down, whole or an error."""

from collections.abc import Callable, Iterator, Sequence

from engine.errors import StoreUnreachable
from engine.ports import Buffer

BLOCK_BYTES = 256 << 10


class Body:
    """Iterable as often as a request is repeated, with a length; small buffers are gathered into larger blocks."""

    def __init__(self, parts: Sequence[Buffer], *, pace: Callable[[int], None] | None = None) -> None:
        self._views = [memoryview(part).cast("B") for part in parts]
        self._pace = pace
        self.size = sum(map(len, self._views))

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Buffer]:
        for block in _blocks(self._views):
            if self._pace is not None:
                self._pace(len(block))
            yield block


def _blocks(views: Sequence[memoryview]) -> Iterator[Buffer]:
    gathered: list[memoryview] = []
    size = 0
    for whole in views:
        for at in range(0, len(whole), BLOCK_BYTES):
            view = whole[at : at + BLOCK_BYTES]
            if size + len(view) > BLOCK_BYTES:
                yield b"".join(gathered) if len(gathered) > 1 else gathered[0]
                gathered, size = [], 0
            gathered.append(view)
            size += len(view)
    if gathered:
        yield b"".join(gathered)


def check_length(key: str, size: int, content_range: str, offset: int, length: int | None) -> None:
    """Raise StoreUnreachable unless the bytes are all that the object has of what was asked for."""
    total = content_range.rpartition("/")[2]
    if total.isdigit():
        left = max(0, int(total) - offset)
        expected = left if length is None else min(length, left)
        if size != expected:
            raise StoreUnreachable(f"reading {key}: {size} bytes came, {expected} were to come", hint="try again")
