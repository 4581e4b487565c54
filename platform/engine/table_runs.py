"""How a table lies in the repository: spans of its key space, each a base run and at most eight delta runs.

A *span* is a stretch of the key space with about 16 MiB of rows. Its base run is a list of *blocks* of
about 1 MiB; a delta run holds upserts and deletions against the base and the older deltas of that span.
Deltas belong to a span, not to the table, for three reasons: a base is renewed where it is worn and not
everywhere at once, a merge of deltas fits in memory, and dropping an empty span can revive nothing.

Objects (ids are lower-case hex; everything over 4 MiB is cut into pieces, so ids come in lists):

- manifest node -> `lists`, each naming a *list*: JSON `[{span, bound, rows, bytes}…]`, 256 at the most.
  `bound` is the text of the last key that may lie in the span (latin-1), null for the last span.
- span: JSON `{blocks: [{rows, bytes, last, leaf, data}…], deltas: [{rows, bytes, weight, leaf, data}…]}`.
- data of a run: row lines joined by newline (a delta has those of its upserts).
- leaf of a block: sections `gaps`, `records`, `lines`; of a delta: `sizes`, `lines`, `records`, `ends`.
  A leaf begins with a line of the sections' lengths in decimal. `lines` are `version TAB key-text`,
  joined by newline. `sizes` has per line the row's length plus one, 0 for a deletion. `gaps` are the
  numbers of rows of the buckets that end in the block, `records` their records; in a delta `ends` are the
  last keys of the buckets whose record it sets.

**Digest of a table.** Rows in key order are cut into *buckets*: a bucket ends after a row whose key text
has `crc32(key) & 31 == 0`, or after its 256th row, or with the table. A bucket's digest is the SHA-256 of
its row lines, each followed by newline, without versions. The table's digest is the SHA-256 of the
concatenated bucket digests. It depends on the rows alone, so that a restored table is checked by
selecting its rows in key order (`table_digest`), and it is kept up to date by reading 32 rows per changed
row. A bucket's *record* is its digest and, in eight bytes, big-endian, its length in bytes.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from math import comb
from operator import ge, sub
from typing import Any, Protocol
from zlib import crc32

from engine.errors import ObjectDamaged, SourceError
from engine.ports import Buffer, Column, KeySpec, RowBatch

TAB = b"\t"
NEWLINE = b"\n"

BUCKET_MASK = 31
BUCKET_ROWS_MAX = 256
RECORD_BYTES = 40

BLOCK_WEIGHT_MIN = 256 << 10
BLOCK_WEIGHT_MEAN = 1 << 20
BLOCK_WEIGHT_MAX = 4 << 20
ROW_OVERHEAD = 32
"""What a row weighs beyond its bytes when blocks are cut: its share of the leaf."""

PIECE_BYTES_MAX = 4 << 20
SMALL_BYTES_MAX = 128 << 10
SPAN_BYTES = 16 << 20
SPAN_BYTES_MIN = 4 << 20
LIST_SPANS_MAX = 256
DELTAS_MAX = 8
DELTA_SHARE_MAX = 5
"""Deltas stay below one `DELTA_SHARE_MAX`-th of their base."""


class ChunkWriter(Protocol):
    """What runs need of a session's lane."""

    def add(self, data: Buffer, *, fast: bool = False) -> bytes: ...

    def add_small(self, data: Buffer) -> bytes: ...


class ChunkSource(Protocol):
    """What runs need of a ChunkReader."""

    def get(self, chunk_id: bytes) -> bytes: ...


# ---------------------------------------------------------------- pieces


def pieces_add(lane: ChunkWriter, data: bytes, *, fast: bool = False) -> list[str]:
    """Store data as one chunk, or as several when it is large; b"" needs none. `fast`: see engine.session.Lane."""
    if len(data) <= SMALL_BYTES_MAX:
        return [lane.add_small(data).hex()] if data else []
    view = memoryview(data)
    return [lane.add(view[at : at + PIECE_BYTES_MAX], fast=fast).hex() for at in range(0, len(data), PIECE_BYTES_MAX)]


def pieces_get(reader: ChunkSource, ids: Sequence[str]) -> bytes:
    """Read what `pieces_add` stored. Raises ChunkMissing or ObjectDamaged."""
    if len(ids) == 1:
        return reader.get(bytes.fromhex(ids[0]))
    return b"".join(reader.get(bytes.fromhex(each)) for each in ids)


def sections_join(*sections: bytes) -> bytes:
    """Frame the sections of a leaf."""
    return b"%s\n%s" % (b" ".join(b"%d" % len(each) for each in sections), b"".join(sections))


def sections_split(leaf: bytes, count: int) -> list[bytes]:
    """Undo `sections_join`. Raises ObjectDamaged when the frame does not fit."""
    head, _, body = leaf.partition(NEWLINE)
    try:
        lengths = [int(each) for each in head.split(b" ")]
    except ValueError:
        lengths = []
    if len(lengths) != count or sum(lengths) != len(body) or min(lengths) < 0:
        raise ObjectDamaged("a leaf of a table run has an impossible frame", hint="verify the repository")
    sections, at = [], 0
    for length in lengths:
        sections.append(body[at : at + length])
        at += length
    return sections


