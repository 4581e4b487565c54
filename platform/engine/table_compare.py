"""Compare a table with what its parent backup holds, span by span, and keep what differs."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import compress, count
from operator import attrgetter, ne
from typing import Protocol
from zlib import crc32

from engine.errors import SourceChanged
from engine.ports import RowBatch, RowsApart, TablePart
from engine.progress import Progress
from engine.table_runs import (
    DELTA_SHARE_MAX,
    NEWLINE,
    ChunkSource,
    Span,
    bucket_ends,
    bucket_record,
    key_of_line,
    keys_check,
    keys_of_lines,
    lines_take_apart,
    merge_layout,
    record_length,
)
from engine.table_spans import StoredSpan
from engine.table_write import Assembly, BaseWriter, Carry, Change, Outcome, delta_write

TAKE_LINES_MAX = 65_536
TAKE_BYTES_MAX = 64 << 20
PIECE_LINES_MAX = 16_384
PIECE_BYTES_MAX = 192 << 10
"""A base is written in pieces that stay in a core's cache while their lines are gone through several times."""
REREAD_ROWS_MIN = 100_000
REREAD_SHARE_MAX = 4
"""When more than one in so many rows would be fetched by key, reading the whole table is quicker."""


class TooManyChanges(Exception):
    """Comparing versions found so much that the table is better read whole; never leaves the engine."""


NOTHING = RowBatch([], [], [])


class LineStream:
    """What a source gives in key order, taken up to a key.

    `texts` are those of a batch that are in order, `encoded` says in which.
    """

    def __init__(
        self,
        batches: Iterator[RowBatch],
        texts: Callable[[RowBatch], list[bytes]],
        encoded: Callable[[bytes], bytes],
    ) -> None:
        self._batches, self._texts, self._encoded = batches, texts, encoded
        self._pending = NOTHING

    def take(self, bound: bytes | None, *, lines_max: int, bytes_max: int) -> tuple[RowBatch, bool]:
        """The next ones up to the bound, and whether these are all of them or the limits stopped it."""
        got = NOTHING
        size = 0
        while True:
            if not self._pending:
                pending = next(self._batches, None)
                if pending is None:
                    return got, True
                self._pending = pending
                continue
            if bound is not None and self._encoded((texts := self._texts(self._pending))[-1]) > bound:
                count = bisect_right(texts, bound, key=self._encoded)
                got += self._pending[:count]
                self._pending = self._pending[count:]
                return got, True
            size += sum(map(len, self._pending.rows or self._pending.heads))
            got = got + self._pending if got else self._pending
            self._pending = NOTHING
            if len(got) >= lines_max or size >= bytes_max:
                return got, False


class Feed(Protocol):
    """Where the lines of today come from."""

    stream: LineStream

    def full(self, taken: RowBatch) -> Iterator[RowBatch]:
        """What the stream gave, with rows and keys."""


class RowFeed:
    """Reads every row."""

    def __init__(self, part: TablePart) -> None:
        if isinstance(part, RowsApart):
            batches = part.rows_apart()
        else:
            batches = map(partial(lines_take_apart, part.key, bool(part.version_domain)), part.rows())
        self.stream = LineStream(batches, attrgetter("keys"), part.key.encode)

    def full(self, taken: RowBatch) -> Iterator[RowBatch]:
        """The same: the stream gave them whole."""
        yield taken


class VersionFeed:
    """Reads every version, and rows by key."""

    def __init__(self, part: TablePart) -> None:
        self._part = part
        key = part.key
        batches = (RowBatch([], [], lines) for lines in part.versions())
        self.stream = LineStream(batches, attrgetter("heads"), lambda line: key.encode(key_of_line(line)))

    def full(self, taken: RowBatch) -> Iterator[RowBatch]:
        """Raises SourceChanged when the rows are not those whose versions were read."""
        lines, at = taken.heads, 0
        for found in self._part.rows_for(keys_of_lines(lines)):
            batch = lines_take_apart(self._part.key, True, found)
            if batch.heads != lines[at : at + len(batch)]:
                at = -1
                break
            at += len(batch)
            yield batch
        if at != len(lines):
            raise SourceChanged(
                f"table {self._part.name}: rows read by key are not those listed before",
                hint="run the backup again; if it persists, the source does not read from one snapshot",
            )


