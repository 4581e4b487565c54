"""Rebuild an index from the packs' own trailers, when segments were lost or damaged."""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.errors import DamageError, ObjectDamaged, RepositoryError
from engine.index import pack_place
from engine.pack import FOOTER_BYTES, Frame, footer_place, pack_envelope, trailer_frames
from engine.progress import Progress
from engine.repository import Domain, Repository
from engine.sealed import HEADER_BYTES

_ENTRIES_PER_SEGMENT = 1 << 18


@dataclass(frozen=True, slots=True)
class Rebuilt:
    packs: int
    chunks: int
    damaged: tuple[str, ...]
    """Keys of packs whose trailer could not be read; their chunks stay lost."""


def pack_keys(repository: Repository, domain: Domain) -> Iterator[tuple[str, int]]:
    """Key and size of every pack the store lists, both sorts."""
    for folder in ("data/", "meta/"):
        for info in repository.store.list(domain.prefix + folder):
            yield info.key, info.size


def read_pack_frames(repository: Repository, domain: Domain, key: str, size: int) -> tuple[bytes, list[Frame]]:
    """Header and frames of a pack by three ranged reads. Raises ObjectDamaged."""
    name = f"pack {key.rpartition('/')[2][:16]}"
    header = repository.store.get(key, 0, HEADER_BYTES)
    try:
        envelope = pack_envelope(repository.keyring, header, name, cipher=domain.cipher)
    except RepositoryError as error:
        # Nothing vouches for a header read on its own: a flipped bit looks like another version or epoch.
        raise ObjectDamaged(error.message, hint=error.hint) from error
    footer = repository.store.get(key, max(0, size - FOOTER_BYTES), FOOTER_BYTES)
    offset, length = footer_place(envelope, footer, size, name)
    return header, trailer_frames(envelope, offset, repository.store.get(key, offset, length), name)


def index_rebuild(repository: Repository, domain: Domain, progress: Progress, *, skip: frozenset[str]) -> Rebuilt:
    """Write index segments for every pack that no readable segment covers; `skip` names packs to leave out.

    Damaged segments are deleted when every pack could be read. Raises SessionFenced when a prune drops packs
    meanwhile.
    """
    domain.index.reload()
    generation = domain.index.generation
    known = domain.index.pack_names() | skip
    damaged: list[str] = []
    packs: list[tuple[str, bytes]] = []
    entries: list[bytes] = []
    pack_count = chunk_count = 0
    for key, size in pack_keys(repository, domain):
        progress.check()
        name = key.rpartition("/")[2]
        if name in known:
            continue
        try:
            header, frames = read_pack_frames(repository, domain, key, size)
        except DamageError as error:
            damaged.append(key)
            progress.warn(error.code, error.message)
            continue
        for frame in frames:
            entries += [
                chunk_id + pack_place(len(packs), frame.offset, frame.length, offset, length)
                for chunk_id, offset, length in frame.chunks
            ]
        packs.append((name, header))
        pack_count += 1
        progress.advance(items=1)
        if len(entries) >= _ENTRIES_PER_SEGMENT:
            chunk_count += len(entries)
            domain.index.write(packs, sorted(entries), generation=generation)
            packs, entries = [], []
    if packs:
        chunk_count += len(entries)
        domain.index.write(packs, sorted(entries), generation=generation)
    domain.index.check_generation(generation)
    domain.index.compact()
    if not damaged:
        domain.index.drop_damaged()
    return Rebuilt(pack_count, chunk_count, tuple(damaged))
