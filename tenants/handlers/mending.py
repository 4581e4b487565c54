"""Damaged packs of the primary: mended from a copy where there is one, else taken out of use."""

from collections.abc import Collection, Iterable
from contextlib import ExitStack

from django.db import transaction

from engine.errors import BackupMissing, DamageError
from engine.quarantine import Quarantined, packs_quarantine
from engine.repair import repository_repair
from engine.repository import Domain, Repository
from engine.verify import verify_backup
from operations.context import OperationContext
from tenants import wiring
from tenants.copy_opening import place_on
from tenants.copy_selectors import copies_readable, copy_primary
from tenants.models import Backup, Tenant
from tenants.services.copy_recording import findings_mended


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
            count += packs_mended(context, backup.tenant, repository, domain, packs).packs
            with transaction.atomic():
                context.fence()
                Backup.objects.filter(pk=backup.pk).update(damaged=True)
    return count


def packs_mended(
    context: OperationContext, tenant: Tenant, repository: Repository, domain: Domain, packs: Collection[str]
) -> Quarantined:
    """Put damaged packs of the primary right from its copies; what none of them can give is taken out of use."""
    copies = copies_readable(tenant)
    if not copies:
        return packs_quarantine(repository, domain, packs, context)
    with ExitStack() as stack:
        report = repository_repair(
            repository,
            [place_on(copy, stack) for copy in copies],
            [f"pack {name}" for name in packs],
            is_primary=True,
            name=tenant.store.name,
            progress=context,
        )
    with transaction.atomic():
        context.fence()
        findings_mended(copy_primary(tenant), report.mended)
    return Quarantined(len(packs), 0, report.chunks_lost)
