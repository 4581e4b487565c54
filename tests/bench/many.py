"""Fill an installation with earlier backups, or end most of them: run as `python -m tests.bench.many` in its environment.

The repository gets a few hundred real incremental backups and, for the rest, manifests that repeat theirs under numbers and
ids of their own, signed like any other; the catalogue gets the rows. Nothing is synced: this is not what is measured.
"""

import os
import sys
from pathlib import Path

from tests.bench.programs import ROOT

sys.path[:0] = [str(ROOT), str(ROOT / "platform")]
REAL = 300


def main(verb: str, slug: str, count: str) -> None:
    """`fill SLUG COUNT`, so that the tenant has so many backups, or `end SLUG KEPT`, so that only so many are kept."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    import django

    django.setup()
    os.fsync = lambda fd: None  # type: ignore[assignment]
    {"fill": _fill, "end": _end}[verb](slug, int(count))


def _fill(slug: str, count: int) -> None:
    from tenants import selectors, wiring
    from tenants.models import Backup, BackupSource, Source, Tenant

    tenant = selectors.tenant_get(slug)
    first = Backup.objects.get(tenant=tenant, number=1)
    (template,) = first.sources.all()
    numbers = range(tenant.number_reserved + 1, count + 1)
    with wiring.repository_open(tenant) as repository:
        digests = _manifests(repository, wiring.connector_open(template.source), numbers)
    rows = [
        Backup(
            id=f"{first.pk[:-6]}{number:06d}", tenant=tenant, number=number, state="succeeded", requested_type="full",
            type="incremental", manifest_sha256=digest, taken_at=first.taken_at, finished_at=first.finished_at,
            size_bytes=first.size_bytes, checksums=first.checksums,
        )
        for number, digest in zip(numbers, digests, strict=True)
    ]  # fmt: skip
    Backup.objects.bulk_create(rows, batch_size=500)
    BackupSource.objects.bulk_create(
        [
            BackupSource(
                backup=row,
                source=template.source,
                name=template.name,
                kind=template.kind,
                category=template.category,
                state="kept",
                position=template.position,
            )
            for row in rows
        ],
        batch_size=500,
    )
    Tenant.objects.filter(pk=tenant.pk).update(number_reserved=count, numbers_closed=count)
    Source.objects.filter(pk=template.source_id).update(last_good_backup=rows[-1])


def _manifests(repository, connector, numbers: range) -> list[str]:  # type: ignore[no-untyped-def]
    """Real backups first, of a file that changes; then copies of their manifests."""
    from engine.backup import BackupRequest, SourceInput, backup_run
    from engine.manifest import Manifest
    from engine.progress import NullProgress

    parent = repository.manifest(1)
    (source,) = parent.document["sources"]
    made, digests = [], []
    folder = Path(repository.store._root) / repository.prefix / "manifests"
    changing = Path(connector.config.path) / "changing"
    for number in numbers:
        backup_id = f"{parent.document['id'][:-6]}{number:06d}"
        if len(made) < REAL:
            changing.write_text(f"version {number}")
            inputs = [SourceInput(source["name"], source["category"], source["kind"], connector)]
            request = BackupRequest(backup_id, number, "incremental", "Bench", "bench", parent=parent)
            parent = backup_run(repository, inputs, request, NullProgress())
            made.append(parent)
            digests.append(parent.sha256)
            continue
        document = {**made[number % REAL].document, "number": number, "id": backup_id, "previous": digests[-1]}
        manifest = Manifest.signed(document, repository.keyring)
        (folder / f"{number:010d}").write_bytes(b"".join(manifest.parts(repository.keyring)))
        digests.append(manifest.sha256)
    return digests


def _end(slug: str, kept: int) -> None:
    from tenants import selectors
    from tenants.models import Backup

    tenant = selectors.tenant_get(slug)
    last = tenant.number_reserved - kept
    Backup.objects.filter(tenant=tenant, number__lte=last).update(state="expired")


if __name__ == "__main__":
    main(*sys.argv[1:])
