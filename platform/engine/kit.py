"""The recovery kit: the root key under a passphrase, and who is in the stores.

It holds no tenant keys, so it also opens tenants made after it: their keyrings lie in the stores,
wrapped by the same root key (docs/formats/repository.md, "Recovery kit").
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from engine.errors import ObjectDamaged, RepositoryNewer, UsageError, WrongKey
from engine.keys import RootKey

FORMAT = "lastro-recovery-kit"
VERSION = 1
PASSPHRASE_CHARS_MIN = 12
_ITERATIONS, _LANES, _MEMORY_KIB = 3, 4, 64 << 10  # RFC 9106, second recommended option.
_CONTEXT = b"lastro recovery kit v1"
_KNOWN_CONTEXT = b"lastro recovery kit known v1"


def _aead(passphrase: str, salt: bytes, *, iterations: int, lanes: int, memory_kib: int) -> AESGCM:
    kdf = Argon2id(salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory_kib)
    return AESGCM(kdf.derive(passphrase.encode()))


def passphrase_checked(passphrase: str) -> str:
    """The passphrase, or UsageError for one that is too short."""
    if len(passphrase) < PASSPHRASE_CHARS_MIN:
        raise UsageError(
            f"the passphrase needs at least {PASSPHRASE_CHARS_MIN} characters", hint="use five or more words"
        )
    return passphrase


def kit_export(
    root: RootKey,
    passphrase: str,
    repositories: Sequence[Mapping[str, str]],
    *,
    known: Mapping[str, Any] | None = None,
) -> bytes:
    """The kit as JSON text. `repositories`: rows of repository_id, tenant_id, tenant_name, public_key.

    `known`: what the installation knows of itself, for whoever adopts a store with the kit; sealed as the root key is.
    """
    passphrase_checked(passphrase)
    salt, nonce = os.urandom(16), os.urandom(12)
    aead = _aead(passphrase, salt, iterations=_ITERATIONS, lanes=_LANES, memory_kib=_MEMORY_KIB)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "root_key_id": root.key_id,
        "kdf": {
            "name": "argon2id",
            "salt": salt.hex(),
            "iterations": _ITERATIONS,
            "lanes": _LANES,
            "memory_kib": _MEMORY_KIB,
        },
        "nonce": nonce.hex(),
        "root_key": aead.encrypt(nonce, root.to_text().encode(), _CONTEXT).hex(),
        "repositories": [dict(row) for row in repositories],
    }
    if known is not None:
        nonce = os.urandom(12)
        sealed = aead.encrypt(nonce, json.dumps(dict(known)).encode(), _KNOWN_CONTEXT)
        document |= {"known_nonce": nonce.hex(), "known": sealed.hex()}
    return json.dumps(document, indent=1, ensure_ascii=False).encode()


def kit_known(blob: bytes, passphrase: str) -> dict[str, Any] | None:
    """What the kit knows of the installation; None for one of before that was kept. Raises as `kit_open` does."""
    kit_open(blob, passphrase)
    document = json.loads(blob)
    if "known" not in document:
        return None
    kdf = document["kdf"]
    cost = {name: int(kdf[name]) for name in ("iterations", "lanes", "memory_kib")}
    try:
        nonce, sealed = bytes.fromhex(document["known_nonce"]), bytes.fromhex(document["known"])
        plain = _aead(passphrase, bytes.fromhex(kdf["salt"]), **cost).decrypt(nonce, sealed, _KNOWN_CONTEXT)
        return dict(json.loads(plain))
    except (ValueError, KeyError, TypeError, InvalidTag) as error:
        raise ObjectDamaged("what this recovery kit knows of the installation was altered") from error


def kit_open(blob: bytes, passphrase: str) -> tuple[RootKey, list[dict[str, Any]]]:
    """Root key and repository rows. Raises WrongKey for another passphrase, ObjectDamaged, RepositoryNewer."""
    try:
        document = json.loads(blob)
        if document["format"] != FORMAT:
            raise ValueError
        if document["version"] > VERSION:
            raise RepositoryNewer(f"recovery kit version {document['version']} is newer than {VERSION}")
        kdf = document["kdf"]
        cost = {name: int(kdf[name]) for name in ("iterations", "lanes", "memory_kib")}
        if kdf["name"] != "argon2id" or not (cost["memory_kib"] <= 4 << 20 and cost["iterations"] <= 100):
            raise ValueError
        aead = _aead(passphrase, bytes.fromhex(kdf["salt"]), **cost)
        sealed, nonce = bytes.fromhex(document["root_key"]), bytes.fromhex(document["nonce"])
        rows = [dict(row) for row in document["repositories"]]
        text = aead.decrypt(nonce, sealed, _CONTEXT).decode()
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ObjectDamaged("this is no readable recovery kit") from error
    except MemoryError:
        raise ObjectDamaged(
            "this machine has not the memory that the kit asks for", hint="64 MiB are usual; was the kit altered?"
        ) from None
    except InvalidTag:
        raise WrongKey("the passphrase does not open this kit", hint="or the kit was altered") from None
    return RootKey.from_text(text), rows
