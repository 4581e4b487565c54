"""Manifests and records: the signed, numbered documents of a repository (docs/formats/repository.md).

`checksums.manifest` is the SHA-256 of the document's RFC 8785 form without `checksums.manifest` and
`signature`; the signature is Ed25519 over "lastro manifest v1" 0 and that digest. Records (void, forget)
are signed likewise under `checksum`.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import rfc8785
import zstandard

from engine.compression import decompress
from engine.errors import ManifestDamaged, ManifestForged, ObjectDamaged, RepositoryNewer, UsageError
from engine.keys import Keyring
from engine.sealed import CIPHER_AES_GCM, HEADER, HEADER_BYTES, Kind, open_object, seal_object
from engine.signers import refused

FORMAT_VERSION = 1
DOCUMENT_BYTES_MAX = 256 << 20
_SIGNED = b"lastro manifest v1\0"
_INTEGER_MAX = (1 << 53) - 1
_MALFORMED = (ObjectDamaged, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def canonical(value: Any) -> bytes:
    """RFC 8785 canonical JSON."""
    return rfc8785.dumps(value)


def document_digest(document: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a document without its own checksum and signature."""
    return hashlib.sha256(canonical(_bare(document))).hexdigest()


def _bare(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the digest is taken of."""
    bare = {k: v for k, v in document.items() if k not in ("signature", "checksum")}
    if "checksums" in bare:
        bare["checksums"] = {k: v for k, v in bare["checksums"].items() if k != "manifest"}
    return bare


def _claimed_or_true_digest(document: Mapping[str, Any], claimed: object) -> str:
    """The document's digest; a tenth of the cost where the standard library writes what RFC 8785 asks for.

    It does for nearly all of our documents: other keys, floats with an exponent and lone surrogates differ, and those
    fail to match. A document whose two forms differ in nothing but their writing is the same document.
    """
    try:
        text = json.dumps(_bare(document), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
    except ValueError:
        return document_digest(document)
    return digest if digest == claimed else document_digest(document)


def _number(text: str) -> int | float:
    """A number written without point or exponent: RFC 8785 writes the float 1e20 like that."""
    value = int(text)
    return value if abs(value) <= _INTEGER_MAX else float(value)


@dataclass(frozen=True)
class Manifest:
    """One committed document; `kind` is "manifest" for a backup, "void", "forget" or "checkpoint" for a record."""

    number: int
    kind: str
    document: Mapping[str, Any]
    sha256: str
    epoch: int = field(default=0, compare=False)
    """Of the data key that seals it, and so of the key that signed it."""

    @classmethod
    def signed(cls, document: Mapping[str, Any], keyring: Keyring) -> Self:
        """Add checksum and signature. Raises UsageError for what JSON cannot hold: integers above 2^53, bytes, NaN."""
        try:
            complete = copy.deepcopy(dict(document))
            digest = document_digest(complete)
        except (ValueError, TypeError, RecursionError) as error:
            raise UsageError(
                f"the manifest cannot be written as JSON: {error}", hint="a connector gives facts of another type"
            ) from error
        if complete["kind"] == "manifest":
            complete["checksums"]["manifest"] = digest
        else:
            complete["checksum"] = digest
        complete["signature"] = keyring.sign(_SIGNED + bytes.fromhex(digest)).hex()
        return cls(complete["number"], complete["kind"], complete, digest, keyring.epoch)

    def parts(self, keyring: Keyring, *, cipher: int = CIPHER_AES_GCM) -> list[bytes]:
        """The object to store."""
        kind = Kind.MANIFEST if self.kind == "manifest" else Kind.RECORD
        packed = zstandard.ZstdCompressor(level=3).compress(canonical(self.document))
        return seal_object(keyring, kind, packed, cipher=cipher)

    @classmethod
    def read(cls, blob: bytes, keyring: Keyring, *, number: int) -> Self:
        """Raises ManifestDamaged when content, checksum, signature, number or repository do not fit."""
        name = f"manifest {number}"
        try:
            sealed_kind, packed = open_object(keyring, blob, name, Kind.MANIFEST, Kind.RECORD)
            text = decompress(packed, bytes_max=DOCUMENT_BYTES_MAX, name=name)
            document = json.loads(text, parse_int=_number)
            version, kind = int(document["version"]), str(document["kind"])
            claimed = document["checksums"]["manifest"] if kind == "manifest" else document["checksum"]
            signature = bytes.fromhex(document["signature"])
            # Not signed yet, so whatever can be written as JSON may be in it.
            digest = _claimed_or_true_digest(document, claimed) if version <= FORMAT_VERSION else ""
        except _MALFORMED as error:
            raise ManifestDamaged(f"{name} is not readable: {error}", hint="another copy may hold it whole") from error
        if version > FORMAT_VERSION:
            raise RepositoryNewer(
                f"{name} has version {version}, this reader knows {FORMAT_VERSION}", hint="upgrade Lastro"
            )
        epoch = int(HEADER.unpack(bytes(blob[:HEADER_BYTES]))[4])
        if not keyring.verifies(signature, _SIGNED + bytes.fromhex(digest), epoch=epoch):
            raise ManifestDamaged(f"{name}: the signature does not verify", hint="it was not written by us")
        right_place = document.get("number") == number and document.get("repository_id") == keyring.repository_id
        if claimed != digest or not right_place or (sealed_kind == Kind.MANIFEST) != (kind == "manifest"):
            raise ManifestDamaged(f"{name}: checksum, number or repository does not fit")
        if said := refused(keyring.successors, epoch=epoch, number=number, kind=kind, digest=digest):
            raise ManifestForged(f"{name}: {said}", hint="somebody who has former keys put it there: it is no backup")
        return cls(number, kind, document, digest, epoch)
