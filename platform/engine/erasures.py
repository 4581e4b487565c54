"""The erasure ledger: subjects that no later restore may bring back, kept as keyed hashes.

r/<repository>/erasures/<n>     ten digits from 1, created once each, sealed JSON:
    {"version": 1, "number": n, "sort": "more"|"all", "entries": [{"source", "table", "key", "at"}…]}

With `"lost": true` it stands in the place of a record that no store had any more when somebody accepted that
(`ledger_losses_put`); where any store has the record itself after all, that counts.

`key` is the hex of BLAKE2b-256 of `source 0 table 0 key text`, keyed by a key derived from the repository's id key,
so that the ledger tells nobody who was erased and survives a rotation. `key text` is the row's key as backups hold
it: its fields as COPY text joined by tabs (engine.ports.KeySpec). A record of sort `all` repeats every entry before it, so
that a reader needs the newest of these and what follows; each CHECKPOINT_EVERY-th is one.
"""

import datetime
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Self

from engine.errors import ManifestDamaged, ObjectDamaged, ObjectExists, ObjectMissing, UsageError
from engine.keys import Keyring, derive
from engine.manifest import DOCUMENT_BYTES_MAX, canonical
from engine.ports import Column, ImageView, KeyKind, KeySpec, TableView
from engine.repository import Repository
from engine.sealed import HEADER, HEADER_BYTES, Kind, open_object, seal_object
from engine.signers import break_after
from engine.table_runs import keys_of_rows

LEDGER_VERSION = 1
CHECKPOINT_EVERY = 64
KEY_TEXT_BYTES_MAX = 1 << 20
RACES_MAX = 20


@dataclass(frozen=True, slots=True)
class Erasure:
    """One erased subject; `key` is its keyed hash, `at` RFC 3339."""

    source: str
    table: str
    key: str
    at: str


class ErasureLedger:
    """Every erasure of one repository; reading one is `load`."""

    def __init__(self, subject_key: bytes, entries: Sequence[Erasure], *, number: int) -> None:
        self._subject_key = subject_key
        self.entries = tuple(entries)
        self.number = number
        """The highest record that was read; the catalogue keeps it, so that a lost record shows."""
        self._keys: dict[tuple[str, str], set[bytes]] = {}
        for each in entries:
            self._keys.setdefault((each.source, each.table), set()).add(bytes.fromhex(each.key))

    @classmethod
    def load(cls, repository: Repository, *, at_least: int = 0) -> Self:
        """Raises ManifestDamaged when a record is lost or altered: then nothing may be restored.

        `at_least` is the number that the catalogue knows of.
        """
        number = _head(repository, at_least)
        entries: list[Erasure] = []
        for n in range(number, 0, -1):
            document = _record(repository, n)
            entries[:0] = [Erasure(**each) for each in document["entries"]]
            if document["sort"] == "all":
                break
        return cls(_subject_key(repository), entries, number=number)

    def knows(self, source: str, table: str) -> bool:
        """Whether anything of that table was erased."""
        return (source, table) in self._keys

    def hash_of(self, source: str, table: str, key_text: bytes) -> bytes:
        """The keyed hash of a subject, 32 bytes."""
        name = b"%s\0%s\0" % (source.encode(), table.encode())
        return hashlib.blake2b(name + key_text, digest_size=32, key=self._subject_key).digest()

    def kept(self, source: str, table: str, keys: Sequence[bytes]) -> list[bool]:
        """For each key text whether the row may come back."""
        erased = self._keys.get((source, table))
        if not erased:
            return [True] * len(keys)
        start = hashlib.blake2b(b"%s\0%s\0" % (source.encode(), table.encode()), digest_size=32, key=self._subject_key)
        out = []
        for key in keys:
            state = start.copy()
            state.update(key)
            out.append(state.digest() not in erased)
        return out


