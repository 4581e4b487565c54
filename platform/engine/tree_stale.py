"""Whether a folder still is what a backup of a moment ago holds: what a restore may replace without a loss."""

from collections.abc import Iterator

from engine.errors import StalePlan
from engine.progress import Progress
from engine.tree_folders import Folders
from engine.tree_format import STAT, LeafRef, Row, Stat, show_path, sort_key, stat_sum
from engine.tree_likeness import Likeness, Live, kind_of, settled_ns
from engine.tree_scan import Exclude, Span, TreeScan
from engine.tree_view import TreeView

NAMED_MAX = 3
FOUND_MAX = 1000


class SavedState:
    """A safety backup's tree, and the rows in it that stay in place whatever a restore does.

    What stays may be written to at any time, as long as it is the same file. `left_out` are the paths that the
    backup did not look at.
    """

    def __init__(self, saved: TreeView, *, left_out: Exclude | None, stays: bytearray) -> None:
        self._saved, self._left_out, self._stays = saved, left_out, stays
        self._settled_ns = settled_ns(saved)
        self._likeness = Likeness(saved)

    def require(self, folder: int, progress: Progress, *, root: bool = True) -> None:
        """Raise StalePlan when the folder behind the descriptor holds anything else than what was saved.

        `root` compares the folder's own mode and owner, too.
        """
        found: list[tuple[bytes, str]] = []
        for each in self._differences(folder, progress, root=root):
            found.append(each)
            if len(found) >= FOUND_MAX:
                break
        if not found:
            return
        named = ", ".join(f"{show_path(path) or 'the folder itself'} {what}" for path, what in found[:NAMED_MAX])
        more = f" and {len(found) - NAMED_MAX} more" if len(found) > NAMED_MAX else ""
        raise StalePlan(
            f"the target was written to after its safety backup: {named}{more}",
            hint="stop what writes there, or leave it out of backups (exclude=PATTERN) so that it stays; then preview again",
        )

    def _differences(self, folder: int, progress: Progress, *, root: bool) -> Iterator[tuple[bytes, str]]:
        cursor = _Cursor(self._saved)
        with Folders(folder) as folders:
            for span in TreeScan(folder, exclude=self._left_out):
                progress.check()
                ref = self._same_leaf(span)
                if ref is not None:
                    yield from ((row.path, "is gone") for row in cursor.pass_over(ref))
                    continue
                for path, record in zip(span.paths, span.stats, strict=True):
                    key = sort_key(path)
                    yield from ((row.path, "is gone") for row in cursor.before(key))
                    number, row = cursor.take(path)
                    if row is None:
                        yield path, "is new"
                    elif not (self._same(Live(path, record, folders), row, number) or (not root and not path)):
                        yield path, "was changed"
        yield from ((row.path, "is gone") for row in cursor.before(None))

    def _same_leaf(self, span: Span) -> LeafRef | None:
        ref = self._saved.ref_at(span.paths[0])
        same = (
            ref.first == span.paths[0]
            and ref.entries == len(span.paths)
            and ref.changed_ns < self._settled_ns
            and ref.stat_sum == stat_sum(span.paths, span.stats)
        )
        return ref if same else None

    def _same(self, live: Live, row: Row, number: int) -> bool:
        if live.record == row.stat and live.stat.ctime_ns < self._settled_ns:
            return True
        if self._stays[number]:
            inode = Stat._make(STAT.unpack(row.stat)).inode
            return live.stat.inode == inode and kind_of(live.record) == kind_of(row.stat)
        return self._likeness.live_is(live, row, with_time=True)


class _Cursor:
    """The rows of a tree from its beginning to its end; leaves that are passed over are not read."""

    def __init__(self, view: TreeView) -> None:
        self._view = view
        self._refs = view.refs()
        self._ref: LeafRef | None = next(self._refs, None)
        self._rows: list[Row] = []
        self._at = self._number = 0

    def _peek(self) -> Row | None:
        while self._ref is not None:
            if not self._rows:
                self._rows, self._at = self._view.leaf(self._ref).rows(), 0
            if self._at < len(self._rows):
                return self._rows[self._at]
            self._next_leaf()
        return None

    def _next_leaf(self) -> None:
        if self._ref is not None:
            self._number += self._ref.entries
        self._ref, self._rows, self._at = next(self._refs, None), [], 0

    def before(self, key: bytes | None) -> Iterator[Row]:
        """Take the rows in front of a sort key, or all that are left."""
        row = self._peek()
        while row is not None and (key is None or sort_key(row.path) < key):
            self._at += 1
            yield row
            row = self._peek()

    def take(self, path: bytes) -> tuple[int, Row | None]:
        """The row of exactly this path, which is the next one if there is one, and its number."""
        row = self._peek()
        if row is None or row.path != path:
            return -1, None
        self._at += 1
        return self._number + self._at - 1, row

    def pass_over(self, ref: LeafRef) -> Iterator[Row]:
        """Take the rows in front of a leaf, and that leaf unread."""
        while self._ref is not None and self._ref.first != ref.first:
            rows = self._rows[self._at :] if self._rows else self._view.leaf(self._ref).rows()
            yield from rows
            self._next_leaf()
        self._next_leaf()