def lines_split(text: bytes, count: int) -> list[bytes]:
    """Cut joined lines, of which there must be `count`. Raises ObjectDamaged otherwise."""
    lines = text.split(NEWLINE) if count else []
    if len(lines) != count or (not count and text):
        raise ObjectDamaged(f"a table run has {len(lines)} lines instead of {count}", hint="verify the repository")
    return lines


# ---------------------------------------------------------------- what a span consists of


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of a base run; `last` is the key text of its last row, latin-1."""

    rows: int
    bytes: int
    last: str
    leaf: list[str]
    data: list[str]


@dataclass(frozen=True, slots=True)
class Delta:
    """Upserts and deletions (`rows` of both) against what lies below; `weight` backups are merged in it."""

    rows: int
    bytes: int
    weight: int
    leaf: list[str]
    data: list[str]


@dataclass(frozen=True, slots=True)
class Span:
    """A base run as blocks in key order, and delta runs, the oldest first."""

    blocks: list[Block] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)

    @property
    def base_rows(self) -> int:
        return sum(each.rows for each in self.blocks)

    @property
    def base_bytes(self) -> int:
        return sum(each.bytes for each in self.blocks)

    @property
    def delta_rows(self) -> int:
        return sum(each.rows for each in self.deltas)

    @property
    def delta_bytes(self) -> int:
        return sum(each.bytes for each in self.deltas)

    def to_json(self) -> bytes:
        """The span as it is stored."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Span":
        """Raises ObjectDamaged when the text is no span."""
        try:
            raw = json.loads(text)
            return cls([Block(**each) for each in raw["blocks"]], [Delta(**each) for each in raw["deltas"]])
        except (ValueError, TypeError, KeyError) as error:
            raise ObjectDamaged("a span of a table cannot be read", hint="verify the repository") from error


@dataclass(frozen=True, slots=True)
class SpanRef:
    """A line of a list: where a span lies, the last key it may hold, its live rows and bytes."""

    span: list[str]
    bound: str | None
    rows: int
    bytes: int


def spans_of(reader: ChunkSource, node: dict[str, Any]) -> Iterator[SpanRef]:
    """The spans of a manifest node in key order; one list is held at a time."""
    for ids in node["lists"]:
        try:
            refs = [SpanRef(**each) for each in json.loads(pieces_get(reader, ids))]
        except (ValueError, TypeError) as error:
            raise ObjectDamaged("a list of spans cannot be read", hint="verify the repository") from error
        yield from refs


def merge_layout(backups: int) -> list[int]:
    """Weights that the deltas of a span should have after so many backups changed it, oldest first.

    The combinatorial number system with DELTAS_MAX digits (Bentley and Saxe's binomial transform): never
    more than DELTAS_MAX deltas, and each row is written anew at most a times in C(8 + a, 8) backups, which
    is four times in 495; a doubling scheme needs twice that.
    """
    weights = []
    for digit in range(DELTAS_MAX, 0, -1):
        top = digit
        while comb(top, digit) <= backups:
            top += 1
        weight = comb(top - 1, digit)
        if weight:
            weights.append(weight)
            backups -= weight
    return weights


# ---------------------------------------------------------------- lines and keys


def key_of_line(line: bytes) -> bytes:
    """The key text of a `version TAB key-text`."""
    return line.partition(TAB)[2]


def keys_of_lines(lines: Sequence[bytes]) -> list[bytes]:
    """The key texts of `version TAB key-text` lines."""
    return [line.partition(TAB)[2] for line in lines]


def keys_of_rows(key: KeySpec, rows: Sequence[bytes]) -> list[bytes]:
    """The key texts of row lines."""
    count = len(key.kinds)
    if count == 1:
        return [row.partition(TAB)[0] for row in rows]
    return [TAB.join(row.split(TAB, count)[:count]) for row in rows]


def lines_take_apart(key: KeySpec, versioned: bool, lines: Sequence[bytes]) -> RowBatch:
    """Full lines `version TAB row` taken apart; versions are dropped where none count."""
    rows = [line.partition(TAB)[2] for line in lines]
    keys = keys_of_rows(key, rows)
    if not versioned:
        return RowBatch(rows, keys, [TAB + text for text in keys])
    sizes = zip(map(len, rows), map(len, keys), strict=True)
    heads = [
        line[: k - r] if r > k else line for line, (r, k) in zip(lines, sizes, strict=True)
    ]  # k - r is negative: the row without its key is cut from the end
    return RowBatch(rows, keys, heads)


def keys_check(key: KeySpec, keys: Sequence[bytes], after: bytes | None = None) -> None:
    """Raise SourceError when keys are not strictly ascending (`after` is the key before the first).

    Single integers are all compared. For other kinds, where encoding each key would cost more than all
    the rest, doubles are looked for among all and the order among every 32nd.
    """
    if not keys:
        return
    if key.kinds == ("int",):
        numbers = [*map(int, keys)]
        wrong = any(map(ge, numbers, numbers[1:]))
    else:
        sample = [key.encode(each) for each in keys[::32]]
        wrong = len(set(keys)) < len(keys) or any(map(ge, sample, sample[1:]))
        wrong = wrong or sample[-1] > key.encode(keys[-1])
    if wrong or (after is not None and key.encode(after) >= key.encode(keys[0])):
        raise SourceError(
            "the source delivered rows out of key order or a key twice",
            hint="the key columns must be unique and sorted as their kinds say; check the table's indexes",
        )


