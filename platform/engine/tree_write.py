"""Turn a stream of entries into leaves, lists and a root, reusing a parent's leaves where it can.

Where a leaf ends is a pure function of the entries that are stored. The scan cuts by what it met; when
an entry is then left out (unreadable, vanished), the cut moves, and this writer cuts anew.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from engine.session import Lane
from engine.tree_format import (
    LEAF_ENTRIES_MAX,
    LEAF_WEIGHT_MAX,
    LIST_LEAVES_MAX,
    VERSION,
    Leaf,
    LeafRef,
    Row,
    Totals,
    begins_leaf,
    encode_leaf,
    encode_list,
    encode_root,
    ends_list,
    row_weight,
)


class LeafCutter:
    """Cuts rows into leaves and hands each to `emit`; whole leaves of a parent pass through unread."""

    def __init__(self, emit_rows: Callable[[list[Row]], None], emit_ref: Callable[[LeafRef], None]) -> None:
        self._emit_rows, self._emit_ref = emit_rows, emit_ref
        self._rows: list[Row] = []
        self._weight = 0
        self._held: tuple[LeafRef, Callable[[LeafRef], Leaf]] | None = None

    def add_rows(self, rows: Sequence[Row]) -> None:
        """Take the next entries, in tree order."""
        for row in rows:
            if self._full() or begins_leaf(row.path):
                self._flush()
            elif self._held:
                self._open_held()
            self._rows.append(row)
            self._weight += row_weight(row)

    def add_ref(self, ref: LeafRef, load: Callable[[LeafRef], Leaf]) -> None:
        """Take a leaf as it is when a cut is due before it, else by its rows."""
        if self._full() or begins_leaf(ref.first):
            self._flush()
        if self._held:
            self._open_held()
        if self._rows:
            self.add_rows(load(ref).rows())
        else:
            self._held = ref, load

    def end(self) -> None:
        """Close the last leaf."""
        self._flush()

    def _full(self) -> bool:
        return len(self._rows) >= LEAF_ENTRIES_MAX or self._weight >= LEAF_WEIGHT_MAX

    def _open_held(self) -> None:
        """What follows belongs into the held leaf: unless it is full, it must be written anew."""
        assert self._held is not None
        ref, load = self._held
        self._held = None
        for row in load(ref).rows():
            self._rows.append(row)
            self._weight += row_weight(row)
        if self._full():
            self._rows, self._weight = [], 0
            self._emit_ref(ref)

    def _flush(self) -> None:
        if self._held:
            self._emit_ref(self._held[0])
            self._held = None
        if self._rows:
            self._emit_rows(self._rows)
            self._rows, self._weight = [], 0


class TreeWriter:
    """Stores leaves, lists and root in a metadata lane and counts totals."""

    def __init__(self, meta: Lane, *, top_modules: bool) -> None:
        self._meta, self._top_modules = meta, top_modules
        self.totals = Totals()
        self.cutter = LeafCutter(self._store_leaf, self._take)
        self._refs: list[LeafRef] = []
        self._lists: list[tuple[bytes, bytes, int]] = []

    def _store_leaf(self, rows: list[Row]) -> None:
        data, ref = encode_leaf(rows, top_modules=self._top_modules)
        self._take(replace(ref, chunk=self._meta.add(data)))

    def _take(self, ref: LeafRef) -> None:
        if self._refs and (ends_list(ref.first) or len(self._refs) >= LIST_LEAVES_MAX):
            self._store_list()
        self._refs.append(ref)
        self.totals.add(ref)

    def _store_list(self) -> None:
        chunk = self._meta.add(encode_list(self._refs))
        self._lists.append((self._refs[0].first, chunk, len(self._refs)))
        self._refs = []

    def finish(self) -> dict[str, Any]:
        """Store what is open; the part of the node that names and sums the tree."""
        self.cutter.end()
        self._store_list()
        totals = self.totals
        return {
            "format": VERSION,
            "root": self._meta.add(encode_root(self._lists)).hex(),
            "entries": totals.entries,
            "folders": totals.folders,
            "files": totals.files,
            "bytes": totals.bytes,
            "sha256": totals.sha256,
            "modules": totals.modules(),
            "top_modules": self._top_modules,
        }
