"""Prune: mark, forget, repack, tombstone, grace, sweep.

Runs under the tenant's lease, like a commit, so no manifest appears meanwhile. The order makes every
kill harmless: live chunks of thin packs are stored anew before the index drops the old packs; a pack is
deleted only after its tombstone is durable and older than the grace and no index names it, and never because
a listing lacks something: a gap in the chain of manifests, or a live chunk that cannot be found, stops prune
before it deletes.

A lease can be lost without notice, so sessions and prunes also fence each other: deleting packs raises the
generation of the index, and a session that began in a lower one neither commits nor leaves a valid segment;
a prune looks for a new manifest after it has raised the generation, a session looks at the generation after it
has created its manifest. Whichever comes second sees the other. Two prunes are told apart by the store: each claims
a generation of its own before it looks at anything, and before it deletes asks whether a later one was claimed.
"""

import datetime
import json
import secrets
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.chunks import ChunkReader
from engine.errors import ChunkMissing, ObjectDamaged, RepositoryAhead, SessionFenced
from engine.faults import kill_point
from engine.index import Segment
from engine.progress import Progress
from engine.rebuild import index_rebuild, pack_keys
from engine.repository import Domain, Repository, delete_all
from engine.sealed import CIPHER_AES_GCM, Kind, open_object, seal_object
from engine.session import Lane
from engine.views import walk_manifest

LIVE_SHARE_MIN = 0.25
"""A pack of which less than this share is still needed is rewritten."""
SMALL_BYTES = 256 << 10
"""Chunks below this are bundled again when they are rewritten."""
SWEEP_BATCH = 64
"""Packs that are deleted at a time, between two looks at whether to stop."""
REWRITE_BATCH = 1 << 18
"""Chunks that are brought into the order of their packs at a time."""


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


class _Mark:
    """Which entries of which index segment are live, one byte each, and live bytes per pack."""

    def __init__(self, domain: Domain, entombed: Collection[str]) -> None:
        self._entombed = entombed
        self.generation = domain.index.generation
        self.segments = [(segment, bytearray(segment.count)) for segment in domain.index.segments]
        self.live: dict[str, int] = {}

    def visit(self, chunk_id: bytes, is_meta: bool) -> bool:
        """Mark one chunk; True when what it names has to be walked."""
        found = self._find(chunk_id)
        if found is None:
            raise ChunkMissing(
                f"chunk {chunk_id.hex()[:16]} of a kept backup is in no index; nothing was deleted",
                hint="run a verify, which rebuilds the index, then prune again",
            )
        segment, bits, ordinal = found
        if bits[ordinal]:
            return False
        bits[ordinal] = 1
        place = segment.place(ordinal)
        self.live[place.pack] = self.live.get(place.pack, 0) + place.length
        return is_meta

    def _find(self, chunk_id: bytes) -> tuple[Segment, bytearray, int] | None:
        """Where the chunk is kept: not in a pack that waits for its deletion, if there is another."""
        waiting = None
        for segment, bits in self.segments:
            ordinal = segment.ordinal(chunk_id)
            if ordinal >= 0:
                if not self._entombed or segment.place(ordinal).pack not in self._entombed:
                    return segment, bits, ordinal
                waiting = waiting or (segment, bits, ordinal)
        return waiting


@dataclass
class _Work:
    """One domain as prune found it."""

    domain: Domain
    packs: dict[str, tuple[str, int]]
    """Pack name -> store key and size."""
    entombed: dict[str, frozenset[str]]
    broken: list[str]
    """Tombstones that cannot be read: they allow nothing and are removed."""
    mark: _Mark
    reader: ChunkReader
    claimed: int
    """The generation in which packs are dropped; 0 for a dry run."""


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
    known: Mapping[int, str] | None = None,
) -> PruneReport:
    """End the backups numbered in `forget` (number -> reason) and free what only they needed.

    `head` is the highest number the catalogue knows: up to it the chain must be whole. Raises
    ManifestDamaged for a gap and ChunkMissing or ObjectDamaged when a kept backup cannot be followed;
    nothing is deleted then. `known` are the digests of all manifests that the catalogue has recorded, by number: any
    other one in the store raises RepositoryAhead, because the catalogue may have been restored from an older one.
    """
    progress.phase("mark")
    head = repository.head_from(max(head, repository.head()))
    if not dry_run:
        repository.guard.check()
    works = [_begin(repository, domain, dry_run, head, progress) for domain in (repository.sealed, repository.plain)]
    ended, kept = _mark(repository, works, forget, head, known, progress)
    if not dry_run:
        progress.check()
        repository.end({number: forget[number] for number in ended}, head=head, kept=kept)
    report = PruneReport(forgotten=ended)
    for work in works:
        if work.packs:
            report = _sum(
                report, _prune_domain(repository, work, head, dry_run=dry_run, grace=grace, progress=progress)
            )
    return report


