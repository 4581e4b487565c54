"""Copy a repository to another store, byte for byte: packs first, their index, the ledger, then manifests, then the promise.

A kill anywhere leaves the copy a valid repository: nothing is named before it is there. Packs are found by walking the
backups that the copy lacks, newest first, in batches; each chunk is looked up in the copy's own index, so that only
packs with something new are moved. The copy's manifest of a backup is created when all it reaches is there, and its
selection record (engine.selections) promises it after that. Copying holds nothing of the source: a pack that a prune
swept meanwhile is looked for again through the new index, and a backup that was ended meanwhile is left out.

Two runs into one copy, or a run and a copy_prune, are told apart as sessions and prunes are (engine.prune): by the
generation of the copy's index, looked at again after the manifests were created, and by the number of the selection.
"""

import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from engine.copy_packs import Held, Needs, PackCopier
from engine.copy_small import images_copy, ledger_copy, records_copy
from engine.errors import (
    BackupMissing,
    ChunkMissing,
    DamageError,
    LastroError,
    ManifestDamaged,
    ObjectExists,
    ObjectMissing,
    SessionFenced,
)
from engine.faults import kill_point
from engine.manifest import DOCUMENT_BYTES_MAX, Manifest
from engine.pack_table import PackTable
from engine.progress import Progress
from engine.rebuild import index_rebuild
from engine.repository import Repository
from engine.selections import Selection, selection_read, selection_write
from engine.verify import Finding
from engine.views import walk_manifest

BATCH_PACKS = 1_024
BATCH_BACKUPS = 256
"""After so many packs or backups the manifests of a batch are created: what a kill can cost."""
MANIFESTS_AT_ONCE = 8
ROUNDS_MAX = 5
"""How often a batch is looked up again because a prune of the source was quicker."""


@dataclass(frozen=True)
class CopyWish:
    """What a copy should hold, and how to look at it."""

    copy: str
    wanted: frozenset[int]
    """Numbers of the backups that it should hold."""
    known: frozenset[int]
    """Numbers of all backups that the catalogue knows; any other one is looked at, and copied if it is a record."""
    head: int
    selection: int = 0
    """The newest selection record that the catalogue knows of."""
    erasures: int = 0
    """The newest record of the erasure ledger that the catalogue knows of."""
    recheck: frozenset[int] = frozenset()
    """Held backups to be looked through again, pack by pack."""
    look: bool = True
    """List the copy's packs and believe nothing else; without it the copy's index is believed (engine.verify_store looks)."""
    read_back: bool = False
    """Read every pack back whole before it counts."""
    images: tuple[str, ...] = ()
    promise: bool = True
    """False fills a primary that was lost from its copies: it has no selections, all wanted is looked through."""
    workers: int = 0


@dataclass
class CopyReport:
    """What a run did and found."""

    copied: dict[int, int] = field(default_factory=dict)
    """Number of each backup that the copy holds since this run -> bytes moved for it."""
    held: frozenset[int] = frozenset()
    gone: tuple[int, ...] = ()
    """Backups that were ended at the source meanwhile."""
    failed: dict[int, LastroError] = field(default_factory=dict)
    """Backups that cannot be copied because the source is damaged."""
    objects: int = 0
    bytes: int = 0
    packs_moved: int = 0
    packs_bytes: int = 0
    source_findings: list[Finding] = field(default_factory=list)
    target_findings: list[Finding] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)
    """Keys of findings in the copy that this run has mended."""
    selection: int = 0
    packs: int | None = None
    """Packs of the copy and their bytes, when they were listed."""
    stored_bytes: int | None = None
    duration_ms: int = 0


def copy_run(source: Repository, target: Repository, wish: CopyWish, progress: Progress) -> CopyReport:
    """Bring the copy what it lacks of the wanted backups, and say what it holds.

    Raises StoreError when a store fails for good, SessionFenced when another run or prune of the copy was quicker,
    CancelledError; what arrived until then stays and is used by the next run.
    """
    return _Run(source, target, wish, progress).perform()


@dataclass
class _Side:
    """One domain of the two repositories."""

    needs: Needs
    held: Held
    copier: PackCopier


