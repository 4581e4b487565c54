"""What the catalogue keeps about a tenant's data, sealed under the tenant's own key: shredding takes it along."""

import base64
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
from tenants.shredded import keys_present

DOCUMENT_BYTES_MAX = 256 << 20
_LEVEL = 3


def keyring_of(tenant: Tenant) -> Keyring:
    """The tenant's keyring, opened by the root key. Raises KeysDestroyed, WrongKey, ObjectDamaged."""
    keys_present(tenant)
    return Keyring.of(bytes(tenant.keyring), root_key(), tenant_id=tenant.pk, repository_id=tenant.repository_id)


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


def json_sealed(keyring: Keyring, context: str, document: Mapping[str, Any]) -> dict[str, str]:
    """The sealed document as what a JSON column can hold."""
    return {_SEALED: base64.b64encode(document_seal(keyring, context, document)).decode()}


def json_opened(keyring: Keyring, context: str, kept: Mapping[str, Any]) -> Any:
    """What `json_sealed` sealed; an empty column, or one from before anything was sealed, is returned as it is."""
    if _SEALED not in kept:
        return kept
    return document_open(keyring, context, base64.b64decode(kept[_SEALED]))


_SEALED = "sealed"
