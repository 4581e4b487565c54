"""Which modules of a damaged backup are still whole, and what the others have lost.

Reads lists, never content, unless `deep`: a chunk is there when some pack that holds it is. Changes nothing, so that it
needs no lease.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.chunks import ChunkReader
from engine.errors import ChunkMissing, DamageError, ObjectMissing
from engine.fallback import FallbackReader
from engine.index import Place
from engine.manifest import Manifest
from engine.pack import PACK_BYTES_MAX
from engine.progress import Progress
from engine.repository import Domain, Repository
from engine.table_view import walk_table
from engine.tree_format import module_of, show_path
from engine.tree_view import Entry, TreeView
from engine.verify import check_pack_bytes

LOST_NAMED_MAX = 20


@dataclass
class ModuleState:
    """One module of one source; `lost` names tables, documents or paths, at most LOST_NAMED_MAX of them."""

    source: str
    module: str
    lost: list[str] = field(default_factory=list)
    lost_count: int = 0

    @property
    def is_whole(self) -> bool:
        """Everything of it can be restored."""
        return not self.lost_count

    def lose(self, name: str) -> None:
        """Note that one table, document or path cannot be restored."""
        self.lost_count += 1
        if len(self.lost) < LOST_NAMED_MAX:
            self.lost.append(name)


def modules_state(repository: Repository, manifest: Manifest, *, deep: bool, progress: Progress) -> list[ModuleState]:
    """Every module of the backup in the manifest's order; documents count for a module named `definitions`."""
    survey = _Survey(repository, manifest, deep=deep, progress=progress)
    for source in manifest.document["sources"]:
        for node in source["tables"]:
            survey.table(source["name"], node)
        for node in source["trees"]:
            survey.tree(source["name"], node)
        for node in source["documents"]:
            survey.document(source["name"], node)
    return list(survey.states.values())


class _Survey:
    def __init__(self, repository: Repository, manifest: Manifest, *, deep: bool, progress: Progress) -> None:
        self._repository, self._deep, self._progress = repository, deep, progress
        self._domain: Domain = repository.domain(encrypted=bool(manifest.document["metadata"]["encrypted"]))
        self._domain.index.reload()
        self._reader: ChunkReader = self._domain.reader()
        self._packs: dict[str, int | None] = {}
        """Size of every pack asked for; None for one that is gone or damaged."""
        self.states: dict[tuple[str, str], ModuleState] = {}

    def _state(self, source: str, module: str) -> ModuleState:
        return self.states.setdefault((source, module), ModuleState(source, module))

    def table(self, source: str, node: Mapping[str, Any]) -> None:
        state, seen = self._state(source, node["module"]), set[bytes]()

        def visit(chunk_id: bytes, is_meta: bool) -> bool:
            self._progress.check()
            self._need(chunk_id)
            fresh = chunk_id not in seen
            if is_meta:
                seen.add(chunk_id)
            return fresh

        try:
            walk_table(self._reader, node, visit)
        except DamageError:
            state.lose(node["name"])

    def tree(self, source: str, node: Mapping[str, Any]) -> None:
        view, top_modules = TreeView(self._reader, node), bool(node["top_modules"])
        known = [module["name"] for module in node["modules"]]
        for module in known:
            self._state(source, module)
        try:
            for entry in view.entries():
                self._progress.check()
                if not self._entry_whole(view, entry):
                    module = show_path(module_of(entry.path, entry.stat.mode, top_modules=True))
                    self._state(source, module if top_modules else node["name"]).lose(show_path(entry.path))
        except DamageError:
            # A list is gone: nobody knows whose entries it held.
            for module in known:
                self._state(source, module).lose(f"{node['name']}: its list of files")

    def document(self, source: str, node: Mapping[str, Any]) -> None:
        state = self._state(source, "definitions")
        try:
            for chunk in node["chunks"]:
                self._need(bytes.fromhex(chunk))
        except DamageError:
            state.lose(node["name"])

    def _entry_whole(self, view: TreeView, entry: Entry) -> bool:
        extra = entry.extra
        named = (*extra.get("extents_chunks", ()), *((extra["xattrs_chunk"],) if "xattrs_chunk" in extra else ()))
        try:
            for chunk in named:
                self._need(bytes.fromhex(chunk))
            for chunk_id in view.chunk_ids(entry):
                self._need(chunk_id)
        except DamageError:
            return False
        return True

    def _need(self, chunk_id: bytes) -> None:
        if not any(self._holds(place) for place in self._places(chunk_id)):
            if isinstance(self._reader, FallbackReader):
                self._reader.get(chunk_id)  # Another copy may have it in a pack of its own.
                return
            raise ChunkMissing(f"chunk {chunk_id.hex()[:16]} is in no pack that can be read")

    def _places(self, chunk_id: bytes) -> Iterator[Place]:
        yield from self._domain.index.places(chunk_id)

    def _holds(self, place: Place) -> bool:
        if place.pack not in self._packs:
            self._packs[place.pack] = self._size(place.pack)
        size = self._packs[place.pack]
        return size is not None and place.frame_offset + place.frame_length <= size

    def _size(self, pack: str) -> int | None:
        store = self._repository.store
        for folder in ("data", "meta"):
            key = f"{self._domain.prefix}{folder}/{pack[:2]}/{pack}"
            try:
                size = store.stat(key).size
                if self._deep:
                    blob = store.get(key, 0, PACK_BYTES_MAX + 1)
                    check_pack_bytes(self._repository, self._domain, pack, blob)
            except ObjectMissing:
                continue
            except DamageError:
                return None
            return size
        return None
