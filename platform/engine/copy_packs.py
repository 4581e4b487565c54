"""Moving packs from one store to another: whole, in parallel, checked on both ends, then named by the copy's own index."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice

from engine.errors import DamageError, LastroError, ObjectDamaged, ObjectMissing
from engine.faults import kill_point
from engine.heap import share_heap
from engine.index import ENTRY_BYTES, Place, Segment, pack_place
from engine.pack import PACK_BYTES_MAX, Frame, read_trailer
from engine.pack_table import PackTable, pack_key, possible_size
from engine.ports import HashedParts
from engine.progress import Progress
from engine.rebuild import read_pack_frames
from engine.repository import Domain, Repository
from engine.sealed import HEADER_BYTES, KIND_AT, Kind

WORKERS_MAX = 8
"""Packs in memory at a time, 12 MiB each as a rule."""
INDEX_PACKS = 128
"""So many packs are copied before the copy's index names them: what a kill can leave to be looked at again."""
INDEX_ENTRIES = 1 << 17


def folder_of(place: Place) -> str:
    """Where a pack with this header belongs; the header proves nothing yet."""
    return "meta" if place.header[KIND_AT] == Kind.META_PACK else "data"


class Held:
    """Which chunks a copy has in packs that are there; with a listing looked at, without one as its index says."""

    def __init__(self, repository: Repository, domain: Domain, table: PackTable | None) -> None:
        self._repository, self._domain, self.table = repository, domain, table
        self._asked: dict[str, int | None] = {}
        """Packs that were copied, or that the listing lacked."""
        self.lost: dict[str, str] = {}
        """Packs that the index names and the store has not, or not whole -> what is wrong."""
        self.mended: dict[str, str] = {}
        """Those of them that were copied again."""

    def has(self, chunk_id: bytes) -> bool:
        """Whether some pack that is there holds the chunk."""
        return any(self._whole(place) for place in self._domain.index.places(chunk_id))

    def look_for(self, name: str, header: bytes) -> None:
        """Note in `lost` when a pack that the index names is not there."""
        self._whole(Place(name, header, 0, 0, 0, 0))

    def add(self, name: str, size: int) -> None:
        """A pack was copied."""
        self._asked[name] = size
        if name in self.lost:
            self.mended[name] = self.lost.pop(name)

    def _whole(self, place: Place) -> bool:
        size = self._size(place)
        if size is None:
            self.lost[place.pack] = "gone from the store"
        elif place.frame_offset + place.frame_length > size or not possible_size(size):
            self.lost[place.pack] = f"has {size} bytes, which cannot be"
        else:
            return True
        return False

    def _size(self, place: Place) -> int | None:
        if place.pack in self._asked:
            return self._asked[place.pack]
        if self.table is None:
            return PACK_BYTES_MAX
        listed = self.table.size(place.pack)
        if listed is not None:
            return listed
        try:  # A listing may lack what is there.
            size = self._repository.store.stat(pack_key(self._domain, folder_of(place), place.pack)).size
        except ObjectMissing:
            size = None
        self._asked[place.pack] = size
        return size


