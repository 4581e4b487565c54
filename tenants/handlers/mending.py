"""What a backup does when the one it builds on turns out to be damaged: set the damage aside, and read all anew."""

from collections.abc import Iterable

from django.db import transaction

from engine.errors import BackupMissing, DamageError
from engine.quarantine import packs_quarantine
from engine.repository import Repository
from engine.verify import verify_backup
from operations.context import OperationContext
from tenants import wiring
from tenants.models import Backup


def damage_set_aside(context: OperationContext, repository: Repository, backups: Iterable[Backup]) -> int:
    """Look for lost and damaged packs of these backups, take them out of use; how many there were.

    Without that a new backup would count on chunks that nobody can read, because the index still names them.
    """
    count = 0
    for backup in {each.pk: each for each in backups}.values():
        try:
            findings = verify_backup(repository, wiring.manifest_of(repository, backup), deep=False, progress=context)
        except (BackupMissing, DamageError):
            continue  # Its manifest is gone: there is nothing to look through.
        packs = {finding.key.removeprefix("pack ") for finding in findings if finding.key.startswith("pack ")}
        if packs:
            domain = repository.domain(encrypted=backup.encrypt)
            count += packs_quarantine(repository, domain, packs, context).packs
            with transaction.atomic():
                context.fence()
                Backup.objects.filter(pk=backup.pk).update(damaged=True)
    return count
