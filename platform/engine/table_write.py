"""Write runs: base blocks cut by keys alone, deltas, and the lists that name the spans."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import partial
from math import log2
from typing import Any, Protocol, TypeVar
from zlib import crc32

from engine.ports import KeySpec, RowBatch
from engine.table_runs import (
    BLOCK_WEIGHT_MAX,
    BLOCK_WEIGHT_MEAN,
    BLOCK_WEIGHT_MIN,
    LIST_SPANS_MAX,
    NEWLINE,
    ROW_OVERHEAD,
    SPAN_BYTES,
    SPAN_BYTES_MIN,
    TAB,
    Block,
    ChunkSource,
    ChunkWriter,
    Delta,
    Span,
    SpanRef,
    bucket_ends,
    bucket_record,
    keys_check,
    pieces_add,
    record_length,
    sections_join,
)
from engine.table_spans import DeltaLeaf, delta_rows

T = TypeVar("T")
StoredBlock = tuple[Block, list[bytes]]
"""A block whose chunks are stored, and the records of the buckets that end in it."""
SPANS_IN_FLIGHT_MAX = 4


class TableSession(Protocol):
    """What a table needs of a Session."""

    @property
    def meta(self) -> Any: ...

    def submit(self, work: Callable[[Any], T]) -> Future[T]: ...


@dataclass
class Totals:
    """What the written spans amount to."""

    rows: int = 0
    bytes: int = 0
    spans: int = 0
    base_rows: int = 0
    base_bytes: int = 0
    delta_rows: int = 0
    delta_bytes: int = 0
    deltas: int = 0
    """Of the span that has most."""


@dataclass
class Outcome:
    """A span whose chunks are stored: how it is named, what is in it, the records of its buckets."""

    bound: str | None
    span: Span
    rows: int
    records: Sequence[bytes]
    ids: list[str] | None = None
    """Where the span lies already, when it is an unchanged one."""


class Assembly:
    """Puts spans in a row: in key order, finished by the workers or taken over from the parent."""

    def __init__(self, session: TableSession) -> None:
        self.session = session
        self.totals = Totals()
        self._digest = hashlib.sha256()
        self._waiting: deque[Callable[[], Outcome]] = deque()
        self._refs: list[SpanRef] = []
        self._lists: list[list[str]] = []

    def append(self, outcome: Callable[[], Outcome]) -> None:
        """Add the next span; the callable may wait for workers and is called in turn."""
        self._waiting.append(outcome)
        while len(self._waiting) > SPANS_IN_FLIGHT_MAX:
            self._settle(self._waiting.popleft()())

    def _settle(self, outcome: Outcome) -> None:
        size = sum(map(record_length, outcome.records))
        self._digest.update(b"".join([each[:32] for each in outcome.records]))
        ids = outcome.ids or pieces_add(self.session.meta, outcome.span.to_json())
        if len(self._refs) == LIST_SPANS_MAX:
            self._list_write()
        self._refs.append(SpanRef(ids, outcome.bound, outcome.rows, size))
        span, totals = outcome.span, self.totals
        totals.rows += outcome.rows
        totals.bytes += size
        totals.spans += 1
        totals.base_rows += span.base_rows
        totals.base_bytes += span.base_bytes
        totals.delta_rows += span.delta_rows
        totals.delta_bytes += span.delta_bytes
        totals.deltas = max(totals.deltas, len(span.deltas))

    def _list_write(self) -> None:
        text = json.dumps([asdict(each) for each in self._refs], separators=(",", ":")).encode()
        self._lists.append(pieces_add(self.session.meta, text))
        self._refs = []

    def finish(self) -> tuple[list[list[str]], str]:
        """The ids of the lists and the table's SHA-256, when all spans are stored."""
        while self._waiting:
            self._settle(self._waiting.popleft()())
        if self._refs:
            last = self._refs[-1]
            self._refs[-1] = SpanRef(last.span, None, last.rows, last.bytes)
            self._list_write()
        return self._lists, self._digest.hexdigest()


# ---------------------------------------------------------------- base runs


@dataclass
class Carry:
    """A bucket that a span leaves open for the next: its lines and, where they are at hand, its rows."""

    lines: list[bytes] = field(default_factory=list)
    rows: list[bytes] | None = field(default_factory=list)


