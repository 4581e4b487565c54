"""Compare a folder on disk with a tree of a backup: what a restore will create, replace, remove or leave alone.

Nothing is written to the folder. The same steps are counted for a preview and written down for a restore, so that
what was shown is what is done.
"""

import datetime
import heapq
import os
import stat as statmod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from engine.plans import ChangeDigest, PathSample
from engine.ports import FileChange
from engine.progress import Progress
from engine.tree_decide import Decisions, Step
from engine.tree_folders import Folders
from engine.tree_format import STAT, Row, Stat, show_path, sort_key
from engine.tree_likeness import Likeness, Live, attributes, kind_of, row_is_folder, settled_ns
from engine.tree_rules import Meeting, Outcome, Rules, TreeOrder, rules_for
from engine.tree_scan import TreeScan
from engine.tree_spool import PathSpool
from engine.tree_view import Entry, TreeView

_LIVE, _ASIDE, _ROW, _BASE, _SAVED = range(5)
_BLOCK_BYTES = 4096
"""What an entry takes at least on the file systems that we meet."""
_LINK_BYTES = 64
_LINKS_KNOWN_MAX = 1 << 16
_COUNTED = {"insert": "created", "update": "replaced", "delete": "removed", "kept": "kept", "unchanged": "unchanged"}
_RANKS = ("conflict", "withheld", "delete", "update", "insert", "kept")
_ESCAPES = ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\t", b"\\t"))


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changes among files, links and devices; folders are not counted, but their changes are in the digest."""

    changes: FileChange
    digest: str
    differs: bool
    """False when there is nothing to do."""
    paths: tuple[PathSample, ...] = ()
    staged_bytes: int = 0
    staged_entries: int = 0
    withheld: int = 0
    """Paths of the backup that today's backups leave out, and which therefore stay as they are."""


@dataclass(slots=True)
class TreePlan:
    """Who gives what to the new tree, written down for staging; bounded by spools and a byte for each row."""

    take: bytearray
    """For each row of the backup whether it is staged: an Outcome; TENANT for a folder with the tenant's metadata."""
    stays: bytearray
    """For each row of the safety backup whether the very same file stays in place."""
    links: PathSpool
    """What is no folder and stays."""
    folders: PathSpool
    """Folders that keep the tenant's metadata, parents first."""
    apart: PathSpool
    """What is no part of the restore, folders with all that is in them."""
    counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def empty(cls, view: TreeView, order: TreeOrder, folder: bytes) -> "TreePlan":
        """A plan that spools into the folder."""
        saved = order.saved.entry_count if order.saved else 0
        links, folders, apart = (PathSpool(folder) for _ in range(3))
        return cls(bytearray(view.entry_count), bytearray(saved), links, folders, apart)

    def note(self, step: Step) -> None:
        """Write down who gives what at this path."""
        met, outcome = step.met, step.outcome
        if met.live is None:
            if met.left_out and met.here:
                self.apart.add(met.path)
        elif outcome is Outcome.TENANT:
            (self.folders if met.live.is_folder else self.links).add(met.path)
            if met.saved_number >= 0:
                self.stays[met.saved_number] = 1
        if met.row is not None:
            self.counts["not_taken"] += outcome is not Outcome.BACKUP
            both = outcome is Outcome.TENANT and met.live is not None and met.live.is_folder and row_is_folder(met.row)
            if outcome is Outcome.BACKUP or both:
                self.take[met.number] = outcome

    def close(self) -> None:
        """Forget the spooled paths."""
        for spool in (self.links, self.folders, self.apart):
            spool.close()