def _begin(repository: Repository, domain: Domain, dry_run: bool, head: int, progress: Progress) -> _Work:
    claimed = 0 if dry_run else domain.index.claim_generation(head=head)
    # Packs first: one that is stored from now on is in none of the lists and stays.
    packs = {key.rpartition("/")[2]: (key, size) for key, size in pack_keys(repository, domain)}
    entombed, broken = _tombstones(repository, domain, progress)
    domain.index.reload()
    if domain.index.damaged and not dry_run:
        index_rebuild(repository, domain, progress, skip=frozenset())
    mark = _Mark(domain, frozenset[str]().union(*entombed.values()))
    return _Work(domain, packs, entombed, broken, mark, domain.reader(), claimed)


def _mark(
    repository: Repository,
    works: list[_Work],
    forget: Mapping[int, str],
    head: int,
    known: Mapping[int, str] | None,
    progress: Progress,
) -> tuple[tuple[int, ...], Sequence[int]]:
    """Follow every kept backup, one manifest at a time; the numbers of those to be ended, and of those kept."""
    by_domain = {work.domain.encrypted: work for work in works}
    ended, kept = [], array("Q")
    for manifest in repository.chain(head):
        progress.check()
        if manifest.kind != "manifest":
            continue
        if known is not None and known.get(manifest.number) != manifest.sha256:
            raise RepositoryAhead(
                f"the store holds a backup under number {manifest.number} that the catalogue does not know; "
                "nothing was deleted",
                hint="was the catalogue restored? take over what the store knows: store reconcile",
            )
        if manifest.number in forget:
            ended.append(manifest.number)
            continue
        work = by_domain[bool(manifest.document["metadata"]["encrypted"])]
        kept.append(manifest.number)
        walk_manifest(work.reader, manifest, work.mark.visit)
        progress.advance(items=1)
    for work in works:
        _refuse_missing(work.mark, work.packs)
    return tuple(ended), kept


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
    repository: Repository, work: _Work, head: int, *, dry_run: bool, grace: datetime.timedelta, progress: Progress
) -> PruneReport:
    domain, packs = work.domain, work.packs
    plan = _plan(work)
    before = sum(size for _, size in packs.values())
    if dry_run:
        after = before - sum(size for _, size in plan.drop.values())
        return PruneReport((), len(packs), len(plan.rewrite), len(plan.drop), 0, before, after)
    stored = _rewrite(work, plan, progress)
    if plan.drop:
        work.entombed[_entomb(repository, domain, sorted(plan.drop))] = frozenset(plan.drop)
        kill_point("prune.tombstoned")
    if work.entombed:
        domain.index.rewrite(drop=plan.drop, generation=work.mark.generation, claimed=work.claimed)
        kill_point("prune.index_rewritten")
        _refuse_overtaken(repository, work, head, progress)
    swept, freed = _sweep(repository, work, grace, progress)
    domain.index.drop_damaged()  # Every chunk that a kept backup needs was found without them.
    domain.index.forget_cached()
    return PruneReport((), len(packs), len(plan.rewrite), len(plan.drop), swept, before, before + stored - freed)


def _refuse_overtaken(repository: Repository, work: _Work, head: int, progress: Progress) -> None:
    """Delete nothing when the lease was lost: another prune may count on these packs, or a manifest need them."""
    work.domain.index.check_claim(work.claimed)
    if repository.head_from(head) == head:
        return
    for tombstone in work.entombed:
        repository.store.delete(tombstone)
    index_rebuild(repository, work.domain, progress, skip=frozenset())
    raise SessionFenced(
        "a backup was committed while this prune was running; nothing was deleted",
        hint="the operation was taken over; start it again",
    )


def _refuse_missing(mark: _Mark, packs: Mapping[str, tuple[str, int]]) -> None:
    for name in mark.live:
        if name not in packs:
            raise ChunkMissing(
                f"pack {name[:16]}, which a kept backup needs, is not listed by the store; nothing was deleted",
                hint="repair it from another copy",
            )


