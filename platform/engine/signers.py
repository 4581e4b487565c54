"""Signing keys that take the place of one another, and what is still believed of the former ones (docs/adr/0018).

A successor begins with an epoch of the data keys. What is sealed under an epoch must be signed by the key of that epoch, so that
whoever has former keys alone can sign nothing that looks new. What he can still make looks old: it is believed only where it
bears a number that was given out before the successor, and, when the former keys had got out, only where it is exactly what
was known under that number then.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PINNED_MAX = 20_000
"""Manifests of before a break that are known by their digests: the newest; a keyring has to stay small."""
PIN_BYTES = 16
SEED_BYTES = 32
_SIGNED = b"lastro successor v1\0"


@dataclass(frozen=True)
class Known:
    """What there was under the numbers of a repository when its former keys had got out."""

    kept: Mapping[int, str] = field(default_factory=dict)
    """Number -> SHA-256 (hex) of each manifest that was kept then."""
    ended: Mapping[int, str] = field(default_factory=dict)
    """Of those that were ended and may still lie somewhere."""
    erasures: int = 0
    """The highest record of the erasure ledger."""


@dataclass(frozen=True)
class Successor:
    """A signing key that took the place of the one before."""

    seed: bytes = field(repr=False)
    since: int
    """The first number that it, and none before it, signs; 0 in a repository whose numbers differ from store to store."""
    at: str
    """When, RFC 3339."""
    reason: str
    """`adopted`, `compromised` or `root`."""
    known: Known | None = None
    """None: the key before was trusted, and has signed this one. Otherwise a break: of what it signed, this is believed."""

    @property
    def public_key(self) -> bytes:
        """The public half, 32 bytes."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()

    def secret(self) -> bytes:
        """What the root key wraps: the seed, then JSON of all that is said of it, so that nothing can be altered."""
        document: dict[str, Any] = {"since": self.since, "at": self.at, "reason": self.reason}
        if self.known is not None:
            document |= {
                "kept": _pins(self.known.kept),
                "ended": _pins(self.known.ended),
                "erasures": self.known.erasures,
            }
        return self.seed + rfc8785.dumps(document)

    @classmethod
    def of_secret(cls, plain: bytes) -> Self:
        """Raises ValueError, KeyError or TypeError for what `secret` did not write."""
        document = json.loads(plain[SEED_BYTES:])
        known = None
        if "kept" in document:
            kept, ended = ({int(n): str(pin) for n, pin in document[name]} for name in ("kept", "ended"))
            known = Known(kept, ended, int(document["erasures"]))
        return cls(plain[:SEED_BYTES], int(document["since"]), str(document["at"]), str(document["reason"]), known)

    def statement(self, repository_id: str, epoch: int) -> bytes:
        """What a trusted predecessor signs about it."""
        said: dict[str, Any] = {"repository_id": repository_id, "epoch": epoch, "public_key": self.public_key.hex(),
                                "since": self.since, "at": self.at}  # fmt: skip
        return _SIGNED + hashlib.sha256(rfc8785.dumps(said)).digest()


def known_newest(known: Known) -> Known:
    """The same in a size that a keyring can hold, the newest numbers first, with short digests."""
    kept = dict(sorted(known.kept.items())[-PINNED_MAX:])
    left = PINNED_MAX - len(kept)
    ended = dict(sorted(known.ended.items())[-left:]) if left else {}
    return Known(_short(kept), _short(ended), known.erasures)


def _short(pins: Mapping[int, str]) -> dict[int, str]:
    return {number: digest[: 2 * PIN_BYTES] for number, digest in pins.items()}


def _pins(pins: Mapping[int, str]) -> list[list[Any]]:
    return [[number, pin] for number, pin in sorted(pins.items())]


def refused(successors: Mapping[int, Successor], *, epoch: int, number: int, kind: str, digest: str) -> str:
    """Why a document that a former key has signed is not believed; empty when it is.

    `epoch` is that under which it is sealed; its signature has been checked by the key of that epoch.
    """
    later = [successors[each] for each in sorted(successors) if each > epoch]
    if not later or kind in ("selection", "owner"):  # Numbered for themselves; who reads them asks `before_break`.
        return ""
    if later[0].since and number >= later[0].since:
        return f"it was signed by a former key, which signs nothing from number {later[0].since} on"
    known = next((each.known for each in reversed(later) if each.known is not None), None)
    if known is None or not later[0].since:
        return ""
    pin = known.kept.get(number, "")
    if kind in ("forget", "void"):
        return "a former key, which had got out, says that a backup was ended which is kept" if pin else ""
    if kind != "manifest":
        return ""
    pin = pin or known.ended.get(number, "")
    if not pin:
        return "it was signed by a former key, which had got out, and was not there when that was replaced"
    return "" if digest.startswith(pin) else "it is not the one that was there when its signing key had got out"


def break_after(successors: Mapping[int, Successor], epoch: int) -> Known | None:
    """What was known at the newest break after this epoch; None when all keys since were trusted."""
    breaks = (successors[each].known for each in sorted(successors, reverse=True) if each > epoch)
    return next((known for known in breaks if known is not None), None)
