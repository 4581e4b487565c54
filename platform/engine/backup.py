"""Take one backup: fix all sources at one barrier, read them into a session, commit the manifest."""

import datetime
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.checksums import category_checksums
from engine.chunks import ChunkReader
from engine.errors import (
    SessionFenced,
    SourceChanged,
    SourceDenied,
    SourceError,
    SourceUnreachable,
    SourceUnsupported,
    UsageError,
)
from engine.faults import kill_point
from engine.keys import Keyring
from engine.locking import Locker
from engine.manifest import FORMAT_VERSION, Manifest
from engine.ports import Connector, DocumentPart, SourceReader, TablePart, TreePart
from engine.progress import Progress
from engine.repository import Repository
from engine.session import Session
from engine.table_backup import backup_table
from engine.tree_backup import backup_tree

BACKUP_VERSION = "1"
DOCUMENT_BYTES_MAX = 64 << 20
_DOCUMENT_CHUNK_BYTES = 1 << 20
TABLES_AT_ONCE = 2


@dataclass(frozen=True)
class SourceInput:
    """One source to read: its name in the backup and an unopened connector."""

    name: str
    category: str
    kind: str
    connector: Connector


@dataclass(frozen=True)
class BackupRequest:
    """`number` was reserved by the caller under the tenant's lease; parents make it cheap, not dependent."""

    backup_id: str
    number: int
    type: Literal["full", "incremental"]
    tenant_name: str
    created_by: str
    trigger: str = "manual"
    tags: tuple[str, ...] = ()
    encrypt: bool = True
    compress: bool = True
    platform_version: str = ""
    parent: Manifest | None = None
    parents: Mapping[str, Manifest] | None = None
    """Per source the backup it is compared with, where that is not `parent` for all; no entry means none."""
    previous: str | None = None
    """SHA-256 of the document with the next lower number; None for the first."""
    locker: Locker | None = None
    """In a store that locks: extends the locks of what the backup needs."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More JSON for the manifest's metadata."""


@dataclass
class _Opened:
    source: SourceInput
    reader: SourceReader


def backup_run(
    repository: Repository, inputs: Sequence[SourceInput], request: BackupRequest, progress: Progress
) -> Manifest:
    """Read all inputs and commit one manifest; what it returns is durable and restorable.

    A source that cannot be read is warned about and named in `failed_sources`; the others are kept. When
    none can be read the first SourceError is raised and nothing is committed. Raises StoreError,
    SessionFenced, CancelledError; what was stored by then is garbage that a rerun uses and prune removes.
    """
    if not inputs:
        raise UsageError("there is no source to back up", hint="add one: source add TENANT NAME --kind …")
    if len({source.name for source in inputs}) < len(inputs):
        raise UsageError("two sources have the same name", hint="a restore finds a source by its name")
    started = time.monotonic()
    begun_at = datetime.datetime.now(datetime.UTC)
    parents = _usable_parents(request, inputs, repository.keyring)
    domain = repository.domain(encrypted=request.encrypt)
    failed: list[dict[str, str]] = []
    session = domain.session(compress=request.compress)
    if request.locker is not None:
        session.note_packs()
    try:
        with ExitStack() as stack:
            opened = _open_all(stack, inputs, failed, progress)
            kill_point("backup.opened")
            reader = domain.reader()
            sources = []
            for each in opened:
                parent = parents.get(each.source.name)
                node = _read_source(each, session, parent, reader, request, failed, progress)
                if node is not None:
                    sources.append(node)
                    kill_point("backup.source_read")
        if not sources:
            raise _all_failed(failed)
        progress.phase("store")
        session.finish()
        kill_point("backup.chunks_stored")
        progress.phase("commit")
        progress.check()
        if request.locker is not None:
            request.locker.extend(session, sources)
            kill_point("backup.locks_extended")
        document = _document(repository, request, parents, sources, failed, begun_at)
        _measure(document, session, started)
        manifest = repository.commit(document)
        _refuse_overtaken(repository, session, manifest)
        if request.locker is not None:
            request.locker.seal(request.number)
        return manifest
    except BaseException:
        session.abort()
        raise