def compare_folder(
    view: TreeView, folder: int | None, order: TreeOrder, progress: Progress, *, plan: TreePlan | None = None
) -> Comparison:
    """Decide every path of the folder (None: there is none yet) and the view; note the decisions in the plan.

    Raises UsageError for a module that is not there, TargetError where the order cannot be done.
    """
    tally = _Tally(view, order.samples)
    if folder is None and order.mode == "full" and order.left_out is None:
        return _compare_nothing(view, tally, progress, plan)
    likeness = Likeness(view, order.base, order.saved)
    rules = rules_for(order, view, likeness)
    with Folders(folder if folder is not None else -1) as folders:
        streams = _Streams(view, folder, folders, order, progress)
        decisions = Decisions(streams.meetings(rules), rules, order)
        for step in decisions:
            tally.note(step)
            if plan is not None:
                plan.note(step)
    return tally.comparison(decisions.withheld)


def _compare_nothing(view: TreeView, tally: "_Tally", progress: Progress, plan: TreePlan | None) -> Comparison:
    """The same for a full restore to where nothing is: no decision is left, and a million of them take their time."""
    number = 0
    for ref in view.refs():
        progress.check()
        rows = view.leaf(ref).rows()
        tally.note_new(rows, number)
        number += len(rows)
    if plan is not None:
        plan.take[:] = bytes([Outcome.BACKUP]) * len(plan.take)
    return tally.comparison(0)


# ---------------------------------------------------------------- bringing the trees together


class _Streams:
    """The folder and the trees, in one order."""

    def __init__(
        self, view: TreeView, folder: int | None, folders: Folders, order: TreeOrder, progress: Progress
    ) -> None:
        self._view, self._folder, self._folders, self._order = view, folder, folders, order
        self._progress = progress
        self._asides: list[tuple[bytes, bytes]] = []
        """Paths met by the scan that are left out, and sockets with their records, in the order of the tree."""

    def meetings(self, rules: Rules) -> Iterator[Meeting]:
        order = self._order
        streams: list[Iterable[tuple[Any, ...]]] = [_rows(_ROW, self._view)]
        streams += [_rows(side, view) for side, view in ((_BASE, order.base), (_SAVED, order.saved)) if view]
        if self._folder is not None:
            streams.append(self._on_disk(self._folder))
        settled = {_ROW: settled_ns(self._view)}
        settled |= {side: settled_ns(view) for side, view in ((_BASE, order.base), (_SAVED, order.saved)) if view}
        for _, group in groupby(heapq.merge(*streams), itemgetter(0)):
            yield self._meeting(list(group), settled)

    def _meeting(self, group: list[tuple[Any, ...]], settled: dict[int, int]) -> Meeting:
        sides = {side: rest for _, side, *rest in group}
        rows = {side: row for side, (number, row) in sides.items() if side >= _ROW}
        path = sides[min(sides)][1] if not rows else next(iter(rows.values())).path
        number = sides[_ROW][0] if _ROW in sides else -1
        saved_number = sides[_SAVED][0] if _SAVED in sides else -1
        row, base = rows.get(_ROW), rows.get(_BASE)
        if _ASIDE in sides:
            record = sides[_ASIDE][0]
            live = Live(path, record, self._folders) if record else None
            return Meeting(path, live, row, number, base, saved_number, left_out=not record, here=True)
        if _LIVE not in sides:
            return Meeting(path, None, row, number, base, saved_number, left_out=self._left_out(path, row or base))
        live = Live(path, sides[_LIVE][0], self._folders)
        for side, known in rows.items():
            if known.stat == live.record and live.stat.ctime_ns < settled[side]:
                live.twin = known
                break
        return Meeting(path, live, row, number, base, saved_number, here=True)

    def _left_out(self, path: bytes, row: Row | None) -> bool:
        left_out = self._order.left_out
        return left_out is not None and bool(path) and left_out(path, row_is_folder(row))

    def _on_disk(self, folder: int) -> Iterator[tuple[Any, ...]]:
        asides, left_out = self._asides, self._order.left_out

        def leave_out(path: bytes, is_folder: bool) -> bool:
            if left_out is None or not left_out(path, is_folder):
                return False
            asides.append((path, b""))
            return True

        scan = TreeScan(
            folder,
            exclude=leave_out if left_out else None,
            socket=lambda path, record: asides.append((path, record)),
        )
        for span in scan:
            self._progress.check()
            found = [(sort_key(path), _LIVE, record, path) for path, record in zip(span.paths, span.stats, strict=True)]
            if asides:
                found += [(sort_key(path), _ASIDE, record, path) for path, record in asides]
                found.sort(key=itemgetter(0))
                asides.clear()
            yield from found


