"""Several sides of one table, read in step in key order, and where they differ.

Each side is a stream of batches; a window is what all of them hold up to the smallest key that ends a batch. So
windows stay as small as batches, whatever one side has and another lacks, and changes come out in key order.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from engine.ports import KeySpec
from engine.table_runs import keys_of_rows

INSERT, DELETE, UPDATE = 0, 1, 2
Batch = tuple[list[bytes], Sequence[Any]]


class Change(NamedTuple):
    """A row that differs: `before` the target's, `after` the backup's, `base` the one of the common base."""

    op: int
    key: bytes
    before: bytes
    after: bytes
    base: bytes | None
    tag: Any
    """What the target's stream gave along with its row."""


class Side:
    """Rows of one side in key order, each with a tag."""

    def __init__(self, batches: Iterator[Batch], key: KeySpec) -> None:
        self._batches, self._key = batches, key
        self._rows: list[bytes] = []
        self._tags: Sequence[Any] = []

    def _encoded(self, row: bytes) -> bytes:
        return self._key.encode(self._key.text(row))

    def bound(self) -> bytes | None:
        """The encoded key of the last row at hand; None at the end."""
        while not self._rows:
            batch = next(self._batches, None)
            if batch is None:
                return None
            self._rows, self._tags = batch
        return self._encoded(self._rows[-1])

    def take(self, bound: bytes) -> Batch:
        """What is at hand up to a bound."""
        rows, tags = self._rows, self._tags
        if not rows:
            return [], []
        count = len(rows) if self._encoded(rows[-1]) <= bound else bisect_right(rows, bound, key=self._encoded)
        self._rows, self._tags = rows[count:], tags[count:]
        return rows[:count], tags[:count]


def windows(sides: Sequence[Side]) -> Iterator[list[Batch]]:
    """What the sides hold, stretch by stretch of the key space."""
    while True:
        bounds = [bound for side in sides if (bound := side.bound()) is not None]
        if not bounds:
            return
        bound = min(bounds)
        yield [side.take(bound) for side in sides]


def compare(key: KeySpec, window: Sequence[Batch]) -> tuple[list[Change], int]:
    """Where backup (first side) and target (second side) differ, in key order, and how many rows are equal.

    A third side is the common base.
    """
    wanted, (rows, tags) = window[0][0], window[1]
    if wanted == rows:
        return [], len(rows)
    if not rows:
        bases = _bases(key, window, None)
        texts = keys_of_rows(key, wanted)
        return [
            Change(INSERT, text, b"", row, bases.get(text), None) for text, row in zip(texts, wanted, strict=True)
        ], 0
    same = set(wanted) & set(rows)
    old_pairs = [(row, tag) for row, tag in zip(rows, tags, strict=True) if row not in same]
    new_rows = [row for row in wanted if row not in same]
    old = dict(zip(keys_of_rows(key, [row for row, _ in old_pairs]), old_pairs, strict=True))
    new_keys = keys_of_rows(key, new_rows)
    bases = _bases(key, window, {*old, *new_keys})
    changes = []
    for text, row in zip(new_keys, new_rows, strict=True):
        pair = old.pop(text, None)
        if pair is None:
            changes.append(Change(INSERT, text, b"", row, bases.get(text), None))
        else:
            changes.append(Change(UPDATE, text, pair[0], row, bases.get(text), pair[1]))
    gone = [Change(DELETE, text, row, b"", bases.get(text), tag) for text, (row, tag) in old.items()]
    if gone and changes:
        return sorted(changes + gone, key=lambda change: key.encode(change.key)), len(same)
    return changes or gone, len(same)


def _bases(key: KeySpec, window: Sequence[Batch], wanted: set[bytes] | None) -> dict[bytes, bytes]:
    if len(window) < 3 or not window[2][0]:
        return {}
    base = window[2][0]
    pairs = zip(keys_of_rows(key, base), base, strict=True)
    return dict(pairs) if wanted is None else {text: row for text, row in pairs if text in wanted}


def columns_cut(places: Sequence[int]) -> Callable[[list[bytes]], list[bytes]]:
    """A function that keeps the fields at those places of row lines."""

    def cut(rows: list[bytes]) -> list[bytes]:
        split = [row.split(b"\t") for row in rows]
        return [b"\t".join([fields[at] for at in places]) for fields in split]

    return cut