class Needs:
    """Packs of the source that hold chunks which the copy lacks; every chunk is looked at once, one byte each."""

    def __init__(self, domain: Domain, held: Held) -> None:
        self._domain, self.held = domain, held
        self._bits: dict[str, bytearray] = {}
        self.packs: dict[str, str] = {}
        """Name -> folder, in the order in which the backups need them."""
        self.reader = domain.reader()
        self.found: Callable[[str, str], None] = lambda name, folder: None
        """Told of each pack (name, folder) when it is first needed."""

    def visit(self, chunk_id: bytes, is_meta: bool) -> bool:
        """Note one chunk; True when what it names has to be walked. Raises ChunkMissing."""
        found = self._find(chunk_id)
        if found is None:
            self.reader.locate(chunk_id)  # Reads the index again, or raises.
            found = self._find(chunk_id)
            assert found is not None
        segment, ordinal = found
        bits = self._bits.get(segment.name)
        if bits is None:
            bits = self._bits[segment.name] = bytearray(segment.count)
        if bits[ordinal]:
            return False
        bits[ordinal] = 1
        if not self.held.has(chunk_id):
            place = segment.place(ordinal)
            if place.pack not in self.packs:
                self.packs[place.pack] = folder_of(place)
                self.found(place.pack, self.packs[place.pack])
        return is_meta

    def restart(self) -> None:
        """Forget what was looked at, and read the source's index again: a prune has moved chunks."""
        self._bits.clear()
        self.packs.clear()
        self._domain.index.reload()
        self.reader = self._domain.reader()

    def _find(self, chunk_id: bytes) -> tuple[Segment, int] | None:
        for segment in self._domain.index.segments:
            ordinal = segment.ordinal(chunk_id)
            if ordinal >= 0:
                return segment, ordinal
        return None


