"""The seams: what the engine asks of stores and of sources, and what it gives to restores.

Everything here is a Protocol or a frozen value. Connectors and stores implement them; the engine and
the services use them. Names follow the glossary.
"""

import datetime
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

from engine.plans import SAMPLES_MAX, Policy, Preview, RestoreMode
from engine.progress import Progress

Buffer = bytes | bytearray | memoryview


# ---------------------------------------------------------------- stores


class HashedParts(list[Buffer]):
    """Parts of an object whose SHA-256 (hex) their writer knows, so that a store that signs or checks by it need not read
    them for that. A store may as well take them as any other parts."""

    def __init__(self, parts: Iterable[Buffer], *, sha256: str) -> None:
        super().__init__(parts)
        self.sha256 = sha256


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    key: str
    size: int
    modified: datetime.datetime


class Store(Protocol):
    """Opaque objects under `/`-separated ASCII keys; knows nothing of repositories.

    Thread-safe. A write has reached stable storage when the call returns; a reader sees an object whole
    or not at all. Errors are StoreError and its children, never an SDK's own.
    """

    kind: ClassVar[str]

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write the concatenated parts, replacing what is there atomically."""

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write only if the key is free, decided by the store itself; ObjectExists otherwise.

        A create whose reply was lost and that is repeated with the same bytes succeeds.
        """

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Read `length` bytes from `offset` (the rest when None); shorter only at the object's end.

        Raises ObjectMissing. An offset behind the end gives b"".
        """

    def stat(self, key: str) -> ObjectInfo:
        """Raises ObjectMissing."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key begins with prefix, sorted by key, streamed. Unfinished writes never show."""

    def delete(self, key: str) -> None:
        """Remove the object; no error when it is already gone."""

    def close(self) -> None: ...


@runtime_checkable
class LockingStore(Protocol):
    """A Store that can keep objects from deletion (Object Lock); what it stores now is locked as configured.

    Dates are UTC. Its `delete`, `put` over a locked object, and `purge` raise ObjectLocked while the lock holds.
    """

    lock_days: int
    """How long a new object is locked from now on; 0 when this store was set up without locks."""

    def locked_until(self, key: str) -> datetime.datetime | None:
        """None for an object without a lock, or whose lock has run out. Raises ObjectMissing."""

    def lock(self, key: str, until: datetime.datetime) -> None:
        """Keep the object at least until then; a lock is never shortened. Raises ObjectMissing."""


@runtime_checkable
class VersionedStore(Protocol):
    """A Store that may keep older versions of an object behind a delete or a put."""

    def purge(self, key: str) -> int:
        """Delete every version of the object and every trace of its deletion; how many there were.

        Raises ObjectLocked, with everything else of it gone, when a version is locked.
        """


# ---------------------------------------------------------------- tables

KeyKind = Literal["int", "uuid", "text", "hash"]


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str
    generated: bool = False


def unescape_field(text: bytes) -> bytes:
    """Undo the escapes of PostgreSQL's COPY text format (documentation of COPY, "Text Format")."""
    if b"\\" not in text:
        return text
    plain = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v", b"\\": b"\\"}
    out, rest = [], text
    while True:
        head, mark, rest = rest.partition(b"\\")
        out.append(head)
        if not mark:
            return b"".join(out)
        out.append(plain.get(rest[:1], rest[:1]))
        rest = rest[1:]


def _encode_field(kind: KeyKind, text: bytes) -> bytes:
    if kind == "int":
        return (int(text) + (1 << 63)).to_bytes(8, "big")
    if kind == "uuid":
        return bytes.fromhex(text.replace(b"-", b"").decode())
    raw = unescape_field(text)
    if kind == "text":
        return raw.replace(b"\0", b"\0\xff") + b"\0"
    return hashlib.sha256(raw).digest()


