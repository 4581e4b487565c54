"""Catalogue and store are brought together again after the catalogue was restored: nothing is deleted before that."""

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Greatest

from audit.services import record
from core import clock
from core.errors import Unreconciled
from engine.erasures import ErasureLedger
from engine.errors import BackupMissing, ManifestDamaged, ManifestForged, ObjectMissing, RepositoryAhead
from engine.faults import kill_point
from engine.images import images_list
from engine.manifest import Manifest
from engine.ports import Store
from engine.repository import Repository
from operations.context import OperationContext
from tenants.models import (
    Backup,
    BackupCopy,
    BackupPresence,
    BackupSource,
    BackupState,
    CatalogueStore,
    Origin,
    Promotion,
    RepositoryMirror,
    RestoreSource,
    Source,
    StoreConfig,
    Tenant,
)
from tenants.models.backup import GOOD_STATES
from tenants.owning import behind_put, installation_get, mirror_of
from tenants.services.numbers import NUMBERS_AHEAD_MAX
from tenants.services.promised import promised
from tenants.services.recording import backup_adopted
from tenants.services.strangers import strangers_refused
from tenants.transitions import backup_transition

ACTOR = "system:reconciliation"
NAMED_MAX = 100
_BATCH = 500
LOST_REASON = "ended in the store, found when it was reconciled"


@dataclass
class Reconciled:
    """What reconciling one tenant changed in the catalogue."""

    tenant: str
    adopted: list[str] = field(default_factory=list)
    """Backups that only the store knew."""
    ended: list[str] = field(default_factory=list)
    """Backups that the catalogue took for good and the store had ended."""
    left: list[str] = field(default_factory=list)
    """Backups that this store does not hold, and another copy does: they stay, in copies alone."""
    missing: list[str] = field(default_factory=list)
    """Backups that the store has lost without a record: they need another copy."""
    replaced: list[str] = field(default_factory=list)
    """Good backups under whose numbers the store holds other ones: those are lost, and somebody wrote these."""
    numbers: int = 0
    erasures: int = 0
    images: int = 0

    def answer(self) -> dict[str, object]:
        """As JSON; long lists are cut."""
        return {key: value[:NAMED_MAX] if isinstance(value, list) else value for key, value in asdict(self).items()}


# ---------------------------------------------------------------- is anything to be reconciled?


def reconciled_checked(tenant: Tenant, repository: Repository) -> None:
    """Raise Unreconciled when the store is known, or turns out, to know more than this catalogue, TakenOver for a lost one.

    Everything is asked for by name, because a listing may end early: a handful of look-ups, and one for each good
    backup that the listing lacks. To be called under the tenant's lease before anything is deleted or ended.
    """
    repository.guard.check()
    tenant.refresh_from_db()
    mirror = mirror_of(tenant)
    reason = mirror.behind_reason if mirror.behind_since else _ahead(tenant, repository, mirror)
    if not reason:
        return
    behind_put(tenant, reason)
    raise _unreconciled(tenant, reason)


def _unreconciled(tenant: Tenant, reason: str) -> Unreconciled:
    moved = Promotion.objects.filter(tenant=tenant, settled_at=None).first()
    if moved is not None:
        return Unreconciled(
            f"the primary of {tenant.slug} is on its way to {moved.after_name}; nothing was deleted",
            hint=f"finish the move: copy promote {tenant.slug} {moved.after_name}",
        )
    return Unreconciled(
        f"the store of {tenant.slug} knows more than this catalogue ({reason}); nothing was deleted",
        hint=f"was the catalogue restored? take over what the store knows: store reconcile {tenant.store.name} "
        f"--tenant {tenant.slug}",
    )


def _ahead(tenant: Tenant, repository: Repository, mirror: RepositoryMirror) -> str:
    """Why the catalogue is behind; empty when it is not."""
    if repository.head() > tenant.number_reserved:
        strangers_refused(tenant, repository)
    if repository.head_from(tenant.number_reserved, most=1) > tenant.number_reserved:
        return f"it holds number {tenant.number_reserved + 1}, this catalogue gave out {tenant.number_reserved}"
    for domain, known in ((repository.sealed, mirror.sealed_generation), (repository.plain, mirror.plain_generation)):
        last, _ = domain.index.claims_after(known)
        if last > known:
            return f"{last - known} prunes or repairs are not known here"
    if _is_there(repository.store, f"{repository.prefix}erasures/{tenant.erasures_number + 1:010d}"):
        return f"erasure record {tenant.erasures_number + 1} is not known here"
    return _catalogue_ahead(tenant.store, repository.store) or _ended_meanwhile(tenant, repository)


def _is_there(store: Store, key: str) -> bool:
    try:
        store.stat(key)
    except ObjectMissing:
        return False
    return True


