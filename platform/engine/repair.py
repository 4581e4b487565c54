"""Mend one store's repository from its other copies: object by object, and chunk by chunk where packs differ.

A pack that another copy holds whole is put back under its name, which is the hash of its bytes. In the primary, what is
left of any other damaged pack is stored anew in new packs, together with the chunks that other copies have in packs of
their own, and the index forgets the damaged pack. In a copy the index forgets it too, and the next run of the copy brings
what is missing in the packs that the primary has now. Manifests, ledger and records come back byte for byte, authenticated;
an index is rebuilt from the packs.
"""

import hashlib
import tempfile
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from engine.chunk_repair import PACK, RepairReport, chunks_bring
from engine.errors import DamageError, ObjectLocked, ObjectMissing, StoreError
from engine.fallback import MendingRepository, Place, check_object
from engine.faults import kill_point
from engine.index import pack_place
from engine.manifest import DOCUMENT_BYTES_MAX
from engine.pack import PACK_BYTES_MAX, read_trailer
from engine.pack_table import FOLDERS, pack_key
from engine.progress import Progress
from engine.quarantine import packs_quarantine
from engine.rebuild import index_rebuild
from engine.repository import Domain, Repository
from engine.sealed import HEADER_BYTES

INDEX = "index"


def repository_repair(
    repository: Repository,
    others: Sequence[Place],
    keys: Iterable[str],
    *,
    is_primary: bool,
    name: str,
    numbers: Collection[int] = (),
    progress: Progress,
) -> RepairReport:
    """Mend the objects of these keys ("pack <name>", "index", or a key below the repository's prefix).

    In a primary the backups of these numbers are looked through at the end, and chunks that none of its packs holds any
    more are brought from the other places one by one; a copy is run again for that.
    Runs under the tenant's lease in the primary, under the copy's lease elsewhere. A kill at any point leaves each object
    as it was or whole. Raises StoreError when the store itself cannot be written.
    """
    report = RepairReport()
    progress.phase("repair")
    wanted = sorted(set(keys))
    progress.total(items=len(wanted))
    packs = [key.removeprefix(PACK) for key in wanted if key.startswith(PACK)]
    for key in wanted:
        progress.check()
        if not key.startswith(PACK) and key != INDEX:
            _mend_object(repository, others, key, report)
            progress.advance(items=1)
    if INDEX in wanted:
        # A pack that only a lost segment named is found here, and damaged perhaps.
        packs = sorted({*packs, *_mend_index(repository, progress)})
    left = [pack for pack in packs if not _mend_pack(repository, others, pack, report, progress)]
    if INDEX in wanted:
        _mend_index(repository, progress)
        report.mended[INDEX] = ""
    for domain in (repository.sealed, repository.plain):
        domain.index.reload()
        here = domain.index.pack_names() & set(left)
        if here and is_primary:
            _store_anew(repository, others, domain, here, name, report, progress)
        elif here:
            _unname(repository, domain, here, report, progress)
        left = [each for each in left if each not in here]
    for pack in left:
        report.mended[PACK + pack] = ""  # No index names it any more; whatever was needed of it is looked for below.
        _set_aside(repository, pack)
    if is_primary and numbers:
        chunks_bring(repository, others, numbers, name=name, report=report, progress=progress)
    return report


def _mend_object(repository: Repository, others: Sequence[Place], key: str, report: RepairReport) -> None:
    """A manifest, record or ledger object, or the config."""
    full = repository.prefix + key
    if key == "config" or not key.rpartition("/")[0]:
        report.lost[key] = "it is no object that is mended"
        return
    with suppress(ObjectMissing, DamageError):
        check_object(repository.keyring, repository.prefix, full, repository.store.get(full, 0, DOCUMENT_BYTES_MAX))
        report.mended[key] = ""
        return
    why = "no other copy holds it"
    for place in others:
        other = place.repository
        if other is None:
            continue
        try:
            blob = other.store.get(full, 0, DOCUMENT_BYTES_MAX)
            check_object(repository.keyring, repository.prefix, full, blob)
        except (StoreError, DamageError) as error:
            why = f"{place.name}: {error.message}"
            continue
        if _locked(repository, full, blob, key, report):
            return
        kill_point("repair.object_stored")
        report.mended[key] = place.name
        return
    report.lost[key] = why


def _mend_pack(
    repository: Repository, others: Sequence[Place], pack: str, report: RepairReport, progress: Progress
) -> bool:
    """Put a whole pack back from another copy; False when none has it."""
    progress.check()
    for domain in (repository.sealed, repository.plain):
        for folder in FOLDERS:
            key = pack_key(domain, folder, pack)
            if _whole(repository, key, pack) is not None:
                report.mended[PACK + pack] = ""
                return True
            for place in others:
                blob = _whole(place.repository, key, pack) if place.repository is not None else None
                if blob is None:
                    continue
                if _locked(repository, key, blob, PACK + pack, report):
                    return True
                kill_point("repair.pack_stored")
                _name(repository, domain, pack, blob)
                report.mended[PACK + pack] = place.name
                progress.advance(items=1, bytes=len(blob))
                return True
    return False