def erase(repository: Repository, subjects: Iterable[tuple[str, str, bytes]]) -> ErasureLedger:
    """Record `(source, table, key text)`s durably; what is recorded already is left out. Returns the ledger as it is now.

    Safe beside another writer: a record's number is taken once. Raises UsageError for an impossible key.
    """
    wanted = list(subjects)
    if any(len(key) > KEY_TEXT_BYTES_MAX or b"\n" in key for _, _, key in wanted):
        raise UsageError("that cannot be the key of a row", hint="give the key's fields one by one")
    at = datetime.datetime.now(datetime.UTC).isoformat()
    for _ in range(RACES_MAX):
        ledger = ErasureLedger.load(repository)
        known = {(each.source, each.table, each.key) for each in ledger.entries}
        hashed = ((s, t, ledger.hash_of(s, t, key).hex()) for s, t, key in wanted)
        new = [Erasure(*each, at) for each in dict.fromkeys(hashed) if each not in known]
        if not new:
            return ledger
        number = ledger.number + 1
        everything = number % CHECKPOINT_EVERY == 0
        document = {
            "version": LEDGER_VERSION,
            "number": number,
            "sort": "all" if everything else "more",
            "entries": [asdict(each) for each in ([*ledger.entries, *new] if everything else new)],
        }
        try:
            repository.store.create(
                _key(repository, number), seal_object(repository.keyring, Kind.ERASURE, canonical(document))
            )
        except ObjectExists:
            continue
        return ErasureLedger(_subject_key(repository), [*ledger.entries, *new], number=number)
    raise ManifestDamaged("the erasure ledger is being written by somebody else all the time", hint="try again")


def ledger_losses_put(repository: Repository, *, upto: int) -> list[int]:
    """Put a record that says so in the place of every one up to `upto` that the store lacks; all numbers that are lost.

    For a repository whose other stores are gone: without it nothing could be restored for ever. What these records
    held is known to nobody, so that the erasures have to be asked for again.
    """
    lost = []
    for number in range(1, upto + 1):
        document = {"version": LEDGER_VERSION, "number": number, "sort": "more", "entries": [], "lost": True}
        parts = seal_object(repository.keyring, Kind.ERASURE, canonical(document))
        try:
            repository.store.create(_key(repository, number), parts)
        except ObjectExists:
            blob = repository.store.get(_key(repository, number), 0, DOCUMENT_BYTES_MAX)
            if not ledger_record_lost(repository.keyring, blob, f"erasure record {number}"):
                continue
        lost.append(number)
    return lost


def ledger_record_lost(keyring: Keyring, blob: bytes, name: str) -> bool:
    """Whether this authenticated record only stands for one that was lost. Raises ObjectDamaged."""
    try:
        return bool(json.loads(open_object(keyring, blob, name, Kind.ERASURE)[1]).get("lost"))
    except (ValueError, AttributeError) as error:
        raise ObjectDamaged(f"{name} is not readable") from error


def ledger_restate(repository: Repository, *, at_least: int = 0) -> int:
    """Repeat the whole ledger in one record under the present keys, so that none under former ones is read again.

    For a break of the keys; the number of the newest record, 0 where nothing was ever erased. Raises as `load` does.
    """
    for _ in range(RACES_MAX):
        ledger = ErasureLedger.load(repository, at_least=at_least)
        if not ledger.number:
            return 0
        entries = [asdict(each) for each in ledger.entries]
        document = {"version": LEDGER_VERSION, "number": ledger.number + 1, "sort": "all", "entries": entries}
        parts = seal_object(repository.keyring, Kind.ERASURE, canonical(document))
        try:
            repository.store.create(_key(repository, ledger.number + 1), parts)
        except ObjectExists:
            continue
        return ledger.number + 1
    raise ManifestDamaged("the erasure ledger is being written by somebody else all the time", hint="try again")


def _subject_key(repository: Repository) -> bytes:
    return derive(repository.keyring.id_key, salt=b"", info=b"lastro/v1/erasure")


def _key(repository: Repository, number: int) -> str:
    return f"{repository.prefix}erasures/{number:010d}"