@dataclass(frozen=True, slots=True)
class KeySpec:
    """The key of a table: its first `len(kinds)` fields in each row line.

    Lines are COPY text fields joined by tabs. `encode` gives the bytes by which runs are sorted:
    `int` a 64-bit integer (offset binary, big-endian), `uuid` its 16 bytes, `text` its unescaped UTF-8
    (NUL doubled as 00 FF, closed by 00: the C collation), `hash` the SHA-256 of its unescaped text.
    The source must deliver rows in exactly this order. `synthetic` leading fields are made up for a
    table without a key (hash of the row's text, ordinal among equals) and are no columns.
    """

    kinds: tuple[KeyKind, ...]
    synthetic: int = 0

    def text(self, row: bytes) -> bytes:
        """The key's text: the leading fields of a row line."""
        n = len(self.kinds)
        if n == 1:
            return row.partition(b"\t")[0]
        return b"\t".join(row.split(b"\t", n)[:n])

    def encode(self, key_text: bytes) -> bytes:
        """Order-preserving bytes of a key's text."""
        if self.kinds == ("int",):
            return (int(key_text) + (1 << 63)).to_bytes(8, "big")
        fields = key_text.split(b"\t")
        return b"".join(_encode_field(kind, text) for kind, text in zip(self.kinds, fields, strict=True))


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows with their key texts and `version TAB key-text` heads, three lists of one length.

    A list that nobody asked for is empty, but never that of the heads.
    """

    rows: list[bytes]
    keys: list[bytes]
    heads: list[bytes]

    def __len__(self) -> int:
        return len(self.heads)

    def __getitem__(self, some: slice) -> "RowBatch":
        return RowBatch(self.rows[some], self.keys[some], self.heads[some])

    def __add__(self, other: "RowBatch") -> "RowBatch":
        return RowBatch(self.rows + other.rows, self.keys + other.keys, self.heads + other.heads)


@runtime_checkable
class RowsApart(Protocol):
    """What a TablePart may offer beside its lines: the same rows, taken apart on the way."""

    def rows_apart(self) -> Iterator[RowBatch]:
        """What `rows` gives; the heads' versions are empty where `version_domain` is."""


class TablePart(Protocol):
    """One table (or anything with keyed rows) of an open SourceReader.

    A *line* is `version TAB row` without newline, a *row* its fields in the order of `columns` after the
    synthetic ones, key columns first, COPY text escapes (so that a raw tab or newline never occurs in a
    field). `version` is a short opaque text that changes whenever the row does (PostgreSQL: xmin); it is
    empty for a source that has none. Batches hold any number of lines, a few MiB at the most.
    Several parts of one reader may be read from several threads at once.
    """

    name: str
    module: str
    columns: tuple[Column, ...]
    key: KeySpec
    fingerprint: str
    """Digest of schema, types, partitions and scope query: when it differs, contents are compared."""
    version_domain: str
    """Where versions may be compared for equality (system identifier, timeline …); "" for nowhere."""
    facts: Mapping[str, Any]
    """JSON kept in the manifest for the restore (sequence values, scope, quoted name …)."""

    def rows(self) -> Iterator[list[bytes]]:
        """Every line `version TAB row`, in key order."""

    def versions(self) -> Iterator[list[bytes]]:
        """Every `version TAB key-text`, in key order; called only when `version_domain` matches the parent's."""

    def rows_for(self, keys: Sequence[bytes]) -> Iterator[list[bytes]]:
        """Lines of those key texts that exist, in key order, from the same snapshot; `keys` is sorted too."""


class DocumentPart(Protocol):
    """A small text or blob kept whole (definitions of a database, a summary); 64 MiB at the most."""

    @property
    def name(self) -> str: ...

    def read(self) -> bytes: ...


# ---------------------------------------------------------------- file trees


