"""The Merkle tree of RFC 9162 (Certificate Transparency 2.0, section 2.1), grown one leaf at a time.

A tree of n leaves is kept as its *peaks*: the roots of the perfect trees, largest first, whose sizes are the
powers of two in n. Appending costs at most log2(n) hashes, and the root follows from the peaks.
"""

import hashlib
from collections.abc import Sequence

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
