"""Read spans: their leaves, merged from base and deltas, and single rows; several spans ahead."""

import hashlib
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TypeVar

from engine.errors import ObjectDamaged
from engine.ports import KeySpec
from engine.table_runs import (
    NEWLINE,
    RECORD_BYTES,
    Block,
    ChunkSource,
    Delta,
    Span,
    SpanRef,
    bucket_ends,
    changes_apply,
    key_of_line,
    keys_of_lines,
    keys_of_rows,
    lines_split,
    pieces_get,
    sections_split,
)

CHANGED_SHARE_MAX = 64
"""Up to one change in so many rows is looked up; for more, an index of all keys is quicker."""

A = TypeVar("A")
B = TypeVar("B")


def ahead(pool: ThreadPoolExecutor, items: Iterable[A], load: Callable[[A], B], depth: int) -> Iterator[B]:
    """Yield load(item) for each item, up to `depth` of them loading in the pool at a time."""
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(load, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _damaged(what: str) -> ObjectDamaged:
    return ObjectDamaged(f"a table run cannot be right: {what}", hint="run a deep verify; another copy may be whole")


def _numbers(text: bytes) -> list[int]:
    try:
        return [int(each) for each in text.split(b",")] if text else []
    except ValueError:
        raise _damaged("its counts are no numbers") from None


def _records(text: bytes, count: int) -> list[bytes]:
    if len(text) != count * RECORD_BYTES:
        raise _damaged("its bucket records do not fit")
    return [text[at : at + RECORD_BYTES] for at in range(0, len(text), RECORD_BYTES)]


# ---------------------------------------------------------------- leaves


@dataclass(frozen=True, slots=True)
class BlockLeaf:
    """`ends` are where the buckets end (exclusive) that have `records`."""

    lines: list[bytes]
    ends: list[int]
    records: list[bytes]


@dataclass(frozen=True, slots=True)
class DeltaLeaf:
    """Keys and versions of a delta, without its rows."""

    delta: Delta
    lines: list[bytes]
    sizes: list[int]
    """Per line: the row's length plus one, 0 for a deletion."""
    records: dict[bytes, bytes]

    def changes(self) -> dict[bytes, bytes | None]:
        """By key text: `version TAB key-text`, None for a deletion."""
        lines = [line if size else None for line, size in zip(self.lines, self.sizes, strict=True)]
        return dict(zip(keys_of_lines(self.lines), lines, strict=True))


def block_leaf_read(reader: ChunkSource, block: Block) -> BlockLeaf:
    """Read a block's leaf. Raises ChunkMissing, ObjectDamaged."""
    gaps, records, lines = sections_split(pieces_get(reader, block.leaf), 3)
    ends = [*accumulate(_numbers(gaps))]
    if ends and ends[-1] > block.rows:
        raise _damaged("buckets end behind their block")
    return BlockLeaf(lines_split(lines, block.rows), ends, _records(records, len(ends)))


def delta_leaf_read(reader: ChunkSource, delta: Delta) -> DeltaLeaf:
    """Read a delta's leaf. Raises ChunkMissing, ObjectDamaged."""
    sizes_text, lines, records, ends_text = sections_split(pieces_get(reader, delta.leaf), 4)
    sizes = _numbers(sizes_text)
    if len(sizes) != delta.rows:
        raise _damaged(f"a delta has {len(sizes)} rows instead of {delta.rows}")
    ends = ends_text.split(NEWLINE) if records else []
    by_end = dict(zip(ends, _records(records, len(ends)), strict=True))
    return DeltaLeaf(delta, lines_split(lines, delta.rows), sizes, by_end)


def block_rows_read(reader: ChunkSource, block: Block) -> list[bytes]:
    """The row lines of a base block."""
    return lines_split(pieces_get(reader, block.data), block.rows)


def delta_rows(reader: ChunkSource, leaf: DeltaLeaf) -> dict[bytes, tuple[bytes, bytes] | None]:
    """By key text: `version TAB key-text` and the row, None for a deletion."""
    rows = iter(lines_split(pieces_get(reader, leaf.delta.data), sum(1 for size in leaf.sizes if size)))
    out: dict[bytes, tuple[bytes, bytes] | None] = {}
    for line, size in zip(leaf.lines, leaf.sizes, strict=True):
        if not size:
            out[key_of_line(line)] = None
            continue
        row = next(rows)
        if len(row) + 1 != size:
            raise _damaged("a row of a delta is not as long as its leaf says")
        out[key_of_line(line)] = (line, row)
    return out


# ---------------------------------------------------------------- a span as the parent left it


class StoredSpan:
    """A span of the parent: its merged `version TAB key-text` lines, its buckets, single rows."""

    def __init__(self, reader: ChunkSource, key: KeySpec, ref: SpanRef | None) -> None:
        """Reads the leaves, no rows; without a ref the span is empty."""
        self._reader, self._key, self.ref = reader, key, ref
        self.span = Span.from_json(pieces_get(reader, ref.span)) if ref else Span()
        self._blocks = [block_leaf_read(reader, each) for each in self.span.blocks]
        self.deltas = [delta_leaf_read(reader, each) for each in self.span.deltas]
        self._base = self._blocks[0].lines if len(self._blocks) == 1 else [x for b in self._blocks for x in b.lines]
        self.changes: dict[bytes, bytes | None] = {}
        for leaf in self.deltas:
            self.changes.update(leaf.changes())
        self.lines = self._base
        if self.changes:
            self.lines = changes_apply(self.base_keys, self._base, self.changes, key.encode)
        if ref and len(self.lines) != ref.rows:
            raise _damaged(f"a span has {len(self.lines)} rows instead of {ref.rows}")
        self._cached: dict[int, list[bytes]] = {}

    @property
    def bound(self) -> str | None:
        return self.ref.bound if self.ref else None

    @cached_property
    def lines_set(self) -> set[bytes]:
        return set(self.lines)

    @cached_property
    def base_keys(self) -> list[bytes]:
        return keys_of_lines(self._base)

    @cached_property
    def base_index(self) -> dict[bytes, int]:
        return dict(zip(self.base_keys, range(len(self._base)), strict=True))

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(block.rows for block in self.span.blocks)]

    def keys_below(self, kept: Sequence[DeltaLeaf]) -> set[bytes]:
        """Keys of the base and of those deltas."""
        return {*self.base_index, *(text for leaf in kept for text in keys_of_lines(leaf.lines))}

    @cached_property
    def records(self) -> dict[bytes, bytes]:
        """Records of buckets by their last key; some of buckets that are no more."""
        out = {
            key_of_line(leaf.lines[end - 1]): record
            for leaf in self._blocks
            for end, record in zip(leaf.ends, leaf.records, strict=True)
        }
        for delta in self.deltas:
            out.update(delta.records)
        return out

    def buckets(self, carry: Sequence[bytes], *, final: bool) -> tuple[list[int], list[bytes]]:
        """Where the buckets end in `carry + lines`, and their records."""
        if not self.deltas:
            shift = len(carry)
            ends = [
                start + end + shift
                for start, leaf in zip(self._starts, self._blocks, strict=False)
                for end in leaf.ends
            ]
            return ends, [record for leaf in self._blocks for record in leaf.records]
        keys = keys_of_lines([*carry, *self.lines] if carry else self.lines)
        ends = bucket_ends(keys)
        if final and len(keys) > (ends[-1] if ends else 0):
            ends.append(len(keys))
        try:
            return ends, [self.records[keys[end - 1]] for end in ends]
        except KeyError:
            raise _damaged("a bucket has no record") from None

    @cached_property
    def _delta_rows(self) -> dict[bytes, tuple[bytes, bytes] | None]:
        out: dict[bytes, tuple[bytes, bytes] | None] = {}
        for leaf in self.deltas:
            out.update(delta_rows(self._reader, leaf))
        return out

    def row(self, text: bytes) -> bytes:
        """The row of a key that the span has; its block is read once."""
        if text in self.changes:
            found = self._delta_rows[text]
            assert found is not None
            return found[1]
        at = self.base_index[text]
        block = bisect_right(self._starts, at) - 1
        if block not in self._cached:
            self._cached[block] = block_rows_read(self._reader, self.span.blocks[block])
        return self._cached[block][at - self._starts[block]]


