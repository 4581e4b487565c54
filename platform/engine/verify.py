"""Verify a backup: structural (every metadata chunk, every place, every pack present) or deep (every byte)."""

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from engine.chunks import ChunkReader, bears_id
from engine.errors import ChunkMissing, DamageError, ObjectDamaged, ObjectMissing
from engine.heap import share_heap
from engine.index import Place, Segment
from engine.manifest import Manifest
from engine.pack import PACK_BYTES_MAX, read_frame, read_trailer
from engine.pack import pack_envelope as envelope_of
from engine.progress import Progress
from engine.rebuild import index_rebuild
from engine.repository import Domain, Repository
from engine.sealed import HEADER_BYTES
from engine.table_view import walk_table
from engine.tree_view import walk_tree


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: a dotted code, the object or part it is about, a sentence."""

    code: str
    key: str
    message: str
    parts: tuple[str, ...] = ()
    """Tables, trees and documents of the backup that cannot be restored whole because of it."""


class _PackChecks:
    """Checks packs in threads of its own, from the moment in which the walk comes upon them."""

    def __init__(self, repository: Repository, domain: Domain, *, deep: bool) -> None:
        self._repository, self._domain, self._deep = repository, domain, deep
        self._pool = ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 2)), thread_name_prefix="verify")
        self._found: dict[str, Future[int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def begin(self, name: str) -> None:
        if name not in self._found:
            self._found[name] = self._pool.submit(_check_pack, self._repository, self._domain, name, self._deep)

    def size(self, name: str) -> int:
        """The pack's size once it is checked. Raises ObjectDamaged, ChunkMissing."""
        self.begin(name)
        return self._found[name].result()


@dataclass
class _Needs:
    """Packs that the backup needs, and for which parts."""

    checks: _PackChecks
    packs: dict[str, set[str]] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    """Pack -> bytes that it must have at least."""
    seen: set[bytes] = field(default_factory=set)


def verify_backup(repository: Repository, manifest: Manifest, *, deep: bool, progress: Progress) -> list[Finding]:
    """Everything wrong with this backup; an empty list when it is whole.

    A damaged or lost index is rebuilt from the packs on the way and reported as a finding of its own.
    """
    domain = repository.domain(encrypted=bool(manifest.document["metadata"]["encrypted"]))
    share_heap()
    with _PackChecks(repository, domain, deep=deep) as checks:
        return _findings(repository, domain, manifest, _Needs(checks), deep=deep, progress=progress)


def _findings(
    repository: Repository, domain: Domain, manifest: Manifest, needs: _Needs, *, deep: bool, progress: Progress
) -> list[Finding]:
    progress.phase("structure")
    domain.index.reload()
    index_damage = list(domain.index.damaged)
    failures = _walk(domain, manifest, needs, progress)
    if index_damage or any(isinstance(error, ChunkMissing) for error in failures.values()):
        rebuilt = index_rebuild(repository, domain, progress, skip=frozenset())
        if rebuilt.packs:
            index_damage.append(f"the index had lost {rebuilt.packs} packs; it was rebuilt from their trailers")
            failures = _walk(domain, manifest, needs, progress)
    findings = [Finding("damage.index", "index", message) for message in index_damage]
    findings += [Finding(e.code, part, f"{part}: {e.message}", (part,)) for part, e in failures.items()]
    progress.phase("read" if deep else "packs")
    progress.total(items=len(needs.packs))
    return findings + _check_packs(needs, deep=deep, progress=progress)


def _walk(domain: Domain, manifest: Manifest, needs: _Needs, progress: Progress) -> dict[str, DamageError]:
    """Visit each part on its own, so that damage in one names that one only."""
    reader, failures = domain.reader(), dict[str, DamageError]()
    needs.seen.clear()
    for source in manifest.document["sources"]:
        for sort in ("tables", "trees", "documents"):
            for node in source[sort]:
                progress.check()
                name = f"{source['name']}/{node['name']}"
                try:
                    _PartWalk(name, reader, needs).walk(sort, node)
                except DamageError as error:
                    failures[name] = error
    return failures


