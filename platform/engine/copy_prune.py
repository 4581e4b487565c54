"""Drop from a copy the backups that it need not hold any more, and the packs that no backup kept there needs.

Whole packs only: nothing is stored anew in a copy. What is to go is named by number, by the caller; nothing goes because
a listing lacks something. Every backup that the copy promises is followed first, each read by name; one that cannot be
stops everything before anything is deleted. Then the new promise is written, the manifests go, the index is written
without the packs in a generation of its own, and the packs go last: what a kill leaves between is garbage, found again.
"""

import datetime
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from engine.chunks import ChunkReader
from engine.errors import BackupMissing, ChunkMissing, DamageError, ObjectMissing, SessionFenced
from engine.faults import kill_point
from engine.manifest import Manifest
from engine.pack_table import FOLDERS, PackTable, pack_key
from engine.progress import Progress
from engine.rebuild import index_rebuild
from engine.repository import Domain, Repository, delete_unlocked
from engine.selections import Selection, selection_read, selection_write
from engine.views import walk_manifest

DELETE_BATCH = 64


@dataclass
class CopyPruneReport:
    """What was dropped, or with `dry_run` would be; sizes in stored bytes."""

    ended: tuple[int, ...] = ()
    packs: int = 0
    packs_dropped: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    packs_locked: int = 0
    locked_until: datetime.datetime | None = None
    """When the last of the locked packs may go; the next run after that drops them."""
    selection: int = 0
    warnings: list[str] = field(default_factory=list)


@dataclass
class _Side:
    """One domain: what is there, and which packs the kept backups read."""

    domain: Domain
    table: PackTable
    claimed: int
    generation: int
    reader: ChunkReader
    live: set[bytes] = field(default_factory=set)
    """Names of packs (32 bytes each) that the walk chose to read from."""
    bits: dict[str, bytearray] = field(default_factory=dict)

    def visit(self, chunk_id: bytes, is_meta: bool) -> bool:
        """Mark one chunk in the first pack that is there. Raises ChunkMissing."""
        for segment in self.domain.index.segments:
            ordinal = segment.ordinal(chunk_id)
            if ordinal < 0:
                continue
            place = segment.place(ordinal)
            if place.pack not in self.table:
                continue
            bits = self.bits.get(segment.name)
            if bits is None:
                bits = self.bits[segment.name] = bytearray(segment.count)
            if bits[ordinal]:
                return False
            bits[ordinal] = 1
            self.live.add(bytes.fromhex(place.pack))
            return is_meta
        raise ChunkMissing(
            f"chunk {chunk_id.hex()[:16]} of a kept backup is in no pack of the copy; nothing was deleted",
            hint="run the copy, which brings what is missing, then again",
        )


def copy_prune(
    target: Repository,
    *,
    drop: Collection[int],
    copy: str,
    selection: int,
    dry_run: bool,
    progress: Progress,
) -> CopyPruneReport:
    """End the backups numbered in `drop` in this copy, and free what only they needed.

    `selection` is the newest record that the catalogue knows of. Raises ManifestDamaged, BackupMissing or ChunkMissing
    when a backup that stays cannot be followed, SessionFenced when a run of the copy or another prune was quicker;
    nothing is deleted then.
    """
    progress.phase("mark")
    sides = {encrypted: _begin(target, encrypted, dry_run, progress) for encrypted in (True, False)}
    promise = selection_read(target, at_least=selection)
    kept = promise.kept - set(drop)
    for number in sorted(kept):
        progress.check()
        _walk(target, sides, target.manifest(number))
        progress.advance(items=1)
    listed = set(target.numbers())
    _mark_unpromised(target, sides, sorted(listed - promise.kept - set(drop)), progress)
    ending = tuple(sorted((promise.kept | listed) & set(drop)))
    report = CopyPruneReport(ended=ending, selection=promise.serial)
    if not dry_run:
        report.selection = _end(target, promise, kept, ending, copy)
    for side in sides.values():
        _drop_packs(target, side, listed, report, dry_run=dry_run, progress=progress)
    return report


