"""Back up a folder: scan it, compare with the parent's tree, read what changed, write the new tree.

The caller's thread scans; the session's workers read. A file whose stat record equals the parent's is
taken to be unchanged (device, inode, size, mtime, ctime: ctime cannot be set from user space), unless
its ctime lies so close to the parent's scan that a later change could bear the same time.
"""

import os
import stat as statmod
import time
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

from engine.chunks import ChunkReader
from engine.errors import SourceDenied, SourceError, SourceUnreachable
from engine.ports import TreePart
from engine.progress import Progress
from engine.session import Lane, Session
from engine.tree_format import STAT, VERSION, Leaf, LeafRef, Row, show_path, stat_sum
from engine.tree_read import SPREAD_BYTES, EntryReader, Outcome, SpreadLane
from engine.tree_scan import Span, TreeScan
from engine.tree_small import Job, Turns
from engine.tree_view import TreeView
from engine.tree_write import TreeWriter

CLOCK_GRAIN_NS = 2_000_000_000
"""Coarsest time stamps of the file systems we meet (FAT: 2 s)."""
BATCH_JOBS_MAX = 200
BATCH_BYTES_MAX = 2 << 20
DRAFTS_MAX = 48
"""Leaves that may wait for their content at once: about 50,000 entries."""
LINKS_KNOWN_MAX = 1 << 16
WARNINGS_PER_CODE_MAX = 50


class ParentTree:
    """The parent's tree as stat cache."""

    def __init__(self, reader: ChunkReader, node: Mapping[str, Any], *, top_modules: bool) -> None:
        self._view = TreeView(reader, node)
        self._whole_leaves = node["top_modules"] == top_modules
        self._settled_ns = int(node["scanned_at_ns"]) - CLOCK_GRAIN_NS
        self._leaf: Leaf | None = None
        self._numbers: dict[bytes, int] = {}
        self._chunk = b""
        self._one_leaf = False

    def leaf(self, ref: LeafRef) -> Leaf:
        """A leaf of the parent, read from the repository."""
        return self._view.leaf(ref)

    def same(self, span: Span) -> LeafRef | None:
        """The parent's leaf when it holds exactly these entries with these records."""
        ref = self._view.ref_at(span.paths[0])
        same = (
            self._whole_leaves
            and ref.first == span.paths[0]
            and ref.entries == len(span.paths)
            and ref.changed_ns < self._settled_ns
            and ref.stat_sum == stat_sum(span.paths, span.stats)
        )
        return ref if same else None

    def begin(self, span: Span) -> None:
        """Have the leaf at hand in which the span begins; look no further when it ends there too."""
        ref = self._view.ref_at(span.paths[0])
        self._load(ref)
        self._one_leaf = self._view.ref_at(span.paths[-1]).chunk == ref.chunk

    def find(self, path: bytes) -> Row | None:
        """The parent's row; paths come in tree order between one `begin` and the next."""
        number = self._numbers.get(path)
        if number is None and not self._one_leaf:
            self._load(self._view.ref_at(path))
            number = self._numbers.get(path)
        return self._leaf.row(number) if self._leaf and number is not None else None

    def _load(self, ref: LeafRef) -> None:
        if ref.chunk != self._chunk:
            self._chunk, self._leaf = ref.chunk, self._view.leaf(ref)
            self._numbers = {path: number for number, path in enumerate(self._leaf.paths)}

    def settled(self, stat: bytes) -> bool:
        """False when a change after the parent's scan could bear this record."""
        return bool(STAT.unpack(stat)[6] < self._settled_ns)


@dataclass(slots=True)
class Batch:
    """Entries that one worker reads in one go."""

    jobs: list[Job] = field(default_factory=list)
    bytes: int = 0
    future: Future[list[Row | Outcome]] | None = None


@dataclass(slots=True)
class Awaited:
    """A place in a draft that a worker fills; `before` is the parent's row when all content is compared."""

    batch: Batch
    number: int
    path: bytes
    before: Row | None = None


@dataclass(slots=True)
class Stretch:
    """Neighbouring places in a draft, filled by a worker with what it makes of these jobs of a batch."""

    batch: Batch
    begin: int
    end: int


class Draft:
    """A leaf in the making: rows, and places that wait for theirs."""

    __slots__ = ("slots",)

    def __init__(self) -> None:
        self.slots: list[Row | Awaited | Stretch] = []

    def ready(self) -> bool:
        """True when nothing is waited for, or hardly: batches end nearly in the order in which they began."""
        last = self.slots[-1]
        return isinstance(last, Row) or (last.batch.future is not None and last.batch.future.done())


