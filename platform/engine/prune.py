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
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from engine.errors import ChunkMissing, ClockSkewed, RepositoryAhead, SessionFenced
from engine.faults import kill_point
from engine.manifest import Manifest
from engine.ordered import in_order
from engine.pack_table import PackTable
from engine.progress import Progress
from engine.prune_mark import DROP, REWRITE, Judged, Mark, Work
from engine.prune_sweep import ASKED_AT_ONCE, Left, locked_kept, packs_entomb, packs_sweep
from engine.rebuild import index_rebuild
from engine.repository import Domain, Repository, delete_unlocked
from engine.sealed import Kind
from engine.session import Lane
from engine.space import NO_SPACE, Space
from engine.tombstones import Tombstone, tombstones_read
from engine.views import walk_manifest

SMALL_BYTES = 256 << 10
"""Chunks below this are bundled again when they are rewritten."""
REWRITE_BATCH = 1 << 18
"""Chunks that are brought into the order of their packs at a time."""
WHOLE_BYTES_MAX = 1 << 20
"""A pack of metadata that is smaller is read whole: one request for what a small backup needs."""
CLOCK_SKEW_MAX = datetime.timedelta(hours=1)
"""So far the store's clock may be from ours: the age of a tombstone, and of a backup, is told by these."""


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
    before: Space = NO_SPACE
    after: Space = NO_SPACE

    def __add__(self, other: "PruneReport") -> "PruneReport":
        return PruneReport(
            self.forgotten + other.forgotten,
            self.packs + other.packs,
            self.packs_rewritten + other.packs_rewritten,
            self.packs_dropped + other.packs_dropped,
            self.packs_swept + other.packs_swept,
            self.bytes_before + other.bytes_before,
            self.bytes_after + other.bytes_after,
            self.before + other.before,
            self.after + other.after,
        )


@dataclass(frozen=True)
class _Wanted:
    """What the caller knows and asks for."""

    forget: Mapping[int, str]
    trash: frozenset[int]
    head: int
    known: Mapping[int, str] | None


def prune(
    repository: Repository,
    *,
    forget: Mapping[int, str],
    head: int,
    dry_run: bool,
    progress: Progress,
    grace: datetime.timedelta = datetime.timedelta(0),
    known: Mapping[int, str] | None = None,
    trash: frozenset[int] = frozenset(),
) -> PruneReport:
    """End the backups numbered in `forget` (number -> reason) and free what only they needed.

    `head` is the highest number the catalogue knows: up to it the chain must be whole. Raises
    ManifestDamaged for a gap and ChunkMissing or ObjectDamaged when a kept backup cannot be followed;
    nothing is deleted then. `known` are the digests of all manifests that the catalogue has recorded, by number: any
    other one in the store raises RepositoryAhead, because the catalogue may have been restored from an older one.
    Backups numbered in `trash` are kept, and what only they need is counted apart. Raises ClockSkewed, with nothing
    ended or deleted, when the store's clock is far from ours. What the store has locked stays, and is said.
    """
    progress.phase("mark")
    head = repository.head_from(max(head, repository.head()))
    if not dry_run:
        repository.guard.check()
    works = [_begin(repository, domain, dry_run, head, progress) for domain in _domains(repository)]
    ended, kept = _mark(repository, works, _Wanted(forget, trash, head, known), progress)
    if not dry_run:
        progress.check()
        repository.end({number: forget[number] for number in ended}, head=head, kept=kept)
    report = PruneReport(forgotten=ended)
    for work in works:
        if len(work.table):
            report += _prune_domain(repository, work, head, dry_run=dry_run, grace=grace, progress=progress)
    return report


def _domains(repository: Repository) -> list[Domain]:
    """Those in which anything may lie: most tenants have no plain one, which would be asked about in vain."""
    beside = next(iter(repository.store.list(repository.plain.prefix)), None)
    return [repository.sealed] if beside is None else [repository.sealed, repository.plain]