def _catalogue_ahead(row: StoreConfig, store: Store) -> str:
    """A backup of this catalogue that it does not remember: it was restored from an earlier one."""
    place = CatalogueStore.objects.filter(store=row).first()
    number = place.number_reserved if place else 0
    prefix = f"r/{installation_get().repository_id}/"
    if (place is not None and place.behind) or any(
        _is_there(store, f"{prefix}{folder}/{number + 1:010d}") for folder in ("manifests", "forgets")
    ):
        return f"catalogue backup {number + 1} is not known here"
    return ""


def _ended_meanwhile(tenant: Tenant, repository: Repository) -> str:
    """A backup that the catalogue takes for good and the store has ended by a signed record."""
    listed = set(repository.numbers())
    good = Backup.objects.filter(tenant=tenant, state__in=GOOD_STATES, left_at=None).values_list("number", flat=True)
    for number in good.iterator():
        if number is None or number in listed or _is_there(repository.store, _manifest_key(repository, number)):
            continue
        if repository.forgotten(number):
            return f"backup number {number} was ended there"
    return ""


def _manifest_key(repository: Repository, number: int) -> str:
    return f"{repository.prefix}manifests/{number:010d}"


@contextmanager
def strangers_noted(tenant: Tenant) -> Iterator[None]:
    """A prune that comes upon a backup which the catalogue does not know leaves that behind as the reason."""
    try:
        yield
    except RepositoryAhead as error:
        behind_put(tenant, error.message)
        raise _unreconciled(tenant, error.message) from error


def manifests_known(tenant: Tenant) -> Mapping[int, str]:
    """Number -> digest of every manifest that the catalogue has recorded, ended ones too: prune refuses any other."""
    rows = Backup.objects.filter(tenant=tenant, number__isnull=False).exclude(manifest_sha256="")
    return {number: sha256 for number, sha256 in rows.values_list("number", "manifest_sha256") if number is not None}


# ---------------------------------------------------------------- reconciling


def tenant_reconcile(
    context: OperationContext, tenant: Tenant, repository: Repository, *, close: bool, promoted: bool = False
) -> Reconciled:
    """Take over what the store knows of the tenant: its numbers, manifests, ends, erasures, images, generations.

    Under the tenant's lease. With `close` the next number is closed by a void record, so that no session which began
    under another owner, or before the catalogue was restored, can still commit. `promoted`: the store was a copy until
    now, so that what it lacks and had not promised was never given to it; that is ended, instead of missed. Repeating it
    changes nothing more.
    """
    tenant.refresh_from_db()
    found, mirror = Reconciled(tenant.slug), mirror_of(tenant)
    sealed, sealed_head = repository.sealed.index.claims_after(mirror.sealed_generation)
    plain, plain_head = repository.plain.index.claims_after(mirror.plain_generation)
    head = _head(tenant, repository, max(sealed_head, plain_head))
    context.phase("take over backups")
    opened = _take_over(context, tenant, repository, head, found, promoted=promoted)
    last = _numbers_closed(context, tenant, repository, head, opened, found, close=close)
    found.erasures = ErasureLedger.load(repository, at_least=tenant.erasures_number).number
    images = _images_unnamed(tenant, repository)
    found.images = len(images)
    kill_point("reconcile.taken_over")
    with transaction.atomic():
        context.fence()
        Tenant.objects.filter(pk=tenant.pk).update(
            number_reserved=Greatest("number_reserved", last),
            numbers_closed=Greatest("numbers_closed", last),
            erasures_number=Greatest("erasures_number", found.erasures),
        )
        RepositoryMirror.objects.filter(tenant=tenant).update(
            sealed_generation=Greatest("sealed_generation", sealed),
            plain_generation=Greatest("plain_generation", plain),
            behind_since=None,
            behind_reason="",
            reconciled_at=clock.now(),
            images_kept=images,
            promised=None,
        )
        record(
            "repository.reconciled",
            message=f"{tenant.slug}: {len(found.adopted)} backups taken over from the store, {len(found.ended)} ended",
            actor=context.operation.actor,
            tenant=tenant.slug,
            level="warning" if found.missing or found.replaced else "info",
            data={
                "adopted": len(found.adopted),
                "ended": len(found.ended),
                "left": len(found.left),
                "missing": len(found.missing),
                "replaced": found.replaced[:NAMED_MAX],
                "numbers": last,
                "erasures": found.erasures,
                "images": found.images,
            },
        )
    tenant.refresh_from_db()
    found.numbers = tenant.number_reserved
    return found


