"""Verify a whole repository in one store: its structure, or a share of its objects byte for byte.

Structure: every manifest that must be there, read by name and authenticated, the chain of hashes, the index, every chunk
that a backup needs in a pack which is listed with a possible size. Memory: one byte for each entry of the index, 40 for
each pack. Sampling goes through the names of packs, which are hashes and so spread evenly: a day's share is a stretch of
that circle, and where the last one ended the next one begins, longer by as much as time has passed.
"""

import datetime
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from engine.chunks import ChunkReader
from engine.copy_packs import Held, folder_of
from engine.errors import BackupMissing, ChunkMissing, DamageError, ManifestDamaged, ObjectDamaged, ObjectMissing
from engine.fallback import check_object
from engine.index import Place
from engine.index_set import SEGMENT_BYTES_MAX
from engine.manifest import DOCUMENT_BYTES_MAX
from engine.pack import PACK_BYTES_MAX
from engine.pack_table import FOLDERS, PackTable, pack_key
from engine.progress import Progress
from engine.repository import Domain, Repository
from engine.verify import Finding, check_pack_bytes
from engine.views import walk_manifest

CIRCLE = 1 << 32
"""Names of packs, by their first 32 bits."""
FOLDER_SPAN = CIRCLE >> 8
FINDINGS_MAX = 10_000
LOOKS_MAX = 3
"""How often a structure is looked through when prunes keep changing it."""
READERS = 4
READ_BATCH = 4 * READERS
_PIECE_BYTES = 8 << 20


@dataclass
class StoreReport:
    """What a verification of a store read and found."""

    objects: int = 0
    bytes: int = 0
    packs: int = 0
    stored_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    affected: dict[int, str] = field(default_factory=dict)
    """Backups that cannot be restored whole from this store alone -> why."""
    unneeded: int = 0
    """Listed packs that no index names: garbage, or of a run that is under way."""

    def add(self, finding: Finding) -> None:
        """Take a finding; FINDINGS_MAX of them are kept."""
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)


def store_verify_structure(
    repository: Repository, numbers: Mapping[int, str], *, erasures: int = 0, progress: Progress
) -> StoreReport:
    """Look through everything that a store must hold; `numbers` are its backups with the digests of their manifests.

    `erasures` is the newest record of the erasure ledger that the catalogue knows of. Reads metadata, never content. A digest of "" is not compared.
    """
    report = StoreReport()
    progress.phase("structure")
    walks = {encrypted: _Walk(repository, encrypted, report, progress) for encrypted in (True, False)}
    progress.total(items=len(numbers))
    for number in sorted(numbers):
        progress.check()
        try:
            _manifest(repository, number, numbers[number])
            manifest = repository.manifest(number)
            walk = walks[bool(manifest.document["metadata"]["encrypted"])]
            walk_manifest(walk.reader, manifest, walk.visit)
        except BackupMissing as error:
            if repository.forgotten(number):
                continue  # It was ended while this ran.
            report.affected[number] = error.message
            report.add(Finding(error.code, f"manifests/{number:010d}", error.message))
        except DamageError as error:
            report.affected[number] = error.message
            if isinstance(error, ManifestDamaged):
                report.add(Finding(error.code, f"manifests/{number:010d}", error.message))
        report.objects += 1
        progress.advance(items=1)
    if any(walk.held.lost or walk.missing for walk in walks.values()):
        _name_affected(repository, numbers, walks, report, progress)
    for walk in walks.values():
        walk.finish()
    _small_objects(repository, report, progress)
    for domain in _domains(repository):
        _index_objects(repository, domain, report, progress)
    for number in range(1, erasures + 1):
        _erasure_there(repository, number, report)
    return report


def _index_objects(repository: Repository, domain: Domain, report: StoreReport, progress: Progress) -> None:
    """Hash every index segment as the store has it: what was looked up came from the cache that lies near."""
    prefix = f"{domain.prefix}index/"
    for info in repository.store.list(prefix):
        digest, name = hashlib.sha256(), info.key.removeprefix(prefix)
        try:
            # What is longer than any segment is none, and is not read to its end to be told so.
            for at in range(0, info.size if info.size <= SEGMENT_BYTES_MAX else 0, _PIECE_BYTES):
                progress.check()
                digest.update(repository.store.get(info.key, at, _PIECE_BYTES))
        except ObjectMissing:
            continue  # Merged into another one a moment ago.
        if digest.hexdigest() != name:
            report.add(Finding("damage.index", "index", f"index {name[:16]} is not what was written"))
        report.objects += 1
        report.bytes += info.size


def _erasure_there(repository: Repository, number: int, report: StoreReport) -> None:
    key = f"erasures/{number:010d}"
    try:
        repository.store.stat(repository.prefix + key)
    except ObjectMissing:
        message = f"erasure record {number} is gone: without it erased data could come back"
        report.add(Finding(ManifestDamaged.code, key, message))