def _locked(repository: Repository, key: str, blob: bytes, said: str, report: RepairReport) -> bool:
    """Put an object back; True when the store keeps the damaged one locked in its place."""
    try:
        repository.store.put(key, [blob])
    except ObjectLocked as error:
        until = "" if error.until is None else f" until {error.until:%Y-%m-%d}"
        report.lost[said] = f"what lies there is locked{until} and cannot be replaced"
        return True
    return False


def _whole(repository: Repository, key: str, pack: str) -> bytes | None:
    try:
        blob = repository.store.get(key, 0, PACK_BYTES_MAX + 1)
    except StoreError:
        return None
    return blob if hashlib.sha256(blob).hexdigest() == pack else None


def _name(repository: Repository, domain: Domain, pack: str, blob: bytes) -> None:
    """Have the index name a pack that came back, if it has forgotten it."""
    domain.index.reload()
    if any(pack == name for segment in domain.index.segments for name, _ in segment.packs()):
        return
    entries = [
        chunk_id + pack_place(0, frame.offset, frame.length, offset, length)
        for frame in read_trailer(repository.keyring, blob, f"pack {pack[:16]}", cipher=domain.cipher)
        for chunk_id, offset, length in frame.chunks
    ]
    domain.index.write([(pack, blob[:HEADER_BYTES])], sorted(entries), generation=domain.index.generation)


def _mend_index(repository: Repository, progress: Progress) -> list[str]:
    """Rebuild what the index lacks from the packs; names of packs that are damaged among those that it lacked.

    No verification has read them, as it goes by the index: each is hashed here.

    Segments that cannot be read go when every pack could be. The store's own objects are read, past the cache that lies
    near: that may still have what the store has lost.
    """
    damaged: list[str] = []
    with tempfile.TemporaryDirectory(prefix="lastro-index-") as folder:
        afresh = Repository(repository.store, repository.keyring, cache=Path(folder))
        afresh.guard = repository.guard
        for domain in (afresh.sealed, afresh.plain):
            domain.index.reload()
            before = domain.index.pack_names()
            rebuilt = index_rebuild(afresh, domain, progress, skip=frozenset())
            damaged += [key.rpartition("/")[2] for key in rebuilt.damaged]
            for pack in sorted(domain.index.pack_names() - before):
                progress.check()
                if all(_whole(afresh, pack_key(domain, folder, pack), pack) is None for folder in FOLDERS):
                    damaged.append(pack)
    return damaged


def _set_aside(repository: Repository, pack: str) -> None:
    """Take a damaged pack that no index names out of the way of the next rebuild."""
    for domain in (repository.sealed, repository.plain):
        for folder in FOLDERS:
            key = pack_key(domain, folder, pack)
            with suppress(ObjectMissing, ObjectLocked):
                blob = repository.store.get(key, 0, PACK_BYTES_MAX + 1)
                repository.store.put(f"{domain.prefix}damaged/{pack}", [blob])
                repository.store.delete(key)


def _store_anew(
    repository: Repository,
    others: Sequence[Place],
    domain: Domain,
    packs: Collection[str],
    name: str,
    report: RepairReport,
    progress: Progress,
) -> None:
    """Store the chunks of damaged packs in new ones, each from wherever it can still be read."""
    own = Place(name, lambda: repository)
    mending = MendingRepository(repository, [own, *others])
    aside = packs_quarantine(mending, mending.domain(encrypted=domain.encrypted), packs, progress)
    report.chunks_lost += aside.chunks_lost
    served = {note.key: note.served_by for note in mending.notes.all()}
    for pack in packs:
        if aside.chunks_lost:
            report.lost[PACK + pack] = f"{aside.chunks_lost} chunks are in no copy"
        else:
            report.mended[PACK + pack] = served.get(PACK + pack, "")


def _unname(
    repository: Repository, domain: Domain, packs: Collection[str], report: RepairReport, progress: Progress
) -> None:
    """Have a copy's index forget damaged packs, and set them aside where no run takes them for whole ones."""
    index = domain.index
    claimed = index.claim_generation()
    index.reload()
    progress.check()
    index.rewrite(drop=set(packs), generation=index.generation, claimed=claimed)
    kill_point("repair.unnamed")
    index.check_claim(claimed)
    for pack in sorted(packs):
        _set_aside(repository, pack)
        report.unnamed.append(pack)