def _head(tenant: Tenant, repository: Repository, claimed: int) -> int:
    """The highest number, by name from what the catalogue, the listing and the claims of prunes know."""
    known = tenant.number_reserved
    strangers_refused(tenant, repository)
    head = repository.head_from(max(known, claimed, repository.head()), most=NUMBERS_AHEAD_MAX + 1)
    if head > known + NUMBERS_AHEAD_MAX and known:
        raise ManifestDamaged(
            f"the store holds number {head} of {tenant.slug}, the catalogue knows {known}",
            hint="is this another installation's repository? nothing was changed",
        )
    return head


def _take_over(
    context: OperationContext, tenant: Tenant, repository: Repository, head: int, found: Reconciled, *, promoted: bool
) -> list[int]:
    """Compare every number of the store with the catalogue; numbers given out here of which nothing came.

    A gap that nobody can account for raises ManifestDamaged.
    """
    rows = Backup.objects.filter(tenant=tenant, number__isnull=False, state__in=GOOD_STATES)
    if promoted:
        rows.filter(left_at__isnull=False).update(left_at=None)  # What copies alone kept lies in the primary now.
    else:
        rows = rows.filter(left_at=None)  # What the primary let go of on purpose is no loss here.
    good = {number: sha256 for number, sha256 in rows.values_list("number", "manifest_sha256") if number is not None}
    # Ended ones may still lie in the store, in the trash, or because a kill came between.
    ended = Backup.objects.filter(tenant=tenant, number__isnull=False).exclude(pk__in=rows.values("pk"))
    over = dict(ended.exclude(manifest_sha256="").values_list("number", "manifest_sha256"))
    present: set[int] = set()
    gaps: list[int] = []
    opened: list[int] = []
    given_out = range(tenant.numbers_closed + 1, tenant.number_reserved + 1)
    missed = gaps if promoted else opened
    for number, manifest in _chain(context, repository, head, good, given_out, missed, promoted=promoted):
        if manifest is None:
            present.add(number)  # Lost, and named so: it is not taken for ended below.
            found.missing += _lost(context, tenant, number)
            continue
        present.add(number)
        if manifest.kind != "manifest":
            continue
        if manifest.sha256 not in (good.get(number), over.get(number)):
            _stranger_out(context, tenant, number, manifest, found)
            found.adopted.append(backup_adopted(context, tenant, manifest).pk)
        context.advance(items=1)
    elsewhere = _held_elsewhere(tenant)
    if promoted:
        _unkept(context, tenant, [each for each in rows if each.pk not in elsewhere], present, found)
    if gaps:
        repository.gaps_close(head=max(head, *gaps), kept=sorted(present))
    gone = [each for each in rows if each.number not in present]
    _leave(context, [each.pk for each in gone if each.pk in elsewhere], found)
    for backup in gone:
        if backup.pk not in elsewhere:
            _end(context, backup, LOST_REASON)
            found.ended.append(backup.pk)
    emptied = Backup.objects.filter(tenant=tenant, trashed_at__isnull=False).exclude(pk__in=elsewhere)
    emptied.filter(pk__in=[each.pk for each in emptied if each.number not in present]).update(trashed_at=None)
    if found.ended:
        last_good_again(context, tenant)
    return opened


def _unkept(
    context: OperationContext, tenant: Tenant, rows: Sequence[Backup], present: set[int], found: Reconciled
) -> None:
    """What the store had promised as a copy, lacks, and nobody else has, is lost: it is named, and not taken for ended."""
    promise = promised(tenant)
    for number in sorted(each.number for each in rows if each.number is not None):
        if number not in present and number in promise:
            present.add(number)
            found.missing += _lost(context, tenant, number)


def _held_elsewhere(tenant: Tenant) -> frozenset[str]:
    """Backups that a copy in another store holds: ended here, the next run of that copy would drop its last bytes."""
    # A damaged one, too: what of it can be had is for a repair, or a person, to say.
    held = BackupCopy.objects.filter(copy__tenant=tenant).exclude(presence=BackupPresence.MISSING)
    return frozenset(held.exclude(copy__store=tenant.store_id).values_list("backup", flat=True))


def _leave(context: OperationContext, ids: Sequence[str], found: Reconciled) -> None:
    with transaction.atomic():
        context.fence()
        for at in range(0, len(ids), _BATCH):
            Backup.objects.filter(pk__in=ids[at : at + _BATCH]).update(left_at=clock.now())
    found.left += ids


def _lost(context: OperationContext, tenant: Tenant, number: int) -> list[str]:
    rows = Backup.objects.filter(tenant=tenant, number=number)
    with transaction.atomic():
        context.fence()
        rows.update(damaged=True)
    return list(rows.values_list("pk", flat=True))