def _manifest(repository: Repository, number: int, sha256: str) -> None:
    if sha256 and repository.manifest(number).sha256 != sha256:
        raise ManifestDamaged(
            f"manifest {number} is not the one that its backup committed",
            hint="the store was rolled back or tampered with",
        )


class _NotingReader(ChunkReader):
    """Remembers what could not be read: the walk of the next backup passes over what an earlier one has visited."""

    def __init__(self, repository: Repository, domain: Domain, unread: set[bytes]) -> None:
        super().__init__(repository.store, domain.prefix, repository.keyring, domain.index, id_keys=domain.id_keys)
        self._unread = unread
        self.damaged: dict[str, DamageError] = {}

    def get(self, chunk_id: bytes) -> bytes:
        """As ChunkReader.get."""
        try:
            return super().get(chunk_id)
        except DamageError as error:
            self._unread.add(chunk_id)
            place = self._index.find(chunk_id)
            if place is not None:
                self.damaged[place.pack] = error
            raise


class _Walk:
    """Every chunk once, whatever number of backups need it."""

    def __init__(self, repository: Repository, encrypted: bool, report: StoreReport, progress: Progress) -> None:
        self._domain, self._report = repository.domain(encrypted=encrypted), report
        self.table = PackTable.listed(repository, self._domain, progress)
        self._domain.index.reload()
        self.held = Held(repository, self._domain, self.table)
        self.missing: set[bytes] = set()
        """Chunks in no pack that is there, and lists that cannot be read."""
        self.reader = _NotingReader(repository, self._domain, self.missing)
        self._bits: dict[str, bytearray] = {}
        for message in self._domain.index.damaged:
            report.add(Finding("damage.index", "index", message))

    def visit(self, chunk_id: bytes, is_meta: bool) -> bool:
        """Look at one chunk; what is lost is noted, and the walk goes on with what is not."""
        for segment in self._domain.index.segments:
            ordinal = segment.ordinal(chunk_id)
            if ordinal < 0:
                continue
            bits = self._bits.get(segment.name)
            if bits is None:
                bits = self._bits[segment.name] = bytearray(segment.count)
            if bits[ordinal]:
                return False
            bits[ordinal] = 1
            if not self.held.has(chunk_id):
                self.missing.add(chunk_id)
                return False
            return is_meta
        self.missing.add(chunk_id)
        return False

    def finish(self) -> None:
        """Count, and note packs that the index names and the store has not."""
        self._report.packs += len(self.table)
        self._report.stored_bytes += self.table.bytes
        named = 0
        for segment in self._domain.index.segments:
            for number in range(segment.pack_count):
                self.held.look_for(*segment.pack(number))
                named += 1
        self._report.unneeded += max(0, len(self.table) - named)
        for name, error in sorted(self.reader.damaged.items()):
            if name not in self.held.lost:
                self._report.add(Finding(error.code, f"pack {name}", error.message))
        for name, what in sorted(self.held.lost.items()):
            self._report.add(Finding(ChunkMissing.code, f"pack {name}", f"pack {name[:16]}: {what}"))
        unindexed = sum(1 for chunk in self.missing if chunk not in self._domain.index)
        if unindexed:
            self._report.add(
                Finding("damage.index", "index", f"{unindexed} chunks that backups need are in no index segment")
            )


def _name_affected(
    repository: Repository,
    numbers: Collection[int],
    walks: Mapping[bool, _Walk],
    report: StoreReport,
    progress: Progress,
) -> None:
    """Say which backups need what is lost; each is followed on its own, which only damage is worth."""
    progress.phase("affected")
    for number in sorted(set(numbers) - report.affected.keys(), reverse=True):
        progress.check()
        try:
            manifest = repository.manifest(number)
            walk, seen = walks[bool(manifest.document["metadata"]["encrypted"])], set[bytes]()

            def visit(
                chunk_id: bytes, is_meta: bool, lost: Collection[bytes] = walk.missing, seen: set[bytes] = seen
            ) -> bool:
                if chunk_id in lost:
                    raise ChunkMissing(f"chunk {chunk_id.hex()[:16]} is in no pack of this store")
                fresh = chunk_id not in seen
                if is_meta:
                    seen.add(chunk_id)
                return fresh

            walk_manifest(walk.reader, manifest, visit)
        except (BackupMissing, DamageError) as error:
            report.affected[number] = error.message


