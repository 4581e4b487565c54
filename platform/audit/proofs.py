"""Proofs that an entry is in the log, and that one checkpoint is the beginning of another; a kilobyte at the most.

The tree is kept in tiles: the hashes of every 256 leaves, of every 256 such tiles and so on. They are filled in behind the
log and are only a short cut; every proof is checked against the roots before it is given out.
"""

import base64
from dataclasses import dataclass
from typing import Any

from django.db import IntegrityError, transaction

from audit import merkle
from audit.canonical import entry_bytes
from audit.models import Entry, Head, Tile
from audit.services import head_get
from core.errors import NotFound
from engine.errors import DamageError, UsageError

TILE_HEIGHT = 8
TILE_LEAVES = 1 << TILE_HEIGHT
TILES_AT_ONCE = 64
FILL_TILES_MAX = 20_000


class ProofImpossible(DamageError):
    """The hashes that are kept do not lead to the root: the log was altered."""

    code = "audit.proof_impossible"


@dataclass(frozen=True, slots=True)
class Inclusion:
    """An entry's place in the tree, in the fields of RFC 9162's InclusionProofDataV2."""

    log_id: str
    index: int
    size: int
    path: tuple[bytes, ...]

    def output(self) -> dict[str, Any]:
        """As JSON: the hashes one after the other in base64, lowest first."""
        return {
            "log": self.log_id, "leaf_index": self.index, "tree_size": self.size,
            "path": base64.b64encode(b"".join(self.path)).decode(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Consistency:
    """That the log of `old` entries is the beginning of that of `new`."""

    log_id: str
    old: int
    new: int
    path: tuple[bytes, ...]

    def output(self) -> dict[str, Any]:
        """As JSON: the hashes one after the other in base64."""
        return {
            "log": self.log_id, "old_size": self.old, "new_size": self.new,
            "path": base64.b64encode(b"".join(self.path)).decode(),
        }  # fmt: skip


def inclusion_prove(entry: Entry, *, size: int) -> Inclusion:
    """Prove that the entry is in the log of `size` entries. Raises UsageError, NotFound, ProofImpossible."""
    head = _head(size)
    if entry.sequence >= size:
        raise UsageError(f"entry {entry.sequence} is not among the first {size}", hint="name a later checkpoint")
    path = merkle.inclusion_path(entry.sequence, size, _Tree(head).subtree)
    found = merkle.inclusion_root(entry.sequence, size, merkle.leaf_hash(entry_bytes(entry)), path)
    if found is None or found.hex() != _root(head, size):
        raise _altered(f"entry {entry.sequence} does not lead to the root of {size} entries")
    return Inclusion(head.log_id, entry.sequence, size, tuple(path))


def consistency_prove(old: int, new: int) -> Consistency:
    """Prove that nothing before `old` was changed since. Raises UsageError, NotFound, ProofImpossible."""
    head = _head(new)
    if not 0 < old <= new:
        raise UsageError(f"{old} is not before {new}", hint="--from the smaller, --to the larger size")
    if old < head.first:
        raise NotFound(
            f"the first {head.first} entries were cut off, so nothing can be shown of the {old} first",
            hint="their export shows it (docs/formats/audit-log.md)",
        )
    path = [] if old == new else merkle.consistency_path(old, new, _Tree(head).subtree)
    roots = bytes.fromhex(_root(head, old)), bytes.fromhex(_root(head, new))
    if not merkle.consistent(old, new, *roots, path):
        raise _altered(f"the root of {old} entries does not lead to that of {new}")
    return Consistency(head.log_id, old, new, tuple(path))


def tiles_fill() -> int:
    """Fill in the tiles that have become whole; how many. Safe to repeat and to run twice at a time."""
    head = head_get()
    if head is None:
        return 0
    begin = -(-head.first // TILE_LEAVES)
    newest = Tile.objects.filter(height=TILE_HEIGHT).order_by("-index").values_list("index", flat=True).first()
    begin = max(begin, -1 if newest is None else newest + 1)
    end = min(head.size // TILE_LEAVES, begin + FILL_TILES_MAX)
    tree = _Tree(head)
    for at in range(begin, end, TILES_AT_ONCE):
        tree.row(TILE_HEIGHT, at, min(TILES_AT_ONCE, end - at))
    return max(0, end - begin)


def _head(size: int) -> Head:
    head = head_get()
    if head is None or not 0 < size <= head.size:
        raise NotFound(f"the log has no {size} entries", hint=f"it has {head.size if head else 0}")
    return head


def _root(head: Head, size: int) -> str:
    if size == head.size:
        return head.root_hash
    if size == head.first:
        return merkle.root([bytes.fromhex(peak) for peak in head.frontier]).hex()
    found = Entry.objects.filter(sequence=size - 1).values_list("root_hash", flat=True).first()
    if found is None:
        raise NotFound(f"entry {size - 1} is not in the log any more")
    return found


def _altered(what: str) -> ProofImpossible:
    Tile.objects.all().delete()  # If only they are wrong, the next proof makes them anew.
    return ProofImpossible(f"{what}: something was altered", hint="audit verify says what")


class _Tree:
    """Hashes of subtrees, from leaves, tiles and the frontier of what was cut off."""

    def __init__(self, head: Head) -> None:
        self._first = head.first
        peaks = zip(merkle.peaks_of(head.first), head.frontier, strict=True)
        self._frontier = {place: bytes.fromhex(peak) for place, peak in peaks}

    def subtree(self, begin: int, end: int) -> bytes:
        """The hash of the leaves from `begin` up to `end`, as they stand in a tree: aligned on the left."""
        parts = []
        for height, index in merkle.peaks_of(end - begin):
            parts.append(self._perfect(height, (begin >> height) + index))
        return merkle.root(parts)

    def _perfect(self, height: int, index: int) -> bytes:
        begin, end = index << height, (index + 1) << height
        if (height, index) in self._frontier:
            return self._frontier[height, index]
        if begin >= self._first:
            level = height // TILE_HEIGHT * TILE_HEIGHT
            return merkle.fold(self.row(level, begin >> level, 1 << height - level))
        if end <= self._first:
            raise NotFound("what this needs was cut off from the log", hint="audit list shows audit.truncated")
        return merkle.node_hash(self._perfect(height - 1, index * 2), self._perfect(height - 1, index * 2 + 1))

    def row(self, height: int, index: int, count: int) -> list[bytes]:
        """So many subtrees of one height, 0 or a multiple of a tile's, side by side."""
        if not height:
            return self._leaves(index, count)
        kept = Tile.objects.filter(height=height, index__gte=index, index__lt=index + count)
        found = {at: bytes.fromhex(text) for at, text in kept.values_list("index", "hash")}
        missing = [at for at in range(index, index + count) if at not in found]
        for begin in range(0, len(missing), TILES_AT_ONCE):
            found |= self._made(height, missing[begin : begin + TILES_AT_ONCE])
        return [found[at] for at in range(index, index + count)]

    def _made(self, height: int, wanted: list[int]) -> dict[int, bytes]:
        if wanted[-1] - wanted[0] == len(wanted) - 1:
            below = self.row(height - TILE_HEIGHT, wanted[0] * TILE_LEAVES, len(wanted) * TILE_LEAVES)
        else:
            below = [each for at in wanted for each in self.row(height - TILE_HEIGHT, at * TILE_LEAVES, TILE_LEAVES)]
        made = {at: merkle.fold(below[n * TILE_LEAVES : (n + 1) * TILE_LEAVES]) for n, at in enumerate(wanted)}
        try:
            with transaction.atomic():
                Tile.objects.bulk_create(
                    (Tile(height=height, index=at, hash=each.hex()) for at, each in made.items()), ignore_conflicts=True
                )
        except IntegrityError:
            pass  # Another process has made the same ones.
        return made

    def _leaves(self, begin: int, count: int) -> list[bytes]:
        rows = Entry.objects.filter(sequence__gte=begin, sequence__lt=begin + count).order_by("sequence")
        found = [bytes.fromhex(each) for each in rows.values_list("leaf_hash", flat=True)]
        if len(found) != count:
            raise _altered(f"of entries {begin} to {begin + count - 1} only {len(found)} are there")
        return found