def last_good_again(context: OperationContext, tenant: Tenant) -> None:
    """A source whose last good backup was ended points to the newest that is left."""
    for source in Source.every.filter(tenant=tenant, last_good_backup__state=BackupState.DELETED):
        kept = BackupSource.objects.filter(
            source=source, state=BackupSource.State.KEPT, backup__state__in=GOOD_STATES, backup__origin__in=_TAKEN
        )
        newest = kept.exclude(backup__trigger="safety").select_related("backup").order_by("-backup__taken_at").first()
        backup = newest.backup if newest else None
        with transaction.atomic():
            context.fence()
            Source.every.filter(pk=source.pk).update(
                last_good_backup=backup, last_good_at=backup.taken_at if backup else None
            )


_TAKEN = (Origin.RUN, Origin.ADOPTED)
"""An imported package says nothing of how well a source is protected now."""


def _chain(
    context: OperationContext,
    repository: Repository,
    head: int,
    good: Mapping[int, str],
    given_out: range,
    missed: list[int],
    *,
    promoted: bool,
) -> Iterable[tuple[int, Manifest | None]]:
    """Each number's document; None for one that is gone without a record although the catalogue had it.

    Added to `missed`: what a promoted copy was never given, and numbers given out here of which nothing came.
    """
    for number in range(1, max(head, *good, 0) + 1):
        context.check()
        try:
            yield number, repository.manifest(number)
        except BackupMissing:
            if _ended_truly(repository, number, known=number in good):
                continue
            if promoted or (number in given_out and number not in good):
                missed.append(number)
                continue
            if number not in good:
                raise ManifestDamaged(
                    f"number {number} is missing in the store and no signed record ended it; nothing was deleted",
                    hint="the listing may be stale: try again; else repair it from another copy",
                ) from None
            yield number, None
        except ManifestForged:
            # Under a number of ours it took a backup's place; under any other one it only stands in the way.
            lost = number in good
            yield number, None if lost else repository.void(number, "what lay here was signed by a former key")
        except ManifestDamaged:
            if number not in good:
                raise
            yield number, None


def _ended_truly(repository: Repository, number: int, *, known: bool) -> bool:
    """As `forgotten`; of a backup that the catalogue knows, a forged or altered record ends nothing: it is lost."""
    try:
        return repository.forgotten(number)
    except ManifestDamaged:
        if known:
            return False
        raise


def _stranger_out(
    context: OperationContext, tenant: Tenant, number: int, manifest: Manifest, found: Reconciled
) -> None:
    """Free the number of a backup whose manifest is not the one that the store holds: the store's is what restores."""
    other = Backup.objects.filter(tenant=tenant, number=number).exclude(pk=manifest.document["id"]).first()
    if other is None:
        return
    if other.state in GOOD_STATES:
        found.replaced.append(other.pk)
        _end(context, other, f"the store holds {manifest.document['id']} under its number")
    with transaction.atomic():
        context.fence()
        Backup.objects.filter(pk=other.pk).update(number=None)


def _end(context: OperationContext, backup: Backup, reason: str) -> None:
    with transaction.atomic():
        context.fence()
        backup_transition(backup, to=BackupState.DELETED, actor=ACTOR, reason=reason)


def _numbers_closed(
    context: OperationContext,
    tenant: Tenant,
    repository: Repository,
    head: int,
    opened: Sequence[int],
    found: Reconciled,
    *,
    close: bool,
) -> int:
    """Close what was given out here and never committed, and with `close` one number more; the last one.

    The number of a backup that the store has lost stays free, for a repair to bring it back.
    """
    last, closed = max(head, tenant.number_reserved), not close
    waiting = list(opened)
    while waiting or not closed:
        context.check()
        number = waiting.pop(0) if waiting else last + 1
        holder = repository.void(number, "closed when the catalogue was reconciled with the store")
        if holder.kind == "manifest":
            found.adopted.append(backup_adopted(context, tenant, holder).pk)
        closed = closed or (number > last and holder.kind != "manifest")
        last = max(last, number)
    return last


def _images_unnamed(tenant: Tenant, repository: Repository) -> list[str]:
    named = set(RestoreSource.objects.filter(restore__tenant=tenant).exclude(image="").values_list("image", flat=True))
    return [name for name, _ in images_list(repository) if name not in named]


def images_kept(tenant: Tenant) -> frozenset[str]:
    """Change images that a reconciliation found and no row names, while an undo could still ask for them."""
    mirror = RepositoryMirror.objects.filter(tenant=tenant).first()
    if mirror is None or mirror.reconciled_at is None:
        return frozenset()
    over = mirror.reconciled_at + datetime.timedelta(days=settings.LASTRO_UNDO_DAYS)
    return frozenset(mirror.images_kept) if clock.now() < over else frozenset()