class TreeBackup:
    """One run of backup_tree."""

    def __init__(
        self, session: Session, part: TreePart, root: int, parent: ParentTree | None, *, full: bool, progress: Progress
    ) -> None:
        self._session, self._part, self._root, self._progress = session, part, root, progress
        self._parent, self._full = parent, full
        self._writer = TreeWriter(session.meta, top_modules=part.top_modules)
        self._drafts: deque[Draft | LeafRef] = deque()
        self._batch = Batch()
        self._futures: deque[Future[list[Row | Outcome]]] = deque()
        self._turns = Turns()
        self._links: dict[bytes, tuple[Batch, int]] = {}
        self._stop = False
        self.counts: Counter[str] = Counter()
        self.missed = 0

    def run(self) -> dict[str, Any]:
        """Scan, read, write; the part of the node that names and sums the tree."""
        scan = TreeScan(
            self._root,
            exclude=self._part.exclude,
            one_file_system=self._part.one_file_system,
            problem=lambda code, path, error: self._warn(code, path, error.strerror or str(error)),
        )
        try:
            for span in scan:
                self._progress.check()
                self._take(span)
                self._progress.advance(items=len(span.paths))
                while self._drafts and (len(self._drafts) > DRAFTS_MAX or self._is_ready(self._drafts[0])):
                    self._settle(self._drafts.popleft())
            while self._drafts:
                self._settle(self._drafts.popleft())
        finally:
            # Workers hold the root's descriptor: none may run on when it is closed.
            self._stop = True
            wait(self._futures)
        self._summarise_warnings()
        return {**self._writer.finish(), "sockets": scan.sockets}

    # ------------------------------------------------------------ from spans to drafts

    def _take(self, span: Span) -> None:
        parent = self._parent
        if parent is not None and not self._full:
            ref = parent.same(span)
            if ref is not None:
                self._drafts.append(ref)
                return
        self._drafts.append(self._draft(span))

    def _draft(self, span: Span) -> Draft:
        draft, parent, full = Draft(), self._parent, self._full
        if parent is not None:
            parent.begin(span)
        records = STAT.iter_unpack(b"".join(span.stats))
        for path, stat, fields in zip(span.paths, span.stats, records, strict=True):
            before = parent.find(path) if parent is not None else None
            if before is not None and (before.stat != stat or not parent.settled(stat)):  # type: ignore[union-attr]
                before = None
            if before is not None and not full:
                draft.slots.append(before)
            else:
                self._await(draft, (path, stat), fields, before)
        return draft

    def _await(self, draft: Draft, job: Job, fields: tuple[int, ...], before: Row | None) -> None:
        mode, _, _, links, size, *_ = fields
        if mode & 0xF000 != statmod.S_IFREG:
            size = 0
        elif links > 1 or size >= SPREAD_BYTES:
            draft.slots.append(Awaited(*self._linked(job, size, links), job[0], before))
            return
        batch, number = self._queued(job, size)
        if before is not None:
            draft.slots.append(Awaited(batch, number, job[0], before))
            return
        last = draft.slots[-1] if draft.slots else None
        if isinstance(last, Stretch) and last.batch is batch and last.end == number:
            last.end = number + 1
        else:
            draft.slots.append(Stretch(batch, number, number + 1))

    def _linked(self, job: Job, size: int, links: int) -> tuple[Batch, int]:
        """The place of a large file, or of one with several names: all bear one record, and it is read once."""
        known = self._links.get(job[1]) if links > 1 else None
        if known is not None:
            return known
        place = self._spread(job) if size >= SPREAD_BYTES else self._queued(job, size)
        if links > 1:
            if len(self._links) >= LINKS_KNOWN_MAX:
                self._links.clear()
            self._links[job[1]] = place
        return place

    def _spread(self, job: Job) -> tuple[Batch, int]:
        """Read a large file here and now; its chunks go to all workers."""
        batch = Batch(future=Future())
        assert batch.future is not None
        sink = SpreadLane(self._session)
        batch.future.set_result(
            EntryReader(self._root, sink, self._session.meta, self._progress, self._turns).read([job])
        )
        return batch, 0

    def _queued(self, job: Job, size: int) -> tuple[Batch, int]:
        batch = self._batch
        batch.jobs.append(job)
        batch.bytes += size
        place = batch, len(batch.jobs) - 1
        if batch.bytes >= BATCH_BYTES_MAX or len(batch.jobs) >= BATCH_JOBS_MAX:
            self._submit()
        return place

    def _submit(self) -> None:
        batch, self._batch = self._batch, Batch()
        root, meta, progress, turns = self._root, self._session.meta, self._progress, self._turns
        jobs = batch.jobs

        def read(lane: Lane) -> list[Row | Outcome]:
            return [] if self._stop else EntryReader(root, lane, meta, progress, turns).read(jobs)

        batch.future = self._session.submit(read)
        batch.jobs = []
        self._futures.append(batch.future)
        while self._futures and self._futures[0].done():
            self._futures.popleft()

    # ------------------------------------------------------------ from drafts to leaves

    def _is_ready(self, draft: Draft | LeafRef) -> bool:
        return isinstance(draft, LeafRef) or draft.ready()

    def _settle(self, draft: Draft | LeafRef) -> None:
        if isinstance(draft, LeafRef):
            assert self._parent is not None
            self._writer.cutter.add_ref(draft, self._parent.leaf)
            return
        rows: list[Row] = []
        for slot in draft.slots:
            if isinstance(slot, Row):
                rows.append(slot)
            elif isinstance(slot, Awaited):
                rows += self._arrived(slot.batch, slot.number, slot.number + 1, slot)
            else:
                rows += self._arrived(slot.batch, slot.begin, slot.end)
        self._writer.cutter.add_rows(rows)

    def _arrived(self, batch: Batch, begin: int, end: int, slot: Awaited | None = None) -> list[Row]:
        if batch.future is None:
            self._submit()
        assert batch.future is not None
        rows = []
        for found in batch.future.result()[begin:end]:
            row: Row | None
            if isinstance(found, Row):
                row = found
            else:
                row = found.row
                self._warn(found.code, slot.path if slot else found.path, found.detail)
            if row is not None:
                rows.append(row if slot is None else self._compared(slot, row))
        return rows

    def _compared(self, slot: Awaited, row: Row) -> Row:
        """The row under the place's own name; a difference to the parent's row is noted."""
        if slot.before is not None and slot.before.stat == row.stat and slot.before.sum != row.sum:
            self.missed += 1
            self._warn("file.change_missed", slot.path, "its content differs although its times do not")
        return row if row.path == slot.path else row._replace(path=slot.path)

    # ------------------------------------------------------------ warnings

    def _warn(self, code: str, path: bytes, detail: str) -> None:
        self.counts[code] += 1
        if self.counts[code] <= WARNINGS_PER_CODE_MAX:
            self._progress.warn(code, f"{show_path(path) or '.'}: {detail}")

    def _summarise_warnings(self) -> None:
        for code, count in self.counts.items():
            if count > WARNINGS_PER_CODE_MAX:
                self._progress.warn(code, f"and {count - WARNINGS_PER_CODE_MAX} more")


