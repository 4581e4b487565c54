"""Reading a repository from the nearest of its copies, and from the others what that one cannot give.

Object by object: the store of a ReadingRepository asks the next copy when one is away, lacks the object, or gives bytes
that are not what was written. Chunk by chunk: copies may keep a chunk in different packs (a primary repacks), so a chunk
that no pack of the nearest copy yields is looked for through the other copies' own indexes. Each such read is noted.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from engine.chunks import ChunkReader
from engine.errors import (
    BackupMissing,
    DamageError,
    LastroError,
    ObjectDamaged,
    ObjectMissing,
    RepositoryError,
    StoreDenied,
    StoreError,
    StoreUnreachable,
)
from engine.keys import Keyring
from engine.manifest import DOCUMENT_BYTES_MAX, Manifest
from engine.ports import Buffer, ObjectInfo, Store
from engine.read_ahead import is_dear
from engine.repository import Domain, Repository
from engine.sealed import Kind, open_object

T = TypeVar("T")
_READ_WHOLE = frozenset({"manifests", "forgets", "selections", "checkpoints", "erasures", "images"})
"""Objects of these folders are never read in part: what is too long for the reader's bound counts as altered."""
NOTES_MAX = 1_000


@dataclass
class FallbackNote:
    """An object that one copy could not give, and who gave it instead; "" for nobody."""

    place: str
    key: str
    code: str
    message: str
    served_by: str = ""
    count: int = 1


class FallbackNotes:
    """What had to be read elsewhere; one note for each object, NOTES_MAX of them."""

    def __init__(self) -> None:
        self._notes: dict[tuple[str, str], FallbackNote] = {}
        self._lock = threading.Lock()

    def add(self, note: FallbackNote) -> None:
        """Take a note, or count it again."""
        with self._lock:
            present = self._notes.get((note.place, note.key))
            if present is not None:
                present.count += 1
                present.served_by = present.served_by or note.served_by
            elif len(self._notes) < NOTES_MAX:
                self._notes[note.place, note.key] = note

    def all(self) -> list[FallbackNote]:
        """Every note so far, in the order of the first reads."""
        with self._lock:
            return list(self._notes.values())


@dataclass
class Place:
    """One copy to read from, opened when it is first needed; one that fails to open is not tried again."""

    name: str
    opener: Callable[[], Repository]
    error: LastroError | None = None
    _repository: Repository | None = None
    _readers: dict[bool, ChunkReader] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.RLock, repr=False)

    @property
    def repository(self) -> Repository | None:
        with self._lock:
            if self._repository is None and self.error is None:
                try:
                    self._repository = self.opener()
                except LastroError as error:
                    self.error = error
            return self._repository

    @property
    def is_away(self) -> bool:
        """It could not be opened or reached a moment ago: it is asked last."""
        return self.error is not None

    def reader(self, *, encrypted: bool) -> ChunkReader | None:
        """A reader of the copy's own chunks through its own index."""
        repository = self.repository
        if repository is None:
            return None
        with self._lock:
            if encrypted not in self._readers:
                self._readers[encrypted] = repository.domain(encrypted=encrypted).reader()
            return self._readers[encrypted]