def block_bits(width: int) -> int:
    """How many bits of a key's hash end a block when rows are so many bytes wide."""
    buckets = (BLOCK_WEIGHT_MEAN - BLOCK_WEIGHT_MIN) / (32 * (width + ROW_OVERHEAD))
    return round(log2(buckets)) if buckets > 1 else 0


class BaseWriter:
    """Cuts full lines in key order into blocks and spans of a base run.

    Where blocks end depends on the keys and roughly on the rows' width, so that a base that is read again
    gives the blocks it gave before. `bits` scales the mask; it is chosen by the first rows and kept in the
    manifest.
    """

    def __init__(self, assembly: Assembly, key: KeySpec, *, bits: int | None) -> None:
        self._assembly, self._key = assembly, key
        self.bits = bits
        self.open = False
        self._carry = Carry()
        self._before: bytes | None = None
        self._before_rows = 0
        self._last: bytes | None = None
        self._rows: list[bytes] = []
        self._keys: list[bytes] = []
        self._lines: list[bytes] = []
        self._closed = 0
        self._texts: list[bytes] = []
        self._gaps: list[int] = []
        self._weight = 0
        self._blocks: list[Future[StoredBlock]] = []
        self._span_bytes = 0

    def begin(self, carry: Carry) -> None:
        """Open, with the bucket that the span before left open and its rows."""
        assert not self.open and carry.rows is not None
        self.open = True
        self._carry = carry
        self._before = NEWLINE.join(carry.rows) if carry.rows else None
        self._before_rows = len(carry.rows)

    @property
    def small(self) -> bool:
        """Whether what is open would make too small a span, so that the next should join it."""
        return self._span_bytes + self._weight < SPAN_BYTES_MIN

    def feed(self, batch: RowBatch) -> None:
        """Take the next rows. Raises SourceError when they are out of order."""
        if not batch:
            return
        keys_check(self._key, batch.keys, self._last)
        if self.bits is None:
            self.bits = block_bits(sum(map(len, batch.rows)) // len(batch))
        self._last = batch.keys[-1]
        self._rows += batch.rows
        self._keys += batch.keys
        self._lines += batch.heads
        self._cut()

    def _cut(self) -> None:
        """Close the buckets that end among the pending rows, and blocks where the keys say so."""
        rows, keys, mask = self._rows, self._keys, (1 << (self.bits or 0)) - 1
        begin = closed = self._closed
        done = 0
        for end in bucket_ends(keys[closed:], self._before_rows):
            end += closed
            text = NEWLINE.join(rows[begin:end])
            self._texts.append(text)
            self._gaps.append(end - begin)
            self._weight += len(text) + ROW_OVERHEAD * (end - begin)
            self._before_rows, begin = 0, end
            if self._weight < BLOCK_WEIGHT_MIN:
                continue
            if self._weight >= BLOCK_WEIGHT_MAX or not crc32(keys[end - 1]) >> 5 & mask:
                self._block(self._lines[done:end], keys[end - 1])
                done = end
        del rows[:done], keys[:done], self._lines[:done]
        self._closed = begin - done

    def _block(self, lines: list[bytes], last: bytes, rest: bytes | None = None) -> None:
        """Hand a block to a worker; `rest` are the joined rows behind its last closed bucket."""
        before = self._before if self._texts else None
        meta, texts, gaps = self._assembly.session.meta, self._texts, self._gaps
        work = partial(_block_write, meta, texts, gaps, lines, last, before, rest)
        self._blocks.append(self._assembly.session.submit(work))
        self._span_bytes += sum(map(len, texts)) + len(rest or b"")
        if texts:
            self._before = None
        self._texts, self._gaps, self._weight = [], [], 0
        if self._span_bytes >= SPAN_BYTES:
            self._span(last)

    def _span(self, last: bytes | None) -> None:
        if self._blocks and last is not None:
            self._assembly.append(partial(_base_outcome, self._blocks, last.decode("latin-1")))
        self._blocks, self._span_bytes = [], 0

    def finish(self, *, final: bool) -> Carry:
        """Close the block and the span; return the bucket that stays open.

        With `final` the table ends here, and every bucket with it.
        """
        rows, lines = self._rows[self._closed :], self._lines[self._closed :]
        carry = Carry(lines, rows)
        if self._before_rows:  # No bucket was closed since the carry: it goes on.
            carry = Carry(self._carry.lines + lines, (self._carry.rows or []) + rows)
        if self._rows:
            if final and rows:
                self._texts.append(NEWLINE.join(rows))
                self._gaps.append(len(rows))
            self._block(self._lines, self._keys[-1], NEWLINE.join(rows) if rows and not final else None)
        elif final and self._before is not None:
            record_append(self._assembly, carry.lines[-1], bucket_record(self._before))
        self._span(self._last)
        self._rows, self._keys, self._lines, self._closed = [], [], [], 0
        self._before, self._before_rows, self.open = None, 0, False
        return Carry() if final else carry


def _block_write(
    meta: ChunkWriter,
    texts: list[bytes],
    gaps: list[int],
    lines: list[bytes],
    last: bytes,
    before: bytes | None,
    rest: bytes | None,
    lane: ChunkWriter,
) -> StoredBlock:
    records = [bucket_record(text, before if not at else None) for at, text in enumerate(texts)]
    data = NEWLINE.join(texts if rest is None else [*texts, rest])
    gap_text = b",".join(b"%d" % gap for gap in gaps)
    leaf = sections_join(gap_text, b"".join(records), NEWLINE.join(lines))
    block = Block(
        rows=len(lines),
        bytes=len(data) + 1,
        last=last.decode("latin-1"),
        leaf=pieces_add(meta, leaf),
        data=pieces_add(lane, data, fast=True),
    )
    return block, records


def _base_outcome(blocks: list[Future[StoredBlock]], bound: str) -> Outcome:
    stored = [each.result() for each in blocks]
    span = Span([block for block, _ in stored])
    return Outcome(bound, span, span.base_rows, [record for _, records in stored for record in records])


# ---------------------------------------------------------------- delta runs


@dataclass
class Change:
    """What a backup found different in a span; `records` are those of buckets, by their last key."""

    upserts: dict[bytes, tuple[bytes, bytes]] = field(default_factory=dict)
    """By key text: `version TAB key-text` and the row."""
    deletions: set[bytes] = field(default_factory=set)
    records: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(len(row) + 1 for _, row in self.upserts.values())


def delta_write(
    meta: ChunkWriter,
    reader: ChunkSource,
    key: KeySpec,
    merged: Sequence[DeltaLeaf],
    change: Change,
    below: Callable[[], set[bytes]],
    alive: set[bytes],
    lane: ChunkWriter,
) -> Delta:
    """Store a change as one delta run, with the older deltas it takes the place of, oldest first.

    `below` tells the keys that exist beneath it (a deletion of any other need not be kept), `alive` the
    last keys of today's buckets (other records need not be kept).
    """
    entries: dict[bytes, tuple[bytes, bytes] | None] = {}
    records: dict[bytes, bytes] = {}
    for leaf in merged:
        entries.update(delta_rows(reader, leaf))
        records.update((end, record) for end, record in leaf.records.items() if end in alive)
    entries.update(change.upserts)
    entries.update(dict.fromkeys(change.deletions))
    records.update(change.records)
    if any(value is None for value in entries.values()):
        exist = below()
        entries = {text: value for text, value in entries.items() if value is not None or text in exist}
    ordered = sorted(entries, key=key.encode)
    pairs = [entries[text] or (TAB + text, None) for text in ordered]
    rows = [row for _, row in pairs if row is not None]
    ends = sorted(records, key=key.encode)
    leaf_text = sections_join(
        b",".join([b"0" if row is None else b"%d" % (len(row) + 1) for _, row in pairs]),
        NEWLINE.join([line for line, _ in pairs]),
        b"".join([records[end] for end in ends]),
        NEWLINE.join(ends),
    )
    return Delta(
        rows=len(pairs),
        bytes=sum(map(len, rows)) + len(rows),
        weight=1 + sum(leaf.delta.weight for leaf in merged),
        leaf=pieces_add(meta, leaf_text),
        data=pieces_add(lane, NEWLINE.join(rows)),
    )


def record_append(assembly: Assembly, line: bytes, record: bytes) -> None:
    """Append a span without rows that only says how the bucket ends that the span before left open."""
    meta, end = assembly.session.meta, line.partition(TAB)[2]
    leaf = sections_join(b"", b"", record, end)
    span = Span([], [Delta(rows=0, bytes=0, weight=1, leaf=pieces_add(meta, leaf), data=[])])
    assembly.append(lambda: Outcome(None, span, 0, [record]))
