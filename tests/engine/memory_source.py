"""A source that lives in memory: a shipped fake for the engine's own tests, with a table, a tree, a document."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.backup import BackupRequest, SourceInput, backup_run
from engine.manifest import Manifest
from engine.ports import Column, KeySpec, TreePart
from engine.progress import NullProgress
from engine.repository import Repository
from engine.views import source_views


class MemoryTable:
    """Rows by integer key; every write gives its row a new version, as PostgreSQL's xmin does."""

    def __init__(self, name: str = "rows", rows: Mapping[int, str] | None = None) -> None:
        self.name = self.module = name
        self.columns = (Column("id", "bigint"), Column("text", "text"))
        self.key = KeySpec(("int",))
        self.fingerprint, self.version_domain, self.facts = "f1", "memory:1", {}
        self._clock = 0
        self._rows: dict[int, tuple[int, str]] = {}
        for key, text in (rows or {}).items():
            self.set(key, text)

    def set(self, key: int, text: str) -> None:
        assert not set(text) & set("\t\n\\")
        self._clock += 1
        self._rows[key] = (self._clock, text)

    def remove(self, key: int) -> None:
        self._rows.pop(key, None)

    def plain(self) -> list[bytes]:
        return [f"{key}\t{self._rows[key][1]}".encode() for key in sorted(self._rows)]

    def rows(self) -> Iterator[list[bytes]]:
        keys = sorted(self._rows)
        for at in range(0, len(keys), 500):
            yield [f"{self._rows[k][0]}\t{k}\t{self._rows[k][1]}".encode() for k in keys[at : at + 500]]

    def versions(self) -> Iterator[list[bytes]]:
        yield [f"{self._rows[k][0]}\t{k}".encode() for k in sorted(self._rows)]

    def rows_for(self, keys: Sequence[bytes]) -> Iterator[list[bytes]]:
        found = [int(k) for k in keys if int(k) in self._rows]
        yield [f"{self._rows[k][0]}\t{k}\t{self._rows[k][1]}".encode() for k in found]


class MemoryDocument:
    def __init__(self, name: str, data: bytes) -> None:
        self.name, self._data = name, data

    def read(self) -> bytes:
        return self._data


class MemorySource:
    """An open reader and the connector that opens it, in one."""

    kind = "memory"

    def __init__(self, tables: Sequence[MemoryTable] = (), tree: Path | None = None, document: bytes = b"") -> None:
        self._tables, self._tree, self.document = list(tables), tree, document
        self.position, self.schema_version, self.facts = {"at": "now"}, "1", {}

    @contextmanager
    def open(self, _progress: Any) -> Iterator["MemorySource"]:
        yield self

    def tables(self) -> list[MemoryTable]:
        return self._tables

    def trees(self) -> list[TreePart]:
        return [TreePart("files", str(self._tree).encode())] if self._tree else []

    def documents(self) -> list[MemoryDocument]:
        return [MemoryDocument("notes", self.document)]

    def finish(self) -> dict[str, Any]:
        return {}


def backup(
    repository: Repository,
    source: MemorySource,
    number: int,
    *,
    parent: Manifest | None = None,
    full: bool = False,
    encrypt: bool = True,
) -> Manifest:
    """One backup of one source under a reserved number."""
    request = BackupRequest(
        backup_id=f"bkp_{number}",
        number=number,
        type="full" if full or parent is None else "incremental",
        tenant_name="Test",
        created_by="test",
        parent=parent,
        encrypt=encrypt,
    )
    return backup_run(repository, [SourceInput("main", "database", "memory", source)], request, NullProgress())


def content(repository: Repository, manifest: Manifest) -> dict[str, Any]:
    """Everything a backup holds, read back: rows per table, files by path, documents."""
    view = source_views(repository, manifest)["main"]
    found: dict[str, Any] = {f"table {t.name}": [row for batch in t.rows() for row in batch] for t in view.tables}
    for tree in view.trees:
        for entry in tree.entries():
            if entry.is_file:
                data = b"".join(tree.read(entry))
                found[f"file {entry.path!r}"] = hashlib.sha256(data).hexdigest()
    for name, document in view.documents.items():
        found[f"document {name}"] = document.read()
    return found


def truth(source: MemorySource) -> dict[str, Any]:
    """What `content` must give for a backup taken now."""
    found: dict[str, Any] = {f"table {t.name}": t.plain() for t in source.tables()}
    tree = source._tree
    for path in sorted(tree.rglob("*")) if tree else ():
        if path.is_file() and tree:
            name = str(path.relative_to(tree)).encode()
            found[f"file {name!r}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return {**found, "document notes": source.document}