def _begin(target: Repository, encrypted: bool, dry_run: bool, progress: Progress) -> _Side:
    domain = target.domain(encrypted=encrypted)
    claimed = 0 if dry_run else domain.index.claim_generation()
    # Packs first: one that is stored from now on is not in the table and stays.
    table = PackTable.listed(target, domain, progress)
    domain.index.reload()
    if domain.index.damaged and not dry_run:
        index_rebuild(target, domain, progress, skip=frozenset())
    return _Side(domain, table, claimed, domain.index.generation, domain.reader())


def _walk(target: Repository, sides: dict[bool, _Side], manifest: Manifest) -> None:
    if manifest.kind == "manifest":
        side = sides[bool(manifest.document["metadata"]["encrypted"])]
        walk_manifest(side.reader, manifest, side.visit)


def _mark_unpromised(
    target: Repository, sides: dict[bool, _Side], numbers: Collection[int], progress: Progress
) -> None:
    """Keep what a run has brought and not promised yet; it may not be whole, and its next run brings the rest."""
    for number in numbers:
        progress.check()
        try:
            _walk(target, sides, target.manifest(number))
        except (BackupMissing, DamageError):
            continue


def _end(target: Repository, promise: Selection, kept: Collection[int], ending: Collection[int], copy: str) -> int:
    """Promise the rest, then delete the manifests; the number of the new selection."""
    target.guard.check()
    serial = promise.serial
    if kept != promise.kept:
        serial = selection_write(target, copy=copy, head=promise.head, kept=kept, after=serial).serial
    kill_point("copy.prune_promised")
    keys = [f"{target.prefix}manifests/{number:010d}" for number in ending]
    _delete(target, keys, CopyPruneReport())
    kill_point("copy.prune_ended")
    return serial


def _drop_packs(
    target: Repository,
    side: _Side,
    listed: Collection[int],
    report: CopyPruneReport,
    *,
    dry_run: bool,
    progress: Progress,
) -> None:
    index = side.domain.index
    going = {name: (folder, size) for folder, name, size in side.table if bytes.fromhex(name) not in side.live}
    before = side.table.bytes
    report.packs += len(side.table)
    report.bytes_before += before
    report.packs_dropped += len(going)
    freed = sum(size for _, size in going.values())
    # Packs that the index names and the store has not any more leave the index, too: they only mislead readers.
    absent = set(_absent(target, side))
    if dry_run or not (going or absent):
        report.bytes_after += before - freed
        return
    progress.phase("drop")
    index.rewrite(drop=going.keys() | absent, generation=side.generation, claimed=side.claimed)
    kill_point("copy.prune_index_rewritten")
    index.check_claim(side.claimed)
    if set(target.numbers()) - set(listed) or selection_read(target).serial != report.selection:
        index_rebuild(target, side.domain, progress, skip=frozenset())
        raise SessionFenced(
            "a backup was copied while packs were being dropped; nothing was deleted", hint="start the operation again"
        )
    keys = [pack_key(side.domain, folder, name) for name, (folder, _) in sorted(going.items())]
    sizes = {pack_key(side.domain, folder, name): size for name, (folder, size) in going.items()}
    for at in range(0, len(keys), DELETE_BATCH):
        progress.check()
        target.guard.check()
        index.check_claim(side.claimed)
        freed -= sum(sizes[key] for key in _delete(target, keys[at : at + DELETE_BATCH], report))
        kill_point("copy.prune_pack_deleted")
    index.drop_damaged()
    report.bytes_after += before - freed


def _absent(target: Repository, side: _Side) -> Iterator[str]:
    """Packs of the index that neither the listing nor a look by name finds."""
    for segment in side.domain.index.segments:
        for number in range(segment.pack_count):
            name, _ = segment.pack(number)
            if name not in side.table and not _is_there(target, side.domain, name):
                yield name


def _is_there(target: Repository, domain: Domain, name: str) -> bool:
    for folder in FOLDERS:
        try:
            target.store.stat(pack_key(domain, folder, name))
        except ObjectMissing:
            continue
        return True
    return False


def _delete(target: Repository, keys: Sequence[str], report: CopyPruneReport) -> list[str]:
    """Delete objects; those that the store keeps locked stay, and are returned."""
    locked = delete_unlocked(target.store, keys)
    report.packs_locked += len(locked)
    ends = [until for until in (report.locked_until, *locked.values()) if until is not None]
    report.locked_until = max(ends, default=None)
    return list(locked)
