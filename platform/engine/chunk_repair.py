"""Chunks that a primary has lost with their packs, brought from other places one by one and stored in new packs."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from engine.copy_packs import Held
from engine.errors import BackupMissing, DamageError
from engine.fallback import MendingRepository, Place
from engine.faults import kill_point
from engine.pack_table import PackTable
from engine.progress import Progress
from engine.repository import Domain, Repository
from engine.sealed import Kind
from engine.session import Lane, Session
from engine.views import walk_manifest

PACK = "pack "
SMALL_BYTES = 256 << 10
"""Chunks below this are bundled again when they are stored anew."""


@dataclass
class RepairReport:
    """What became of the objects to be mended, by key as a verification names them."""

    mended: dict[str, str] = field(default_factory=dict)
    """Key -> where it came from; "" when it was whole after all, or could be made from what is there."""
    lost: dict[str, str] = field(default_factory=dict)
    """Key -> why no copy could give it."""
    unnamed: list[str] = field(default_factory=list)
    """Packs that the index has forgotten: the next run of the copy brings what was in them."""
    chunks_lost: int = 0
    chunks_brought: int = 0
    """Chunks of which no pack was left, stored anew."""


def chunks_bring(
    repository: Repository,
    others: Sequence[Place],
    numbers: Collection[int],
    *,
    name: str,
    report: RepairReport,
    progress: Progress,
) -> None:
    """Look through these backups, and store anew each chunk that is in no pack of the repository but in another place.

    Runs under the tenant's lease. A manifest that cannot be read is passed over: it is mended or lost on its own.
    """
    progress.phase("chunks")
    mending = MendingRepository(repository, [Place(name, lambda: repository), *others])
    sides = {encrypted: _Side(mending, encrypted, report, progress) for encrypted in (True, False)}
    try:
        for number in sorted(numbers):
            progress.check()
            try:
                manifest = repository.manifest(number)
                side = sides[bool(manifest.document["metadata"]["encrypted"])]
                walk_manifest(side.reader, manifest, side.visit)
            except (BackupMissing, DamageError):
                continue
        for side in sides.values():
            side.finish()
    except BaseException:
        for side in sides.values():
            side.abort()
        raise


class _Side:
    """One domain, with a session that begins when something is missing."""

    def __init__(self, mending: MendingRepository, encrypted: bool, report: RepairReport, progress: Progress) -> None:
        self._domain: Domain = mending.domain(encrypted=encrypted)
        self._report, self._progress = report, progress
        table = PackTable.listed(mending, self._domain, progress)
        self._domain.index.reload()
        self._held = Held(mending, self._domain, table)
        self._segments = self._domain.index.segments
        self._bits = [bytearray(segment.count) for segment in self._segments]
        self._brought: set[bytes] = set()
        self._session: Session | None = None
        self._lane: Lane | None = None
        self.reader = self._domain.reader()

    def visit(self, chunk_id: bytes, is_meta: bool) -> bool:
        """Bring one chunk unless it is there; True when what it names has to be walked."""
        for segment, bits in zip(self._segments, self._bits, strict=True):
            ordinal = segment.ordinal(chunk_id)
            if ordinal >= 0:
                if bits[ordinal]:
                    return False
                bits[ordinal] = 1
                if self._held.has(chunk_id):
                    return is_meta
                break
        if chunk_id in self._brought:
            return False
        self._brought.add(chunk_id)
        return self._bring(chunk_id, is_meta) and is_meta

    def _bring(self, chunk_id: bytes, is_meta: bool) -> bool:
        try:
            chunk = self.reader.get(chunk_id)
        except DamageError:
            self._report.chunks_lost += 1
            return False
        if self._session is None:
            self._session = self._domain.session(rewriting=True)
            self._lane = Lane(self._session, Kind.DATA_PACK)
        assert self._lane is not None
        lane = self._session.meta if is_meta else self._lane
        add = lane.add_small if len(chunk) < SMALL_BYTES else lane.add
        add(chunk, named=chunk_id)
        self._report.chunks_brought += 1
        self._progress.advance(items=1, bytes=len(chunk))
        return True

    def finish(self) -> None:
        """Make what was brought durable."""
        if self._session is not None and self._lane is not None:
            self._lane.flush()
            self._session.finish()
            kill_point("repair.chunks_stored")
            index, before = self._domain.index, {segment.name for segment in self._segments}
            index.put_first({segment.name for segment in index.segments} - before)

    def abort(self) -> None:
        """Drop what is not stored."""
        if self._session is not None:
            self._session.abort()