class _Before:
    """A span of the parent with the bucket that the span before left open, cut into buckets."""

    def __init__(self, old: StoredSpan, carry: list[bytes], *, final: bool) -> None:
        self.carry = carry
        self.lines = carry + old.lines if carry else old.lines
        self.ends, self.records = old.buckets(carry, final=final)

    @property
    def left_open(self) -> list[bytes]:
        return self.lines[self.ends[-1] if self.ends else 0 :]


class TableUpdate:
    """One pass over a table: each span is taken over, gets a delta, or a new base."""

    def __init__(
        self,
        part: TablePart,
        feed: Feed,
        assembly: Assembly,
        writer: BaseWriter,
        *,
        reader: ChunkSource,
        progress: Progress,
        count_missed: bool = False,
        fetch_rows_max: int | None = None,
    ) -> None:
        self.key, self.feed = part.key, feed
        self.assembly, self.writer, self.reader = assembly, writer, reader
        self.progress = progress
        self.by_version = isinstance(feed, VersionFeed)
        self.carry, self._carry_old = Carry(), list[bytes]()
        self.last_key: bytes | None = None
        self._fetch_rows_left = fetch_rows_max
        self._count_missed = count_missed
        self.missed = 0
        """Rows of equal version that differ: changes no incremental would have seen."""

    def span(self, old: StoredSpan, *, final: bool) -> None:
        """Bring the next span up to date; `final` says that it is the last."""
        self.progress.check()
        bound = None if final or old.bound is None else self.key.encode(old.bound.encode("latin-1"))
        renew = self.writer.open or not old.span.blocks
        lines_max, bytes_max = PIECE_LINES_MAX, PIECE_BYTES_MAX
        if not renew:
            lines_max, bytes_max = max(TAKE_LINES_MAX, 4 * len(old.lines)), TAKE_BYTES_MAX
        taken, complete = self.feed.stream.take(bound, lines_max=lines_max, bytes_max=bytes_max)
        before = _Before(old, self._carry_old, final=final)
        carry = None
        if complete and not renew:
            carry = _Comparison(self, old, taken, before, final=final).run()
        if carry is None:
            self._rewrite(old, taken, complete, bound, final=final)
        else:
            self.carry = carry
        self._carry_old = before.left_open
        if bound is not None:
            self.last_key = (old.bound or "").encode("latin-1")

    def _rewrite(self, old: StoredSpan, taken: RowBatch, complete: bool, bound: bytes | None, *, final: bool) -> None:
        """Give the span a new base, read from the source."""
        writer = self.writer
        if not writer.open:
            writer.begin(self._carry_with_rows())
        while True:
            for begin in range(0, len(taken), PIECE_LINES_MAX):
                piece = taken[begin : begin + PIECE_LINES_MAX]
                self.count_fetch(len(piece))
                for batch in self.feed.full(piece):
                    writer.feed(batch)
                    if self._count_missed and old.lines:
                        self._look_for_missed(old, batch)
                    self.progress.advance(bytes=sum(map(len, batch.rows)), items=len(batch))
            if complete:
                break
            self.progress.check()
            taken, complete = self.feed.stream.take(bound, lines_max=PIECE_LINES_MAX, bytes_max=PIECE_BYTES_MAX)
        if final or not writer.small:
            self.carry = writer.finish(final=final)

    def _look_for_missed(self, old: StoredSpan, batch: RowBatch) -> None:
        known = old.lines_set
        for row, text, head in zip(batch.rows, batch.keys, batch.heads, strict=True):
            if head in known and old.row(text) != row:
                self.missed += 1

    def count_fetch(self, rows: int) -> None:
        """Count rows read by key. Raises TooManyChanges when reading the whole table is quicker."""
        if self.by_version and self._fetch_rows_left is not None:
            self._fetch_rows_left -= rows
            if self._fetch_rows_left < 0:
                raise TooManyChanges

    def _carry_with_rows(self) -> Carry:
        carry = self.carry
        if carry.rows is None:
            rows = [row for batch in self.feed.full(RowBatch([], [], carry.lines)) for row in batch.rows]
            carry = Carry(carry.lines, rows)
        return carry