@dataclass
class _Batch:
    manifests: dict[int, Manifest] = field(default_factory=dict)
    """Without their documents, which may be large."""
    sides: dict[int, bool] = field(default_factory=dict)
    packs: dict[int, list[str]] = field(default_factory=dict)
    """Per backup the packs that it was the first to need."""
    names: list[int] = field(default_factory=list)


class _Run:
    def __init__(self, source: Repository, target: Repository, wish: CopyWish, progress: Progress) -> None:
        self._source, self._target, self._wish, self._progress = source, target, wish, progress
        self._report, self._began = CopyReport(), time.monotonic()
        self._gone: list[int] = []
        self._sides: dict[bool, _Side] = {}
        self._selection = Selection()
        self._given_up: set[int] = set()
        """Promised once, not there any more, and ended in the primary: nobody looks for these."""
        self._impaired = False
        """Some pack could not be had: from now on each backup is looked through before it counts."""

    def perform(self) -> CopyReport:
        self._progress.phase("look")
        self._selection = self._read_selection()
        todo = self._lacking()
        kept = set(self._selection.kept) - self._given_up
        self._report.objects += ledger_copy(self._source, self._target, at_least=self._wish.erasures)
        self._report.objects += records_copy(self._source, self._target, known=self._wish.known)
        self._progress.phase("copy")
        while todo:
            kept |= self._batch(todo)
            self._promise(kept)
        self._progress.phase("finish")
        selection = self._selection
        if selection.head < self._wish.head or not (selection.serial and selection.trusted) or self._given_up:
            self._promise(kept)
        self._report.objects += images_copy(self._source, self._target, self._wish.images, self._progress)
        for side in self._sides.values():
            self._report.target_findings += [
                Finding(ChunkMissing.code, f"pack {name}", f"pack {name[:16]}: {what}")
                for name, what in sorted({**side.held.lost, **side.held.mended}.items())
            ]
            self._report.mended += [f"pack {name}" for name in sorted(side.held.mended)]
        for encrypted in self._sides:
            self._target.domain(encrypted=encrypted).index.compact()
        return self._finished(kept)

    def _finished(self, kept: Collection[int]) -> CopyReport:
        report = self._report
        if self._wish.look:
            for encrypted in (True, False):
                self._side(encrypted)
            tables = [side.held.table for side in self._sides.values() if side.held.table is not None]
            report.packs = sum(map(len, tables)) + report.packs_moved
            report.stored_bytes = sum(table.bytes for table in tables) + report.packs_bytes
        report.objects += report.packs_moved
        report.bytes += report.packs_bytes
        report.held, report.gone = frozenset(kept), tuple(self._gone)
        report.selection = self._selection.serial
        report.duration_ms = round((time.monotonic() - self._began) * 1000)
        return report

    # ------------------------------------------------------------ what the copy lacks

    def _read_selection(self) -> Selection:
        if not self._wish.promise:
            return Selection()
        try:
            return selection_read(self._target, at_least=self._wish.selection)
        except ManifestDamaged as error:
            # Nothing is promised then; what is there is looked through and promised anew.
            self._report.target_findings.append(Finding(error.code, "selection", error.message))
            serial = self._wish.selection
            while self._is_there(f"selections/{serial + 1:010d}"):
                serial += 1
            return Selection(serial)

    def _lacking(self) -> list[int]:
        """Wanted numbers that the copy does not surely hold; the newest is last, to be popped first."""
        listed = set(self._target.numbers())
        lost = set()
        for number in self._selection.kept - listed:
            if self._is_there(f"manifests/{number:010d}"):
                continue
            lost.add(number)
            if number not in self._wish.wanted and self._source.forgotten(number):
                self._given_up.add(number)
            else:
                self._report.target_findings.append(
                    Finding(BackupMissing.code, f"manifests/{number:010d}", f"manifest {number} is gone from the copy")
                )
        sure = (self._selection.kept - lost) - self._wish.recheck
        if (self._wish.look and self._any_lost()) or not self._selection.trusted:
            sure = frozenset()
        return sorted(self._wish.wanted - sure)

    def _any_lost(self) -> bool:
        """Whether the copy's index names a pack that is not there any more: then every backup has to be looked through."""
        for encrypted in (True, False):
            side = self._side(encrypted)
            index = self._target.domain(encrypted=encrypted).index
            if index.damaged:
                self._report.target_findings += [Finding("damage.index", "index", each) for each in index.damaged]
                index_rebuild(self._target, self._target.domain(encrypted=encrypted), self._progress, skip=frozenset())
                self._report.mended.append("index")
            for segment in index.segments:
                for number in range(segment.pack_count):
                    name, header = segment.pack(number)
                    side.held.look_for(name, header)
        return any(side.held.lost for side in self._sides.values())

    def _is_there(self, key: str) -> bool:
        try:
            self._target.store.stat(self._target.prefix + key)
        except ObjectMissing:
            return False
        return True

    def _side(self, encrypted: bool) -> _Side:
        if encrypted not in self._sides:
            domain = self._target.domain(encrypted=encrypted)
            domain.index.reload()
            table = PackTable.listed(self._target, domain, self._progress) if self._wish.look else None
            held = Held(self._target, domain, table)
            copier = PackCopier(
                self._source,
                self._target,
                encrypted=encrypted,
                held=held,
                read_back=self._wish.read_back,
                workers=self._wish.workers,
            )
            needs = Needs(self._source.domain(encrypted=encrypted), held)
            needs.found = copier.begin  # The stores work while the backups are looked through.
            self._sides[encrypted] = _Side(needs, held, copier)
        return self._sides[encrypted]

    # ------------------------------------------------------------ one batch

    def _batch(self, todo: list[int]) -> set[int]:
        """Copy the newest of the backups in `todo`, which it shortens; the numbers that the copy holds now."""
        batch = self._walk(_taken(todo), todo)
        sizes: dict[str, int] = {}
        for _ in range(ROUNDS_MAX):
            vanished = self._fetch(sizes)
            if not vanished:
                break
            for side in self._sides.values():
                side.needs.restart()
            before, batch = batch, self._walk(iter(batch.names), None)
            for number in batch.names:
                batch.packs[number] = [*before.packs[number], *batch.packs[number]]
        else:
            self._impaired = True
        for side in self._sides.values():
            side.needs.packs.clear()
        whole = [number for number in batch.names if not self._impaired or self._holds(number, batch)]
        committed = self._commit(whole, batch)
        for number in committed:
            self._report.copied[number] = sum(sizes.get(name, 0) for name in batch.packs[number])
        return committed

    def _walk(self, numbers: Iterator[int], todo: list[int] | None) -> _Batch:
        """Look through backups until enough packs are needed; with `todo` what was not looked at stays in it."""
        batch = _Batch()
        try:
            for number in numbers:
                self._progress.check()
                self._look_through(number, batch)
                needed = sum(len(side.needs.packs) for side in self._sides.values())
                if todo is not None and (needed >= BATCH_PACKS or len(batch.names) >= BATCH_BACKUPS):
                    break
        except BaseException:
            for side in self._sides.values():
                side.copier.abandon()
            raise
        return batch

    def _look_through(self, number: int, batch: _Batch) -> None:
        try:
            manifest = self._source.manifest(number)
            encrypted = bool(manifest.document["metadata"]["encrypted"])
            needs = self._side(encrypted).needs
            before = len(needs.packs)
            walk_manifest(needs.reader, manifest, needs.visit)
        except (BackupMissing, DamageError) as error:
            self._refuse(number, error)
            return
        batch.names.append(number)
        batch.manifests[number] = Manifest(manifest.number, manifest.kind, {}, manifest.sha256)
        batch.sides[number] = encrypted
        batch.packs[number] = list(needs.packs)[before:]

    def _refuse(self, number: int, error: LastroError) -> None:
        """Leave a backup out: it was ended meanwhile, or the source cannot give it."""
        if self._source.forgotten(number):
            self._gone.append(number)
            return
        self._report.failed[number] = error
        self._impaired = True  # What this walk had visited, later ones pass over.
        if isinstance(error, DamageError | BackupMissing):
            self._report.source_findings.append(Finding(error.code, f"backup {number}", error.message))

    def _fetch(self, sizes: dict[str, int]) -> bool:
        """Copy what is needed; True when something vanished from the source."""
        vanished = False
        needed = {encrypted: dict(side.needs.packs) for encrypted, side in self._sides.items()}
        self._progress.total(items=sum(map(len, needed.values())))
        for encrypted, packs in needed.items():
            copied = self._sides[encrypted].copier.copy(packs, self._progress)
            moved = [size for size in copied.sizes.values() if size]
            self._report.packs_moved += len(moved)
            self._report.packs_bytes += sum(moved)
            sizes.update(copied.sizes)
            vanished = vanished or bool(copied.vanished)
            for name, error in copied.failed.items():
                self._impaired = True
                self._report.source_findings.append(Finding(error.code, f"pack {name}", error.message))
        return vanished

    def _holds(self, number: int, batch: _Batch) -> bool:
        """Whether every chunk of the backup is in a pack of the copy."""
        side, seen = self._sides[batch.sides[number]], set[bytes]()

        def visit(chunk_id: bytes, is_meta: bool) -> bool:
            if not side.held.has(chunk_id):
                raise ChunkMissing(f"chunk {chunk_id.hex()[:16]} could not be copied", hint="repair the source first")
            fresh = chunk_id not in seen
            if is_meta:
                seen.add(chunk_id)
            return fresh

        try:
            walk_manifest(side.needs.reader, self._source.manifest(number), visit)
        except (BackupMissing, DamageError) as error:
            self._refuse(number, error)
            return False
        return True

    # ------------------------------------------------------------ the promise

    def _commit(self, numbers: list[int], batch: _Batch) -> set[int]:
        """Create the manifests, and take them back when packs were dropped from the copy meanwhile."""
        kill_point("copy.before_manifests")
        self._target.guard.check()
        done: set[int] = set()
        with ThreadPoolExecutor(MANIFESTS_AT_ONCE, thread_name_prefix="manifest") as pool:
            for at in range(0, len(numbers), 4 * MANIFESTS_AT_ONCE):
                self._progress.check()
                some = numbers[at : at + 4 * MANIFESTS_AT_ONCE]
                sizes = pool.map(lambda number: self._create(number, batch.manifests[number].sha256), some)
                for number, size in zip(some, sizes, strict=True):
                    if size is not None:
                        done.add(number)
                        self._report.objects += 1
                        self._report.bytes += size
                        kill_point("copy.manifest_stored")
        try:
            for side in self._sides.values():
                side.copier.check_generation()
        except SessionFenced:
            for number in done - self._selection.kept:
                self._target.store.delete(f"{self._target.prefix}manifests/{number:010d}")
            raise
        return done

    def _create(self, number: int, sha256: str) -> int | None:
        """Create one manifest; its size, None when the source cannot give it."""
        key = f"{self._source.prefix}manifests/{number:010d}"
        try:
            blob = self._source.store.get(key, 0, DOCUMENT_BYTES_MAX)
            if Manifest.read(blob, self._source.keyring, number=number).sha256 != sha256:
                raise ManifestDamaged(f"manifest {number} changed while it was copied")
        except (ObjectMissing, DamageError) as error:
            self._refuse(number, error)
            return None
        try:
            self._target.store.create(key, [blob])
        except ObjectExists:
            if not self._same(number, sha256):
                # What lies there is altered, or of somebody else: ours is signed and of this number.
                self._target.store.put(key, [blob])
        return len(blob)

    def _same(self, number: int, sha256: str) -> bool:
        try:
            return self._target.manifest(number).sha256 == sha256
        except (BackupMissing, DamageError):
            return False

    def _promise(self, kept: Collection[int]) -> None:
        if not self._wish.promise:
            return
        said = self._selection
        if said.serial and said.trusted and kept == said.kept and said.head >= self._wish.head:
            return
        self._target.guard.check()
        self._selection = selection_write(
            self._target,
            copy=self._wish.copy,
            head=max(self._wish.head, self._selection.head, *kept, 0),
            kept=kept,
            after=self._selection.serial,
        )


def _taken(todo: list[int]) -> Iterator[int]:
    """Numbers from the end of the list, taken off it."""
    while todo:
        yield todo.pop()
