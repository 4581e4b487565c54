"""What the catalogue keeps about a tenant's data, sealed under the tenant's own key: shredding takes it along."""

import json
from collections.abc import Mapping
from typing import Any

import zstandard

from core.rootkey import root_key
from engine.compression import decompress
from engine.errors import ObjectDamaged
from engine.keys import Keyring
from engine.sealed import Kind, open_object, seal_object
from tenants.models import Tenant

DOCUMENT_BYTES_MAX = 256 << 20
_LEVEL = 3


def keyring_of(tenant: Tenant) -> Keyring:
    """The tenant's keyring, opened by the root key."""
    return Keyring.from_bytes(bytes(tenant.keyring), root_key())


def document_seal(keyring: Keyring, context: str, document: Mapping[str, Any]) -> bytes:
    """Seal a JSON document; `context` (`plan:<id>` …) must be given again to open it."""
    plain = json.dumps({"context": context, "document": document}).encode()
    return b"".join(seal_object(keyring, Kind.CATALOGUE, zstandard.ZstdCompressor(level=_LEVEL).compress(plain)))


def document_open(keyring: Keyring, context: str, blob: bytes) -> Any:
    """The document. Raises ObjectDamaged when it was altered or belongs elsewhere, WrongKey for a lost key."""
    packed = open_object(keyring, bytes(blob), context, Kind.CATALOGUE)[1]
    opened = json.loads(decompress(packed, bytes_max=DOCUMENT_BYTES_MAX, name=context))
    if opened["context"] != context:
        raise ObjectDamaged(f"{context}: this is the sealed record of {opened['context']}")
    return opened["document"]