def _head(repository: Repository, at_least: int) -> int:
    """The highest number: what the store lists may be stale, so that later ones are asked for by name."""
    listed = [info.key.rpartition("/")[2] for info in repository.store.list(f"{repository.prefix}erasures/")]
    number = max((int(name) for name in listed if name.isdigit()), default=0)
    number = max(number, at_least)
    while True:
        try:
            repository.store.stat(_key(repository, number + 1))
        except ObjectMissing:
            return number
        number += 1


def _record(repository: Repository, number: int) -> Mapping[str, Any]:
    key = _key(repository, number)
    try:
        document = _read(repository, number, repository.store.get(key, 0, DOCUMENT_BYTES_MAX))
    except ObjectMissing:
        raise ManifestDamaged(
            f"erasure record {number} is missing",
            hint="without it erased data could come back; repair it from another copy",
        ) from None
    if document.get("lost"):
        for blob in getattr(repository.store, "each", _nowhere)(key):
            with suppress(ManifestDamaged):
                other = _read(repository, number, blob)
                if not other.get("lost"):
                    return other
    return document


def _nowhere(key: str) -> Iterator[bytes]:
    yield from ()


def _read(repository: Repository, number: int, blob: bytes) -> Mapping[str, Any]:
    name = f"erasure record {number}"
    try:
        document: Mapping[str, Any] = json.loads(open_object(repository.keyring, blob, name, Kind.ERASURE)[1])
        known = break_after(repository.keyring.successors, HEADER.unpack(blob[:HEADER_BYTES])[4])
        if known is not None and number > known.erasures:
            raise ObjectDamaged(f"{name} is sealed by keys that had got out before it")
        if document["version"] != LEDGER_VERSION or document["number"] != number or document["sort"] not in _SORTS:
            raise ObjectDamaged(f"{name} belongs elsewhere")
        for each in document["entries"]:
            bytes.fromhex(Erasure(**each).key)
    except (ValueError, KeyError, TypeError, ObjectDamaged) as error:
        raise ManifestDamaged(f"{name} is not readable: {error}", hint="repair it from another copy") from error
    return document


_SORTS = ("more", "all")
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\b": "\\b", "\f": "\\f", "\v": "\\v"})
"""As COPY writes text (documentation of COPY, "Text Format")."""


class LedgeredTable:
    """engine.ports.TableView without the rows that were erased since.

    `sha256` is empty, as no digest of a backup fits what is left; `row_count` and `byte_count` are exact, for which
    the rows are read once when they are first asked for.
    """

    def __init__(self, view: TableView, source: str, ledger: ErasureLedger) -> None:
        self._view, self._source, self._ledger = view, source, ledger
        self.name, self.module, self.facts = view.name, view.module, view.facts
        self.columns: tuple[Column, ...] = view.columns
        self.key: KeySpec = view.key
        self.sha256 = ""
        self._counts: tuple[int, int] | None = None

    @property
    def row_count(self) -> int:
        """Rows that may come back."""
        return self._counted()[0]

    @property
    def byte_count(self) -> int:
        """Bytes of their lines."""
        return self._counted()[1]

    @property
    def withheld(self) -> int:
        """Rows of the backup that were erased since."""
        return self._view.row_count - self.row_count

    def _counted(self) -> tuple[int, int]:
        if self._counts is None:
            count = size = 0
            for rows in self.rows():
                count += len(rows)
                size += sum(map(len, rows)) + len(rows)
            self._counts = count, size
        return self._counts

    def rows(self) -> Iterator[list[bytes]]:
        """As TableView.rows, the erased ones left out."""
        yield from self._sifted(self._view.rows())

    def rows_for(self, keys: Sequence[bytes]) -> Iterator[list[bytes]]:
        """As TableView.rows_for, the erased ones left out."""
        yield from self._sifted(self._view.rows_for(keys))

    def rows_after(self, key_text: bytes | None, *, limit: int) -> list[bytes]:
        """As TableView.rows_after, the erased ones left out."""
        out: list[bytes] = []
        while len(out) < limit:
            rows = self._view.rows_after(key_text, limit=limit)
            if not rows:
                break
            key_text = self.key.text(rows[-1])
            out += next(self._sifted(iter([rows])), [])
        return out[:limit]

    @property
    def whole(self) -> TableView:
        """The table as the backup holds it."""
        return self._view

    def sift(self, rows: list[bytes]) -> list[bytes]:
        """The row lines that were not erased."""
        return next(self._sifted(iter([rows])), [])

    def _sifted(self, batches: Iterator[list[bytes]]) -> Iterator[list[bytes]]:
        for rows in batches:
            kept = self._ledger.kept(self._source, self.name, list(keys_of_rows(self.key, rows)))
            left = [row for row, keep in zip(rows, kept, strict=True) if keep]
            if left:
                yield left