def _rows(side: int, view: TreeView) -> Iterator[tuple[Any, ...]]:
    return ((sort_key(row.path), side, number, row) for number, row in enumerate(view.rows()))


# ---------------------------------------------------------------- counting


class _Samples:
    """The first few of each sort, the more telling sorts first."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._ranks: dict[str, list[PathSample]] = {rank: [] for rank in _RANKS}

    def note(self, step: Step) -> None:
        rank = "conflict" if step.conflict else "withheld" if step.change == "kept" and step.because else step.change
        kept = self._ranks.get(rank)
        if kept is not None and len(kept) < self._count:
            kept.append(_sample(step))

    def wants(self, rank: str) -> bool:
        """True while one more of this sort would be kept."""
        return len(self._ranks[rank]) < self._count

    def all(self) -> tuple[PathSample, ...]:
        return tuple(sample for rank in _RANKS for sample in self._ranks[rank])[: self._count]


class _Tally:
    """Counts, samples, digest and sizes of steps as they come."""

    def __init__(self, view: TreeView, samples: int) -> None:
        self._view = view
        self._counts: Counter[str] = Counter()
        self._samples = _Samples(samples)
        self._digest = ChangeDigest()
        self._digest.section("files")
        self._links: set[tuple[int, int]] = set()
        self._bytes = self._entries = 0
        self._differs = False

    def note(self, step: Step) -> None:
        met, change = step.met, step.change
        if step.outcome is Outcome.TENANT:
            self._entries += met.live is not None and met.live.is_folder
            self._bytes += _BLOCK_BYTES if met.live is not None and met.live.is_folder else _LINK_BYTES
        elif step.outcome is Outcome.BACKUP and met.row is not None:
            self._entries += 1
            self._bytes += self._room(met.row)
        if change == "quiet":
            return
        before, after = _present(met.live), met.row is not None and not row_is_folder(met.row)
        if before or after:
            self._counts[_counted(change, before=before, after=after)] += 1
            self._counts["conflicts"] += step.conflict
            self._samples.note(step)
        elif step.conflict or step.because:
            self._samples.note(step)
        if change in ("insert", "update", "delete"):
            self._differs = True
            new = _row_mark(met.row) if step.outcome is Outcome.BACKUP and met.row is not None else b""
            line = b"\t".join((change.encode(), _escaped(met.path), _live_mark(met.live), new))
            self._digest.lines([line])

    def note_new(self, rows: Sequence[Row], number: int) -> None:
        """Like `note` for rows that all come to where nothing is; `number` is the first one's."""
        lines, room, created = [], 0, 0
        for at, row in enumerate(rows, number):
            room += self._room(row)
            lines.append(b"insert\t%b\t\t%b" % (_escaped(row.path), _row_mark(row)))
            if not row_is_folder(row):
                created += 1
                if self._samples.wants("insert"):
                    self._samples.note(Step(Meeting(row.path, None, row, at), Outcome.BACKUP, "insert"))
        self._entries += len(rows)
        self._bytes += room
        self._counts["created"] += created
        self._differs = True
        self._digest.lines(lines)

    def _room(self, row: Row) -> int:
        if kind_of(row.stat) != statmod.S_IFREG:
            return _BLOCK_BYTES
        size: int
        _, _, _, links, size, _, _, inode, device = STAT.unpack(row.stat)
        if links > 1:
            place = device, inode
            if place in self._links:
                return _LINK_BYTES
            if len(self._links) < _LINKS_KNOWN_MAX:
                self._links.add(place)
        if row.extra and ("extents" in row.extra or "extents_chunks" in row.extra):
            size = sum(length for _, length in self._view.extents(Entry(row)))
        return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES + _LINK_BYTES

    def comparison(self, withheld: int) -> Comparison:
        names = ("created", "replaced", "removed", "unchanged", "kept", "conflicts")
        return Comparison(
            FileChange(**{name: self._counts[name] for name in names}),
            self._digest.hexdigest(),
            self._differs,
            self._samples.all(),
            self._bytes,
            self._entries,
            withheld,
        )


