"""The Merkle tree of RFC 9162 (Certificate Transparency 2.0, section 2.1), grown one leaf at a time.

A tree of n leaves is kept as its *peaks*: the roots of the perfect trees, largest first, whose sizes are the
powers of two in n. Appending costs at most log2(n) hashes, and the root follows from the peaks.
"""

import hashlib
from collections.abc import Callable, Sequence

EMPTY_ROOT = hashlib.sha256().digest()


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def append(peaks: Sequence[bytes], size: int, leaf: bytes) -> list[bytes]:
    """Give the peaks of the tree of `size` leaves with one more leaf hash."""
    grown, tree = list(peaks), leaf
    while size & 1:
        tree = node_hash(grown.pop(), tree)
        size >>= 1
    grown.append(tree)
    return grown


def root(peaks: Sequence[bytes]) -> bytes:
    """Give the root of the tree with these peaks."""
    if not peaks:
        return EMPTY_ROOT
    tree = peaks[-1]
    for peak in reversed(peaks[:-1]):
        tree = node_hash(peak, tree)
    return tree


# ---------------------------------------------------------------- proofs

Subtree = Callable[[int, int], bytes]
"""Gives the hash of the leaves from the first number up to, without, the second."""


def inclusion_path(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """The hashes that lead from a leaf to the root of the tree of `size` leaves (RFC 9162, 2.1.3.1), lowest first."""
    path, begin, end = list[bytes](), 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            path.append(subtree(middle, end))
            end = middle
        else:
            path.append(subtree(begin, middle))
            begin = middle
    return path[::-1]


def inclusion_root(index: int, size: int, leaf: bytes, path: Sequence[bytes]) -> bytes | None:
    """The root that the path gives for this leaf (RFC 9162, 2.1.3.2); None when the path is not of the right length."""
    if not 0 <= index < size:
        return None
    node, last, tree = index, size - 1, leaf
    for each in path:
        if not last:
            return None
        if node & 1 or node == last:
            tree = node_hash(each, tree)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            tree = node_hash(tree, each)
        node, last = node >> 1, last >> 1
    return tree if not last else None


def consistency_path(old: int, new: int, subtree: Subtree) -> list[bytes]:
    """The hashes that show that the tree of `old` leaves is the beginning of that of `new` (RFC 9162, 2.1.4.1)."""
    path, begin, end, whole = list[bytes](), 0, new, True
    while old != end:
        middle = begin + _split(end - begin)
        if old <= middle:
            path.append(subtree(middle, end))
            end = middle
        else:
            path.append(subtree(begin, middle))
            begin, whole = middle, False
    if not whole:
        path.append(subtree(begin, end))
    return path[::-1]


def consistent(old: int, new: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether the path shows that one tree is the beginning of the other (RFC 9162, 2.1.4.2)."""
    if old == new:
        return not path and old_root == new_root
    if not 0 < old < new or not path:
        return False
    steps = [old_root, *path] if old & (old - 1) == 0 else list(path)
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    first = second = steps[0]
    for each in steps[1:]:
        if not last:
            return False
        if node & 1 or node == last:
            first, second = node_hash(each, first), node_hash(each, second)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            second = node_hash(second, each)
        node, last = node >> 1, last >> 1
    return first == old_root and second == new_root and not last


def _split(count: int) -> int:
    """The largest power of two below the count: how many leaves the left subtree has."""
    return 1 << (count - 1).bit_length() - 1


def fold(row: Sequence[bytes]) -> bytes:
    """The root over a row of subtrees of one size, a power of two of them."""
    while len(row) > 1:
        row = [node_hash(row[at], row[at + 1]) for at in range(0, len(row), 2)]
    return row[0]


def peaks_of(size: int) -> list[tuple[int, int]]:
    """Height and index of each peak of a tree of `size` leaves, largest first."""
    found, begin = [], 0
    for height in reversed(range(size.bit_length())):
        if size >> height & 1:
            found.append((height, begin >> height))
            begin += 1 << height
    return found
