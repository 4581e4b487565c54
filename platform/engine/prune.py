"""Prune: forget, mark, repack, tombstone, grace, sweep.

Runs under the tenant's lease, like a commit, so no manifest appears meanwhile. The order makes every
kill harmless: live chunks of thin packs are stored anew before the index drops the old packs; the index
drops a pack before it is tombstoned, so that no later session deduplicates against it; a pack is deleted
only after its tombstone is durable and older than the grace, and never because a listing lacks something:
a gap in the chain of manifests, or a live chunk that cannot be found, stops prune before it deletes.
"""

import datetime
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.errors import ChunkMissing, ObjectDamaged
from engine.faults import kill_point
from engine.manifest import Manifest
from engine.progress import Progress
from engine.rebuild import index_rebuild, pack_keys
from engine.repository import Domain, Repository
from engine.sealed import CIPHER_AES_GCM, Kind, open_object, seal_object
from engine.session import Lane
from engine.views import walk_manifest

LIVE_SHARE_MIN = 0.25
"""A pack of which less than this share is still needed is rewritten."""
SMALL_BYTES = 256 << 10
"""Chunks below this are bundled again when they are rewritten."""


@dataclass(frozen=True)
class PruneReport:
    """What was done, or with `dry_run` would be done; sizes in stored bytes."""

    forgotten: tuple[int, ...] = ()
    packs: int = 0
    packs_rewritten: int = 0
    packs_dropped: int = 0
    packs_swept: int = 0
    bytes_before: int = 0
    bytes_after: int = 0


@dataclass
class _Mark:
    """Which entries of which index segment are live, one byte each, and live bytes per pack."""

    bits: dict[str, bytearray] = field(default_factory=dict)
    live: dict[str, int] = field(default_factory=dict)


