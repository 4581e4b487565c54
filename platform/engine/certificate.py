"""Certificates of shredding: what was destroyed, signed, so that anybody can check it without Lastro.

The signature is Ed25519 (RFC 8032) over "lastro shred certificate v1" 0 and the SHA-256 of the document's RFC 8785 form
without `signature` (docs/formats/repository.md, "Certificate of shredding").
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from engine.errors import ObjectDamaged, RepositoryNewer, UsageError, WrongKey
from engine.keys import Keyring
from engine.manifest import canonical

FORMAT = "lastro-shred-certificate"
VERSION = 1
CERTIFICATE_BYTES_MAX = 16 << 20
_SIGNED = b"lastro shred certificate v1\0"


def certificate_digest(document: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the document without its signature."""
    return hashlib.sha256(canonical({k: v for k, v in document.items() if k != "signature"})).hexdigest()


def certificate_sign(document: Mapping[str, Any], keyring: Keyring) -> dict[str, Any]:
    """The document with `format`, `version`, `public_key` and `signature`."""
    public_key = keyring.public_key_of(keyring.epoch).hex()
    complete = {**document, "format": FORMAT, "version": VERSION, "public_key": public_key}
    signature = keyring.sign(_SIGNED + bytes.fromhex(certificate_digest(complete)))
    return {**complete, "signature": signature.hex()}


def certificate_claims(blob: bytes) -> str:
    """The public key (hex) that a certificate names as its own; empty for what is none. Proves nothing."""
    try:
        return str(json.loads(blob)["public_key"]).lower()
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def certificate_check(blob: bytes, *, public_key: str) -> dict[str, Any]:
    """The document, when it was signed by this key (hex) and not altered.

    Raises WrongKey for one that another installation signed, ObjectDamaged for an altered one, RepositoryNewer.
    """
    try:
        trusted = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
    except ValueError:
        raise UsageError("a public key is 64 hexadecimal digits", hint="key list shows it") from None
    try:
        document: dict[str, Any] = json.loads(blob)
        if document["format"] != FORMAT:
            raise ValueError
        version, claimed = int(document["version"]), str(document["public_key"])
        signature, digest = bytes.fromhex(document["signature"]), certificate_digest(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ObjectDamaged("this is no readable certificate") from error
    if version > VERSION:
        raise RepositoryNewer(f"certificate version {version} is newer than {VERSION}", hint="upgrade Lastro")
    if claimed != public_key.lower():
        raise WrongKey(
            f"the certificate names the public key {claimed[:16]}…, trusted is {public_key[:16]}…",
            hint="another installation issued it, or somebody forged it",
        )
    try:
        trusted.verify(signature, _SIGNED + bytes.fromhex(digest))
    except InvalidSignature:
        raise ObjectDamaged("the signature does not verify: the certificate was altered") from None
    return document
