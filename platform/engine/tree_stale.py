"""Whether a folder still is what a backup of a moment ago holds: what a restore may replace without a loss."""

from collections.abc import Iterator

from engine.errors import StalePlan
from engine.progress import Progress
from engine.tree_cursor import TreeCursor, same_leaf
from engine.tree_folders import Folders
from engine.tree_format import STAT, Row, Stat, show_path, sort_key
from engine.tree_likeness import Likeness, Live, kind_of, settled_ns
from engine.tree_scan import Exclude, TreeScan
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
        cursor = TreeCursor(self._saved)
        with Folders(folder) as folders:
            for span in TreeScan(folder, exclude=self._left_out):
                progress.check()
                ref = same_leaf(self._saved, span)
                if ref is not None:
                    while not cursor.begins(ref) and cursor.peek() is not None:
                        yield cursor.next()[1].path, "is gone"
                    cursor.pass_by()
                    continue
                for path, record in zip(span.paths, span.stats, strict=True):
                    key = sort_key(path)
                    yield from ((row.path, "is gone") for _, row in cursor.before(key))
                    number, row = cursor.take(key)
                    if row is None:
                        yield path, "is new"
                    elif not (self._same(Live(path, record, folders), row, number) or (not root and not path)):
                        yield path, "was changed"
        yield from ((row.path, "is gone") for _, row in cursor.before(None))

    def _same(self, live: Live, row: Row, number: int) -> bool:
        if live.record == row.stat and live.stat.ctime_ns < self._settled_ns:
            return True
        if self._stays[number]:
            inode = Stat._make(STAT.unpack(row.stat)).inode
            return live.stat.inode == inode and kind_of(live.record) == kind_of(row.stat)
        return self._likeness.live_is(live, row, with_time=True)