def _refuse_overtaken(repository: Repository, session: Session, manifest: Manifest) -> None:
    """End the backup again when a prune has begun to drop packs since its last look; see engine.prune."""
    try:
        session.check_generation()
    except SessionFenced:
        repository.forget(manifest.number, "a prune overtook its session")
        raise


def _usable_parents(request: BackupRequest, inputs: Sequence[SourceInput], keyring: Keyring) -> dict[str, Manifest]:
    """Source name -> the backup it is compared with."""
    given = {source.name: request.parent for source in inputs} if request.parents is None else request.parents
    return {
        name: parent
        for name, parent in given.items()
        # Encrypted and plain chunks never mix, so there is nothing to build on; and after a compromise nothing new
        # may rest on chunks that were named and sealed by keys that got out.
        if parent is not None
        and bool(parent.document["metadata"]["encrypted"]) == request.encrypt
        and int(parent.document["metadata"].get("id_epoch", 1)) == keyring.id_epoch
    }


def _failure(source: SourceInput, error: SourceError, progress: Progress) -> dict[str, str]:
    progress.warn("backup.source_failed", f"source {source.name}: {error}")
    return {"name": source.name, "code": error.code, "message": error.message, "hint": error.hint}


def _all_failed(failed: list[dict[str, str]]) -> SourceError:
    """The first failure's class, when all failed alike; otherwise a plain SourceError."""
    kinds = {kind.code: kind for kind in (SourceUnreachable, SourceDenied, SourceChanged, SourceUnsupported)}
    codes = {each["code"] for each in failed}
    kind = kinds.get(codes.pop(), SourceError) if len(codes) == 1 else SourceError
    return kind(f"no source could be read: {failed[0]['message']}", hint=failed[0]["hint"])


def _open_all(
    stack: ExitStack, inputs: Sequence[SourceInput], failed: list[dict[str, str]], progress: Progress
) -> list[_Opened]:
    """Fix every source first and read afterwards, so that their positions lie as close as they can."""
    progress.phase("open")
    opened = []
    for source in inputs:
        progress.check()
        try:
            opened.append(_Opened(source, stack.enter_context(source.connector.open(progress))))
        except SourceError as error:
            failed.append(_failure(source, error, progress))
    return opened


def _read_source(
    opened: _Opened,
    session: Session,
    parent: Manifest | None,
    reader: ChunkReader,
    request: BackupRequest,
    failed: list[dict[str, str]],
    progress: Progress,
) -> dict[str, Any] | None:
    source = opened.source
    progress.phase(f"read {source.name}")
    before = _parent_source(parent, source)
    try:
        node = _source_node(opened, session, before, reader, request.type == "full", progress)
        return {**node, "parent": parent.document["id"]} if parent and before else node
    except SourceError as error:
        failed.append(_failure(source, error, progress))
        return None


def _parent_source(parent: Manifest | None, source: SourceInput) -> Mapping[str, Any]:
    for node in parent.document["sources"] if parent else ():
        if node["name"] == source.name and node["kind"] == source.kind:
            return dict(node)
    return {}


def _source_node(
    opened: _Opened,
    session: Session,
    before: Mapping[str, Any],
    reader: ChunkReader,
    full: bool,
    progress: Progress,
) -> dict[str, Any]:
    source, view = opened.source, opened.reader

    def parent_of(sort: str, name: str) -> dict[str, Any] | None:
        return next((node for node in before.get(sort, ()) if node["name"] == name), None)

    tables = _read_tables(
        view.tables(),
        lambda part: backup_table(
            session, part, parent=parent_of("tables", part.name), reader=reader, full=full, progress=progress
        ),
    )
    trees = [
        _one_module(
            part,
            backup_tree(
                session, part, parent=parent_of("trees", part.name), reader=reader, full=full, progress=progress
            ),
        )
        for part in view.trees()
    ]
    documents = [_document_node(session, part) for part in view.documents()]
    facts = {**view.facts, **view.finish()}
    missed = sum(int(node.get("missed", 0)) for node in (*tables, *trees))
    if missed:
        progress.warn(
            "backup.missed_changes",
            f"source {source.name}: {missed} changes had been missed by incremental backups; they are in this one",
        )
    return {
        "name": source.name,
        "kind": source.kind,
        "category": source.category,
        "position": dict(view.position),
        "schema_version": view.schema_version,
        "facts": facts,
        "compared_with_parent": bool(before),
        "missed": missed,
        "tables": tables,
        "trees": trees,
        "documents": documents,
    }


