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


def kit_export(root: RootKey, passphrase: str, repositories: Sequence[Mapping[str, str]]) -> bytes:
    """The kit as JSON text. `repositories`: rows of repository_id, tenant_id, tenant_name, public_key."""
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
    return json.dumps(document, indent=1, ensure_ascii=False).encode()


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
