"""A writing session: worker threads that cut, hash, compress, encrypt and store, deduplicating as they go.

Nothing a session stores counts until a manifest names it: a session that dies leaves garbage that the
next one deduplicates against (its index segments) and prune removes.
"""

import os
import queue
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import zstandard
from blake3 import blake3

from engine.faults import kill_point
from engine.heap import share_heap
from engine.index import ENTRY_BYTES, pack_place
from engine.index_set import IndexSet
from engine.keys import Keyring
from engine.pack import ID_BYTES, PackBuilder, encode_payload
from engine.ports import Buffer, HashedParts, Store
from engine.sealed import Kind

T = TypeVar("T")
CHUNK_BYTES_MAX = 8 << 20
BUNDLE_BYTES = {Kind.DATA_PACK: 2 << 20, Kind.META_PACK: 512 << 10}
BUNDLE_CHUNKS_MAX = 4096
ZSTD_LEVEL, FAST_ZSTD_LEVEL = 2, 1
ZSTD_HASH_LOG, ZSTD_MATCH_MIN = 14, 7
"""A match table of 64 KiB stays in a core's cache; see ADR 9 for what it takes and gives."""
FAST_ZSTD_HASH_LOG = 13
"""32 KiB, which is the first level of the cache: four fifths of the time that 15 takes over rows, for 9 % more bytes."""
ENTRIES_PENDING_MAX = 1 << 17
"""Index entries held in memory before a segment is written in the middle of a session."""


class Lane:
    """One thread's writer of chunks; never shared between threads."""

    def __init__(self, session: "Session", kind: Kind) -> None:
        self._session, self._kind = session, kind
        self._compressors: dict[bool, zstandard.ZstdCompressor] = {}
        self._bundle: list[bytes] = []
        self._bundle_chunks: list[tuple[bytes, int, int]] = []
        self._bundle_bytes = 0

    def add(self, data: Buffer, *, fast: bool = False, named: bytes | None = None) -> bytes:
        """Store one chunk of at most 8 MiB in a frame of its own, unless it is known; its id.

        `fast` compresses in 0.55 of level 3's time to 1.18 of its size (over rows of a database). `named` is the id
        of a chunk that is stored anew: it may have been named by an id key of before a compromise, and keeps its name.
        """
        assert len(data) <= CHUNK_BYTES_MAX
        chunk_id = named or blake3(data, key=self._session.id_key).digest()
        if self._session.claim(chunk_id):
            self._frame(data, [(chunk_id, 0, len(data))], fast=fast)
        return chunk_id

    def add_small(self, data: Buffer, *, named: bytes | None = None) -> bytes:
        """Like `add`, bundled with its neighbours into one frame."""
        if len(data) >= BUNDLE_BYTES[self._kind]:
            return self.add(data, named=named)
        chunk_id = named or blake3(data, key=self._session.id_key).digest()
        if self._session.claim(chunk_id):
            self._bundle_up(chunk_id, bytes(data))
        return chunk_id

    def add_many(self, pieces: Sequence[bytes]) -> list[bytes]:
        """Like `add_small` for each of some small pieces, with one look at what is known."""
        key = self._session.id_key
        chunk_ids = [blake3(piece, key=key).digest() for piece in pieces]
        for piece, chunk_id, new in zip(pieces, chunk_ids, self._session.claim_many(chunk_ids), strict=True):
            if new:
                self._bundle_up(chunk_id, piece)
        return chunk_ids

    def _bundle_up(self, chunk_id: bytes, data: bytes) -> None:
        self._bundle.append(data)
        self._bundle_chunks.append((chunk_id, self._bundle_bytes, len(data)))
        self._bundle_bytes += len(data)
        if self._bundle_bytes >= BUNDLE_BYTES[self._kind] or len(self._bundle) >= BUNDLE_CHUNKS_MAX:
            self.flush()

    def flush(self) -> None:
        """Write the open bundle out."""
        if self._bundle:
            payload, chunks = b"".join(self._bundle), self._bundle_chunks
            self._bundle, self._bundle_chunks, self._bundle_bytes = [], [], 0
            self._frame(payload, chunks)

    def _compressor(self, fast: bool) -> zstandard.ZstdCompressor | None:
        if self._session.compress and fast not in self._compressors:
            level, hash_log = (FAST_ZSTD_LEVEL, FAST_ZSTD_HASH_LOG) if fast else (ZSTD_LEVEL, ZSTD_HASH_LOG)
            parameters = zstandard.ZstdCompressionParameters.from_level(
                level, hash_log=hash_log, min_match=ZSTD_MATCH_MIN
            )
            self._compressors[fast] = zstandard.ZstdCompressor(compression_params=parameters)
        return self._compressors.get(fast)

    def _frame(self, payload: Buffer, chunks: list[tuple[bytes, int, int]], *, fast: bool = False) -> None:
        try:
            plain = encode_payload(payload, self._compressor(fast))
            with self._session.builder(self._kind) as builder:
                builder.add(plain, chunks)
        except BaseException as error:
            # Their ids are claimed, so nobody would store these chunks again: the session must not go on,
            # even if the caller takes this for an error of its source.
            self._session.fail(error)
            raise


