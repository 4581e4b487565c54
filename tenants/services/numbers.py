"""Sequence numbers: none is left open behind, whatever became of the session it was given to."""

from django.db import transaction

from core.errors import Conflict
from engine.errors import BackupMissing, ManifestDamaged
from engine.faults import kill_point
from engine.repository import Repository
from operations.context import OperationContext
from tenants.models import Backup, Tenant
from tenants.owning import behind_put
from tenants.services.recording import backup_adopted
from tenants.services.strangers import strangers_refused

NUMBERS_AHEAD_MAX = 10_000
"""A store that holds a number further ahead of the catalogue was written by somebody else."""

_CLOSED_STATES = ("succeeded", "warned", "expired", "deleted")


def numbers_close(context: OperationContext, tenant: Tenant, repository: Repository) -> list[Backup]:
    """Give every number so far its manifest or a void record; return the backups that were adopted.

    Called under the tenant's lease before a session begins or chunks are removed. A session that was killed or
    fenced left a number open: the void record keeps it from committing late. Where it had committed already,
    its manifest is taken into the catalogue. Numbers that only the store knows (the catalogue lost its last
    writes in a power cut) are treated alike.
    """
    repository.guard.check()  # What another owner has sealed since is not to be taken for damage.
    tenant.refresh_from_db()
    head = repository.head_from(tenant.number_reserved, most=NUMBERS_AHEAD_MAX + 1)
    if head > tenant.number_reserved:
        strangers_refused(tenant, repository)
    if head > tenant.number_reserved + NUMBERS_AHEAD_MAX:
        raise ManifestDamaged(
            f"the store holds manifest {head}, the catalogue gave out {tenant.number_reserved} numbers",
            hint="is this another installation's repository? nothing was written",
        )
    last = max(tenant.number_reserved, head)
    if head > tenant.number_reserved:
        # Backups go on, deletions do not: what else the catalogue has forgotten is not written here.
        behind_put(tenant, f"it held number {head}, this catalogue had given out {tenant.number_reserved}")
    known = set(
        Backup.objects.filter(
            tenant=tenant, number__gt=tenant.numbers_closed, number__lte=last, state__in=_CLOSED_STATES
        ).values_list("number", flat=True)
    )
    adopted = []
    for number in range(tenant.numbers_closed + 1, last + 1):
        if number in known or repository.forgotten(number):
            continue
        context.check()
        holder = repository.void(number, "its session ended without a commit")
        kill_point("backup.number_voided")
        if holder.kind == "manifest":
            adopted.append(backup_adopted(context, tenant, holder))
            context.warn("backup.adopted", f"backup {holder.document['id']} had been committed; it is listed now")
    with transaction.atomic():
        context.fence()
        Tenant.objects.filter(pk=tenant.pk).update(number_reserved=last, numbers_closed=last)
    tenant.refresh_from_db()
    return adopted


def previous_sha256(tenant: Tenant, repository: Repository, number: int) -> str | None:
    """The hash of the document before this number: the chain that shows loss and rollback; None for the first."""
    if number == 1:
        return None
    before = Backup.objects.filter(tenant=tenant, number=number - 1).exclude(manifest_sha256="").first()
    if before is not None:
        return before.manifest_sha256
    try:
        return repository.manifest(number - 1).sha256
    except BackupMissing:
        if repository.forgotten(number - 1):
            return None
        raise Conflict(
            f"the store holds neither a manifest nor a record under number {number - 1} of {tenant.slug}",
            hint="verify the newest backup, and repair the repository from another copy",
        ) from None
