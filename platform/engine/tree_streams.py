"""Bring a folder on disk and the trees of backups together, path by path or, where all agree, by whole leaves."""

from collections.abc import Iterator
from operator import itemgetter

from engine.progress import Progress
from engine.tree_cursor import Stretch, TreeCursor, same_leaf
from engine.tree_folders import Folders
from engine.tree_format import LeafRef, Row, sort_key
from engine.tree_likeness import Live, row_is_folder, settled_ns
from engine.tree_rules import Meeting, TreeOrder
from engine.tree_scan import Span, TreeScan
from engine.tree_view import TreeView

_ROW, _BASE, _SAVED = range(3)


class Streams:
    """The folder behind a descriptor (None: there is none), the backup, its base and the safety backup, in one order.

    `whole` allows stretches of equal entries to be given as one.
    """

    def __init__(
        self,
        view: TreeView,
        folder: int | None,
        folders: Folders,
        order: TreeOrder,
        progress: Progress,
        *,
        whole: bool,
    ) -> None:
        self._folder, self._folders, self._order, self._progress, self._whole = folder, folders, order, progress, whole
        views = {_ROW: view, _BASE: order.base, _SAVED: order.saved}
        self._views = {side: each for side, each in views.items() if each is not None}
        self._cursors = {side: TreeCursor(each) for side, each in self._views.items()}
        self._settled = {side: settled_ns(each) for side, each in self._views.items()}
        self._asides: list[tuple[bytes, bytes]] = []
        """Paths met by the scan that are left out, and sockets with their records, in the order of the tree."""

    def meetings(self) -> Iterator[Meeting | Stretch]:
        """Every path that any of them has, in the order of the tree."""
        cursors = list(self._cursors.values())
        for span in self._spans():
            self._progress.check()
            leaves = None if self._asides or not self._whole else self._agreed(span)
            if leaves is not None:
                yield from self._stretch(span, leaves)
                continue
            found = [(sort_key(path), path, record, False) for path, record in zip(span.paths, span.stats, strict=True)]
            if self._asides:
                found += [(sort_key(path), path, record, True) for path, record in self._asides]
                found.sort(key=itemgetter(0))
                self._asides.clear()
            for key, path, record, aside in found:
                if any((low := cursor.peek()) is not None and low < key for cursor in cursors):
                    yield from self._without_live(key)
                yield self._meeting(key, path, record, aside=aside)
        yield from self._without_live(None)

    def _spans(self) -> Iterator[Span]:
        if self._folder is None:
            return
        asides, left_out = self._asides, self._order.left_out

        def leave_out(path: bytes, is_folder: bool) -> bool:
            if left_out is None or not left_out(path, is_folder):
                return False
            asides.append((path, b""))
            return True

        yield from TreeScan(
            self._folder,
            exclude=leave_out if left_out else None,
            socket=lambda path, record: asides.append((path, record)),
        )

    def _agreed(self, span: Span) -> dict[int, LeafRef] | None:
        """The leaves that say of these very entries the same; None when any of the trees says anything else."""
        row = same_leaf(self._views[_ROW], span)
        if row is None:
            return None
        leaves = {_ROW: row}
        if _BASE in self._views:
            leaves[_BASE] = self._views[_BASE].ref_at(span.paths[0])
            if leaves[_BASE].chunk != row.chunk:
                return None
        if _SAVED in self._views:
            saved = same_leaf(self._views[_SAVED], span)
            if saved is None:
                return None
            leaves[_SAVED] = saved
        return leaves

    def _stretch(self, span: Span, leaves: dict[int, LeafRef]) -> Iterator[Meeting | Stretch]:
        yield from self._without_live(sort_key(span.paths[0]), leaves)
        numbers = {side: cursor.number for side, cursor in self._cursors.items()}
        for cursor in self._cursors.values():
            cursor.pass_by()
        yield Stretch(span.paths, span.stats, leaves[_ROW], numbers[_ROW], numbers.get(_SAVED, -1))

    def _without_live(self, key: bytes | None, leaves: dict[int, LeafRef] | None = None) -> Iterator[Meeting]:
        """What only the trees have in front of a key, or of the leaves that begin with it: those are not read."""
        cursors = self._cursors
        while True:
            at = [
                (found, side)
                for side, cursor in cursors.items()
                if not (leaves and cursor.begins(leaves[side])) and (found := cursor.peek()) is not None
            ]
            low = min(at)[0] if at else None
            if low is None or (key is not None and low >= key):
                return
            taken = {side: cursors[side].next() for found, side in at if found == low}
            path = next(iter(taken.values()))[1].path
            row, base = (taken[side][1] if side in taken else None for side in (_ROW, _BASE))
            number, saved_number = (taken[side][0] if side in taken else -1 for side in (_ROW, _SAVED))
            yield Meeting(path, None, row, number, base, saved_number, left_out=self._left_out(path, row or base))

    def _meeting(self, key: bytes, path: bytes, record: bytes, *, aside: bool) -> Meeting:
        taken = {side: cursor.take(key) for side, cursor in self._cursors.items()}
        row, number = taken[_ROW][1], taken[_ROW][0]
        base = taken[_BASE][1] if _BASE in taken else None
        saved_number = taken[_SAVED][0] if _SAVED in taken else -1
        if aside and not record:
            return Meeting(path, None, row, number, base, saved_number, left_out=True, here=True)
        live = Live(path, record, self._folders)
        for side, (_, known) in taken.items():
            if known is not None and known.stat == record and live.stat.ctime_ns < self._settled[side]:
                live.twin = known
                break
        return Meeting(path, live, row, number, base, saved_number, here=True)

    def _left_out(self, path: bytes, row: Row | None) -> bool:
        left_out = self._order.left_out
        return left_out is not None and bool(path) and left_out(path, row_is_folder(row))
