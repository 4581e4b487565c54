"""Packs: write-once objects of many encrypted frames with a trailer that can rebuild the index.

    header (engine.sealed) | frame … frame | trailer | random padding | footer (32 bytes)

A frame is one segment whose number is its offset in the pack; its plain text is a codec byte (0 stored,
1 zstd) and the payload: one chunk, or several small ones one after another. The trailer is a segment
(number = its offset, last = 1) with the zstd-compressed table of frames and chunks. The footer is the
segment 2^64-1 and holds trailer offset, trailer length and the object's size, so nothing but the total
length shows in the store, and that is padded. A pack is named by the SHA-256 of all its bytes.
"""

import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import zstandard

from engine.compression import decompress
from engine.errors import ObjectDamaged
from engine.keys import Keyring
from engine.ports import Buffer
from engine.sealed import HEADER_BYTES, TAG_BYTES, Envelope, Kind, new_envelope, read_envelope

ID_BYTES = 32
PACK_BYTES_TARGET = {Kind.DATA_PACK: 12 << 20, Kind.META_PACK: 4 << 20}
FRAME_BYTES_MAX = 16 << 20
PACK_CHUNKS_MAX = 1 << 17
"""A pack of tiny chunks is closed there, long before it has its bytes: trailer and index stay small in memory."""
PACK_BYTES_MAX = 64 << 20
"""No pack of ours is larger: target, one frame, trailer and padding."""
TRAILER_BYTES_MAX = 16 << 20
CODEC_STORED, CODEC_ZSTD = b"\0", b"\1"
_FOOTER = struct.Struct(">IIQ")
FOOTER_BYTES = _FOOTER.size + TAG_BYTES
_FOOTER_NUMBER = (1 << 64) - 1
_COUNTS = struct.Struct(">II")
_FRAME = struct.Struct(">III")
CHUNK_ENTRY = struct.Struct(">32sII")
ZSTD_LEVEL = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a frame lies in its pack, and the chunks in it as (id, offset, length) of its payload."""

    offset: int
    length: int
    chunks: Sequence[tuple[bytes, int, int]]


def padded_size(size: int) -> int:
    """Round up so that about 128 sizes exist per power of two: at most 0.8 % more, at least 256 bytes apart."""
    step = max(256, 1 << max(0, size.bit_length() - 8))
    return -(-size // step) * step


def encode_payload(payload: Buffer, compressor: zstandard.ZstdCompressor | None) -> bytes:
    """Codec byte and payload; stored when compression saves less than 1 in 32.

    What was compressed is decompressed and compared before it counts: a codec's bug must not be found
    at the restore.
    """
    if compressor is not None and len(payload) > 32:
        packed = compressor.compress(payload)
        if len(packed) < len(payload) - (len(payload) >> 5):
            restored = zstandard.ZstdDecompressor().decompress(packed, max_output_size=len(payload))
            # Not `!=`: that compares a memoryview byte by byte through Python's own types.
            if len(restored) != len(payload) or not restored.startswith(payload):
                raise ObjectDamaged("zstd did not give back what it was given", hint="check this machine's memory")
            return CODEC_ZSTD + packed
    return CODEC_STORED + payload


def decode_payload(plain: bytes, name: str) -> bytes:
    """Undo encode_payload; bounded to FRAME_BYTES_MAX. Raises ObjectDamaged."""
    codec = plain[:1]
    if codec == CODEC_STORED:
        return plain[1:]
    if codec != CODEC_ZSTD:
        raise ObjectDamaged(f"{name}: unknown codec {codec!r}")
    return decompress(plain[1:], bytes_max=FRAME_BYTES_MAX, name=name)


class PackBuilder:
    """One pack being filled in memory. Not thread-safe."""

    def __init__(self, keyring: Keyring, kind: Kind, *, cipher: int) -> None:
        self._envelope = new_envelope(keyring, kind, cipher=cipher)
        self._parts: list[bytes] = [self._envelope.header]
        self.size = HEADER_BYTES
        self.frames: list[Frame] = []
        self._digest = hashlib.sha256(self._envelope.header)
        self._chunk_count = 0
        self._bytes_target = PACK_BYTES_TARGET[kind]

    @property
    def full(self) -> bool:
        """True when it should be finished rather than take another frame."""
        return self.size >= self._bytes_target or self._chunk_count >= PACK_CHUNKS_MAX

    @property
    def header(self) -> bytes:
        return self._envelope.header

    def add(self, plain: bytes, chunks: Sequence[tuple[bytes, int, int]]) -> None:
        """Append one encoded frame (see encode_payload) that holds these chunks."""
        sealed = self._envelope.seal(self.size, plain, last=False)
        self.frames.append(Frame(self.size, len(sealed), chunks))
        self._parts.append(sealed)
        self._digest.update(sealed)  # While it still lies in the core's cache.
        self.size += len(sealed)
        self._chunk_count += len(chunks)

    def finish(self) -> tuple[str, list[bytes], int]:
        """Name, parts and size of the finished object."""
        trailer_offset = self.size
        trailer = self._envelope.seal(trailer_offset, _encode_trailer(self.frames), last=True)
        bare = trailer_offset + len(trailer) + FOOTER_BYTES
        total = padded_size(bare)
        footer = self._envelope.seal(_FOOTER_NUMBER, _FOOTER.pack(trailer_offset, len(trailer), total), last=True)
        for part in (trailer, os.urandom(total - bare), footer):
            self._parts.append(part)
            self._digest.update(part)
        return self._digest.hexdigest(), self._parts, total


def _encode_trailer(frames: Sequence[Frame]) -> bytes:
    out = [_COUNTS.pack(len(frames), sum(len(f.chunks) for f in frames))]
    for frame in frames:
        out.append(_FRAME.pack(frame.offset, frame.length, len(frame.chunks)))
        out.extend(CHUNK_ENTRY.pack(*chunk) for chunk in frame.chunks)
    table = b"".join(out)
    packed = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(table)
    if decompress(packed, bytes_max=len(table), name="trailer") != table:
        raise ObjectDamaged("zstd did not give back what it was given", hint="check this machine's memory")
    return packed


def _decode_trailer(data: bytes, name: str, *, end: int) -> list[Frame]:
    """Frames and chunks as the trailer lists them; frames lie behind the header and before `end`."""
    table = decompress(data, bytes_max=TRAILER_BYTES_MAX, name=f"{name}: trailer")
    try:
        frame_count, chunk_count = _COUNTS.unpack_from(table)
        position, frames = _COUNTS.size, []
        for _ in range(frame_count):
            offset, length, count = _FRAME.unpack_from(table, position)
            position += _FRAME.size
            after = position + count * CHUNK_ENTRY.size
            if after > len(table) or offset < HEADER_BYTES or offset + length > end:
                raise ObjectDamaged(f"{name}: trailer lists what does not fit")
            frames.append(Frame(offset, length, list(CHUNK_ENTRY.iter_unpack(table[position:after]))))
            position = after
    except struct.error as error:
        raise ObjectDamaged(f"{name}: trailer is not readable") from error
    if position != len(table) or sum(len(frame.chunks) for frame in frames) != chunk_count:
        raise ObjectDamaged(f"{name}: trailer has other counts than it says")
    return frames


def pack_envelope(keyring: Keyring, header: bytes, name: str, *, cipher: int | None = None) -> Envelope:
    """The envelope of a pack from its header; `cipher` is its domain's. Raises ObjectDamaged or WrongKey."""
    return read_envelope(keyring, header, name, Kind.DATA_PACK, Kind.META_PACK, cipher=cipher)


