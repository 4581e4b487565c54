"""Manifests and records: the signed, numbered documents of a repository (docs/formats/repository.md).

`checksums.manifest` is the SHA-256 of the document's RFC 8785 form without `checksums.manifest` and
`signature`; the signature is Ed25519 over "lastro manifest v1" 0 and that digest. Records (void, forget)
are signed likewise under `checksum`.
"""

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import rfc8785
import zstandard
from cryptography.exceptions import InvalidSignature

from engine.errors import ManifestDamaged, ObjectDamaged, RepositoryNewer
from engine.keys import Keyring
from engine.sealed import CIPHER_AES_GCM, Kind, open_object, seal_object

FORMAT_VERSION = 1
DOCUMENT_BYTES_MAX = 256 << 20
_SIGNED = b"lastro manifest v1\0"


def canonical(value: Any) -> bytes:
    """RFC 8785 canonical JSON."""
    return rfc8785.dumps(value)


def document_digest(document: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a document without its own checksum and signature."""
    bare = {k: v for k, v in document.items() if k not in ("signature", "checksum")}
    if "checksums" in bare:
        bare["checksums"] = {k: v for k, v in bare["checksums"].items() if k != "manifest"}
    return hashlib.sha256(canonical(bare)).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """One committed document; `kind` is "manifest" for a backup, "void" or "forget" for a record."""

    number: int
    kind: str
    document: Mapping[str, Any]
    sha256: str

    @classmethod
    def signed(cls, document: Mapping[str, Any], keyring: Keyring) -> Self:
        """Add checksum and signature."""
        complete = copy.deepcopy(dict(document))
        digest = document_digest(complete)
        if complete["kind"] == "manifest":
            complete["checksums"]["manifest"] = digest
        else:
            complete["checksum"] = digest
        complete["signature"] = keyring.sign(_SIGNED + bytes.fromhex(digest)).hex()
        return cls(complete["number"], complete["kind"], complete, digest)

    def parts(self, keyring: Keyring, *, cipher: int = CIPHER_AES_GCM) -> list[bytes]:
        """The object to store."""
        kind = Kind.MANIFEST if self.kind == "manifest" else Kind.RECORD
        packed = zstandard.ZstdCompressor(level=3).compress(canonical(self.document))
        return seal_object(keyring, kind, packed, cipher=cipher)

    @classmethod
    def read(cls, blob: bytes, keyring: Keyring, *, number: int) -> Self:
        """Raises ManifestDamaged when content, checksum, signature, number or repository do not fit."""
        import json

        name = f"manifest {number}"
        try:
            sealed_kind, packed = open_object(keyring, blob, name, Kind.MANIFEST, Kind.RECORD)
            text = zstandard.ZstdDecompressor().decompress(packed, max_output_size=DOCUMENT_BYTES_MAX)
            document = json.loads(text)
            version, kind = document["version"], document["kind"]
            claimed = document["checksums"]["manifest"] if kind == "manifest" else document["checksum"]
            signature = bytes.fromhex(document["signature"])
        except (ObjectDamaged, zstandard.ZstdError, ValueError, KeyError, TypeError) as error:
            raise ManifestDamaged(f"{name} is not readable: {error}", hint="another copy may hold it whole") from error
        if version > FORMAT_VERSION:
            raise RepositoryNewer(
                f"{name} has version {version}, this reader knows {FORMAT_VERSION}", hint="upgrade Lastro"
            )
        digest = document_digest(document)
        try:
            keyring.verifier().verify(signature, _SIGNED + bytes.fromhex(digest))
        except InvalidSignature:
            raise ManifestDamaged(f"{name}: the signature does not verify", hint="it was not written by us") from None
        right_place = document["number"] == number and document["repository_id"] == keyring.repository_id
        if claimed != digest or not right_place or (sealed_kind == Kind.MANIFEST) != (kind == "manifest"):
            raise ManifestDamaged(f"{name}: checksum, number or repository does not fit")
        return cls(number, kind, document, digest)