class _Comparison:
    """One span of today against the same span of the parent."""

    def __init__(self, update: TableUpdate, old: StoredSpan, taken: RowBatch, before: "_Before", *, final: bool):
        self.update, self.old, self.before, self.final = update, old, before, final
        self.carry = update.carry
        self.rows: list[bytes] | None = None
        """Today's rows including the carry's, where they are at hand."""
        self.records: list[bytes | None] = []
        self.touched: list[int] | None = None
        """Numbers of the buckets with a changed line, where they are known already."""
        self.missed = 0
        self.own, self._keys = taken.heads, taken.keys
        if not update.by_version:
            self.rows = (self.carry.rows or []) + taken.rows
        self.lines = self.carry.lines + self.own if self.carry.lines else self.own

    def run(self) -> Carry | None:
        """Add the span to the assembly and return the bucket left open; None when it needs a new base."""
        before = self.before
        same = self.lines == before.lines and len(self.carry.lines) == len(before.carry)
        if same and self.rows is None:
            return self._keep(before.ends, before.records)
        if self.rows is None and self._cut_as_before():
            return self._changed()
        self._cut()
        if self.rows is not None:
            rows, pairs = self.rows, zip(self.begins, self.ends, strict=False)
            records = [bucket_record(NEWLINE.join(rows[a:b])) for a, b in pairs]
            if same and records == before.records and not self._open_tail():
                return self._keep(before.ends, before.records)
            self.records = [*records]
        return self._changed()

    def _cut(self) -> None:
        keys = keys_of_lines(self.own) if self.rows is None else self._keys
        keys_check(self.update.key, keys, self.update.last_key)
        self.keys = keys_of_lines(self.carry.lines) + keys
        self.ends = bucket_ends(self.keys)
        if self.final and len(self.keys) > (self.ends[-1] if self.ends else 0):
            self.ends.append(len(self.keys))
        self.begins = [0, *self.ends]

    def _cut_as_before(self) -> bool:
        """Find what differs where no key came or went, without looking at the others; whether it is so.

        Buckets end where they did, as that depends on keys alone, and all of them but the changed lines' have the
        records they had.
        """
        lines, before = self.lines, self.before
        if len(lines) != len(before.lines) or len(self.carry.lines) != len(before.carry):
            return False
        changed = [*compress(count(), map(ne, lines, before.lines))]
        if any(key_of_line(lines[at]) != key_of_line(before.lines[at]) for at in changed):
            return False
        own = len(self.carry.lines)
        self.ends = [*before.ends]
        self.begins = [0, *self.ends]
        self.added = {lines[at] for at in changed if at >= own}
        self.removed = {before.lines[at] for at in changed if at >= own}
        buckets = {bisect_right(self.ends, at) for at in changed}
        self.touched = sorted(bucket for bucket in buckets if bucket < len(self.ends))
        self.records = [*before.records]
        for bucket in self.touched:
            self.records[bucket] = None
        return True

    def _left_open(self, ends: Sequence[int]) -> Carry:
        at = ends[-1] if ends else 0
        if at == len(self.lines):
            return Carry()
        return Carry(self.lines[at:], None if self.rows is None else self.rows[at:])

    def _keep(self, ends: Sequence[int], records: Sequence[bytes]) -> Carry:
        ref = self.old.ref
        assert ref is not None
        outcome = Outcome(ref.bound, self.old.span, ref.rows, records, ref.span)
        self.update.assembly.append(lambda: outcome)
        self.update.progress.advance(bytes=ref.bytes, items=ref.rows)
        return self._left_open(ends)

    # ------------------------------------------------ what is different

    def _changed(self) -> Carry | None:
        if self.touched is None:
            old_lines, lines = self.old.lines_set, set(self.own)
            self.added, self.removed = lines - old_lines, old_lines - lines
        deletions = set(map(key_of_line, self.removed)).difference(map(key_of_line, self.added))
        if self._too_much(len(self.added) + len(deletions), 0):
            return None
        touched = self._touched() if self.touched is None else self.touched
        change = Change(deletions=deletions)
        if self.rows is None:
            self._fetch(touched, change)
        else:
            self._compare(touched, change)
        if self._too_much(len(change.upserts) + len(deletions), change.bytes):
            return None
        self.update.missed += self.missed
        records = [record for record in self.records if record is not None]
        assert len(records) == len(self.ends), "every bucket has a record by now"
        known = self.old.records
        by_end = {key_of_line(self.lines[end - 1]): record for end, record in zip(self.ends, records, strict=True)}
        change.records = {end: record for end, record in by_end.items() if known.get(end) != record}
        if not change.upserts and not change.deletions and not change.records:
            return self._keep(self.ends, records)
        self._delta(change, records, set(by_end))
        return self._left_open(self.ends)

    def _too_much(self, rows: int, size: int) -> bool:
        """Whether the deltas would outgrow their share of the base.

        The share varies by span between three and five 25ths, so that spans that change alike are not
        all renewed by the same backup.
        """
        span = self.old.span
        vary = 3 * 512 + crc32(span.blocks[0].leaf[0].encode()) % 1024
        share = vary / (5 * 512 * DELTA_SHARE_MAX)
        rows, size = rows + span.delta_rows, size + span.delta_bytes
        return rows > span.base_rows * share or size > span.base_bytes * share

    def _touched(self) -> list[int]:
        """Numbers of today's buckets that are not the same lines with the same record in the parent."""
        before, lines = self.before, self.lines
        spans = zip([0, *before.ends], before.ends, strict=False)
        known = {NEWLINE.join(before.lines[a:b]): record for (a, b), record in zip(spans, before.records, strict=True)}
        found = [known.get(NEWLINE.join(lines[a:b])) for a, b in zip(self.begins, self.ends, strict=False)]
        if self.rows is None:
            self.records = list(found)
            return [at for at, record in enumerate(found) if record is None]
        return [at for at, record in enumerate(found) if record != self.records[at]]

    def _open_tail(self) -> range:
        """Positions of lines of this span that lie in a bucket not ended here, so that no record speaks for them."""
        return range(max(len(self.carry.lines), self.begins[-1]), len(self.lines))

    def _fetch(self, touched: list[int], change: Change) -> None:
        """Read the rows of touched buckets by key: changed ones are kept, the others complete the digest."""
        wanted = [at for bucket in touched for at in range(self.begins[bucket], self.ends[bucket])]
        wanted += [at for at in self._open_tail() if self.lines[at] in self.added]
        self.update.count_fetch(len(wanted))
        rows: list[bytes] = []
        for batch in self.update.feed.full(RowBatch([], [], [self.lines[at] for at in wanted])):
            rows += batch.rows
        done = 0
        for bucket in touched:
            count = self.ends[bucket] - self.begins[bucket]
            self.records[bucket] = bucket_record(NEWLINE.join(rows[done : done + count]))
            done += count
        for at, row in zip(wanted, rows, strict=True):
            line = self.lines[at]
            if line in self.added:
                change.upserts[key_of_line(line)] = (line, row)

    def _compare(self, touched: list[int], change: Change) -> None:
        """Compare the rows at hand with the parent's in touched buckets."""
        assert self.rows is not None
        own, old = len(self.carry.lines), self.old
        wanted = [at for bucket in touched for at in range(self.begins[bucket], self.ends[bucket])]
        for at in [*wanted, *self._open_tail()]:
            line, row = self.lines[at], self.rows[at]
            if at < own:
                continue  # It was compared with the span before.
            if line in self.added:
                change.upserts[self.keys[at]] = (line, row)
            elif old.row(self.keys[at]) != row:
                change.upserts[self.keys[at]] = (line, row)
                self.missed += 1

    def _delta(self, change: Change, records: list[bytes], alive: set[bytes]) -> None:
        """Store the change as a delta, in place of older ones as `merge_layout` says."""
        update, old = self.update, self.old
        assert old.ref is not None
        layout = merge_layout(1 + sum(each.weight for each in old.span.deltas))
        keep = 0
        while keep < len(layout) - 1 and keep < len(old.deltas) and old.deltas[keep].delta.weight == layout[keep]:
            keep += 1
        kept, merged = old.deltas[:keep], old.deltas[keep:]
        write = partial(
            delta_write, update.assembly.session.meta, update.reader, update.key, merged, change,
            partial(old.keys_below, kept), alive,
        )  # fmt: skip
        future = update.assembly.session.submit(write)
        bound, blocks, rows = old.ref.bound, old.span.blocks, len(self.own)
        deltas = old.span.deltas[:keep]
        update.assembly.append(lambda: Outcome(bound, Span(blocks, [*deltas, future.result()]), rows, records))
        update.progress.advance(bytes=sum(map(record_length, records)), items=rows)
