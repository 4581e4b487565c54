"""Root key, keyring and the keys derived from them (docs/formats/repository.md, "Keys").

The root key wraps, per repository, one id key, one Ed25519 signing seed and one data key per epoch.
Wrapping is AES-256-GCM under HKDF-SHA256(root, random salt, context), so equal secrets never look equal.
"""

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from engine.errors import ForeignKeyring, ObjectDamaged, RepositoryNewer, UsageError, WrongKey
from engine.signers import Known, Successor, known_newest

KEY_BYTES = 32
SALT_BYTES = 32
_ROOT_MAGIC = b"LRK1"
_TEXT_PREFIX = "lastro-root-v1:"
_ZERO_NONCE = bytes(12)
KEYRING_VERSION = 3
"""Version 2 is written where there is more than one id key, 3 where there is more than one signing key: an older reader would
miss something there."""


def derive(secret: bytes, *, salt: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """HKDF-SHA256 (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(secret)


class RootKey:
    """The one secret an installation must not lose; 32 random bytes."""

    __slots__ = ("_secret", "former", "key_id")

    def __init__(self, secret: bytes, *, former: "RootKey | None" = None) -> None:
        """`former` is the key that this one takes the place of: it still opens, and seals nothing any more."""
        if len(secret) != KEY_BYTES:
            raise UsageError("the root key must be 32 bytes", hint="create one with RootKey.generate()")
        self._secret, self.former = secret, former
        self.key_id = hashlib.sha256(b"lastro root key id\0" + secret).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"RootKey({self.key_id})"

    @classmethod
    def generate(cls) -> Self:
        """A new key from the operating system's randomness."""
        return cls(os.urandom(KEY_BYTES))

    def succeeding(self, former: "RootKey") -> "RootKey":
        """This key, opening what `former` sealed, too: what a rotation works with."""
        return RootKey(self._secret, former=former)

    def secret_bytes(self) -> bytes:
        """The 32 bytes, for who wraps them elsewhere."""
        return self._secret

    def to_text(self) -> str:
        """`lastro-root-v1:<64 hex>:<8 hex of SHA-256>`; the last part catches a mistyped key."""
        body = self._secret.hex()
        return f"{_TEXT_PREFIX}{body}:{hashlib.sha256(body.encode()).hexdigest()[:8]}"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Raises UsageError when the text is not a whole root key; the text itself is never repeated."""
        body, _, check = text.strip().removeprefix(_TEXT_PREFIX).partition(":")
        try:
            secret = bytes.fromhex(body)
        except ValueError:
            raise UsageError(
                "the root key is not hexadecimal", hint=f"expected {_TEXT_PREFIX}<64 hex>:<8 hex>"
            ) from None
        if check and check != hashlib.sha256(body.encode()).hexdigest()[:8]:
            raise UsageError("the root key's check digits do not match", hint="a character was lost or mistyped")
        return cls(secret)

    def seal(self, data: bytes, context: str) -> bytes:
        """Encrypt a small secret; `context` says what it is and must be given again to open it."""
        salt = os.urandom(SALT_BYTES)
        aead = AESGCM(derive(self._secret, salt=salt, info=b"lastro/v1/root\0" + context.encode()))
        return _ROOT_MAGIC + bytes.fromhex(self.key_id) + salt + aead.encrypt(_ZERO_NONCE, data, context.encode())

    def open(self, blob: bytes, context: str) -> bytes:
        """Raises WrongKey when another root key sealed it, ObjectDamaged when it was altered or misplaced."""
        if blob[:4] != _ROOT_MAGIC or len(blob) < 4 + 8 + SALT_BYTES + 16:
            raise ObjectDamaged(f"{context}: not a sealed secret")
        if blob[4:12].hex() != self.key_id:
            if self.former is not None and blob[4:12].hex() == self.former.key_id:
                return self.former.open(blob, context)
            raise WrongKey(
                f"{context} was sealed by root key {blob[4:12].hex()}, this is {self.key_id}",
                hint="give the right root key, or restore it from the recovery kit",
            )
        salt, sealed = blob[12 : 12 + SALT_BYTES], blob[12 + SALT_BYTES :]
        aead = AESGCM(derive(self._secret, salt=salt, info=b"lastro/v1/root\0" + context.encode()))
        try:
            return aead.decrypt(_ZERO_NONCE, sealed, context.encode())
        except InvalidTag:
            raise ObjectDamaged(f"{context}: the sealed secret was altered") from None


def sealed_by(blob: bytes) -> str:
    """Id of the root key that sealed a secret; empty for what is none."""
    return blob[4:12].hex() if blob[:4] == _ROOT_MAGIC else ""


def keyring_root_id(blob: bytes) -> str:
    """Id of the root key that wraps a keyring, as it says itself; empty for what is none."""
    try:
        return str(json.loads(blob)["root_key_id"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


@dataclass(frozen=True)
class Keyring:
    """All keys of one repository, unwrapped; never leaves the process unsealed."""

    tenant_id: str
    repository_id: str
    id_key: bytes = field(repr=False)
    """The first id key: it names chunks until another one does, and the subjects of the erasure ledger for ever."""
    signing_seed: bytes = field(repr=False)
    epochs: Mapping[int, bytes] = field(repr=False)
    """Data key per epoch; the highest epoch writes, all of them read."""
    later_id_keys: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    """Id keys that took the place of the one before, by the epoch they began with: one for each compromise."""
    successors: Mapping[int, Successor] = field(default_factory=dict, repr=False)
    """Signing keys that took the place of the one before, by the epoch they began with."""

    @classmethod
    def create(cls, root: RootKey, *, tenant_id: str, repository_id: str) -> Self:
        """Fresh random keys, epoch 1. `root` is taken so that no keyring is made without one to wrap it."""
        assert isinstance(root, RootKey)
        return cls(tenant_id, repository_id, os.urandom(32), os.urandom(32), {1: os.urandom(32)})

    @property
    def epoch(self) -> int:
        return max(self.epochs)

    @property
    def id_epoch(self) -> int:
        """The epoch with which the present id key began: backups of another one share no chunk with new ones."""
        return max(self.later_id_keys, default=1)

    def rotated(self, *, compromised: bool = False) -> Self:
        """The same keyring with a new epoch that writes from now on; `compromised` replaces the id key, too.

        Old chunks then have other ids than equal new ones, so that no later backup rests on what was sealed by a
        key that got out. They stay readable by the keys they were made with.
        """
        epoch = self.epoch + 1
        ids = {**self.later_id_keys, **({epoch: os.urandom(32)} if compromised else {})}
        return replace(self, epochs={**self.epochs, epoch: os.urandom(32)}, later_id_keys=ids)

    def succeeded(self, *, since: int, at: str, reason: str, known: Known | None = None) -> Self:
        """The same keyring with a new signing key for its newest epoch, under which nothing is sealed yet.

        `known`: the key before had got out, and nothing else of what it signed is believed; None: it is trusted.
        """
        assert self.epoch not in self.successors, "an epoch has one signing key"
        told = None if known is None else known_newest(known)
        successor = Successor(os.urandom(32), since, at, reason, told)
        return replace(self, successors={**self.successors, self.epoch: successor})

    def includes(self, other: "Keyring") -> bool:
        """Whether this opens all that the other one opens: same repository, same keys, perhaps more of them."""
        return (
            (self.tenant_id, self.repository_id) == (other.tenant_id, other.repository_id)
            and (self.id_key, self.signing_seed) == (other.id_key, other.signing_seed)
            and self.epochs.items() >= other.epochs.items()
            and self.later_id_keys.items() >= other.later_id_keys.items()
            and all(self.successors.get(epoch) == each for epoch, each in other.successors.items())
        )

    @property
    def key_id(self) -> str:
        """Names the writing epoch in manifests: repository and epoch, nothing secret."""
        return f"{self.repository_id}/{self.epoch}"

    @functools.cached_property
    def public_key(self) -> bytes:
        """Of the first signing key: it names the repository for ever, in its config and in recovery kits."""
        return Ed25519PrivateKey.from_private_bytes(self.signing_seed).public_key().public_bytes_raw()

    @functools.cached_property
    def public_keys(self) -> Mapping[int, bytes]:
        """The public half of every signing key, by the epoch with which it began."""
        return {1: self.public_key, **{epoch: self.successors[epoch].public_key for epoch in sorted(self.successors)}}

    def public_key_of(self, epoch: int) -> bytes:
        """Of the key that signs what is sealed under this epoch."""
        return self.public_keys[max((each for each in self.public_keys if each <= epoch), default=1)]

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature (RFC 8032) by the present key, 64 bytes."""
        newest = max(self.successors, default=0)
        seed = self.successors[newest].seed if newest else self.signing_seed
        return Ed25519PrivateKey.from_private_bytes(seed).sign(message)

    def verifies(self, signature: bytes, message: bytes, *, epoch: int) -> bool:
        """Whether the key of this epoch has signed the message."""
        key = self.public_key_of(epoch)
        if key not in self._verifiers:
            self._verifiers[key] = Ed25519PublicKey.from_public_bytes(key)
        try:
            self._verifiers[key].verify(signature, message)
        except InvalidSignature:
            return False
        return True

    @functools.cached_property
    def _verifiers(self) -> dict[bytes, Ed25519PublicKey]:
        return {}

    def chunk_id_keys(self, domain: str) -> tuple[bytes, ...]:
        """Keys of the BLAKE3 that names chunks, the present one first; encrypted and plain chunks never share ids."""
        keys = [self.id_key, *(key for _, key in sorted(self.later_id_keys.items()))]
        return tuple(derive(key, salt=b"", info=b"lastro/v1/chunk-id\0" + domain.encode()) for key in reversed(keys))

    def to_bytes(self, root: RootKey) -> bytes:
        """The keyring object: JSON with each secret sealed by the root key."""

        def wrap(name: str, secret: bytes) -> str:
            return root.seal(secret, f"keyring:{self.tenant_id}:{self.repository_id}:{name}").hex()

        document: dict[str, Any] = {
            "format": "lastro-keyring",
            "version": 3 if self.successors else 2 if self.later_id_keys else 1,
            "tenant_id": self.tenant_id,
            "repository_id": self.repository_id,
            "root_key_id": root.key_id,
            "public_key": self.public_key.hex(),
            "id_key": wrap("id", self.id_key),
            "signing_seed": wrap("signing", self.signing_seed),
            "epochs": {str(n): wrap(f"epoch-{n}", key) for n, key in sorted(self.epochs.items())},
        }
        if self.later_id_keys:
            document["id_keys"] = {str(n): wrap(f"id-{n}", key) for n, key in sorted(self.later_id_keys.items())}
        if self.successors:
            made = sorted(self.successors.items())
            document["successors"] = {str(n): wrap(f"successor-{n}", each.secret()) for n, each in made}
            document["signers"] = {str(n): self._signer(n) for n, _ in made}
        return json.dumps(document, indent=1, sort_keys=True).encode()

    def _signer(self, epoch: int) -> dict[str, str | None]:
        """Public key of a successor, and the former key's signature on it: none after a break."""
        successor = self.successors[epoch]
        former = max((each for each in self.successors if each < epoch), default=0)
        seed = self.successors[former].seed if former else self.signing_seed
        vouched = None
        if successor.known is None:
            statement = successor.statement(self.repository_id, epoch)
            vouched = Ed25519PrivateKey.from_private_bytes(seed).sign(statement).hex()
        return {"public_key": successor.public_key.hex(), "signed_by_former": vouched}

    @classmethod
    def of(cls, blob: bytes, root: RootKey, *, repository_id: str, tenant_id: str | None = None) -> Self:
        """The keyring that must be this repository's. Raises what `from_bytes` does, ForeignKeyring for another's."""
        keyring = cls.from_bytes(blob, root)
        if keyring.repository_id != repository_id or tenant_id not in (None, keyring.tenant_id):
            raise ForeignKeyring(
                f"the keyring in the place of {repository_id}'s is that of {keyring.repository_id}",
                hint="somebody put it there; key verify shows which places are right, key repair puts them right",
            )
        return keyring

    @classmethod
    def from_bytes(cls, blob: bytes, root: RootKey) -> Self:
        """Raises ObjectDamaged, RepositoryNewer or WrongKey."""
        try:
            document = json.loads(blob)
            if document["format"] != "lastro-keyring":
                raise ValueError
            if not 1 <= int(document["version"]) <= KEYRING_VERSION:
                raise RepositoryNewer(
                    f"keyring version {document['version']}, this reader knows {KEYRING_VERSION}", hint="upgrade Lastro"
                )
            tenant_id, repository_id = str(document["tenant_id"]), str(document["repository_id"])

            def unwrap(name: str, text: str) -> bytes:
                return root.open(bytes.fromhex(text), f"keyring:{tenant_id}:{repository_id}:{name}")

            keyring = cls(
                tenant_id=tenant_id,
                repository_id=repository_id,
                id_key=unwrap("id", document["id_key"]),
                signing_seed=unwrap("signing", document["signing_seed"]),
                epochs={int(n): unwrap(f"epoch-{n}", text) for n, text in document["epochs"].items()},
                later_id_keys={int(n): unwrap(f"id-{n}", text) for n, text in document.get("id_keys", {}).items()},
                successors={
                    int(n): Successor.of_secret(unwrap(f"successor-{n}", text))
                    for n, text in document.get("successors", {}).items()
                },
            )
            if not keyring.epochs:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ObjectDamaged("the keyring object is not readable", hint="take it from another store") from error
        if keyring.public_key.hex() != document.get("public_key"):
            raise ObjectDamaged("the keyring's public key does not match its signing seed")
        # What is said in clear is for those who cannot open it. Ed25519 signatures are deterministic (RFC 8032).
        if document.get("signers", {}) != {str(n): keyring._signer(n) for n in keyring.successors}:
            raise ObjectDamaged("the keyring says other signing keys in clear than it holds")
        return keyring
