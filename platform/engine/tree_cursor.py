"""Walk stored trees beside a folder on disk, and pass by what is the same in both without reading it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from engine.tree_format import LeafRef, Row, sort_key, stat_sum
from engine.tree_likeness import settled_ns
from engine.tree_scan import Span
from engine.tree_view import TreeView


class Stretch(NamedTuple):
    """Consecutive entries of a folder that are exactly what a leaf of the backup describes."""

    paths: Sequence[bytes]
    stats: Sequence[bytes]
    ref: LeafRef
    number: int
    """Of the first row among the backup's."""
    saved_number: int
    """Of the first row among the safety backup's, -1 without one."""


def same_leaf(view: TreeView, span: Span) -> LeafRef | None:
    """The leaf that holds exactly these entries with these records, so old that nothing can have changed since."""
    ref = view.ref_at(span.paths[0])
    same = (
        ref.first == span.paths[0]
        and ref.entries == len(span.paths)
        and ref.changed_ns < settled_ns(view)
        and ref.stat_sum == stat_sum(span.paths, span.stats)
    )
    return ref if same else None


class TreeCursor:
    """The rows of a tree with their numbers, from its beginning to its end; a leaf that is passed by is not read."""

    def __init__(self, view: TreeView) -> None:
        self._view = view
        self._refs = view.refs()
        self._ref: LeafRef | None = next(self._refs, None)
        self._rows: list[Row] = []
        self._keys: list[bytes] = []
        self._at = self._number = 0

    @property
    def number(self) -> int:
        """Of the next row."""
        return self._number + self._at

    def peek(self) -> bytes | None:
        """The sort key of the next row; None at the end."""
        while self._ref is not None:
            if not self._rows:
                self._rows, self._at = self._view.leaf(self._ref).rows(), 0
                self._keys = [sort_key(row.path) for row in self._rows]
            if self._at < len(self._rows):
                return self._keys[self._at]
            self._next_leaf()
        return None

    def _next_leaf(self) -> None:
        if self._ref is not None:
            self._number += self._ref.entries
        self._ref, self._rows, self._at = next(self._refs, None), [], 0

    def next(self) -> tuple[int, Row]:
        """Take the row that `peek` has seen."""
        self._at += 1
        return self._number + self._at - 1, self._rows[self._at - 1]

    def before(self, key: bytes | None) -> Iterator[tuple[int, Row]]:
        """Take the rows in front of a sort key, or all that are left."""
        found = self.peek()
        while found is not None and (key is None or found < key):
            yield self.next()
            found = self.peek()

    def take(self, key: bytes) -> tuple[int, Row | None]:
        """The row of exactly this sort key, which is the next one if there is one, and its number."""
        return self.next() if self.peek() == key else (-1, None)

    def begins(self, ref: LeafRef) -> bool:
        """True at the beginning of a leaf."""
        if self._rows and self._at == len(self._rows):
            self._next_leaf()
        return self._ref is not None and self._at == 0 and self._ref.first == ref.first

    def pass_by(self) -> None:
        """Leave the leaf that begins here."""
        self._next_leaf()