@dataclass
class Copied:
    """What became of the packs asked for."""

    sizes: dict[str, int] = field(default_factory=dict)
    """Those that are there now; 0 for one that an earlier run had left there without an index."""
    vanished: set[str] = field(default_factory=set)
    failed: dict[str, LastroError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Arrived:
    name: str
    header: bytes
    frames: list[Frame]
    size: int
    moved: int


class PackCopier:
    """Copies packs of one domain. Nothing of it counts before the copy's index names it, and that before a manifest does."""

    def __init__(
        self, source: Repository, target: Repository, *, encrypted: bool, held: Held, read_back: bool, workers: int = 0
    ) -> None:
        share_heap()
        self._source, self._target = source.domain(encrypted=encrypted), target.domain(encrypted=encrypted)
        self._from, self._to = source, target
        self._held, self._read_back = held, read_back
        self._workers = workers or max(2, min(WORKERS_MAX, 2 * (os.cpu_count() or 2)))
        self.generation = self._target.index.generation
        self._pending: list[tuple[str, bytes, bytes]] = []
        self._pending_entries = 0
        self._stop = threading.Event()
        self._pool: ThreadPoolExecutor | None = None
        self._begun: dict[str, Future[_Arrived]] = {}

    def begin(self, name: str, folder: str) -> None:
        """Begin to move a pack while others are still looked for; `copy` takes it from there, or `abandon` ends it."""
        if name not in self._begun:
            self._begun[name] = self._threads().submit(self._transfer, name, folder)

    def abandon(self) -> None:
        """Begin no more packs and wait for those under way. What has arrived is no part of the copy: no index names it."""
        self._stop.set()
        pool, self._pool, self._begun = self._pool, None, {}
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._stop.clear()
            self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="copy")
        return self._pool

    def _submit(self, item: tuple[str, str]) -> "Future[_Arrived]":
        return self._begun.pop(item[0], None) or self._threads().submit(self._transfer, *item)

    def check_generation(self) -> None:
        """Raise SessionFenced when packs were dropped from the copy since this run began."""
        self._target.index.check_generation(self.generation)

    def copy(self, packs: Mapping[str, str], progress: Progress) -> Copied:
        """Copy the packs (name -> folder) and index them. Raises what stops the whole run, with what arrived indexed.

        A pack that is gone from the source, or damaged there, is named in the result and stops nothing.
        """
        result = Copied()
        try:
            for name, future in _as_completed(self._submit, packs.items(), self._workers, progress):
                self._take(name, future, result, progress)
        except BaseException:
            self.abandon()
            self._index_quietly()
            raise
        self.abandon()
        self._write_index()
        return result

    def _take(self, name: str, future: Future[_Arrived], result: Copied, progress: Progress) -> None:
        try:
            arrived = future.result()
        except ObjectMissing:
            result.vanished.add(name)
            return
        except DamageError as error:
            result.failed[name] = error
            return
        result.sizes[name] = arrived.moved
        self._held.add(name, arrived.size)
        # Number 0 for now: the place in the segment is known when it is written.
        entries = b"".join(
            chunk_id + pack_place(0, frame.offset, frame.length, offset, length)
            for frame in arrived.frames
            for chunk_id, offset, length in frame.chunks
        )
        self._pending.append((name, arrived.header, entries))
        self._pending_entries += len(entries) // ENTRY_BYTES
        progress.advance(items=1, bytes=arrived.moved)
        if len(self._pending) >= INDEX_PACKS or self._pending_entries >= INDEX_ENTRIES:
            self._write_index()

    def _transfer(self, name: str, folder: str) -> _Arrived:
        key = pack_key(self._target, folder, name)
        if not self._stop.is_set() and (there := self._left_there(name, key)) is not None:
            return there
        blob = self._from.store.get(pack_key(self._source, folder, name), 0, PACK_BYTES_MAX + 1)
        if hashlib.sha256(blob).hexdigest() != name:
            raise ObjectDamaged(
                f"pack {name[:16]}: its bytes in the source are not what was written",
                hint="repair it from another copy",
            )
        frames = read_trailer(self._from.keyring, blob, f"pack {name[:16]}", cipher=self._source.cipher)
        self._to.store.put(key, HashedParts([blob], sha256=name))
        kill_point("copy.pack_stored")
        self._confirm(name, key, blob)
        return _Arrived(name, blob[:HEADER_BYTES], frames, len(blob), len(blob))

    def _confirm(self, name: str, key: str, blob: bytes) -> None:
        size = self._to.store.stat(key).size
        if size != len(blob) or (self._read_back and self._to.store.get(key, 0, len(blob) + 1) != blob):
            raise ObjectDamaged(
                f"pack {name[:16]}: the store did not keep what it was given ({size} of {len(blob)} bytes)",
                hint="run store test; do not trust this store",
            )

    def _left_there(self, name: str, key: str) -> _Arrived | None:
        """A whole pack that an earlier run has stored and not indexed: its ends are authenticated, not moved again."""
        table = self._held.table
        if table is not None and name not in table:
            return None
        try:
            size = self._to.store.stat(key).size
            if not possible_size(size):
                return None
            if self._read_back and hashlib.sha256(self._to.store.get(key, 0, PACK_BYTES_MAX + 1)).hexdigest() != name:
                return None
            header, frames = read_pack_frames(self._to, self._target, key, size)
        except (ObjectMissing, DamageError):
            return None
        return _Arrived(name, header, frames, size, 0)

    def _write_index(self) -> None:
        pending, self._pending, self._pending_entries = self._pending, [], 0
        if not pending:
            return
        packs = [(name, header) for name, header, _ in pending]
        entries = sorted(
            run[at : at + 32] + number.to_bytes(4, "big") + run[at + 36 : at + ENTRY_BYTES]
            for number, (_, _, run) in enumerate(pending)
            for at in range(0, len(run), ENTRY_BYTES)
        )
        self._target.index.write(packs, entries, generation=self.generation)
        kill_point("copy.indexed")

    def _index_quietly(self) -> None:
        """Name what has arrived although the run ends: the error that ends it says more than one about the index."""
        try:
            self._write_index()
        except LastroError:
            self._pending = []


def _as_completed(
    submit: Callable[[tuple[str, str]], "Future[_Arrived]"],
    items: Iterable[tuple[str, str]],
    workers: int,
    progress: Progress,
) -> Iterator[tuple[str, Future[_Arrived]]]:
    """Keep a few more under way than there are workers, and give each as it is done; stopped between any two."""
    source = iter(items)
    running: dict[Future[_Arrived], str] = {}
    try:
        while True:
            for item in islice(source, workers + 2 - len(running)):
                running[submit(item)] = item[0]
            if not running:
                return
            done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            progress.check()
            for future in done:
                yield running.pop(future), future
    finally:
        for future in running:
            future.cancel()