def _present(live: Live | None) -> bool:
    return live is not None and not live.is_folder


def _counted(change: str, *, before: bool, after: bool) -> str:
    """A file that a folder replaces is removed, one that replaces a folder is created."""
    if change == "update" and before != after:
        return "created" if after else "removed"
    return _COUNTED[change]


def _live_mark(live: Live | None) -> bytes:
    """What must not change between a preview and its restore.

    Times of folders are left out: whatever is left out of backups may come and go in them. So is the
    ctime of a file with several names, which changes when another name does.
    """
    if live is None:
        return b""
    stat = live.stat
    if live.is_folder:
        return b"%d:%d:%d" % (stat.mode, stat.uid, stat.gid)
    ctime = stat.ctime_ns if stat.links == 1 else 0
    return b"%d:%d:%d:%d:%d:%d:%d" % (stat.mode, stat.uid, stat.gid, stat.size, stat.mtime_ns, ctime, stat.inode)


def _row_mark(row: Row) -> bytes:
    mode, uid, gid, _, size, mtime_ns, _, _, _ = STAT.unpack(row.stat)
    if row_is_folder(row):
        size = 0
    known = attributes(row) if row.extra else None
    more = _escaped(repr(sorted(known.items())).encode()) if known else b""
    return b"%d:%d:%d:%d:%d:%b:%b" % (mode, uid, gid, size, mtime_ns, row.sum.hex().encode(), more)


def _escaped(text: bytes) -> bytes:
    if b"\\" in text or b"\n" in text or b"\t" in text:
        for plain, written in _ESCAPES:
            text = text.replace(plain, written)
    return text


def _sample(step: Step) -> PathSample:
    before, after = _seen(step.met.live), _recorded(step.met.row)
    return PathSample(
        "conflict" if step.conflict else step.change,  # type: ignore[arg-type]
        show_path(step.met.path) or ".",
        size_before=before.size,
        size_after=after.size,
        modified_before=before.modified,
        modified_after=after.modified,
        because=_because(step),
    )


class _Shown(NamedTuple):
    size: int | None = None
    modified: str | None = None


def _seen(live: Live | None) -> _Shown:
    return _Shown() if live is None else _shown(live.stat)


def _recorded(row: Row | None) -> _Shown:
    return _Shown() if row is None else _shown(Stat._make(STAT.unpack(row.stat)))


def _shown(stat: Stat) -> _Shown:
    return _Shown(stat.size if statmod.S_ISREG(stat.mode) else None, moment(stat.mtime_ns))


def moment(ns: int) -> str | None:
    """RFC 3339 to the microsecond; None for a time that calendars do not know."""
    try:
        whole = datetime.datetime.fromtimestamp(ns // 10**9, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return whole.replace(microsecond=ns % 10**9 // 1000).isoformat()


def _because(step: Step) -> str:
    live, row = step.met.live, step.met.row
    if step.because or live is None or row is None or step.change != "update":
        return step.because
    if live.is_folder != row_is_folder(row):
        return "a folder takes a file's place" if row_is_folder(row) else "a file takes a folder's place"
    found, kept = live.stat, Stat._make(STAT.unpack(row.stat))
    if kind_of(live.record) != kind_of(row.stat):
        return "it is of another kind"
    if (found.uid, found.gid) != (kept.uid, kept.gid):
        return f"owner {found.uid}:{found.gid}, was {kept.uid}:{kept.gid}"
    if found.mode != kept.mode:
        return f"mode {statmod.S_IMODE(found.mode):o}, was {statmod.S_IMODE(kept.mode):o}"
    return ""


def open_folder(path: bytes) -> int:
    """A descriptor of a folder. Raises OSError."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