@dataclass
class _PartWalk:
    """Notes which packs one part needs."""

    name: str
    reader: ChunkReader
    needs: _Needs
    frames: set[tuple[Segment, bytes]] = field(default_factory=set)

    def walk(self, sort: str, node: dict[str, Any]) -> None:
        if sort == "tables":
            walk_table(self.reader, node, self._visit)
        elif sort == "trees":
            walk_tree(self.reader, node, self._visit)
        else:
            for chunk in node["chunks"]:
                self._visit(bytes.fromhex(chunk), False)

    def _visit(self, chunk_id: bytes, is_meta: bool) -> bool:
        frame = self.reader.frame_of(chunk_id)
        if frame is None or frame not in self.frames:  # Of a thousand small chunks in a frame the first one tells all.
            self._note(self.reader.locate(chunk_id))
            if frame is not None:
                self.frames.add(frame)
        if not is_meta:
            return True
        if chunk_id in self.needs.seen:
            return False
        self.needs.seen.add(chunk_id)
        return True

    def _note(self, place: Place) -> None:
        self.needs.packs.setdefault(place.pack, set()).add(self.name)
        self.needs.checks.begin(place.pack)
        end = place.frame_offset + place.frame_length
        if end > self.needs.ends.get(place.pack, 0):
            self.needs.ends[place.pack] = end


def _check_packs(needs: _Needs, *, deep: bool, progress: Progress) -> list[Finding]:
    findings: list[Finding] = []
    for name in sorted(needs.packs):
        progress.check()
        size = 0
        try:
            size = needs.checks.size(name)
            if size < needs.ends[name]:
                raise _impossible(name, size)
        except DamageError as error:
            parts = tuple(sorted(needs.packs[name]))
            findings.append(Finding(error.code, f"pack {name}", error.message, parts))
        progress.advance(items=1, bytes=size if deep else 0)
    return findings


def _check_pack(repository: Repository, domain: Domain, name: str, deep: bool) -> int:
    try:
        key, size = _find_pack(repository, domain, name)
        if size > PACK_BYTES_MAX:
            raise _impossible(name, size)
        if deep:
            check_pack_bytes(repository, domain, name, repository.store.get(key, 0, PACK_BYTES_MAX + 1))
    except ObjectMissing as error:
        raise ChunkMissing(error.message) from error
    return size


def _impossible(name: str, size: int) -> ObjectDamaged:
    return ObjectDamaged(f"pack {name[:16]} has {size} bytes, which cannot be", hint="another copy may hold it")


def _find_pack(repository: Repository, domain: Domain, name: str) -> tuple[str, int]:
    for folder in ("data", "meta"):
        key = f"{domain.prefix}{folder}/{name[:2]}/{name}"
        try:
            return key, repository.store.stat(key).size
        except ObjectMissing:
            continue
    raise ChunkMissing(f"pack {name[:16]} is gone from the store", hint="another copy may still hold it")


def check_pack_bytes(repository: Repository, domain: Domain, name: str, blob: bytes) -> None:
    """Name, trailer, every frame and every chunk id of one whole pack. Raises ObjectDamaged."""
    label = f"pack {name[:16]}"
    if hashlib.sha256(blob).hexdigest() != name:
        raise ObjectDamaged(f"{label}: its bytes are not what was written", hint="another copy may hold it whole")
    envelope = envelope_of(repository.keyring, blob[:HEADER_BYTES], label, cipher=domain.cipher)
    view = memoryview(blob)
    for frame in read_trailer(repository.keyring, blob, label):
        payload = read_frame(envelope, frame.offset, view[frame.offset : frame.offset + frame.length], label)
        content = memoryview(payload)
        for chunk_id, offset, length in frame.chunks:
            if not bears_id(content[offset : offset + length], chunk_id, domain.id_keys):
                raise ObjectDamaged(f"{label}: chunk {chunk_id.hex()[:16]} is not what was written")
