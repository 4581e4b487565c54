"""What backups and change images hold, opened for restores: the one place where the erasure ledger is brought in."""

from collections.abc import Mapping
from typing import cast

from engine.erasures import ErasureLedger, LedgeredImage
from engine.errors import ObjectMissing
from engine.images import ImageReader
from engine.ports import ImageView, SourceView
from engine.repository import Repository
from engine.views import source_views
from tenants import wiring
from tenants.models import Backup, RestoreSource

Views = Mapping[str, SourceView]


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