def open_root(root: bytes) -> int:
    """A descriptor of the folder itself, behind links. Raises SourceError and its children."""
    try:
        return os.open(os.path.realpath(root), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceUnreachable(
            f"{show_path(root)} is not a folder", hint="is it mounted, and is the path right?"
        ) from error
    except PermissionError as error:
        raise SourceDenied(f"{show_path(root)} cannot be read", hint="run as a user who may read it") from error
    except OSError as error:
        raise SourceError(f"{show_path(root)}: {error.strerror}") from error


def backup_tree(
    session: Session,
    part: TreePart,
    *,
    parent: Mapping[str, Any] | None,
    reader: ChunkReader,
    full: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Store the folder's tree; the node for the manifest.

    `full` reads all content whatever the parent says and counts in `missed` the files whose content
    differs although an incremental would have taken them for unchanged. Entries that cannot be read or
    vanish are left out with a warning. Raises SourceError when the root cannot be read.
    """
    root = open_root(part.root)
    try:
        scanned_at = time.time_ns()
        usable = parent is not None and parent.get("format") == VERSION
        old = ParentTree(reader, parent, top_modules=part.top_modules) if usable and parent else None
        run = TreeBackup(session, part, root, old, full=full, progress=progress)
        node = run.run()
    finally:
        os.close(root)
    if full and old is not None:
        node["missed"] = run.missed
    return {
        "name": part.name,
        "facts": dict(part.facts),
        "scanned_at_ns": str(scanned_at),
        "left_out": dict(sorted(run.counts.items())),
        **node,
    }