def _small_objects(repository: Repository, report: StoreReport, progress: Progress) -> None:
    """Read the ledger, the records and the heads of images: each is authenticated whole."""
    for folder in ("erasures/", "forgets/", "checkpoints/", "selections/"):
        for info in repository.store.list(repository.prefix + folder):
            progress.check()
            try:
                blob = repository.store.get(info.key, 0, DOCUMENT_BYTES_MAX)
                check_object(repository.keyring, repository.prefix, info.key, blob)
            except ObjectMissing:
                continue  # Replaced by a newer record a moment ago.
            except DamageError as error:
                key = info.key.removeprefix(repository.prefix)
                report.add(Finding(error.code, key, f"{key}: {error.message}"))
            report.objects += 1
            report.bytes += info.size


# ---------------------------------------------------------------- byte for byte


@dataclass(frozen=True)
class Share:
    """A stretch of the circle of names: `length` of CIRCLE from `begin` on."""

    begin: int
    length: int

    @property
    def end(self) -> int:
        return (self.begin + self.length) % CIRCLE


def share_due(
    *, cursor: int, since: datetime.datetime | None, now: datetime.datetime, period: datetime.timedelta
) -> Share:
    """What has to be read now so that every object is read once a `period`: as much of the circle as time has passed.

    `since` is when the cursor was reached; None reads a first day's share. A missed day is caught up, a clock that went
    back reads nothing.
    """
    passed = datetime.timedelta(days=1) if since is None else now - since
    part = max(0.0, min(1.0, passed / period))
    return Share(cursor, min(CIRCLE, round(part * CIRCLE)))


def store_verify_bytes(
    repository: Repository,
    share: Share,
    *,
    deep: bool,
    progress: Progress,
    reached: Callable[[int], None] = lambda cursor: None,
) -> StoreReport:
    """Read every pack of the share that the index names and compare it with its name; with `deep` open its frames too.

    `reached` hears of the position about every 256th of the circle, so that a run which is stopped is not begun anew.
    """
    report = StoreReport()
    progress.phase("read")
    due = sorted({each for domain in _domains(repository) for each in _named(domain, share)})
    progress.total(items=len(due))
    folder_read = share.begin // FOLDER_SPAN
    with ThreadPoolExecutor(READERS, thread_name_prefix="verify") as pool:
        for at in range(0, len(due), READ_BATCH):
            progress.check()
            batch = due[at : at + READ_BATCH]
            for size, finding in pool.map(lambda each: _checked(repository, each, deep=deep), batch):
                report.objects += 1
                report.bytes += size
                progress.advance(items=1, bytes=size)
                if finding is not None:
                    report.add(finding)
            position = (share.begin + int.from_bytes(batch[-1][:4], "big")) % CIRCLE
            if position // FOLDER_SPAN != folder_read:
                folder_read = position // FOLDER_SPAN
                reached(position)
    report.findings = _still_there(repository, report.findings)
    reached(share.end)
    return report


def _domains(repository: Repository) -> tuple[Domain, Domain]:
    return repository.sealed, repository.plain


def _named(domain: Domain, share: Share) -> Iterator[bytes]:
    """Packs of the share that the index names: how far from its beginning (4 bytes), name (32), folder, domain."""
    domain.index.reload()
    for segment in domain.index.segments:
        for number in range(segment.pack_count):
            name, header = segment.pack(number)
            offset = (int(name[:8], 16) - share.begin) % CIRCLE
            if offset < share.length:
                folder = folder_of(Place(name, header, 0, 0, 0, 0))
                yield offset.to_bytes(4, "big") + bytes.fromhex(name) + bytes((FOLDERS.index(folder), domain.encrypted))


def _still_there(repository: Repository, findings: list[Finding]) -> list[Finding]:
    """Findings about packs that the index still names: a prune may have swept others while they were being read."""
    if not findings:
        return findings
    named = set[str]()
    for domain in _domains(repository):
        domain.index.reload()
        named |= domain.index.pack_names()
    return [each for each in findings if each.key.removeprefix("pack ") in named]


def _checked(repository: Repository, each: bytes, *, deep: bool) -> tuple[int, Finding | None]:
    name, folder, domain = each[4:36].hex(), FOLDERS[each[36]], repository.domain(encrypted=bool(each[37]))
    try:
        return _read_one(repository, domain, name, folder, deep=deep), None
    except DamageError as error:
        return 0, Finding(error.code, f"pack {name}", error.message)


def _read_one(repository: Repository, domain: Domain, name: str, folder: str, *, deep: bool) -> int:
    label = f"pack {name[:16]}"
    try:
        blob = repository.store.get(pack_key(domain, folder, name), 0, PACK_BYTES_MAX + 1)
    except ObjectMissing:
        raise ChunkMissing(f"{label} is gone from the store", hint="another copy may hold it") from None
    if deep:
        check_pack_bytes(repository, domain, name, blob)
    elif hashlib.sha256(blob).hexdigest() != name:
        raise ObjectDamaged(f"{label}: its bytes are not what was written", hint="another copy may hold it whole")
    return len(blob)
