"""Checksums of file content, and where a file is sparse.

A file's sum is the SHA-256 of its content, as sha256sum prints it. The one exception makes a hole cost
nothing: of a file with more than 1 GiB in all-zero aligned blocks of 64 KiB (a *mostly empty* file: a
disk image, a preallocated database) the sum is SHA-256 over, for every block that is not all zero, its
offset as u64 little-endian and its bytes, and at the end the file's size as u64. Which of the two it is
depends on the content alone, not on how a file system happens to store it; such an entry says
`sum: blocks`.
"""

import errno
import hashlib
import os
import struct
from collections.abc import Sequence

from engine.ports import Buffer

BLOCK_BYTES = 64 << 10
EMPTY_BLOCKS_MAX = (1 << 30) // BLOCK_BYTES
"""A file with more all-zero blocks than this is mostly empty."""
EXTENTS_SCALE = 1 << 19
"""Extents of a huge file are widened so that there are at most this many."""
READ_BYTES = 4 << 20
ZEROS = bytes(1 << 20)
_ZERO_BLOCK = bytes(BLOCK_BYTES)
_U64 = struct.Struct("<Q")

Extents = Sequence[tuple[int, int]]


def data_extents(descriptor: int, size: int) -> list[tuple[int, int]]:
    """The stretches (offset, length) of a file that are not holes, widened to aligned 64 KiB blocks.

    One stretch for a file without holes, or where the file system cannot tell. Raises OSError.
    """
    step = BLOCK_BYTES
    while size // step > EXTENTS_SCALE * 2:
        step *= 2
    extents: list[tuple[int, int]] = []
    position = 0
    while position < size:
        try:
            begin = os.lseek(descriptor, position, os.SEEK_DATA)
            end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # Nothing but a hole up to the end.
                break
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return [(0, size)]
            raise
        begin, end = begin // step * step, min(-(-end // step) * step, size)
        if extents and begin <= sum(extents[-1]):
            extents[-1] = (extents[-1][0], end - extents[-1][0])
        elif begin < size:
            extents.append((begin, end - begin))
        position = end
    return extents


def empty_blocks(extents: Extents, size: int) -> int:
    """How many aligned blocks lie wholly in holes."""
    blocks = -(-size // BLOCK_BYTES)
    return blocks - sum(-(-(offset + length) // BLOCK_BYTES) - offset // BLOCK_BYTES for offset, length in extents)


def count_empty(view: memoryview) -> int:
    """How many blocks of a buffer that begins on a block are all zero; a short last one counts too."""
    found = 0
    for begin in range(0, len(view), BLOCK_BYTES):
        if view[begin] == 0:
            block = bytes(view[begin : begin + BLOCK_BYTES])
            found += block == _ZERO_BLOCK[: len(block)]
    return found


def blocks_sum(descriptor: int, extents: Extents, size: int) -> bytes:
    """The sum of a mostly empty file, read from the descriptor."""
    digest = hashlib.sha256()
    for begin, length in extents:
        offset, end = begin, begin + length
        while offset < end:
            data = os.pread(descriptor, min(READ_BYTES, end - offset), offset)
            if not data:
                break
            whole = len(data) if offset + len(data) >= end else len(data) // BLOCK_BYTES * BLOCK_BYTES
            add_blocks(digest, data[: whole or len(data)], offset)
            offset += whole or len(data)
    digest.update(_U64.pack(size))
    return digest.digest()


def add_blocks(digest: "hashlib._Hash", data: Buffer, offset: int) -> None:
    """Take up a stretch that begins on a block into the sum of a mostly empty file."""
    for begin in range(0, len(data), BLOCK_BYTES):
        block = bytes(data[begin : begin + BLOCK_BYTES])
        if block != _ZERO_BLOCK[: len(block)]:
            digest.update(_U64.pack(offset + begin))
            digest.update(block)


def add_zeros(digest: "hashlib._Hash", length: int) -> None:
    """Hash a run of zeros without reading it."""
    while length > 0:
        digest.update(memoryview(ZEROS)[: min(length, len(ZEROS))])
        length -= len(ZEROS)


def file_sum(descriptor: int, size: int) -> bytes:
    """The sum of an open file, by the rule above. Raises OSError."""
    extents = data_extents(descriptor, size)
    empty = empty_blocks(extents, size)
    if empty > EMPTY_BLOCKS_MAX:
        return blocks_sum(descriptor, extents, size)
    digest, position, buffer = hashlib.sha256(), 0, bytearray(min(READ_BYTES, max(size, 1)))
    for offset, length in extents:
        add_zeros(digest, offset - position)
        position, end = offset, offset + length
        while position < end:
            view = memoryview(buffer)[: min(len(buffer), end - position)]
            got = os.preadv(descriptor, [view], position)
            if not got:
                break
            if position + got < end:
                got = got // BLOCK_BYTES * BLOCK_BYTES or got
            digest.update(view[:got])
            empty += count_empty(view[:got]) if size > EMPTY_BLOCKS_MAX * BLOCK_BYTES else 0
            position += got
    add_zeros(digest, size - position)
    return blocks_sum(descriptor, extents, size) if empty > EMPTY_BLOCKS_MAX else digest.digest()
