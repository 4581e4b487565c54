"""Tombstones: which packs a prune dropped, when, and until when the store will not let them go.

`tombstones/<time>-<random>` is a sealed record, JSON `{"timestamp", "domain_prefix", "packs": [names], "until"?}`. `until`
is written where the store has locked the packs: nothing is asked about them before.
"""

import datetime
import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from engine.bounded import object_read
from engine.errors import ObjectDamaged
from engine.progress import Progress
from engine.repository import Domain, Repository
from engine.sealed import CIPHER_AES_GCM, Kind, open_object, seal_object

PACKS_MAX = 20_000
"""More packs than this go into several tombstones, so that none is large."""
TOMBSTONE_BYTES_MAX = 4 << 20


@dataclass(frozen=True, slots=True)
class Tombstone:
    """One tombstone: its key, when it was put up, and the packs' names in hex."""

    key: str
    made_at: datetime.datetime
    packs: tuple[str, ...]
    until: datetime.datetime | None = None

    def waits(self, now: datetime.datetime, grace: datetime.timedelta) -> bool:
        """Whether its packs stay for now; one from the future (a clock that jumped back) waits."""
        age = now - self.made_at
        return age < grace or age < datetime.timedelta(0) or self.locked(now)

    def locked(self, now: datetime.datetime) -> bool:
        """Whether the store keeps its packs."""
        return self.until is not None and self.until > now


def tombstones_read(repository: Repository, domain: Domain, progress: Progress) -> tuple[list[Tombstone], list[str]]:
    """Every tombstone by key, and the keys of those that cannot be read."""
    found: list[Tombstone] = []
    broken: list[str] = []
    for info in repository.store.list(f"{domain.prefix}tombstones/"):
        try:
            found.append(_read(repository, info.key))
        except ObjectDamaged as error:
            progress.warn(error.code, f"{error.message}; its packs are kept until they are entombed again")
            broken.append(info.key)
    return found, broken


def _read(repository: Repository, key: str) -> Tombstone:
    blob = object_read(repository.store, key, bytes_max=TOMBSTONE_BYTES_MAX, name=f"tombstone {key}")
    _, text = open_object(repository.keyring, blob, key, Kind.RECORD, cipher=CIPHER_AES_GCM)
    try:
        document = json.loads(text)
        until = document.get("until")
        if document["domain_prefix"] not in key:
            raise ValueError
        return Tombstone(
            key,
            datetime.datetime.fromisoformat(document["timestamp"]),
            tuple(map(str, document["packs"])),
            None if until is None else datetime.datetime.fromisoformat(until),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ObjectDamaged(f"tombstone {key} is not readable") from error


def entomb(
    repository: Repository, domain: Domain, names: Sequence[str], *, until: datetime.datetime | None = None
) -> Iterator[Tombstone]:
    """Put up tombstones for these packs; each is durable when it is yielded."""
    for begin in range(0, len(names), PACKS_MAX):
        yield _entomb(repository, domain, tuple(names[begin : begin + PACKS_MAX]), until)


def _entomb(
    repository: Repository, domain: Domain, names: tuple[str, ...], until: datetime.datetime | None
) -> Tombstone:
    now = datetime.datetime.now(datetime.UTC)
    document: dict[str, Any] = {"timestamp": now.isoformat(), "domain_prefix": domain.prefix, "packs": list(names)}
    if until is not None:
        document["until"] = until.isoformat()
    parts = seal_object(repository.keyring, Kind.RECORD, json.dumps(document).encode(), cipher=CIPHER_AES_GCM)
    key = f"{domain.prefix}tombstones/{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
    repository.store.create(key, parts)
    return Tombstone(key, now, names, until)
