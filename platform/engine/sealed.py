"""Sealed objects: the envelope of everything a repository stores (docs/formats/repository.md, "Envelope").

    0   4  magic "LSTR"
    4   1  format version (1)
    5   1  cipher: 0 none (the plain domain), 1 AES-256-GCM
    6   1  kind
    7   1  zero
    8   4  epoch of the data key, big-endian
    12  4  zero
    16  32 salt
    48  32 key commitment

HKDF-SHA256(data key, salt, "lastro/v1/object" 0 kind) gives 64 bytes: the AES key and the commitment that
must equal the header's (a ciphertext opens under one key only). Segment n has the nonce 0^4 | n and the
associated data header[0:80] | len tenant | tenant | len repository | repository | n | last, lengths in two
bytes, n in eight, last in one.
With cipher 0 a segment is its plain text and the first 16 bytes of SHA-256(associated data | plain text).
"""

import hashlib
import hmac
import os
import struct
from enum import IntEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.errors import ObjectDamaged, RepositoryNewer, WrongKey
from engine.keys import Keyring, derive
from engine.ports import Buffer

MAGIC = b"LSTR"
VERSION = 1
HEADER = struct.Struct(">4sBBBxI4x32s32s")
HEADER_BYTES = HEADER.size
KIND_AT = 6
TAG_BYTES = 16
SEGMENT_BYTES = 1 << 20
CIPHER_NONE, CIPHER_AES_GCM = 0, 1
_SEGMENT = struct.Struct(">QB")


class Kind(IntEnum):
    DATA_PACK = 1
    META_PACK = 2
    INDEX = 3
    MANIFEST = 4
    RECORD = 5
    IMAGE = 6
    ERASURE = 7
    CATALOGUE = 8
    """What the catalogue keeps about a tenant's data; never lies in a store."""


class Envelope:
    """Seals and opens the segments of one object; made by `new_envelope` or `read_envelope`."""

    __slots__ = ("_aad", "_aead", "cipher", "epoch", "header", "kind")

    def __init__(self, keyring: Keyring, header: bytes, name: str) -> None:
        magic, version, cipher, kind, epoch, salt, commitment = HEADER.unpack(header)
        if magic != MAGIC:
            raise ObjectDamaged(f"{name}: not a Lastro object")
        if version > VERSION:
            raise RepositoryNewer(
                f"{name} has format version {version}, this reader knows {VERSION}", hint="upgrade Lastro"
            )
        if cipher not in (CIPHER_NONE, CIPHER_AES_GCM):
            raise ObjectDamaged(f"{name}: unknown cipher {cipher}")
        self.header, self.cipher, self.kind, self.epoch = header, cipher, kind, epoch
        tenant, repository = keyring.tenant_id.encode(), keyring.repository_id.encode()
        self._aad = b"".join(
            (header, struct.pack(">H", len(tenant)), tenant, struct.pack(">H", len(repository)), repository)
        )
        self._aead: AESGCM | None = None
        if cipher == CIPHER_AES_GCM:
            key, expected = _object_key(keyring, epoch, salt, kind, name)
            if not hmac.compare_digest(expected, commitment):
                raise ObjectDamaged(f"{name}: header altered, or written under another key")
            self._aead = AESGCM(key)

    def seal(self, number: int, data: Buffer, *, last: bool) -> bytes:
        """Encrypt segment `number`; a number must be used once per object."""
        aad = self._aad + _SEGMENT.pack(number, last)
        if self._aead is None:
            return b"".join((data, hashlib.sha256(aad + bytes(data)).digest()[:TAG_BYTES]))
        return self._aead.encrypt(number.to_bytes(12, "big"), data, aad)

    def open(self, number: int, sealed: Buffer, *, last: bool, name: str) -> bytes:
        """Decrypt and authenticate segment `number`. Raises ObjectDamaged."""
        aad = self._aad + _SEGMENT.pack(number, last)
        if self._aead is None:
            data, tag = bytes(sealed[:-TAG_BYTES]), bytes(sealed[-TAG_BYTES:])
            if len(sealed) < TAG_BYTES or not hmac.compare_digest(hashlib.sha256(aad + data).digest()[:TAG_BYTES], tag):
                raise ObjectDamaged(f"{name}: segment {number} is not what was written")
            return data
        try:
            return self._aead.decrypt(number.to_bytes(12, "big"), sealed, aad)
        except (InvalidTag, ValueError):
            raise ObjectDamaged(f"{name}: segment {number} is not what was written") from None


def _object_key(keyring: Keyring, epoch: int, salt: bytes, kind: int, name: str) -> tuple[bytes, bytes]:
    data_key = keyring.epochs.get(epoch)
    if data_key is None:
        raise WrongKey(
            f"{name} needs key epoch {epoch}",
            hint="newer keys may lie in a store: key repair; when none has them, somebody put it there: take it away by hand",
        )
    both = derive(data_key, salt=salt, info=b"lastro/v1/object\0" + bytes([kind]), length=64)
    return both[:32], both[32:]


def new_envelope(keyring: Keyring, kind: Kind, *, cipher: int = CIPHER_AES_GCM) -> Envelope:
    """A fresh salt and key for one object to be written."""
    salt, epoch = os.urandom(32), keyring.epoch
    commitment = bytes(32)
    if cipher == CIPHER_AES_GCM:
        _, commitment = _object_key(keyring, epoch, salt, kind, "new object")
    return Envelope(keyring, HEADER.pack(MAGIC, VERSION, cipher, kind, epoch, salt, commitment), "new object")


def read_envelope(keyring: Keyring, header: bytes, name: str, *kinds: Kind, cipher: int | None = None) -> Envelope:
    """Check a header read from a store; `kinds`, and `cipher` unless None, are the ones allowed in this place.

    Anybody can make an object of cipher 0, so the place must say whether one may lie there.
    """
    if len(header) < HEADER_BYTES:
        raise ObjectDamaged(f"{name}: truncated to {len(header)} bytes")
    envelope = Envelope(keyring, bytes(header[:HEADER_BYTES]), name)
    if envelope.kind not in kinds:
        raise ObjectDamaged(f"{name}: object of kind {envelope.kind} in the wrong place")
    if cipher is not None and envelope.cipher != cipher:
        raise ObjectDamaged(f"{name}: object of cipher {envelope.cipher} in the wrong place")
    return envelope


def seal_object(keyring: Keyring, kind: Kind, data: bytes, *, cipher: int = CIPHER_AES_GCM) -> list[bytes]:
    """The parts of one object that holds `data` in segments of 1 MiB."""
    envelope = new_envelope(keyring, kind, cipher=cipher)
    view = memoryview(data)
    count = max(1, -(-len(data) // SEGMENT_BYTES))
    parts = [envelope.header]
    for n in range(count):
        piece = view[n * SEGMENT_BYTES : (n + 1) * SEGMENT_BYTES]
        parts.append(envelope.seal(n, piece, last=n == count - 1))
    return parts


def open_object(
    keyring: Keyring, blob: Buffer, name: str, *kinds: Kind, cipher: int | None = None
) -> tuple[int, bytes]:
    """Kind and content of a sealed object. Raises ObjectDamaged for any altered, lost or added byte."""
    envelope = read_envelope(keyring, bytes(blob[:HEADER_BYTES]), name, *kinds, cipher=cipher)
    view = memoryview(blob)[HEADER_BYTES:]
    step = SEGMENT_BYTES + TAG_BYTES
    count = max(1, -(-len(view) // step))
    return envelope.kind, b"".join(
        envelope.open(n, view[n * step : (n + 1) * step], last=n == count - 1, name=name) for n in range(count)
    )