def _begin(repository: Repository, domain: Domain, dry_run: bool, head: int, progress: Progress) -> Work:
    claimed = 0 if dry_run else domain.index.claim_generation(head=head)
    if claimed:
        _refuse_skewed(domain.index.claimed_at(claimed))
    # Packs first: one that is stored from now on is not in the table and stays.
    table = PackTable.listed(repository, domain, progress)
    tombstones, broken = tombstones_read(repository, domain, progress)
    waiting = bytearray(len(table))
    for tombstone in tombstones:
        for ordinal in map(table.ordinal, tombstone.packs):
            if ordinal >= 0:
                waiting[ordinal] = 1
    domain.index.reload()
    if domain.index.damaged and not dry_run:
        index_rebuild(repository, domain, progress, skip=frozenset())
    mark = Mark(domain, table, waiting)
    reader = domain.reader()
    reader.whole_packs = lambda name: (table.size(name) or WHOLE_BYTES_MAX) < WHOLE_BYTES_MAX
    return Work(domain, table, tombstones, broken, waiting, mark, reader, claimed)


def _refuse_skewed(seen: datetime.datetime) -> None:
    skew = seen - datetime.datetime.now(datetime.UTC)
    if abs(skew) > CLOCK_SKEW_MAX:
        raise ClockSkewed(
            f"the store's clock is {abs(skew).total_seconds() / 3600:.1f} hours from this host's; nothing was deleted",
            hint="set the clock that is wrong, then: retention thaw",
            seen=seen,
        )


def _mark(
    repository: Repository, works: list[Work], wanted: _Wanted, progress: Progress
) -> tuple[tuple[int, ...], Sequence[int]]:
    """Follow every kept backup, one manifest at a time; the numbers of those to be ended, and of those kept."""
    ended, kept, trashed = [], array("Q"), array("Q")

    def standing() -> Iterator[Manifest]:
        for manifest in repository.chain(wanted.head, ahead=ASKED_AT_ONCE):
            progress.check()
            if manifest.kind != "manifest":
                continue
            _refuse_unknown(manifest, wanted.known)
            if manifest.number in wanted.forget:
                ended.append(manifest.number)
                continue
            kept.append(manifest.number)
            if manifest.number in wanted.trash:
                trashed.append(manifest.number)
            else:
                yield manifest

    _walk(repository, works, standing(), progress)
    for work in works:  # Behind the others: what they share is not the trash's.
        work.mark.for_trash = True
    _walk(repository, works, map(repository.manifest, trashed), progress)
    return tuple(ended), kept


def _walk(repository: Repository, works: list[Work], manifests: Iterator[Manifest], progress: Progress) -> None:
    """Visit everything that these backups need; behind a network several at a time."""
    by_domain = {work.domain.encrypted: work for work in works}

    def walk(manifest: Manifest) -> None:
        progress.check()
        work = by_domain.get(bool(manifest.document["metadata"]["encrypted"]))
        if work is None:
            raise ChunkMissing(
                f"the store lists nothing of what backup {manifest.number} needs; nothing was deleted",
                hint="the listing may be stale: try again; else repair it from another copy",
            )
        walk_manifest(work.reader, manifest, work.mark.visit)
        progress.advance(items=1)

    at_once = 1 if repository.store.kind == "local" else ASKED_AT_ONCE
    with closing(in_order(walk, manifests, at_once=at_once)) as walked:
        for _ in walked:
            pass


def _refuse_unknown(manifest: Manifest, known: Mapping[int, str] | None) -> None:
    if known is not None and known.get(manifest.number) != manifest.sha256:
        raise RepositoryAhead(
            f"the store holds a backup under number {manifest.number} that the catalogue does not know; "
            "nothing was deleted",
            hint="was the catalogue restored? take over what the store knows: store reconcile",
        )


class _Dropped:
    """The names of the packs that leave the index, without a list of them."""

    def __init__(self, judged: Judged) -> None:
        self._judged = judged

    def __contains__(self, name: object) -> bool:
        ordinal = self._judged.table.ordinal(str(name))
        return ordinal >= 0 and self._judged.fates[ordinal] in (DROP, REWRITE)


