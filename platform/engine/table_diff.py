"""What became of one backup's table in another's, without reading what they share."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from engine.erasures import LedgeredTable
from engine.ports import Column, KeySpec, TableView, unescape_field
from engine.table_runs import keys_of_rows
from engine.table_view import BlockPiece, SpanPiece
from engine.table_view import TableView as StoredTable


@dataclass(frozen=True, slots=True)
class ColumnChange:
    """A column that only one side has (None on the other), or whose type differs."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class RowChange:
    """One row that differs, as row lines of its side's columns."""

    change: Literal["insert", "update", "delete"]
    key: bytes
    """Key text: COPY fields joined by tabs."""
    before: bytes | None
    after: bytes | None
    fields: tuple[str, ...] = ()
    """Columns in which an updated row differs."""


@dataclass(frozen=True)
class TableDiff:
    """Two backups of one table, side by side."""

    old: TableView
    new: TableView

    @property
    def columns(self) -> tuple[ColumnChange, ...]:
        """Columns that were added, removed or got another type, in the new order, the removed ones last."""
        before = {column.name: column.type for column in self.old.columns}
        after = {column.name: column.type for column in self.new.columns}
        names = [*after, *(name for name in before if name not in after)]
        return tuple(
            ColumnChange(name, before.get(name), after.get(name))
            for name in names
            if before.get(name) != after.get(name)
        )

    @property
    def obstacle(self) -> str:
        """Why rows cannot be told apart by their keys; "" when they can."""
        mine, its = _key_names(self.old), _key_names(self.new)
        if mine != its:
            return f"the key was ({', '.join(mine) or 'none'}) and is ({', '.join(its) or 'none'})"
        if self.old.key != self.new.key:
            kinds = ", ".join(self.old.key.kinds), ", ".join(self.new.key.kinds)
            return f"the key was of kind ({kinds[0]}) and is of kind ({kinds[1]})"
        if self.old.key.synthetic and _names(self.old) != _names(self.new):
            return "the table has no key, and its columns are others"
        return ""

    def rows(self) -> Iterator[RowChange]:
        """Stream the rows that differ in a column that both sides have, in key order; none when there is an obstacle.

        Reads the blocks that the two do not share. Memory is bounded by a span. Raises DamageError.
        """
        same_shape = _names(self.old) == _names(self.new)
        if self.obstacle or (same_shape and self.old.sha256 == self.new.sha256 != ""):
            return
        compare = None if same_shape else _Projection(self.old, self.new)
        yield from _merged(_Cursor(self.old), _Cursor(self.new), self.new, compare)


def _names(view: TableView) -> list[str]:
    return [column.name for column in view.columns]


def _key_names(view: TableView) -> list[str]:
    return [column.name for column in view.columns[: len(view.key.kinds) - view.key.synthetic]]


class _Projection:
    """Brings rows of different columns to those that both have."""

    def __init__(self, old: TableView, new: TableView) -> None:
        common = set(_names(old)) & set(_names(new))
        self.names = [name for name in _names(new) if name in common]
        self.places = tuple(
            [view.key.synthetic + _names(view).index(name) for name in self.names] for view in (old, new)
        )

    def same(self, before: bytes, after: bytes) -> bool:
        return not self.differing(before, after)

    def differing(self, before: bytes, after: bytes) -> tuple[str, ...]:
        mine, its = before.split(b"\t"), after.split(b"\t")
        pairs = zip(self.names, *self.places, strict=True)
        return tuple(name for name, here, there in pairs if mine[here] != its[there])


# ---------------------------------------------------------------- walking both


class _Cursor:
    """One side: spans, in them blocks, in them rows; nothing is read before it is asked for."""

    def __init__(self, view: TableView) -> None:
        self._key = view.key
        self._spans = _pieces(view)
        self._span: SpanPiece | None = next(self._spans, None)
        self._blocks: list[BlockPiece] | None = None
        self._at = 0
        self.rows: list[bytes] = []
        self.keys: list[bytes] = []
        self._loaded = False
        self._untouched = True

    @property
    def span(self) -> tuple[str, ...] | None:
        """The mark of the span that begins here; None within one and at the end."""
        begins = self._span is not None and self._at == 0 and self._untouched
        return self._span.mark if begins and self._span is not None else None

    @property
    def block(self) -> bytes | None:
        """The mark of the block that begins here; None within one and at the end."""
        if not self._untouched or not self._open():
            return None
        assert self._blocks is not None
        return self._blocks[self._at].mark

    def advance(self) -> None:
        """Leave a block whose rows were all taken."""
        if self._loaded and not self.rows:
            self._next_block()

    def skip_span(self) -> None:
        self._next_span()

    def skip_block(self) -> None:
        self._next_block()

    def load(self) -> bool:
        """Have rows at hand; False at the end."""
        while not self.rows:
            if self._loaded:
                self._next_block()
            if not self._open():
                return False
            assert self._blocks is not None
            self.rows = self._blocks[self._at].load()
            self.keys = keys_of_rows(self._key, self.rows)
            self._loaded = True
        return True

    def last(self) -> bytes:
        return self._key.encode(self.keys[-1])

    def take(self, bound: bytes) -> dict[bytes, bytes]:
        """Rows by key text up to an encoded key."""
        end = bisect_right(self.keys, bound, key=self._key.encode)
        taken = dict(zip(self.keys[:end], self.rows[:end], strict=True))
        self.rows, self.keys = self.rows[end:], self.keys[end:]
        if end:
            self._untouched = False
        return taken

    def _open(self) -> bool:
        while self._span is not None:
            if self._blocks is None:
                self._blocks, self._at = self._span.blocks(), 0
            if self._at < len(self._blocks):
                return True
            self._next_span()
        return False

    def _next_block(self) -> None:
        self._at += 1
        self._forget()

    def _next_span(self) -> None:
        self._span, self._blocks, self._at = next(self._spans, None), None, 0
        self._forget()

    def _forget(self) -> None:
        self.rows, self.keys, self._loaded, self._untouched = [], [], False, True