def read_trailer(keyring: Keyring, blob: Buffer, name: str, *, cipher: int | None = None) -> list[Frame]:
    """Frames of a whole pack. Raises ObjectDamaged when trailer, footer or length were altered."""
    view = memoryview(blob)
    envelope = pack_envelope(keyring, bytes(view[:HEADER_BYTES]), name, cipher=cipher)
    if len(view) < HEADER_BYTES + FOOTER_BYTES:
        raise ObjectDamaged(f"{name}: truncated to {len(view)} bytes")
    offset, length = footer_place(envelope, view[-FOOTER_BYTES:], len(view), name)
    return trailer_frames(envelope, offset, view[offset : offset + length], name)


def footer_place(envelope: Envelope, footer: Buffer, size: int, name: str) -> tuple[int, int]:
    """Offset and length of the trailer of a pack of `size` bytes, from its last FOOTER_BYTES."""
    plain = envelope.open(_FOOTER_NUMBER, footer, last=True, name=name)
    if len(plain) != _FOOTER.size:
        raise ObjectDamaged(f"{name}: footer of {len(plain)} bytes")
    offset, length, total = _FOOTER.unpack(plain)
    if total != size or offset + length > total:
        raise ObjectDamaged(f"{name}: {size} bytes, {total} were written")
    return offset, length


def trailer_frames(envelope: Envelope, offset: int, sealed: Buffer, name: str) -> list[Frame]:
    """The frames named in a sealed trailer read at `offset`."""
    return _decode_trailer(envelope.open(offset, sealed, last=True, name=name), name, end=offset)


def read_frame(envelope: Envelope, offset: int, sealed: Buffer, name: str) -> bytes:
    """The payload of one frame: authenticated, decrypted, decompressed. Raises ObjectDamaged."""
    return decode_payload(envelope.open(offset, sealed, last=False, name=name), name)
