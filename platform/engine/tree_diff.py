"""What became of one backup's file tree in another's, without reading what they share."""

import heapq
import stat as statmod
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal

from engine.tree_format import Row, sort_key
from engine.tree_likeness import attributes
from engine.tree_view import Entry, TreeView

Aspect = Literal["type", "content", "link", "device", "mode", "owner", "time", "attributes"]


@dataclass(frozen=True, slots=True)
class TreeChange:
    """One path that differs; `before` is None when it was added, `after` when it was removed."""

    path: bytes
    change: Literal["added", "removed", "changed"]
    before: Entry | None
    after: Entry | None
    aspects: tuple[Aspect, ...] = ()
    """In what a changed entry differs."""


def tree_diff(old: TreeView, new: TreeView, *, below: bytes = b"") -> Iterator[TreeChange]:
    """Stream what changed, in tree order; `below` looks at one path and what lies below it only.

    A leaf that both trees hold is not read, so that the cost is that of the difference. Times and sizes of folders do
    not count: they follow from what lies in them. Raises DamageError.
    """
    if old.node["root"] == new.node["root"]:
        return
    shared = {ref.chunk for ref in old.refs()} & {ref.chunk for ref in new.refs()}
    before: Row | None = None
    for _, side, row in heapq.merge(_rows(old, shared, 0, below), _rows(new, shared, 1, below), key=itemgetter(0, 1)):
        if side == 0:
            if before is not None:
                yield _gone(before)
            before = row
            continue
        if before is None or before.path != row.path:
            if before is not None:
                yield _gone(before)
            yield TreeChange(row.path, "added", None, Entry(row))
        elif before != row:
            yield from _changed(Entry(before), Entry(row))
        before = None
    if before is not None:
        yield _gone(before)


def _rows(view: TreeView, shared: set[bytes], side: int, below: bytes) -> Iterator[tuple[bytes, int, Row]]:
    begin, end = sort_key(below), sort_key(below) + b"\1"
    refs = iter(view.refs())
    ref, after = next(refs, None), next(refs, None)
    while ref is not None:
        reaches = after is None or sort_key(after.first) > begin
        if below and sort_key(ref.first) >= end:
            return
        if ref.chunk not in shared and (not below or reaches):
            for row in view.leaf(ref).rows():
                if not below or row.path == below or row.path.startswith(below + b"/"):
                    yield sort_key(row.path), side, row
        ref, after = after, next(refs, None)


def _gone(row: Row) -> TreeChange:
    return TreeChange(row.path, "removed", Entry(row), None)


def _changed(before: Entry, after: Entry) -> Iterator[TreeChange]:
    aspects = tuple(aspects_of(before, after))
    if aspects:
        yield TreeChange(after.path, "changed", before, after, aspects)


def aspects_of(before: Entry, after: Entry) -> Iterator[Aspect]:
    """In what two entries differ, but for their places on disk and how they were stored."""
    if before.kind != after.kind:
        yield "type"
    elif before.row.sum != after.row.sum or (before.is_file and before.stat.size != after.stat.size):
        kinds: dict[int, Aspect] = {statmod.S_IFREG: "content", statmod.S_IFLNK: "link"}
        yield kinds.get(after.kind, "device")
    if statmod.S_IMODE(before.stat.mode) != statmod.S_IMODE(after.stat.mode):
        yield "mode"
    if (before.stat.uid, before.stat.gid) != (after.stat.uid, after.stat.gid):
        yield "owner"
    if before.mtime_ns != after.mtime_ns and not statmod.S_ISDIR(after.stat.mode):
        yield "time"
    if attributes(before.row) != attributes(after.row):
        yield "attributes"