@dataclass(frozen=True, slots=True)
class TreePart:
    """A folder on this host that the engine itself walks.

    `exclude(relative path, is_folder)` leaves out an entry and all below it; paths are bytes, relative,
    `/`-separated. `top_modules` makes each top-level folder a module.
    """

    name: str
    root: bytes
    exclude: Callable[[bytes, bool], bool] | None = None
    one_file_system: bool = False
    top_modules: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------- sources


@dataclass(frozen=True, slots=True)
class Probe:
    """What testing a source's settings found out, shown to the operator."""

    summary: str
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class SourceReader(Protocol):
    """One consistent view of a source, open until closed."""

    position: Mapping[str, Any]
    """Where it is consistent: JSON, e.g. {"at": RFC 3339, "lsn": …, "snapshot": …}."""
    schema_version: str
    facts: Mapping[str, Any]
    """JSON kept in the manifest for the restore (server version, layout, scope …)."""

    def trees(self) -> Sequence[TreePart]: ...

    def tables(self) -> Sequence[TablePart]: ...

    def documents(self) -> Sequence[DocumentPart]: ...

    def finish(self) -> Mapping[str, Any]:
        """Called after all parts were read: check that nothing moved, return more facts.

        Raises SourceChanged when what was read cannot be trusted (schema changed in between).
        """


# ---------------------------------------------------------------- restores


class DocumentView(Protocol):
    name: str

    def read(self) -> bytes: ...


class TableView(Protocol):
    """A table as one backup holds it."""

    name: str
    module: str
    columns: tuple[Column, ...]
    key: KeySpec
    sha256: str
    """engine.table_runs.table_digest of its rows; "" when rows are withheld that were erased since (engine.erasures)."""
    facts: Mapping[str, Any]

    @property
    def row_count(self) -> int: ...

    @property
    def byte_count(self) -> int:
        """Bytes of the row lines."""

    def rows(self) -> Iterator[list[bytes]]:
        """Every row line (no version), in key order, in batches; each verified against its chunk id."""

    def rows_for(self, keys: Sequence[bytes]) -> Iterator[list[bytes]]:
        """Row lines of those key texts (in any order) that exist, in key order."""

    def rows_after(self, key_text: bytes | None, *, limit: int) -> list[bytes]:
        """At most `limit` row lines behind a key, from the first when None; an empty list at the end."""


class TreeView(Protocol):
    """A file tree as one backup holds it; `engine.tree_restore` writes it out."""

    name: str
    facts: Mapping[str, Any]
    file_count: int
    byte_count: int


class SourceView(Protocol):
    name: str
    kind: str
    category: str
    position: Mapping[str, Any]
    facts: Mapping[str, Any]
    tables: tuple[TableView, ...]
    trees: tuple[TreeView, ...]
    documents: Mapping[str, DocumentView]


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """What to do with a SourceView. `in_place` is False for an alternative target.

    `overwrite` is the confirmed permission to change what exists at the target; without it a target that
    holds anything raises TargetOccupied. `label` (the operation's id) names staging objects, so that a
    repeated run finds and clears what a killed one left.
    """

    label: str
    mode: RestoreMode = "full"
    in_place: bool = True
    overwrite: bool = False
    prove: bool = False
    validate: bool = True
    """False leaves out checks that cost a second reading of a target that was made anew."""
    modules: tuple[str, ...] = ()
    """Selective: the modules of this source that become what they were; empty means none of this source."""
    policies: Mapping[str, Policy] = field(default_factory=dict)
    """Merge: by module; a module that is not named follows `only_missing`."""
    clocks: Mapping[str, str] = field(default_factory=dict)
    """Merge, `newest_wins`: by table the column that says when a row changed; found by name where not given."""
    base: "SourceView | None" = None
    """Merge: the backup from which both sides went apart, for a three-way merge. Selective, files: a module that it alone
    holds may be named too; that module was nothing in the view, and becomes nothing."""
    digest: str = ""
    """The approved plan's; when what would be done now differs, StalePlan is raised and nothing is done."""
    saved: "SourceView | None" = None
    """The safety backup's view. A source without change images (files, event log) is undone by it, so that it must
    still be exactly what the target holds when the target is swapped; StalePlan otherwise."""
    samples: int = SAMPLES_MAX
    """Rows (or paths) of each table that a preview shows."""