def _prune_domain(
    repository: Repository, work: Work, head: int, *, dry_run: bool, grace: datetime.timedelta, progress: Progress
) -> PruneReport:
    judged = work.mark.judge()
    locked_kept(repository, work, judged)
    dropped = judged.dropped()
    before = _with_locks(judged.space(work.waiting), work)
    report = PruneReport(
        packs=len(work.table),
        packs_rewritten=judged.count(REWRITE),
        packs_dropped=len(dropped),
        bytes_before=before.total,
        before=before,
    )
    if dry_run:
        after = _after(work, judged, _left_by_dry_run(work, dropped, grace), judged.rewritten_space())
        return replace(report, bytes_after=after.total, after=after)
    stored = _rewrite(work, judged, progress)
    tombstones = list(work.tombstones)
    if dropped:
        tombstones += packs_entomb(repository, work, dropped)
        kill_point("prune.tombstoned")
        domain = work.domain
        domain.index.rewrite(drop=_Dropped(judged), generation=work.mark.generation, claimed=work.claimed)
        kill_point("prune.index_rewritten")
    if tombstones:
        _refuse_overtaken(repository, work, tombstones, head, progress)
    swept = packs_sweep(repository, work, tombstones, grace, progress)
    work.domain.index.drop_damaged()  # Every chunk that a kept backup needs was found without them.
    work.domain.index.forget_cached()
    after = _after(work, judged, swept.left, replace(judged.rewritten_space(), total=stored))
    return replace(report, packs_swept=swept.packs, bytes_after=after.total, after=after)


def _refuse_overtaken(
    repository: Repository, work: Work, tombstones: Sequence[Tombstone], head: int, progress: Progress
) -> None:
    """Delete nothing when the lease was lost: another prune may count on these packs, or a manifest need them."""
    work.domain.index.check_claim(work.claimed)
    if repository.head_from(head) == head:
        return
    delete_unlocked(repository.store, [tombstone.key for tombstone in tombstones])
    index_rebuild(repository, work.domain, progress, skip=frozenset())
    raise SessionFenced(
        "a backup was committed while this prune was running; nothing was deleted",
        hint="the operation was taken over; start it again",
    )


# ---------------------------------------------------------------- space


def _with_locks(space: Space, work: Work) -> Space:
    """The space with what tombstones say of locks."""
    now = datetime.datetime.now(datetime.UTC)
    locked = {
        ordinal: tombstone.until
        for tombstone in work.tombstones
        if tombstone.locked(now)
        for ordinal in map(work.table.ordinal, tombstone.packs)
        if ordinal >= 0
    }
    return _locked(space, work.table, locked)


def _locked(space: Space, table: PackTable, left: Left) -> Space:
    untils = {ordinal: until for ordinal, until in left.items() if until is not None}
    return replace(
        space,
        locked=sum(table.at(ordinal)[2] for ordinal in untils),
        locked_packs=len(untils),
        locked_until=max(untils.values(), default=None),
    )


def _left_by_dry_run(work: Work, dropped: Sequence[int], grace: datetime.timedelta) -> Left:
    now = datetime.datetime.now(datetime.UTC)
    left: Left = dict.fromkeys(dropped, None) if grace else {}
    for tombstone in work.tombstones:
        if tombstone.waits(now, grace):
            found = (ordinal for ordinal in map(work.table.ordinal, tombstone.packs) if ordinal >= 0)
            left.update(dict.fromkeys(found, tombstone.until if tombstone.locked(now) else None))
    return left


def _after(work: Work, judged: Judged, left: Left, rewritten: Space) -> Space:
    """What is there when it is done: kept packs, those stored anew, and dropped ones that could not go yet."""
    staying = sum(work.table.at(ordinal)[2] for ordinal in left)
    entombed = Space(staying, entombed=staying, packs=len(left))
    return _locked(judged.kept_space() + rewritten + entombed, work.table, left)


# ---------------------------------------------------------------- packs stored anew


def _rewrite(work: Work, judged: Judged, progress: Progress) -> int:
    """Store the live chunks of thin packs anew; bytes stored."""
    if not judged.count(REWRITE):
        return 0
    progress.phase("repack")
    session = work.domain.session(rewriting=True)
    lanes = {"data": Lane(session, Kind.DATA_PACK), "meta": session.meta}
    try:
        for chunk_id, folder in _thin_chunks(work, judged):
            progress.check()
            lane = lanes[folder]
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


def _thin_chunks(work: Work, judged: Judged) -> Iterator[tuple[bytes, str]]:
    """Id and folder of each chunk to be stored anew, by pack and frame within a batch.

    In the order of their ids, nearly every small chunk would fetch a frame that was dropped from the cache before.
    """
    batch: list[tuple[int, int, bytes]] = []

    def sorted_out() -> Iterator[tuple[bytes, str]]:
        for pack, _, chunk_id in sorted(batch):
            yield chunk_id, work.table.at(pack)[0]

    for each in work.mark.thin(judged):
        batch.append(each)
        if len(batch) == REWRITE_BATCH:
            yield from sorted_out()
            batch.clear()
    yield from sorted_out()