# ---------------------------------------------------------------- rows of a span


class SpanRows:
    """The rows of a span, block by block, with its deltas applied."""

    def __init__(self, reader: ChunkSource, key: KeySpec, ref: SpanRef) -> None:
        self._reader, self._key = reader, key
        self.span = Span.from_json(pieces_get(reader, ref.span))
        self._entries: list[tuple[bytes, bytes, bytes | None]] = []
        changes: dict[bytes, bytes | None] = {}
        for delta in self.span.deltas:
            rows = delta_rows(reader, delta_leaf_read(reader, delta))
            changes.update((text, found and found[1]) for text, found in rows.items())
        self._entries = sorted((key.encode(text), text, row) for text, row in changes.items())
        self._bounds = [each[0] for each in self._entries]

    def load(self, at: int) -> list[bytes]:
        """Rows up to the end of the block with this number; with one number more, those behind all blocks."""
        blocks, key = self.span.blocks, self._key
        begin = bisect_right(self._bounds, self._end(at - 1)) if at else 0
        end = bisect_right(self._bounds, self._end(at)) if at < len(blocks) else len(self._bounds)
        rows = block_rows_read(self._reader, blocks[at]) if at < len(blocks) else []
        if begin == end:
            return rows
        entries = self._entries[begin:end]
        found = self._changed(rows, entries) if len(entries) * CHANGED_SHARE_MAX <= len(rows) else None
        if found is not None:
            return found
        changes = {text: row for _, text, row in entries}
        return changes_apply(keys_of_rows(key, rows), rows, changes, key.encode)

    def text(self, at: int) -> tuple[bytes, int]:
        """What `load` gives, joined by newlines, and how many rows it is.

        A block without deltas is not split: its rows are as many as it says, and who reads them back counts them.
        """
        if self._bounds or at >= len(self.span.blocks):
            rows = self.load(at)
            return NEWLINE.join(rows), len(rows)
        block = self.span.blocks[at]
        return pieces_get(self._reader, block.data), block.rows

    def _changed(self, rows: list[bytes], entries: list[tuple[bytes, bytes, bytes | None]]) -> list[bytes] | None:
        """The rows after a few changes, looked up one by one; None unless each changes a row that is there."""
        key = self._key
        out: list[bytes] = []
        done = 0
        for encoded, text, row in entries:
            at = bisect_left(rows, encoded, lo=done, key=lambda each: key.encode(key.text(each)))
            if at == len(rows) or key.text(rows[at]) != text:
                return None
            out += rows[done:at]
            if row is not None:
                out.append(row)
            done = at + 1
        return out + rows[done:]

    def mark(self, at: int) -> bytes:
        """What `load(at)` gives is the same wherever this is the same."""
        blocks = self.span.blocks
        begin = bisect_right(self._bounds, self._end(at - 1)) if at else 0
        end = bisect_right(self._bounds, self._end(at)) if at < len(blocks) else len(self._bounds)
        digest = hashlib.sha256(" ".join(blocks[at].data if at < len(blocks) else ()).encode())
        for _, text, row in self._entries[begin:end]:
            digest.update(b"\n%d " % len(text) + text + (b"" if row is None else b"\n%d " % len(row) + row))
        return digest.digest()

    def _end(self, at: int) -> bytes:
        return self._key.encode(self.span.blocks[at].last.encode("latin-1"))

    def range_of(self, at: int) -> tuple[bytes | None, bytes | None]:
        """Encoded keys that a number to load lies between: behind the first, up to the second; None is open."""
        low = self._end(at - 1) if at else None
        return low, self._end(at) if at < len(self.span.blocks) else None

    @property
    def parts(self) -> range:
        """The numbers to load."""
        behind = bool(self._bounds) and (not self.span.blocks or self._bounds[-1] > self._end(-1))
        return range(len(self.span.blocks) + behind)
