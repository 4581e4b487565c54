"""Locks in the stores follow retention: until when what a backup needs is locked, and who asks for it."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from core import clock
from engine.locking import Locker, lock_goal
from engine.ports import LockingStore
from engine.progress import Progress
from engine.repository import Repository
from operations.context import OperationContext
from tenants import wiring
from tenants.models import Backup, BackupSource, Tenant

if TYPE_CHECKING:
    from tenants.retention_selectors import Keeping


def store_locks(repository: Repository) -> bool:
    """Whether the repository's store locks what is put into it."""
    return isinstance(repository.store, LockingStore) and repository.store.lock_days > 0


def locker_for(
    repository: Repository, backup: Backup, parents: Collection[Backup], progress: Progress
) -> Locker | None:
    """What locks the objects of a backup that is about to be taken; None in a store without locks.

    Asked for until the backup would go by the rules in force, whatever they are changed to later.
    """
    if not store_locks(repository):
        return None
    from tenants.retention.decide import Point  # Of no use to a backup whose store does not lock.
    from tenants.retention_selectors import expiry_of_new

    held = BackupSource.objects.filter(backup=backup).values_list("source_id", flat=True)
    point = Point(
        id=backup.pk,
        number=0,
        at=clock.now(),
        full=backup.requested_type == "full" or not parents,
        sources=tuple(sorted(filter(None, held))),
        trigger=backup.trigger,
        tags=tuple(backup.tags),
    )
    until = lock_goal(expiry_of_new(backup.tenant, point), clock.now())
    covered = all(each.locked_until is not None and each.locked_until >= until for each in parents)
    domain = repository.domain(encrypted=backup.encrypt)
    return Locker(repository, domain, until=until, covered=covered, progress=progress)


def locks_follow(context: OperationContext, tenant: Tenant, repository: Repository, kept: "Iterable[Keeping]") -> int:
    """Extend the locks of backups that stay longer than these last, as holds and changed policies have it; how many."""
    if not store_locks(repository):
        return 0
    now, count = clock.now(), 0
    wanted = {
        each.known.point.id: lock_goal(each.verdict.goes_at, now)
        for each in kept
        if each.verdict.kept and each.known.left_at is None and not each.leaves
    }
    for backup in Backup.objects.filter(tenant=tenant, pk__in=list(wanted)).order_by("-number"):
        until = wanted[backup.pk]
        if backup.locked_until is not None and backup.locked_until >= until:
            continue
        context.check()
        manifest = wiring.manifest_of(repository, backup)
        domain = repository.domain(encrypted=backup.encrypt)
        locker = Locker(repository, domain, until=until, covered=False, progress=context)
        locker.extend_for(manifest.document["sources"])
        locker.seal(manifest.number)
        if locker.locked_until is None:
            return count  # It refuses all of them alike, and has been warned of.
        Backup.objects.filter(pk=backup.pk).update(locked_until=locker.locked_until)
        count += 1
    return count
