"""Take damaged packs out of use, so that no later backup builds on what cannot be read.

What can still be read of them is stored anew; the index then forgets the packs, and the next session that
meets one of the lost chunks stores it again, which also mends the older backups that need it. The damaged
bytes are kept under `damaged/`, where no index rebuild looks: another copy, or a person, may want them.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from engine.errors import DamageError, ObjectMissing
from engine.faults import kill_point
from engine.pack import PACK_BYTES_MAX
from engine.progress import Progress
from engine.repository import Domain, Repository, delete_unlocked
from engine.sealed import Kind
from engine.session import Lane

SMALL_BYTES = 256 << 10
"""Chunks below this are bundled again when they are stored anew."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """What became of the chunks of the packs that were taken out of use."""

    packs: int
    chunks_saved: int
    chunks_lost: int


def packs_quarantine(repository: Repository, domain: Domain, names: Collection[str], progress: Progress) -> Quarantined:
    """Take the packs of these names out of use; runs under the tenant's lease, like a commit.

    A kill at any point is harmless: the packs are found damaged again, and chunks stored twice are garbage.
    """
    progress.phase("quarantine")
    claimed = domain.index.claim_generation()
    domain.index.reload()
    generation = domain.index.generation
    known = domain.index.pack_names() & set(names)
    if not known:
        return Quarantined(0, 0, 0)
    saved, lost = _store_again(domain, known, progress)
    domain.index.rewrite(drop=known, generation=generation, claimed=claimed)
    kill_point("quarantine.index_rewritten")
    domain.index.check_claim(claimed)
    for name in sorted(known):
        _set_aside(repository, domain, name)
    return Quarantined(len(known), saved, lost)


def _store_again(domain: Domain, names: set[str], progress: Progress) -> tuple[int, int]:
    """Store what is still readable of the packs; counts of chunks saved and lost."""
    reader, session = domain.reader(), domain.session(rewriting=True)
    lane = Lane(session, Kind.DATA_PACK)
    saved = lost = 0
    try:
        for chunk_id in _chunks_of(domain, names):
            progress.check()
            try:
                chunk = reader.get(chunk_id)
            except DamageError:
                lost += 1
                continue
            add = lane.add_small if len(chunk) < SMALL_BYTES else lane.add
            add(chunk, named=chunk_id)
            saved += 1
            progress.advance(items=1, bytes=len(chunk))
        lane.flush()
        session.finish()
    except BaseException:
        session.abort()
        raise
    kill_point("quarantine.stored_again")
    return saved, lost


def _chunks_of(domain: Domain, names: set[str]) -> Iterator[bytes]:
    for segment in domain.index.segments:
        numbers = {n.to_bytes(4, "big") for n, (name, _) in enumerate(segment.packs()) if name in names}
        for entry in segment.entries() if numbers else ():
            if entry[32:36] in numbers:
                yield entry[:32]


def _set_aside(repository: Repository, domain: Domain, name: str) -> None:
    for folder in ("data", "meta"):
        key = f"{domain.prefix}{folder}/{name[:2]}/{name}"
        try:
            # What is longer than any pack was put there by somebody; its beginning says enough of it.
            blob = repository.store.get(key, 0, PACK_BYTES_MAX + 1)
        except ObjectMissing:
            continue
        repository.store.put(f"{domain.prefix}damaged/{name}", [blob])
        kill_point("quarantine.set_aside")
        delete_unlocked(repository.store, [key])  # One that is locked stays where no index names it.