class FallbackStore:
    """A Store over several copies: reads go down the list, writes to `writes_to` alone.

    Whole objects are authenticated, so that an altered one counts as lost; of packs that are read in parts the caller
    finds that out (FallbackReader).
    """

    kind: ClassVar[str] = "fallback"

    def __init__(self, places: Sequence[Place], *, notes: FallbackNotes, writes_to: Place | None) -> None:
        self._places, self._notes, self._writes_to = places, notes, writes_to

    @property
    def remote(self) -> bool:
        """As the nearest copy is, which gives nearly all."""
        nearest = self._places[0].repository
        return nearest is None or is_dear(nearest.store)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        def read(repository: Repository) -> bytes:
            data = repository.store.get(key, offset, length)
            small = key.removeprefix(repository.prefix).removeprefix("plain/").partition("/")[0] in _READ_WHOLE
            if offset == 0 and (small or length is None or length >= DOCUMENT_BYTES_MAX):
                check_object(repository.keyring, repository.prefix, key, data)
            return data

        return self._first(key, read)

    def stat(self, key: str) -> ObjectInfo:
        return self._first(key, lambda repository: repository.store.stat(key))

    def each(self, key: str) -> Iterator[bytes]:
        """The object as each place that can be reached has it; at most DOCUMENT_BYTES_MAX of it."""
        for place in self._places:
            repository = place.repository
            with suppress(StoreError, DamageError):
                if repository is not None:
                    yield repository.store.get(key, 0, DOCUMENT_BYTES_MAX)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The listing of the first copy that gives a whole one; packs and index of copies differ and never mix."""
        yield from self._first(prefix, lambda repository: list(repository.store.list(prefix)), noted=False)

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        self._writer(key).put(key, parts)

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        self._writer(key).create(key, parts)

    def delete(self, key: str) -> None:
        self._writer(key).delete(key)

    def close(self) -> None:
        """The stores belong to who opened them."""

    def _writer(self, key: str) -> Store:
        repository = None if self._writes_to is None else self._writes_to.repository
        if repository is None:
            raise StoreDenied(f"{key} cannot be written: the primary store is away", hint="copies are only read")
        return repository.store

    def _first(self, key: str, read: Callable[[Repository], T], *, noted: bool = True) -> T:
        """The first answer; a copy that is away is asked last. Raises what the nearest one raised."""
        failures: list[tuple[Place, LastroError]] = []
        for place in sorted(self._places, key=lambda each: each.is_away):
            repository = place.repository
            if repository is None:
                failures.append((place, place.error or StoreUnreachable(f"{place.name} is away")))
                continue
            try:
                answer = read(repository)
            except (StoreError, DamageError) as error:
                if isinstance(error, StoreUnreachable | StoreDenied):
                    place.error = error
                failures.append((place, error))
                continue
            for failed, why in failures if noted else ():
                self._notes.add(FallbackNote(failed.name, key, why.code, why.message, place.name))
            return answer
        raise _worst(failures)


def _worst(failures: Iterable[tuple[Place, LastroError]]) -> LastroError:
    """Damage before absence before silence: what most is known of.

    Absence counts although a copy is away, or nothing could be read while one is lost; what must be there all the same
    (manifests, the ledger) the catalogue knows by number.
    """
    errors = [error for _, error in failures]
    damaged = (e for e in errors if isinstance(e, DamageError))
    missing = (e for e in errors if isinstance(e, ObjectMissing))
    return next(damaged, None) or next(missing, None) or errors[0]


def check_object(keyring: Keyring, prefix: str, key: str, blob: bytes) -> None:
    """Authenticate a whole object by its place in the repository. Raises ObjectDamaged or ManifestDamaged."""
    folder, _, name = key.removeprefix(prefix).removeprefix("plain/").partition("/")
    if folder in ("data", "meta", "index"):
        if hashlib.sha256(blob).hexdigest() != name.rpartition("/")[2]:
            raise ObjectDamaged(f"{key} is not what was written", hint="another copy may hold it whole")
    elif folder in ("manifests", "forgets", "selections") and name.isdigit():
        Manifest.read(blob, keyring, number=int(name))
    elif folder == "checkpoints" and name[:10].isdigit():
        Manifest.read(blob, keyring, number=int(name[:10]))
    elif folder in ("erasures", "images"):
        open_object(keyring, blob, key, Kind.ERASURE if folder == "erasures" else Kind.IMAGE)


class FallbackReader(ChunkReader):
    """Chunks of one repository, else of any other place that has them in whatever pack."""

    def __init__(self, domain: Domain, repository: Repository, places: Sequence[Place], notes: FallbackNotes) -> None:
        super().__init__(repository.store, domain.prefix, repository.keyring, domain.index, id_keys=domain.id_keys)
        self._encrypted, self._places, self._notes = domain.encrypted, places, notes

    def get(self, chunk_id: bytes) -> bytes:
        """As ChunkReader.get, from any place."""
        try:
            return super().get(chunk_id)
        except (DamageError, StoreError) as error:
            return self._elsewhere(chunk_id, error)

    def get_many(self, chunk_ids: Iterable[bytes]) -> dict[bytes, bytes]:
        """As ChunkReader.get_many, from any place."""
        wanted = list(chunk_ids)
        try:
            return super().get_many(wanted)
        except (DamageError, StoreError):
            return {chunk_id: self.get(chunk_id) for chunk_id in wanted}

    def _elsewhere(self, chunk_id: bytes, error: LastroError) -> bytes:
        for place in self._places[1:]:
            reader = place.reader(encrypted=self._encrypted)
            if reader is None:
                continue
            with suppress(DamageError, StoreError):
                data = reader.get(chunk_id)
                self._note(chunk_id, error, place)
                return data
        raise error

    def _note(self, chunk_id: bytes, error: LastroError, served_by: Place) -> None:
        with suppress(LastroError):
            found = self._index.find(chunk_id)
            key = f"pack {found.pack}" if found else "index"
            self._notes.add(FallbackNote(self._places[0].name, key, error.code, error.message, served_by.name))


class _FallbackDomain(Domain):
    """A domain whose readers look into the other places."""

    def __init__(
        self, repository: Repository, *, encrypted: bool, places: Sequence[Place], notes: FallbackNotes
    ) -> None:
        super().__init__(repository, encrypted=encrypted)
        self._owner, self._places, self._notes = repository, places, notes

    def reader(self) -> ChunkReader:
        return FallbackReader(self, self._owner, self._places, self._notes)


class MendingRepository(Repository):
    """One repository, read and written in its own store, whose lost chunks are read from other places; for repairs.

    `places` begins with the repository itself.
    """

    def __init__(self, own: Repository, places: Sequence[Place]) -> None:
        self.notes = FallbackNotes()
        super().__init__(own.store, own.keyring, cache=own.cache)
        self.sealed = _FallbackDomain(self, encrypted=True, places=places, notes=self.notes)
        self.plain = _FallbackDomain(self, encrypted=False, places=places, notes=self.notes)


class ReadingRepository(Repository):
    """A repository as all its copies together hold it; `places` from the nearest to the farthest.

    Raises what the nearest place raised when none can be opened. Writing goes to `writes_to`, the primary.
    """

    def __init__(
        self, places: Sequence[Place], *, keyring: Keyring, cache: Path | None, writes_to: Place | None = None
    ) -> None:
        self.notes = FallbackNotes()
        nearest = next((place for place in places if place.repository is not None), None)
        if nearest is None:
            raise places[0].error or StoreUnreachable("no copy of this repository can be reached")
        # Those behind it are opened when they are needed; those before it could not be.
        self.places = (nearest, *(place for place in places if place is not nearest))
        for place in places:
            if place.error is not None:
                note = FallbackNote(place.name, "store", place.error.code, place.error.message, nearest.name)
                self.notes.add(note)
        store = FallbackStore(self.places, notes=self.notes, writes_to=writes_to)
        super().__init__(store, keyring, cache=cache)
        self.sealed = _FallbackDomain(self, encrypted=True, places=self.places, notes=self.notes)
        self.plain = _FallbackDomain(self, encrypted=False, places=self.places, notes=self.notes)

    def manifest(self, number: int) -> Manifest:
        """As Repository.manifest, from any copy. Raises BackupMissing when none holds it."""
        try:
            return super().manifest(number)
        except RepositoryError:
            raise
        except StoreError as error:
            raise BackupMissing(
                f"manifest {number} cannot be read from any copy: {error.message}", hint=error.hint
            ) from error
