"""What a backup holds, ready to be read: the other side of engine.backup."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.chunks import ChunkReader
from engine.erasures import ErasureLedger, LedgeredTable
from engine.errors import ObjectDamaged
from engine.manifest import Manifest
from engine.ports import DocumentView, TableView, TreeView
from engine.repository import Repository
from engine.table_view import TableView as StoredTable
from engine.table_view import walk_table
from engine.tree_view import TreeView as StoredTree
from engine.tree_view import walk_tree

Visit = Callable[[bytes, bool], bool]


class StoredDocument:
    """A document as one backup holds it."""

    def __init__(self, reader: ChunkReader, node: Mapping[str, Any]) -> None:
        self.name = str(node["name"])
        self._reader, self._node = reader, node

    def read(self) -> bytes:
        """The document, compared with its SHA-256. Raises ObjectDamaged or ChunkMissing."""
        data = b"".join(self._reader.get(bytes.fromhex(chunk)) for chunk in self._node["chunks"])
        if hashlib.sha256(data).hexdigest() != self._node["sha256"]:
            raise ObjectDamaged(f"document {self.name} is not what was written")
        return data


@dataclass(frozen=True)
class StoredSource:
    """One source of one backup."""

    name: str
    kind: str
    category: str
    position: Mapping[str, Any]
    facts: Mapping[str, Any]
    tables: tuple[TableView, ...]
    trees: tuple[TreeView, ...]
    documents: Mapping[str, DocumentView]


def source_views(repository: Repository, manifest: Manifest, *, erasures: int = 0) -> dict[str, StoredSource]:
    """Every source of the backup by name, without what was erased since; reads the ledger and no more yet.

    `erasures` is the number of the newest ledger record that the catalogue knows of. Raises ManifestDamaged when the
    ledger is not whole.
    """
    reader = repository.reader(manifest)
    ledger = ErasureLedger.load(repository, at_least=erasures)

    def table(source: str, node: Mapping[str, Any]) -> TableView:
        view = StoredTable(reader, node)
        return LedgeredTable(view, source, ledger) if ledger.knows(source, view.name) else view

    return {
        node["name"]: StoredSource(
            name=node["name"],
            kind=node["kind"],
            category=node["category"],
            position=node["position"],
            facts=node["facts"],
            tables=tuple(table(node["name"], each) for each in node["tables"]),
            trees=tuple(StoredTree(reader, each) for each in node["trees"]),
            documents={each["name"]: StoredDocument(reader, each) for each in node["documents"]},
        )
        for node in manifest.document["sources"]
    }


def walk_manifest(reader: ChunkReader, manifest: Manifest, visit: Visit) -> None:
    """Call visit(chunk id, is metadata) for every chunk the backup needs; see walk_tree and walk_table."""
    walk_sources(reader, manifest.document["sources"], visit)


def walk_sources(reader: ChunkReader, sources: Sequence[Mapping[str, Any]], visit: Visit) -> None:
    """Do the same for the sources of a manifest, before it is one."""
    for source in sources:
        for node in source["tables"]:
            walk_table(reader, node, visit)
        for node in source["trees"]:
            walk_tree(reader, node, visit)
        for node in source["documents"]:
            for chunk in node["chunks"]:
                visit(bytes.fromhex(chunk), False)