@dataclass(frozen=True, slots=True)
class TableChange:
    """Rows of one table, by what a restore does with them.

    `kept`: differ from the backup and stay by the policy; `conflicts`: changed on both sides of a three-way merge,
    whatever the policy decided; `collisions`: the backup's row is not brought back because its key, or a unique
    value of it, belongs to another row now; `withheld`: not brought back because it was erased, or because what it
    refers to is not there and does not come back; `stays`: would be deleted, but something outside the chosen
    modules refers to it. `imaged` is false for what no change image holds (large objects, in reports of older versions), so
    that only the safety backup brings it back.
    """

    name: str
    insert: int = 0
    update: int = 0
    delete: int = 0
    unchanged: int = 0
    kept: int = 0
    conflicts: int = 0
    collisions: int = 0
    withheld: int = 0
    stays: int = 0
    imaged: bool = True


@dataclass(frozen=True, slots=True)
class FileChange:
    created: int = 0
    replaced: int = 0
    removed: int = 0
    unchanged: int = 0
    kept: int = 0
    conflicts: int = 0


CHECK_NAMES = ("checksum_verification", "data_integrity", "schema_compatibility", "asset_completeness")


@dataclass(frozen=True, slots=True)
class Check:
    """One of CHECK_NAMES with what was expected and what was found (JSON values)."""

    name: str
    passed: bool
    expected: Any = None
    actual: Any = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RestoreReport:
    tables: tuple[TableChange, ...] = ()
    files: FileChange | None = None
    checks: tuple[Check, ...] = ()
    neighbours: Mapping[str, Any] | None = None
    """Proof that nothing else was touched: planned and counted row changes, fingerprints with `prove`."""
    warnings: tuple[str, ...] = ()
    digest: str = ""
    """engine.plans.ChangeDigest of what was done."""


class ImageSink(Protocol):
    """Takes the change image of one source; engine.images.ImageWriter."""

    def table(self, header: Mapping[str, Any]) -> None:
        """Begin a section: `{"name", "columns", "key", "rows": "before"|"after", …}` (docs/formats/change-image.md)."""

    def rows(self, lines: Sequence[bytes]) -> None:
        """Row lines of the section begun last: COPY text without newlines."""


class ImageView(Protocol):
    """A stored change image, read once from its beginning."""

    def sections(self) -> Iterator[tuple[Mapping[str, Any], Iterator[list[bytes]]]]:
        """Header and row lines of each section; the lines must be read before the next section is."""


class PreparedRestore(Protocol):
    """A restore in place that is done up to its last step. Leaving its context without `commit` undoes it all."""

    report: RestoreReport
    """What was done and checked, final as soon as the commit is."""
    token: Mapping[str, Any]
    """JSON for the journal: by it `Connector.settle` finds out later how a commit with a lost answer ended."""

    def image(self, sink: ImageSink) -> None:
        """Write the rows as they were before and as they are now; call once, before the commit.

        Writes nothing for a source without change images, whose safety backup serves (`RestoreRequest.saved`).
        """

    def commit(self) -> None:
        """The last step. Raises TargetError when the target is as before, CommitUnknown when nobody can tell."""


@dataclass(frozen=True, slots=True)
class ScratchSite:
    """Where throw-away targets are made: a folder of this host, and for servers another one than the source's."""

    folder: str
    dsn: str = field(default="", repr=False)
    """PostgreSQL on which databases may be created and dropped; empty for the source's own server."""