class MetaLane(Lane):
    """The metadata lane: shared, behind a lock."""

    def __init__(self, session: "Session") -> None:
        super().__init__(session, Kind.META_PACK)
        self._lock = threading.RLock()

    def add(self, data: Buffer, *, fast: bool = False, named: bytes | None = None) -> bytes:
        """See Lane.add."""
        with self._lock:
            return super().add(data, fast=fast, named=named)

    def add_small(self, data: Buffer, *, named: bytes | None = None) -> bytes:
        """See Lane.add_small."""
        with self._lock:
            return super().add_small(data, named=named)

    def add_many(self, pieces: Sequence[bytes]) -> list[bytes]:
        """See Lane.add_many."""
        with self._lock:
            return super().add_many(pieces)

    def flush(self) -> None:
        """See Lane.flush."""
        with self._lock:
            super().flush()


class Session:
    """Made by Repository.session; ends with `finish` (all durable, index written) or `abort`."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        keyring: Keyring,
        index: IndexSet,
        *,
        id_key: bytes,
        cipher: int,
        compress: bool = True,
        workers: int | None = None,
        rewriting: bool = False,
    ) -> None:
        share_heap()
        self.id = secrets.token_hex(8)
        self.id_key, self.compress = id_key, compress
        self._store, self._prefix, self._keyring, self._cipher = store, prefix, keyring, cipher
        self._index = index
        self._generation = index.generation
        self._rewriting = rewriting
        self._workers = workers or max(2, min(8, os.cpu_count() or 2))
        self._claimed: set[bytes] = set()
        self._noting = False
        self._packs_stored: set[bytes] = set()
        self._packs_reused: set[bytes] = set()
        self._lock = threading.Lock()
        self._returned = threading.Condition(self._lock)
        self._lent: Counter[Kind] = Counter()
        self._claim_lock = threading.Lock()
        self._index_lock = threading.Lock()
        self._open: dict[Kind, list[PackBuilder]] = {Kind.DATA_PACK: [], Kind.META_PACK: []}
        self._stored: list[tuple[str, bytes, bytes]] = []
        self._stored_entries = 0
        self._bytes = 0
        self._plain_bytes = self._packed_bytes = 0
        self._tasks: queue.Queue[tuple[Callable[[Lane], Any], Future[Any]] | None] = queue.Queue(self._workers * 2)
        self._threads: list[threading.Thread] = []
        self._storers = ThreadPoolExecutor(self._workers, "store")
        self._room = threading.Semaphore(self._workers)
        self._error: BaseException | None = None
        self._ended = False
        self.meta: Lane = MetaLane(self)

    @property
    def stored_bytes(self) -> int:
        """Bytes this session has put into the store so far, padding and index included."""
        return self._bytes

    @property
    def new_data(self) -> tuple[int, int]:
        """Bytes of content that nothing held before, plain and as they were packed: how well new data compresses."""
        return self._plain_bytes, self._packed_bytes

    def claim(self, chunk_id: bytes) -> bool:
        """True for exactly one caller when the chunk is in no index and no other thread took it."""
        return self.claim_many((chunk_id,))[0]

    def claim_many(self, chunk_ids: Sequence[bytes]) -> list[bool]:
        """What `claim` says to each, in order."""
        claimed, new = self._claimed, []
        with self._claim_lock:
            for chunk_id in chunk_ids:
                new.append(chunk_id not in claimed)
                claimed.add(chunk_id)
        # Only then the index: what moves from the claimed ones to the index is never in neither.
        if not self._rewriting and self._index.segments:
            for number, chunk_id in enumerate(chunk_ids):
                if new[number] and self._is_known(chunk_id):
                    claimed.discard(chunk_id)
                    new[number] = False
        return new

    def note_packs(self) -> None:
        """Keep account of the packs that are stored and reused from now on; to be called before anything is stored."""
        self._noting = True

    @property
    def packs_stored(self) -> set[bytes]:
        """Names of the packs that this session stored, as noted."""
        return set(self._packs_stored)

    @property
    def packs_reused(self) -> set[bytes]:
        """Names of the packs that hold chunks which this session found in the index, as noted."""
        return set(self._packs_reused)

    def _is_known(self, chunk_id: bytes) -> bool:
        if not self._noting:
            return chunk_id in self._index
        place = self._index.find(chunk_id)
        if place is None:
            return False
        self._packs_reused.add(bytes.fromhex(place.pack))
        return True

    def submit(self, work: Callable[[Lane], T]) -> Future[T]:
        """Run work(lane) in a worker thread; blocks while the queue is full.

        Raises the first error of any worker: once one failed, nothing more is accepted.
        """
        self._raise_error()
        assert not self._ended, "the session has ended"
        if len(self._threads) < self._workers:
            thread = threading.Thread(target=self._serve, name=f"lane-{len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)
        future: Future[T] = Future()
        self._tasks.put((work, future))
        return future

    def fail(self, error: BaseException) -> None:
        """Let nothing more be stored and `finish` raise this error, or the one that came before it."""
        self._error = self._error or error

    def _serve(self) -> None:
        """Work until told to end. Whatever happens the queue is emptied, or `submit` would wait for ever."""
        lane: Lane | None = None
        while (task := self._tasks.get()) is not None:
            work, future = task
            if not future.set_running_or_notify_cancel():
                continue
            if self._error is not None:
                future.set_exception(self._error)
                continue
            try:
                lane = lane or Lane(self, Kind.DATA_PACK)
                result = work(lane)
            except BaseException as error:  # noqa: BLE001 - every error, exit requests too, must reach the caller.
                self.fail(error)
                future.set_exception(error)
            else:
                future.set_result(result)
        try:
            if self._error is None and lane is not None:
                lane.flush()
        except BaseException as error:  # noqa: BLE001
            self.fail(error)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    @contextmanager
    def builder(self, kind: Kind) -> Iterator[PackBuilder]:
        """Borrow an open pack for one frame; a pack that became full is handed over to be stored.

        At most half as many are open as there are workers: each holds up to its whole size in memory, and a frame
        takes far less time here than it took to compress.
        """
        self._raise_error()
        with self._returned:
            self._returned.wait_for(lambda: self._lent[kind] < max(1, self._workers // 2))
            self._lent[kind] += 1
            free = self._open[kind]
            builder = free.pop() if free else None
        kept = None
        try:
            builder = builder or PackBuilder(self._keyring, kind, cipher=self._cipher)
            yield builder
            kept = None if builder.full else builder
        finally:
            with self._returned:
                self._lent[kind] -= 1
                if kept is not None:
                    free.append(kept)
                self._returned.notify()
        if kept is None:
            self._hand_over(kind, builder)

    def _hand_over(self, kind: Kind, builder: PackBuilder) -> None:
        """Have another thread wait for the store; blocks while as many packs are on their way as there are workers."""
        self._room.acquire()
        self._storers.submit(self._store_handed, kind, builder)

    def _store_handed(self, kind: Kind, builder: PackBuilder) -> None:
        try:
            if self._error is None:
                self._store_pack(kind, builder)
        except BaseException as error:  # noqa: BLE001 - it must reach the caller, who is in another thread.
            self.fail(error)
        finally:
            self._room.release()

    def _store_pack(self, kind: Kind, builder: PackBuilder) -> None:
        name, parts, size = builder.finish()
        folder = "data" if kind is Kind.DATA_PACK else "meta"
        self._store.put(f"{self._prefix}{folder}/{name[:2]}/{name}", HashedParts(parts, sha256=name))
        kill_point("session.pack_stored")
        parts.clear()
        with self._lock:
            if self._noting:
                self._packs_stored.add(bytes.fromhex(name))
            entries = _entries(len(self._stored), builder)
            self._stored.append((name, builder.header, entries))
            self._stored_entries += len(entries) // ENTRY_BYTES
            self._bytes += size
            if kind is Kind.DATA_PACK:
                self._plain_bytes += sum(length for frame in builder.frames for _, _, length in frame.chunks)
                self._packed_bytes += sum(frame.length for frame in builder.frames)
            full = self._stored_entries >= ENTRIES_PENDING_MAX
        if full:
            self._write_index()

    def _write_index(self) -> None:
        """Turn the packs stored since the last segment into one; their ids are found there from then on."""
        with self._index_lock:
            with self._lock:
                stored, self._stored, self._stored_entries = self._stored, [], 0
            if not stored:
                return
            packs = [(name, header) for name, header, _ in stored]
            entries = sorted(
                run[at : at + ENTRY_BYTES] for _, _, run in stored for at in range(0, len(run), ENTRY_BYTES)
            )
            size = self._index.write(packs, entries, generation=self._generation)
            with self._lock:
                self._bytes += size
            self._claimed.difference_update([entry[:ID_BYTES] for entry in entries])

    def finish(self) -> None:
        """Store everything that is open and the index.

        Raises the first error of any worker, and SessionFenced when a prune has begun to drop packs since
        this session began: some may be packs that it relies on.
        """
        self._join()
        self._raise_error()
        self.meta.flush()
        for kind, builders in self._open.items():
            while builders:
                self._hand_over(kind, builders.pop())
        self._storers.shutdown()
        self._raise_error()
        self._write_index()
        self.check_generation()
        if not self._rewriting:
            # What is stored anew stands in the index twice, and of two places a merge keeps either: it might be the
            # one in a pack that is about to be dropped. Who rewrites decides which of them stays.
            self._bytes += self._index.compact()
        self._raise_error()

    def check_generation(self) -> None:
        """Raise SessionFenced when packs were dropped from the index since this session began."""
        self._index.check_generation(self._generation)

    def abort(self) -> None:
        """Stop the workers and drop what is not stored; safe to call at any time, twice too."""
        self.fail(RuntimeError("the session was aborted"))
        self._join()
        self._storers.shutdown()
        for builders in self._open.values():
            builders.clear()

    def _join(self) -> None:
        self._ended = True
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []


def _entries(pack_number: int, builder: PackBuilder) -> bytes:
    """The index's entries of a pack one after another: as a list they would take thrice the memory until written."""
    return b"".join(
        [
            chunk_id + pack_place(pack_number, frame.offset, frame.length, offset, length)
            for frame in builder.frames
            for chunk_id, offset, length in frame.chunks
        ]
    )
