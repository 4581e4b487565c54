"""Read a table back as one backup holds it, and walk its chunks."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from engine.errors import ObjectDamaged
from engine.ports import Column
from engine.table_runs import (
    Block,
    ChunkSource,
    Delta,
    Span,
    SpanRef,
    key_from_json,
    keys_of_rows,
    pieces_get,
    spans_of,
)
from engine.table_spans import SpanRows, ahead

BLOCKS_AHEAD = 3
WIDE_BLOCK_BYTES = 8 << 20
Visit = Callable[[bytes, bool], bool]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BlockPiece:
    """About 1 MiB of rows; two with one mark hold the same rows."""

    mark: bytes
    load: Callable[[], list[bytes]]


@dataclass(frozen=True, slots=True)
class SpanPiece:
    """About 16 MiB of rows; two with one mark hold the same rows. `blocks` reads what tells the blocks apart."""

    mark: tuple[str, ...]
    blocks: Callable[[], list[BlockPiece]]


class TableView:
    """A table of a manifest; every chunk is verified as it is read. Safe to read from several threads."""

    def __init__(self, reader: ChunkSource, node: Mapping[str, Any]) -> None:
        self._reader, self._node = reader, dict(node)
        self.name: str = node["name"]
        self.module: str = node["module"]
        self.columns = tuple(Column(**each) for each in node["columns"])
        self.key = key_from_json(node["key"])
        self.row_count: int = node["rows"]
        self.byte_count: int = node["bytes"]
        self.facts: Mapping[str, Any] = node["facts"]
        self.sha256: str = node["sha256"]

    def rows(self) -> Iterator[list[bytes]]:
        """Every row line in key order, a block at a time.

        Raises ChunkMissing or ObjectDamaged; the number of rows is compared with the manifest's at the end.
        """
        count = 0
        for rows in self._blocks(spans_of(self._reader, self._node), SpanRows.load):
            count += len(rows)
            if rows:
                yield rows
        self._check_count(count)

    def texts(self) -> Iterator[tuple[bytes, int]]:
        """As `rows`, each block's rows joined by newlines, and how many they are."""
        count = 0
        for text, rows in self._blocks(spans_of(self._reader, self._node), SpanRows.text):
            count += rows
            if rows:
                yield text, rows
        self._check_count(count)

    def _check_count(self, count: int) -> None:
        if count != self.row_count:
            raise ObjectDamaged(
                f"table {self.name} has {count} rows, the manifest says {self.row_count}", hint="run a deep verify"
            )

    def rows_after(self, key_text: bytes | None, *, limit: int) -> list[bytes]:
        """At most `limit` row lines behind a key (from the first when None); reads no more than it needs."""
        after = None if key_text is None else self.key.encode(key_text)
        out: list[bytes] = []
        for rows in self._blocks(self._spans_from(after), SpanRows.load, after=after, depth=0):
            if after is not None:
                rows = [row for row in rows if self.key.encode(self.key.text(row)) > after]
            out += rows[: limit - len(out)]
            if len(out) >= limit:
                break
        return out

    def rows_for(self, keys: Sequence[bytes]) -> Iterator[list[bytes]]:
        """Row lines of those keys that exist, in key order; `keys` are key texts in any order."""
        wanted = sorted({self.key.encode(text): text for text in keys}.items())
        at = 0
        for ref in spans_of(self._reader, self._node):
            bound = None if ref.bound is None else self.key.encode(ref.bound.encode("latin-1"))
            end = len(wanted) if bound is None else bisect_right(wanted, (bound, b"\xff"), lo=at)
            if end > at:
                yield from self._rows_in(ref, wanted[at:end])
            at = end
            if at == len(wanted):
                return

    def pieces(self) -> Iterator[SpanPiece]:
        """The table in key order, cut as it is stored, so that what two backups share need not be read."""
        for ref in spans_of(self._reader, self._node):
            yield SpanPiece(tuple(ref.span), partial(self._block_pieces, ref))

    def _block_pieces(self, ref: SpanRef) -> list[BlockPiece]:
        span = SpanRows(self._reader, self.key, ref)
        return [BlockPiece(span.mark(part), partial(span.load, part)) for part in span.parts]

    def _rows_in(self, ref: SpanRef, wanted: list[tuple[bytes, bytes]]) -> Iterator[list[bytes]]:
        span = SpanRows(self._reader, self.key, ref)
        encoded = [each[0] for each in wanted]
        for part in span.parts:
            low, high = span.range_of(part)
            begin = 0 if low is None else bisect_right(encoded, low)
            end = len(encoded) if high is None else bisect_right(encoded, high)
            texts = {text for _, text in wanted[begin:end]}
            if not texts:
                continue
            rows = span.load(part)
            keys = keys_of_rows(self.key, rows)
            yield [row for key, row in zip(keys, rows, strict=True) if key in texts]

    def _spans_from(self, after: bytes | None) -> Iterator[SpanRef]:
        for ref in spans_of(self._reader, self._node):
            if after is None or ref.bound is None or self.key.encode(ref.bound.encode("latin-1")) > after:
                yield ref

    def _blocks(
        self,
        refs: Iterator[SpanRef],
        load: Callable[[SpanRows, int], T],
        *,
        after: bytes | None = None,
        depth: int = BLOCKS_AHEAD,
    ) -> Iterator[T]:
        """What is loaded of each block, the next few being read meanwhile."""

        def open_span(ref: SpanRef) -> SpanRows:
            return SpanRows(self._reader, self.key, ref)

        def parts() -> Iterator[tuple[SpanRows, int]]:
            for span in ahead(spans_pool, refs, open_span, min(1, depth)):
                for part in span.parts:
                    high = span.range_of(part)[1]
                    if after is None or high is None or high > after:
                        yield span, part

        widest = self.byte_count // max(1, self.row_count) * 32
        with ThreadPoolExecutor(1) as spans_pool, ThreadPoolExecutor(2, thread_name_prefix="block") as pool:
            yield from ahead(pool, parts(), lambda each: load(*each), 0 if widest > WIDE_BLOCK_BYTES else depth)


def walk_table(reader: ChunkSource, node: Mapping[str, Any], visit: Visit) -> None:
    """Call visit(chunk id, is metadata) for every chunk that the node reaches.

    When it returns False for all pieces of a metadata object, what lies below was seen before.
    """
    for ids in node["lists"]:
        if not _visit(visit, ids):
            continue
        for ref in spans_of(reader, {"lists": [ids]}):
            if not _visit(visit, ref.span):
                continue
            span = Span.from_json(pieces_get(reader, ref.span))
            runs: list[Block | Delta] = [*span.blocks, *span.deltas]
            for run in runs:
                _visit(visit, run.leaf)
                for chunk in run.data:
                    visit(bytes.fromhex(chunk), False)


def _visit(visit: Visit, ids: Sequence[str]) -> bool:
    fresh = [visit(bytes.fromhex(each), True) for each in ids]
    return any(fresh)
