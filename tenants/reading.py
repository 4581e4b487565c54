"""What backups and change images hold, opened for restores: the one place where the erasure ledger is brought in."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

from engine.erasures import ErasureLedger, LedgeredImage
from engine.errors import ObjectMissing
from engine.fallback import FallbackNote
from engine.images import ImageReader
from engine.ports import ImageView, SourceView
from engine.repository import Repository
from engine.views import source_views
from operations.context import current_context
from tenants import wiring
from tenants.copy_opening import repository_reading
from tenants.models import Backup, RestoreSource, Tenant
from tenants.services.copies import repair_queue
from tenants.services.copy_recording import reads_noted

Views = Mapping[str, SourceView]
WARNED_MAX = 20


@contextmanager
def backups_open(tenant: Tenant, backups: Collection[Backup]) -> Iterator[Repository]:
    """Open the repository to read these backups from the nearest store that holds them, and from the others in need.

    What another copy had to give is a finding in the store that could not, and a warning of the running operation.
    """
    with repository_reading(tenant, backups=backups, on_notes=_noted) as repository:
        yield repository


def _noted(tenant: Tenant, notes: Sequence[FallbackNote]) -> None:
    for copy in reads_noted(tenant, notes):
        repair_queue(copy)
    context = current_context()
    if context is None:
        return
    for note in notes[:WARNED_MAX]:
        key = note.key.removeprefix(f"r/{tenant.repository_id}/")[:80]
        what = "could not be reached" if note.key == "store" else f"could not give {key}"
        context.warn("copy.fallback", f"store {note.place} {what}, store {note.served_by} did: {note.message}")
    if len(notes) > WARNED_MAX:
        context.warn("copy.fallback", f"and {len(notes) - WARNED_MAX} more objects were read from another store")


def views_of(repository: Repository, backup: Backup) -> Views:
    """Every source of the backup by name."""
    manifest = wiring.manifest_of(repository, backup)
    return cast(Views, source_views(repository, manifest, erasures=backup.tenant.erasures_number))


def image_of(repository: Repository, row: RestoreSource) -> ImageView:
    """The change image of one source of a restore, without what was erased since.

    Raises ObjectMissing with a hint when it was dropped.
    """
    ledger = ErasureLedger.load(repository, at_least=row.restore.tenant.erasures_number)
    try:
        return LedgeredImage(ImageReader(repository, row.image), row.name, ledger)
    except ObjectMissing as error:
        raise ObjectMissing(
            f"the change image of source {row.name} is gone",
            hint=f"the safety backup has the same rows: restore plan {row.saved_id} --source {row.name}",
        ) from error
