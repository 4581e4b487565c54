"""The seams: what the engine asks of stores and of sources, and what it gives to restores.

Everything here is a Protocol or a frozen value. Connectors and stores implement them; the engine and
the services use them. Names follow the glossary.
"""

import datetime
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self

from engine.progress import Progress

Buffer = bytes | bytearray | memoryview


# ---------------------------------------------------------------- stores


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
    row_count: int
    byte_count: int
    sha256: str
    """engine.table_runs.table_digest of its rows."""
    facts: Mapping[str, Any]

    def rows(self) -> Iterator[list[bytes]]:
        """Every row line (no version), in key order, in batches; each verified against its chunk id."""


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
    mode: Literal["full"] = "full"
    in_place: bool = True
    overwrite: bool = False
    prove: bool = False
    validate: bool = True
    """False leaves out checks that cost a second reading of a target that was made anew."""


@dataclass(frozen=True, slots=True)
class TableChange:
    name: str
    insert: int = 0
    update: int = 0
    delete: int = 0
    unchanged: int = 0


@dataclass(frozen=True, slots=True)
class FileChange:
    created: int = 0
    replaced: int = 0
    removed: int = 0
    unchanged: int = 0


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

    def export(self, view: SourceView, folder: str, progress: Progress) -> list[str]:
        """Write the view as files that standard tools read (`<source>.sql.gz`, `<source>.tar.gz` …) into folder.

        Returns their names. Streams; memory stays bounded.
        """

    def open_package(self, path: str, progress: Progress) -> AbstractContextManager[SourceReader]:
        """Read a portable package made elsewhere as if it were the source; SourceUnsupported where there is none."""