def _plan(work: _Work) -> _Plan:
    plan, mark = _Plan(), work.mark
    waiting = frozenset[str]().union(*work.entombed.values())
    total: dict[str, int] = {}
    for segment, _ in mark.segments:
        names = [name for name, _ in segment.packs()]
        for entry in segment.entries():
            name = names[segment.pack_number(entry)]
            total[name] = total.get(name, 0) + int.from_bytes(entry[48:52], "big")
    for name, place in work.packs.items():
        live = mark.live.get(name, 0)
        if live and live >= LIVE_SHARE_MIN * total.get(name, 1):
            plan.keep.add(name)
        elif live:
            plan.rewrite.add(name)
            plan.drop[name] = place
        elif name not in waiting or name in total:  # Both: killed between tombstone and index.
            plan.drop[name] = place
    return plan


def _rewrite(work: _Work, plan: _Plan, progress: Progress) -> int:
    """Store the live chunks of thin packs anew; bytes stored."""
    if not plan.rewrite:
        return 0
    progress.phase("repack")
    session = work.domain.session(rewriting=True)
    lanes = {"data": Lane(session, Kind.DATA_PACK), "meta": session.meta}
    try:
        for chunk_id, pack in _thin_chunks(work, plan):
            progress.check()
            lane = lanes["data" if "/data/" in plan.drop[pack][0] else "meta"]
            chunk = work.reader.get(chunk_id)
            add = lane.add_small if len(chunk) < SMALL_BYTES else lane.add
            add(chunk, named=chunk_id)
            progress.advance(items=1, bytes=len(chunk))
        lanes["data"].flush()
        session.finish()
    except BaseException:
        session.abort()
        raise
    kill_point("prune.repacked")
    return session.stored_bytes


def _thin_chunks(work: _Work, plan: _Plan) -> Iterator[tuple[bytes, str]]:
    """Id and pack of each live chunk to be stored anew, by pack and frame within a batch.

    In the order of their ids, nearly every small chunk would fetch a frame that was dropped from the cache before.
    """
    batch: list[tuple[str, int, bytes]] = []
    for segment, bits in work.mark.segments:
        at = bits.find(1)
        while at >= 0:
            place = segment.place(at)
            if place.pack in plan.rewrite:
                batch.append((place.pack, place.frame_offset, segment.raw(at)[:32]))
                if len(batch) == REWRITE_BATCH:
                    yield from ((chunk_id, pack) for pack, _, chunk_id in sorted(batch))
                    batch = []
            at = bits.find(1, at + 1)
    yield from ((chunk_id, pack) for pack, _, chunk_id in sorted(batch))


def _tombstones(
    repository: Repository, domain: Domain, progress: Progress
) -> tuple[dict[str, frozenset[str]], list[str]]:
    """Store key -> names of the packs that wait for their sweep; and the keys of what cannot be read."""
    found, broken = {}, []
    for info in repository.store.list(f"{domain.prefix}tombstones/"):
        try:
            found[info.key] = frozenset(_read_tombstone(repository, info.key)["packs"])
        except ObjectDamaged as error:
            progress.warn(error.code, f"{error.message}; its packs are kept until they are entombed again")
            broken.append(info.key)
    return found, broken


def _read_tombstone(repository: Repository, key: str) -> dict[str, Any]:
    blob = repository.store.get(key)
    _, text = open_object(repository.keyring, blob, key, Kind.RECORD, cipher=CIPHER_AES_GCM)
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


def _sweep(repository: Repository, work: _Work, grace: datetime.timedelta, progress: Progress) -> tuple[int, int]:
    """Delete packs whose tombstone is older than the grace; their number and bytes.

    A tombstone from the future (a clock that jumped back) waits.
    """
    progress.phase("sweep")
    swept: dict[str, int] = {}
    needed = work.domain.index.pack_names()
    for key, names in sorted(work.entombed.items()):
        age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(
            _read_tombstone(repository, key)["timestamp"]
        )
        if age < grace or age < datetime.timedelta(0):
            continue
        going = [name for name in sorted(names - needed - swept.keys()) if name in work.packs]
        for at in range(0, len(going), SWEEP_BATCH):
            progress.check()
            repository.guard.check()
            delete_all(repository.store, [work.packs[name][0] for name in going[at : at + SWEEP_BATCH]])
            kill_point("prune.pack_deleted")
        swept.update((name, work.packs[name][1]) for name in going)
        repository.store.delete(key)
    for key in work.broken:
        repository.store.delete(key)
    return len(swept), sum(swept.values())