def _merged(old: _Cursor, new: _Cursor, view: TableView, projection: _Projection | None) -> Iterator[RowChange]:
    while True:
        old.advance()
        new.advance()
        if projection is None and old.span is not None and old.span == new.span:
            old.skip_span()
            new.skip_span()
            continue
        if projection is None:
            mark = old.block
            if mark is not None and mark == new.block:
                old.skip_block()
                new.skip_block()
                continue
        mine, its = old.load(), new.load()
        if not mine and not its:
            return
        bound = min(cursor.last() for cursor in (old, new) if cursor.rows)
        before, after = old.take(bound), new.take(bound)
        if before != after or projection is not None:
            yield from _changes(before, after, view, projection)


def _changes(
    before: dict[bytes, bytes], after: dict[bytes, bytes], view: TableView, projection: _Projection | None
) -> Iterator[RowChange]:
    differing = projection.differing if projection else _differing(view)
    changed = [key for key in before.keys() & after.keys() if before[key] != after[key]]
    found = [(key, "update", differing(before[key], after[key])) for key in changed]
    found = [each for each in found if each[2]]
    nothing: tuple[str, ...] = ()
    found += [(key, "delete", nothing) for key in before.keys() - after.keys()]
    found += [(key, "insert", nothing) for key in after.keys() - before.keys()]
    found.sort(key=lambda each: view.key.encode(each[0]))
    for key, change, fields in found:
        yield RowChange(change, key, before.get(key), after.get(key), fields)  # type: ignore[arg-type]


def _differing(view: TableView) -> Callable[[bytes, bytes], tuple[str, ...]]:
    names = [*("" for _ in range(view.key.synthetic)), *_names(view)]

    def fields(before: bytes, after: bytes) -> tuple[str, ...]:
        mine, its = before.split(b"\t"), after.split(b"\t")
        if len(mine) != len(its) or len(mine) != len(names):
            return ("",)
        return tuple(name for name, one, other in zip(names, mine, its, strict=True) if one != other)

    return fields


def _pieces(view: TableView) -> Iterator[SpanPiece]:
    """A stored table by its pieces, any other as one."""
    if isinstance(view, StoredTable):
        return view.pieces()
    if isinstance(view, LedgeredTable) and isinstance(view.whole, StoredTable):
        return map(_Sifted(view.sift).span, view.whole.pieces())
    rows = [BlockPiece(b"%d" % number, lambda batch=batch: batch) for number, batch in enumerate(view.rows())]  # type: ignore[misc]
    return iter([SpanPiece((f"{id(view)}",), lambda: rows)])


@dataclass(frozen=True, slots=True)
class _Sifted:
    """Pieces of a table without the rows that were erased since."""

    sift: Callable[[list[bytes]], list[bytes]]

    def span(self, span: SpanPiece) -> SpanPiece:
        return SpanPiece(span.mark, lambda: [self.block(block) for block in span.blocks()])

    def block(self, block: BlockPiece) -> BlockPiece:
        return BlockPiece(block.mark, lambda: self.sift(block.load()))


# ---------------------------------------------------------------- rows as people read them


def copy_shown(field: bytes) -> str | None:
    """A field of COPY's text for people; None for null, bytes that are no UTF-8 as `\\xHH`."""
    return None if field == b"\\N" else unescape_field(field).decode("utf-8", "backslashreplace")


def row_fields(
    row: bytes, columns: tuple[Column, ...], key: KeySpec, shown: Callable[[bytes], str | None] = copy_shown
) -> dict[str, str | None]:
    """A row line by column name; `shown` reads a field as its source writes them (Connector.field_shown)."""
    fields = row.split(b"\t")[key.synthetic :]
    return {column.name: shown(field) for column, field in zip(columns, fields, strict=True)}
