"""Count what a restore of a tree does, show some of it, and bind it by a digest."""

import datetime
import stat as statmod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engine.plans import ChangeDigest, PathSample
from engine.ports import FileChange
from engine.tree_cursor import Stretch
from engine.tree_decide import Step
from engine.tree_format import STAT, Row, Stat, show_path
from engine.tree_likeness import Live, attributes, kind_of, row_is_folder
from engine.tree_rules import Meeting, Outcome
from engine.tree_view import Entry, TreeView

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


class Tally:
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
        """Count a step."""
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
        elif step.conflict or _because(step):
            # A folder is not counted, but nobody's folder gets other rights unseen.
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

    def note_same(self, stretch: Stretch, outcome: Outcome) -> None:
        """Like `note` for entries that are all as the backup has them, and are taken from it or stay."""
        ref = stretch.ref
        self._counts["unchanged"] += ref.entries - ref.folders
        if outcome is Outcome.TENANT:
            self._entries += ref.folders
            self._bytes += ref.folders * _BLOCK_BYTES + (ref.entries - ref.folders) * _LINK_BYTES
            return
        self._entries += ref.entries
        self._bytes += sum(map(self._room, self._view.leaf(ref).rows()))

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
        """All of it; `withheld` as Comparison says."""
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
