"""Make a store of very many objects: run as `python -m tests.bench.full_store SLUG BACKUPS OBJECTS` in its environment.

Every object is a real one: packs with a chunk each, sealed and with trailers, an index over them, manifests that need a
hundred each and are signed like any other, rows of the catalogue. Nothing is synced: this is not what is measured.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.programs import ROOT

sys.path[:0] = [str(ROOT), str(ROOT / "platform")]
SEGMENT_PACKS = 1 << 16


def main(slug: str, backups: str, objects: str) -> None:
    """Add backups and packs until there are so many of both."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    import django

    django.setup()
    os.fsync = lambda fd: None
    from tenants import selectors, wiring
    from tenants.models import Backup, Tenant

    tenant = selectors.tenant_get(slug)
    first = Backup.objects.get(tenant=tenant, number=1)
    numbers = range(2, int(backups) + 1)
    share = (int(objects) - int(backups)) // len(numbers)
    with wiring.repository_open(tenant) as repository:
        chunks = _packs(repository, share * len(numbers))
        digests = list(_manifests(repository, numbers, chunks, share))
    Backup.objects.bulk_create(
        [
            Backup(
                id=f"{first.pk[:-6]}{number:06d}", tenant=tenant, number=number, state="succeeded",
                requested_type="full", type="full", manifest_sha256=digest, taken_at=first.taken_at,
                finished_at=first.finished_at, size_bytes=first.size_bytes, checksums=first.checksums,
            )
            for number, digest in zip(numbers, digests, strict=True)
        ],
        batch_size=500,
    )  # fmt: skip
    Tenant.objects.filter(pk=tenant.pk).update(number_reserved=numbers[-1], numbers_closed=numbers[-1])


def _packs(repository: Any, count: int) -> Iterator[bytes]:
    """Store packs of one small chunk each and their index; the chunks' ids."""
    from blake3 import blake3

    from engine.index import pack_place
    from engine.pack import PackBuilder, encode_payload
    from engine.sealed import Kind

    domain = repository.sealed
    top = Path(repository.store._root) / domain.prefix / "data"
    for number in range(256):
        (top / f"{number:02x}").mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, bytes]] = []
    entries: list[bytes] = []
    generation = domain.index.generation
    for number in range(count):
        chunk = b"chunk %d" % number
        chunk_id = blake3(chunk, key=domain.id_keys[0]).digest()
        builder = PackBuilder(repository.keyring, Kind.DATA_PACK, cipher=domain.cipher)
        builder.add(encode_payload(chunk, None), [(chunk_id, 0, len(chunk))])
        name, parts, _ = builder.finish()
        (top / name[:2] / name).write_bytes(b"".join(parts))
        (frame,) = builder.frames
        entries.append(chunk_id + pack_place(len(rows), frame.offset, frame.length, 0, len(chunk)))
        rows.append((name, builder.header))
        if len(rows) == SEGMENT_PACKS or number == count - 1:
            domain.index.write(rows, sorted(entries), generation=generation)
            rows, entries = [], []
        yield chunk_id
    domain.index.compact()


def _manifests(repository: Any, numbers: range, chunks: Iterator[bytes], share: int) -> Iterator[str]:
    """Store manifests that need `share` of the chunks each; their digests."""
    from engine.manifest import Manifest

    first = repository.manifest(1).document
    folder = Path(repository.store._root) / repository.prefix / "manifests"
    previous = first["checksums"]["manifest"]
    for number in numbers:
        needed = [next(chunks).hex() for _ in range(share)]
        pieces = {"name": "pieces", "bytes": 0, "sha256": "0" * 64, "chunks": needed}
        sources = [{**source, "documents": [*source["documents"], pieces]} for source in first["sources"]]
        backup_id = f"{first['id'][:-6]}{number:06d}"
        document = {**first, "number": number, "id": backup_id, "previous": previous, "sources": sources}
        manifest = Manifest.signed(document, repository.keyring)
        (folder / f"{number:010d}").write_bytes(b"".join(manifest.parts(repository.keyring)))
        previous = manifest.sha256
        yield previous
    assert next(chunks, None) is None, "every chunk is needed by a backup"


if __name__ == "__main__":
    main(*sys.argv[1:])