@dataclass
class _Plan:
    keep: set[str] = field(default_factory=set)
    rewrite: set[str] = field(default_factory=set)
    drop: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Pack name -> store key and size of what nothing needs."""


def prune(
    repository: Repository,
    *,
    forget: Mapping[int, str],
    head: int,
    dry_run: bool,
    progress: Progress,
    grace: datetime.timedelta = datetime.timedelta(0),
) -> PruneReport:
    """End the backups numbered in `forget` (number -> reason) and free what only they needed.

    `head` is the highest number the catalogue knows: up to it the chain must be whole. Raises
    ManifestDamaged for a gap and ChunkMissing or ObjectDamaged when a kept backup cannot be followed;
    nothing is deleted then.
    """
    progress.phase("mark")
    chain = [m for m in repository.chain(max(head, repository.head())) if m.kind == "manifest"]
    kept = [m for m in chain if m.number not in forget]
    ended = tuple(m.number for m in chain if m.number in forget)
    if not dry_run:
        for number in ended:
            repository.forget(number, forget[number])
    report = PruneReport(forgotten=ended)
    for domain in (repository.sealed, repository.plain):
        manifests = [m for m in kept if bool(m.document["metadata"]["encrypted"]) == domain.encrypted]
        part = _prune_domain(repository, domain, manifests, dry_run=dry_run, grace=grace, progress=progress)
        report = _sum(report, part)
    return report


def _sum(a: PruneReport, b: PruneReport) -> PruneReport:
    return PruneReport(
        forgotten=a.forgotten,
        packs=a.packs + b.packs,
        packs_rewritten=a.packs_rewritten + b.packs_rewritten,
        packs_dropped=a.packs_dropped + b.packs_dropped,
        packs_swept=a.packs_swept + b.packs_swept,
        bytes_before=a.bytes_before + b.bytes_before,
        bytes_after=a.bytes_after + b.bytes_after,
    )


def _prune_domain(
    repository: Repository,
    domain: Domain,
    manifests: list[Manifest],
    *,
    dry_run: bool,
    grace: datetime.timedelta,
    progress: Progress,
) -> PruneReport:
    packs = {key.rpartition("/")[2]: (key, size) for key, size in pack_keys(repository, domain)}
    if not packs:
        return PruneReport()
    entombed = _tombstones(repository, domain)
    domain.index.reload()
    if domain.index.damaged and not dry_run:
        index_rebuild(repository, domain, progress, skip=frozenset().union(*entombed.values()))
    mark = _mark(domain, manifests, progress)
    _refuse_missing(mark, packs)
    waiting = frozenset[str]().union(*entombed.values())
    plan = _plan(domain, mark, packs, waiting)
    before = sum(size for _, size in packs.values())
    live_after = before - sum(size for _, size in plan.drop.values())
    if dry_run:
        return PruneReport((), len(packs), len(plan.rewrite), len(plan.drop), 0, before, live_after)
    stored = _rewrite(domain, mark, plan, progress)
    indexed = domain.index.pack_names()
    if indexed & plan.drop.keys():
        domain.index.rewrite(keep_pack=frozenset(indexed - plan.drop.keys()))
        kill_point("prune.index_rewritten")
    if plan.drop:
        entombed[_entomb(repository, domain, sorted(plan.drop))] = frozenset(plan.drop)
        kill_point("prune.tombstoned")
    swept, freed = _sweep(repository, domain, entombed, packs, grace, progress)
    domain.index.forget_cached()
    return PruneReport((), len(packs), len(plan.rewrite), len(plan.drop), swept, before, before + stored - freed)


def _mark(domain: Domain, manifests: list[Manifest], progress: Progress) -> _Mark:
    segments = domain.index.segments
    mark = _Mark(bits={segment.name: bytearray(segment.count) for segment in segments})
    reader = domain.reader()

    def visit(chunk_id: bytes, is_meta: bool) -> bool:
        for segment in segments:
            ordinal = segment.ordinal(chunk_id)
            if ordinal >= 0:
                break
        else:
            raise ChunkMissing(
                f"chunk {chunk_id.hex()[:16]} of a kept backup is in no index; nothing was deleted",
                hint="run a verify, which rebuilds the index, then prune again",
            )
        bits = mark.bits[segment.name]
        if bits[ordinal]:
            return False
        bits[ordinal] = 1
        place = segment.place(ordinal)
        mark.live[place.pack] = mark.live.get(place.pack, 0) + place.length
        return is_meta

    for manifest in manifests:
        progress.check()
        walk_manifest(reader, manifest, visit)
        progress.advance(items=1)
    return mark


def _refuse_missing(mark: _Mark, packs: Mapping[str, tuple[str, int]]) -> None:
    for name in mark.live:
        if name not in packs:
            raise ChunkMissing(
                f"pack {name[:16]}, which a kept backup needs, is not listed by the store; nothing was deleted",
                hint="repair it from another copy",
            )


def _plan(domain: Domain, mark: _Mark, packs: Mapping[str, tuple[str, int]], waiting: frozenset[str]) -> _Plan:
    plan = _Plan()
    total: dict[str, int] = {}
    for segment in domain.index.segments:
        names = [name for name, _ in segment.packs()]
        for entry in segment.entries():
            name = names[int.from_bytes(entry[32:36], "big")]
            total[name] = total.get(name, 0) + int.from_bytes(entry[48:52], "big")
    for name, place in packs.items():
        live = mark.live.get(name, 0)
        if live and live >= LIVE_SHARE_MIN * total.get(name, 1):
            plan.keep.add(name)
        elif live:
            plan.rewrite.add(name)
            plan.drop[name] = place
        elif name not in waiting:
            plan.drop[name] = place
    return plan


def _rewrite(domain: Domain, mark: _Mark, plan: _Plan, progress: Progress) -> int:
    """Store the live chunks of thin packs anew; bytes stored."""
    if not plan.rewrite:
        return 0
    progress.phase("repack")
    reader = domain.reader()
    session = domain.session(rewriting=True)
    lanes = {"data": Lane(session, Kind.DATA_PACK), "meta": session.meta}
    try:
        for segment in domain.index.segments:
            bits = mark.bits[segment.name]
            at = bits.find(1)
            while at >= 0:
                place = segment.place(at)
                if place.pack in plan.rewrite:
                    progress.check()
                    lane = lanes["data" if "/data/" in plan.drop[place.pack][0] else "meta"]
                    chunk = reader.get(segment.raw(at)[:32])
                    lane.add_small(chunk) if len(chunk) < SMALL_BYTES else lane.add(chunk)
                    progress.advance(items=1, bytes=len(chunk))
                at = bits.find(1, at + 1)
        lanes["data"].flush()
        session.finish()
    except BaseException:
        session.abort()
        raise
    kill_point("prune.repacked")
    return session.stored_bytes


def _tombstones(repository: Repository, domain: Domain) -> dict[str, frozenset[str]]:
    """Store key -> names of the packs that wait for their sweep."""
    found = {}
    for info in repository.store.list(f"{domain.prefix}tombstones/"):
        found[info.key] = frozenset(_read_tombstone(repository, info.key)["packs"])
    return found


def _read_tombstone(repository: Repository, key: str) -> dict[str, Any]:
    _, text = open_object(repository.keyring, repository.store.get(key), key, Kind.RECORD)
    try:
        document = json.loads(text)
        datetime.datetime.fromisoformat(document["timestamp"])
        if document["domain_prefix"] not in key:
            raise ValueError
    except (ValueError, KeyError, TypeError) as error:
        raise ObjectDamaged(f"tombstone {key} is not readable") from error
    return dict(document)


def _entomb(repository: Repository, domain: Domain, names: list[str]) -> str:
    now = datetime.datetime.now(datetime.UTC)
    document = {"timestamp": now.isoformat(), "domain_prefix": domain.prefix, "packs": names}
    parts = seal_object(repository.keyring, Kind.RECORD, json.dumps(document).encode(), cipher=CIPHER_AES_GCM)
    key = f"{domain.prefix}tombstones/{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
    repository.store.create(key, parts)
    return key


def _sweep(
    repository: Repository,
    domain: Domain,
    entombed: Mapping[str, frozenset[str]],
    packs: Mapping[str, tuple[str, int]],
    grace: datetime.timedelta,
    progress: Progress,
) -> tuple[int, int]:
    """Delete packs whose tombstone is older than the grace; their number and bytes.

    A tombstone from the future (a clock that jumped back) waits.
    """
    progress.phase("sweep")
    swept = freed = 0
    needed = domain.index.pack_names()
    for key, names in sorted(entombed.items()):
        age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(
            _read_tombstone(repository, key)["timestamp"]
        )
        if age < grace or age < datetime.timedelta(0):
            continue
        for name in sorted(names - needed):
            if name in packs:
                progress.check()
                repository.store.delete(packs[name][0])
                kill_point("prune.pack_deleted")
                swept, freed = swept + 1, freed + packs[name][1]
        repository.store.delete(key)
    return swept, freed