# ---------------------------------------------------------------- buckets and digests


def bucket_ends(keys: Sequence[bytes], before: int = 0) -> list[int]:
    """Where buckets end (exclusive) in keys; the open rest is left out.

    The first key continues a bucket that has `before` rows already.
    """
    ends = [at for at, sum32 in enumerate(map(crc32, keys), 1) if not sum32 & BUCKET_MASK]
    begins = [-before, *ends]
    if max(map(sub, ends, begins), default=0) <= BUCKET_ROWS_MAX and len(keys) - begins[-1] < BUCKET_ROWS_MAX:
        return ends
    forced: list[int] = []
    for begin, end in zip(begins, [*ends, len(keys) + 1], strict=True):
        forced += range(begin + BUCKET_ROWS_MAX, end, BUCKET_ROWS_MAX)
        forced.append(end)
    return forced[:-1]


def bucket_record(text: bytes, before: bytes | None = None) -> bytes:
    """The record of a bucket of joined rows; `before` are joined rows of it that lie in earlier spans."""
    length = len(text) + 1
    if before is None:
        digest = hashlib.sha256(text)
    else:
        digest = hashlib.sha256(before)
        digest.update(NEWLINE)
        digest.update(text)
        length += len(before) + 1
    digest.update(NEWLINE)
    return digest.digest() + length.to_bytes(8, "big")


def record_length(record: bytes) -> int:
    """Bytes of a bucket's row lines with their newlines."""
    return int.from_bytes(record[32:], "big")


def table_digest(batches: Iterable[list[bytes]], key: KeySpec) -> tuple[str, int, int]:
    """SHA-256 (hex), number of rows and bytes of row lines given in key order.

    This is what a manifest calls `sha256`, `rows` and `bytes` of a table; checks after a restore compute
    it from a plain SELECT of the target. Memory is bounded by a batch.
    """
    return keyed_digest((rows, keys_of_rows(key, rows)) for rows in batches)


def keyed_digest(batches: Iterable[tuple[list[bytes], list[bytes]]]) -> tuple[str, int, int]:
    """`table_digest` of row lines whose key texts are at hand."""
    digest, count, size = hashlib.sha256(), 0, 0
    rows: list[bytes] = []
    for more, keys in batches:
        count += len(more)
        ends = bucket_ends(keys, len(rows))
        before, rows = len(rows), rows + more
        begin = 0
        for end in ends:
            text = NEWLINE.join([*rows[begin : before + end], b""])
            digest.update(hashlib.sha256(text).digest())
            size += len(text)
            begin = before + end
        del rows[:begin]
    if rows:
        text = NEWLINE.join([*rows, b""])
        digest.update(hashlib.sha256(text).digest())
        size += len(text)
    return digest.hexdigest(), count, size


# ---------------------------------------------------------------- deltas over a base


def changes_apply(
    keys: Sequence[bytes],
    values: Sequence[bytes],
    changes: dict[bytes, bytes | None],
    encode: Callable[[bytes], bytes],
) -> list[bytes]:
    """Values in key order after the changes: a new value per key, None for a deletion."""
    index = dict(zip(keys, range(len(keys)), strict=True))
    out: list[bytes | None] = list(values)
    fresh: list[tuple[bytes, bytes]] = []
    for text, value in changes.items():
        at = index.get(text)
        if at is not None:
            out[at] = value
        elif value is not None:
            fresh.append((encode(text), value))
    if not fresh:
        return [each for each in out if each is not None]
    fresh.sort()
    return _weave(keys, out, fresh, encode)


def _weave(
    keys: Sequence[bytes],
    values: Sequence[bytes | None],
    fresh: list[tuple[bytes, bytes]],
    encode: Callable[[bytes], bytes],
) -> list[bytes]:
    out: list[bytes | None] = []
    begin, count = 0, len(keys)
    behind = encode(keys[-1]) if keys else b""
    for encoded, value in fresh:
        if begin < count:
            at = count if encoded > behind else bisect_left(keys, encoded, lo=begin, key=encode)
            out += values[begin:at]
            begin = at
        out.append(value)
    out += values[begin:]
    return [each for each in out if each is not None]


# ---------------------------------------------------------------- what a manifest node says


def columns_to_json(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Columns as a manifest node names them."""
    return [asdict(each) for each in columns]


def key_to_json(key: KeySpec) -> dict[str, Any]:
    """A key as a manifest node describes it."""
    return {"kinds": list(key.kinds), "synthetic": key.synthetic}


def key_from_json(raw: dict[str, Any]) -> KeySpec:
    """Undo `key_to_json`."""
    return KeySpec(tuple(raw["kinds"]), raw["synthetic"])
