"""Lock what a backup needs, in stores that lock (Object Lock): before its manifest is there, and as long as it shall stay.

A store locks each new object for some days when it is put. What a backup shares with older ones may be locked for less
than the backup is to live: those locks are extended first, to dates rounded up to WINDOW, so that an object is asked
for once in a window and not at every backup. What was extended is remembered in a small file beside the index's cache
(`LockBook`); where it is lost, locks are extended again, which does no harm. Keyrings are never locked: a key that
cannot be deleted cannot be shredded.

A backup that was compared with others needs nothing but what these need, what it stored, and what it came upon in the
index. So only that is looked at, unless the others are not known to be locked long enough.
"""

import contextlib
import datetime
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from engine.errors import ChunkMissing, ObjectMissing, StoreDenied
from engine.pack_table import pack_key
from engine.ports import LockingStore
from engine.progress import Progress
from engine.repository import Domain, Repository
from engine.session import Session
from engine.views import walk_sources

WINDOW = datetime.timedelta(days=30)
AHEAD = datetime.timedelta(days=60)
"""So far ahead what is kept for ever is locked; a daily run goes on from there."""
AHEAD_MAX = datetime.timedelta(days=400)
"""No lock is set further ahead: in compliance mode nobody can take back what a wrong clock or policy has locked."""
AT_ONCE = 8
BATCH = 500
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def lock_goal(goes_at: datetime.datetime | None, now: datetime.datetime) -> datetime.datetime:
    """Until when what a backup needs is to be locked; `goes_at` is when the backup goes, None for never."""
    end = now + AHEAD if goes_at is None else min(max(goes_at, now), now + AHEAD_MAX)
    windows = -((_EPOCH - end) // WINDOW)
    return _EPOCH + windows * WINDOW


class LockBook:
    """Pack -> the day until which it was locked last; a convenience that may be lost."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        """None when there is no such file and none can be made."""
        connection = None
        try:
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                connection = sqlite3.connect(self._path, timeout=5)
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS locks (pack BLOB PRIMARY KEY, day INTEGER) WITHOUT ROWID"
                )
        except (OSError, sqlite3.Error):
            connection = None
        try:
            yield connection
        finally:
            if connection is not None:
                connection.close()

    def lacking(self, names: Iterable[bytes], until: datetime.datetime) -> list[bytes]:
        """The packs that are not known to be locked until then."""
        with self._open() as connection:
            if connection is None:
                return sorted(names)
            try:
                return sorted(name for name in names if _day_of(connection, name) < _day(until))
            except sqlite3.Error:
                return sorted(names)

    def note(self, names: Sequence[bytes], until: datetime.datetime) -> None:
        """Remember that these packs are locked until then."""
        with self._open() as connection:
            if connection is None:
                return
            # A file that somebody else damaged or holds is no reason to fail: it is asked again next time.
            with contextlib.suppress(sqlite3.Error), connection:
                connection.executemany("INSERT OR REPLACE INTO locks VALUES (?, ?)", [(n, _day(until)) for n in names])


def _day(at: datetime.datetime) -> int:
    return (at - _EPOCH).days


def _day_of(connection: sqlite3.Connection, name: bytes) -> int:
    row = connection.execute("SELECT day FROM locks WHERE pack = ?", (name,)).fetchone()
    return int(row[0]) if row else 0


class Locker:
    """Locks what one backup needs until a date; `locked_until` is that date once all of it is."""

    def __init__(
        self, repository: Repository, domain: Domain, *, until: datetime.datetime, covered: bool, progress: Progress
    ) -> None:
        """`covered`: all that the backups it is compared with need is known to be locked until then."""
        self._repository, self._domain, self._progress = repository, domain, progress
        self._until, self._covered = until, covered
        cache = repository.cache
        self._book = LockBook(cache and cache / f"{repository.repository_id}-locks.sqlite3")
        self.locked_until: datetime.datetime | None = None
        self.extended = 0
        """Objects whose lock was extended."""

    @property
    def _store(self) -> LockingStore:
        return cast(LockingStore, self._repository.store)

    def extend(self, session: Session, sources: Sequence[Mapping[str, Any]]) -> None:
        """Lock what a session's backup needs; to be called when all of it is stored, and before its manifest.

        A store that refuses is warned of: a backup that is not locked is still a backup.
        """
        fresh, reused = session.packs_stored, session.packs_reused
        if datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=self._store.lock_days) >= self._until:
            self._book.note(sorted(fresh), self._until)
            fresh = set()
        self._lock(fresh | reused if self._covered else fresh | reused | self._reach(sources))

    def extend_for(self, sources: Sequence[Mapping[str, Any]]) -> None:
        """Lock what a committed backup needs."""
        self._lock(self._reach(sources))

    def seal(self, number: int) -> None:
        """Lock the manifest, and the ledger without which nothing is given back; last, when they are there."""
        if self.locked_until is None:
            return
        prefix = self._repository.prefix
        keys = [f"{prefix}manifests/{number:010d}"]
        if not self._covered:
            keys += [info.key for info in self._repository.store.list(f"{prefix}erasures/")]
        try:
            for key in keys:
                self._store.lock(key, self._until)
        except StoreDenied as error:
            self._refused(error)

    def _refused(self, error: StoreDenied) -> None:
        self.locked_until = None
        said = f"what it needs could not be locked until {self._until:%Y-%m-%d}: {error.message}"
        self._progress.warn("backup.not_locked", said)

    def _lock(self, names: Collection[bytes]) -> None:
        lacking = self._book.lacking(names, self._until)
        try:
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="lock") as pool:
                for begin in range(0, len(lacking), BATCH):
                    self._progress.check()
                    batch = lacking[begin : begin + BATCH]
                    list(pool.map(self._lock_pack, batch))
                    self._book.note(batch, self._until)
                    self.extended += len(batch)
        except StoreDenied as error:
            self._refused(error)
            return
        self.locked_until = self._until

    def _lock_pack(self, name: bytes) -> None:
        for folder in ("data", "meta"):
            try:
                self._store.lock(pack_key(self._domain, folder, name.hex()), self._until)
                return
            except ObjectMissing:
                continue
        raise ChunkMissing(f"pack {name.hex()[:16]}, which this backup needs, is gone from the store")

    def _reach(self, sources: Sequence[Mapping[str, Any]]) -> set[bytes]:
        """Every pack that the sources of a backup need; reads all their metadata."""
        index, reader = self._domain.index, self._domain.reader()
        packs, seen = set[bytes](), set[bytes]()

        def visit(chunk_id: bytes, is_meta: bool) -> bool:
            if is_meta and chunk_id in seen:
                return False
            place = index.find(chunk_id)
            if place is None:
                raise ChunkMissing(f"chunk {chunk_id.hex()[:16]} of this backup is in no index")
            packs.add(bytes.fromhex(place.pack))
            if is_meta:
                seen.add(chunk_id)
            return is_meta

        walk_sources(reader, sources, visit)
        return packs