def _one_module(part: TreePart, node: dict[str, Any]) -> dict[str, Any]:
    """A tree whose folders are no modules is one module, which bears the part's name."""
    if not part.top_modules:
        node["modules"] = [{**module, "name": part.name} for module in node["modules"]]
    return node


def _read_tables(parts: Sequence[TablePart], read: Callable[[TablePart], dict[str, Any]]) -> list[dict[str, Any]]:
    if len(parts) < 2:
        return [read(part) for part in parts]
    with ThreadPoolExecutor(TABLES_AT_ONCE, thread_name_prefix="table") as pool:
        # The largest first, so that no thread is left alone with one at the end.
        order = sorted(range(len(parts)), key=lambda at: -int(getattr(parts[at], "size_hint", 0)))
        futures = {at: pool.submit(read, parts[at]) for at in order}
        try:
            return [futures[at].result() for at in range(len(parts))]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _document_node(session: Session, part: DocumentPart) -> dict[str, Any]:
    data = part.read()
    if len(data) > DOCUMENT_BYTES_MAX:
        raise SourceError(f"document {part.name} has {len(data)} bytes, {DOCUMENT_BYTES_MAX} are allowed")
    pieces = [data[at : at + _DOCUMENT_CHUNK_BYTES] for at in range(0, len(data), _DOCUMENT_CHUNK_BYTES)]
    return {
        "name": part.name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "chunks": [session.meta.add_small(piece).hex() for piece in pieces],
    }


def _document(
    repository: Repository,
    request: BackupRequest,
    parents: Mapping[str, Manifest],
    sources: list[dict[str, Any]],
    failed: list[dict[str, str]],
    begun_at: datetime.datetime,
) -> dict[str, Any]:
    modules = [
        {"source": source["name"], **module}
        for source in sources
        for node in (*source["tables"], *source["trees"])
        for module in node["modules"]
    ]
    compared = [parents[source["name"]] for source in sources if source["compared_with_parent"]]
    parent = max(compared, key=lambda each: each.number, default=None)
    schema_versions = [s["schema_version"] for s in sources if s["schema_version"]]
    return {
        "version": FORMAT_VERSION,
        "kind": "manifest",
        "number": request.number,
        "repository_id": repository.repository_id,
        "previous": request.previous,
        "id": request.backup_id,
        "tenant_id": repository.tenant_id,
        "type": "full" if request.type == "full" or parent is None else "incremental",
        "timestamp": begun_at.isoformat(),
        "created_by": request.created_by,
        "trigger": request.trigger,
        "tags": sorted(request.tags),
        "parent": parent.document["id"] if parent else None,
        "barrier": {source["name"]: source["position"] for source in sources},
        "sources": sources,
        "failed_sources": failed,
        "modules": modules,
        "metadata": {
            **request.extra,
            "tenant_name": request.tenant_name,
            "backup_version": BACKUP_VERSION,
            "platform_version": request.platform_version,
            "schema_version": ",".join(schema_versions),
            "size_bytes": sum(part["bytes"] for s in sources for sort in _SORTS for part in s[sort]),
            "compressed": request.compress,
            "encrypted": request.encrypt,
            "encryption_algorithm": "AES-256-GCM" if request.encrypt else None,
            "key_id": repository.keyring.key_id if request.encrypt else None,
            **({"id_epoch": repository.keyring.id_epoch} if repository.keyring.later_id_keys else {}),
        },
        "checksums": category_checksums(sources),
    }


_SORTS = ("tables", "trees", "documents")


def _measure(document: dict[str, Any], session: Session, started: float) -> None:
    """Add what is known only at the end: sizes, duration, stored bytes per plain byte."""
    metadata = document["metadata"]
    metadata["stored_bytes"] = session.stored_bytes
    metadata["new_bytes"], metadata["new_packed_bytes"] = session.new_data
    metadata["duration_ms"] = round((time.monotonic() - started) * 1000)
    size = metadata["size_bytes"]
    metadata["compression_ratio"] = round(session.stored_bytes / size, 4) if size else None