class Connector(Protocol):
    """Reads from and writes back to one kind of source. Constructing opens nothing."""

    kind: ClassVar[str]
    label: ClassVar[str]
    categories: ClassVar[tuple[str, ...]]
    target_keys: ClassVar[tuple[str, ...]]
    """Keys that `--target KEY=VALUE` may name (path, schema, dsn …)."""
    Config: ClassVar[type]

    def __init__(self, config: Any) -> None: ...

    def test(self) -> Probe:
        """Connect and check rights; SourceError with a hint ("cannot connect: …", "try …")."""

    def open(self, progress: Progress) -> AbstractContextManager[SourceReader]:
        """Fix one consistent view. The barrier of a backup opens all readers first, then reads them."""

    def at(self, target: Mapping[str, str]) -> Self:
        """The same connector on an alternative target; UsageError for a key it does not know."""

    def restore(self, view: SourceView, request: RestoreRequest, progress: Progress) -> RestoreReport:
        """Make the target what the view holds, wholly or not at all; TargetError with a hint otherwise.

        Databases change in one transaction by a diff; rows outside the source's scope are never touched.
        """

    def preview(self, view: SourceView, request: RestoreRequest, progress: Progress) -> Preview:
        """Say what `restore` would do, changing nothing and holding no lock that writers feel.

        Raises what `restore` would raise before it changes anything (SchemaMismatch, UsageError …).
        """

    def prepare(
        self, view: SourceView, request: RestoreRequest, progress: Progress
    ) -> AbstractContextManager[PreparedRestore]:
        """A restore in place, held open before its last step, for several sources at once and for images."""

    def prepare_undo(
        self, image: ImageView, request: RestoreRequest, progress: Progress
    ) -> AbstractContextManager[PreparedRestore]:
        """Put back the rows of a change image. Raises StalePlan when any of them changed since (unless
        `request.digest` is that of a `preview_undo`), SourceUnsupported for a source without change images."""

    def preview_undo(self, image: ImageView, request: RestoreRequest, progress: Progress) -> Preview:
        """What `prepare_undo` would do; rows that changed since the restore count as conflicts."""

    def settle(self, token: Mapping[str, Any]) -> bool | None:
        """Whether the commit of that token took effect; None when nobody can tell (then the target must be compared)."""

    @staticmethod
    def field_shown(field: bytes) -> str | None:
        """One field of a row line for people; None for null."""

    @staticmethod
    def key_field(kind: KeyKind, text: str) -> bytes:
        """A key's value as typed by people, as a field. Raises ValueError for what cannot be of that kind."""
        ...

    def scratch(self, name: str, site: ScratchSite) -> Self:
        """The connector on a throw-away target of that name, which nothing else may bear: lower-case letters, digits, `_`."""

    def scratch_ask(self, name: str, site: ScratchSite, question: str, *, seconds: int) -> str:
        """Run one reading SQL statement there: rows as lines, fields joined by tabs, NULL as `\\N`; 64 KiB at the most.

        Raises UsageError for what is no such statement, TargetError after `seconds`, SourceUnsupported.
        """

    def question_try(self, question: str, *, seconds: int) -> str | None:
        """What the live source answers to such a question; None when it was only compiled, as its tables are shared.

        Nothing is written. Raises as `scratch_ask`, and SourceError when the source cannot be reached.
        """

    def scratch_place(self, name: str, site: ScratchSite) -> Mapping[str, str]:
        """What a command needs to look at the target: `path`, or `dsn` (with its password) and `schema`."""

    def scratch_drop(self, name: str, site: ScratchSite) -> None:
        """Remove the throw-away target and all in it; no error when there is none. Raises TargetError."""

    def export(self, view: SourceView, folder: str, progress: Progress) -> list[str]:
        """Write the view as files that standard tools read (`<source>.sql.gz`, `<source>.tar.gz` …) into folder.

        Returns their names. Streams; memory stays bounded.
        """

    def open_package(self, path: str, progress: Progress) -> AbstractContextManager[SourceReader]:
        """Read a portable package made elsewhere as if it were the source; SourceUnsupported where there is none."""