class LedgeredImage:
    """engine.ports.ImageView whose `before` rows lack what was erased since: undo brings nothing back either.

    A section's `key` names the table's key columns in the order of the backup's key; rows without a key cannot be named by an
    erasure and stay.
    """

    def __init__(self, view: ImageView, source: str, ledger: ErasureLedger) -> None:
        self._view, self._source, self._ledger = view, source, ledger
        self.withheld = 0
        """Rows left out so far."""

    def sections(self) -> Iterator[tuple[Mapping[str, Any], Iterator[list[bytes]]]]:
        """As ImageView.sections."""
        for header, rows in self._view.sections():
            wanted = header.get("rows") == "before" and self._ledger.knows(self._source, str(header.get("name")))
            key = list(header.get("key") or ())
            yield header, self._sifted(header, key, rows) if wanted and key else rows

    def _sifted(
        self, header: Mapping[str, Any], key: Sequence[str], batches: Iterator[list[bytes]]
    ) -> Iterator[list[bytes]]:
        places = [list(header["columns"]).index(name) for name in key]
        for rows in batches:
            fields = (row.split(b"\t") for row in rows)
            keys = [b"\t".join([each[at] for at in places]) for each in fields]
            kept = self._ledger.kept(self._source, str(header["name"]), keys)
            left = [row for row, keep in zip(rows, kept, strict=True) if keep]
            self.withheld += len(rows) - len(left)
            if left:
                yield left


def erasure_subject(view: TableView, values: Sequence[str], field: Callable[[KeyKind, str], bytes]) -> bytes:
    """The key text of a subject named by the values of its key columns, in the key's order.

    `field` writes a value as the source does (Connector.key_field).

    Raises UsageError when the table has no key, the number of values is another, or one cannot be of its kind.
    """
    if view.key.synthetic:
        raise UsageError(f"{view.name} has no key, so that no row of it can be named", hint="give the table a key")
    names = [column.name for column in view.columns[: len(view.key.kinds)]]
    if len(values) != len(names):
        raise UsageError(f"the key of {view.name} is ({', '.join(names)}): {len(values)} values were given")
    fields = []
    for name, kind, text in zip(names, view.key.kinds, values, strict=True):
        try:
            fields.append(field(kind, text))
        except ValueError:
            raise UsageError(f"{text[:60]!r} is no value of {view.name}.{name}", hint=f"it holds {kind} keys") from None
    return b"\t".join(fields)


def copy_field(kind: KeyKind, text: str) -> bytes:
    """A value as typed, as a field of COPY's text. Raises ValueError for what cannot be of that kind."""
    if kind == "int":
        return b"%d" % int(text)
    if kind == "uuid":
        bare = text.replace("-", "").strip("{}").lower()
        if len(bytes.fromhex(bare)) != 16:
            raise ValueError(text)
        return f"{bare[:8]}-{bare[8:12]}-{bare[12:16]}-{bare[16:20]}-{bare[20:]}".encode()
    return text.translate(_ESCAPES).encode()
