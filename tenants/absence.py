"""What to say, and to do, when the store that something lies in is not there."""

from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import BackupMissing, LastroError, RepositoryMissing, StoreUnreachable
from engine.fallback import ReadingRepository
from engine.repository import Repository
from tenants.models import Backup, BackupCopy, BackupPresence, Copy, Tenant


@contextmanager
def primary_missed(tenant: Tenant) -> Iterator[None]:
    """Add to the hint of an error that the tenant's primary is not there what can be done when it is gone for good."""
    try:
        yield
    except (StoreUnreachable, RepositoryMissing) as error:
        error.hint = "; ".join(filter(None, (error.hint, f"if it is gone for good: {promotion_hint(tenant)}")))
        raise


def promotion_hint(tenant: Tenant) -> str:
    """The command by which backups go on without the primary."""
    others = Copy.objects.filter(tenant=tenant, enabled=True, selection__gt=0).exclude(store=tenant.store_id)
    name = others.order_by("position").values_list("store__name", flat=True).first()
    if name is not None:
        return f"copy promote {tenant.slug} {name} --lost"
    return f"tenant set {tenant.slug} --store NAME --lost begins anew in another store"


def backup_away(repository: Repository, backup: Backup, error: BackupMissing) -> LastroError:
    """What it means that none of the places could give the backup: StoreUnreachable when one that holds it is away."""
    if not isinstance(repository, ReadingRepository):
        return error
    away = {place.name: place.error for place in repository.places if isinstance(place.error, StoreUnreachable)}
    there = BackupCopy.objects.filter(backup=backup).exclude(presence=BackupPresence.MISSING)
    holding = set(there.values_list("copy__store__name", flat=True))
    if backup.left_at is None:
        holding.add(backup.tenant.store.name)
    names = sorted(holding & away.keys())
    if not names:
        return error
    told = away[names[0]]
    return StoreUnreachable(
        f"backup {backup.pk} lies in {' and '.join(names)} alone, which cannot be reached: {told.message if told else ''}",
        hint=f"bring it back, then: store test {names[0]}; if it is gone for good: store remove {names[0]} --lost",
    )
