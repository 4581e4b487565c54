"""Promotions: a tenant's primary moves into another store. Asked for here; handlers.promote does it.

One mechanism for a planned move, for a copy that takes the place of a lost primary, and for a tenant whose only store
is lost. The primary is the place where packs are written and pruned, so everything happens under the tenant's lease and that
of the copy. What is settled before the switch can be repeated or left; the switch is one transaction (`primary_switch`)
that also forbids every deletion until catalogue and new primary are reconciled; what follows is taken up again by
whoever repeats the command.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from django.db import transaction
from django.db.models import Q

from audit.services import record
from core import clock
from core.errors import Conflict
from engine.errors import LastroError, StoreError
from operations.models import Operation, OperationState
from operations.services import operation_cancel, operation_enqueue
from tenants import wiring
from tenants.copy_selectors import copies_of, copy_primary
from tenants.models import (
    Backup,
    BackupCopy,
    BackupPresence,
    Copy,
    CopyHealth,
    Promotion,
    RepositoryMirror,
    StoreConfig,
    Tenant,
)
from tenants.models.backup import GOOD_STATES
from tenants.owning import behind_put
from tenants.services.copies import copy_add
from tenants.services.stores import primary_checked
from tenants.shredded import keys_present

NAMED_MAX = 200
_BATCH = 500


def promote_start(
    tenant: Tenant,
    store: StoreConfig,
    *,
    actor: str,
    reason: str = "",
    lost: bool = False,
    ending: bool = False,
    deep: bool = False,
    here: bool = False,
) -> Operation:
    """Queue the move of the tenant's primary into this store, or the rest of one that was stopped.

    A store that holds no copy yet becomes one first. Planned, it is brought up to date and verified before anything
    is switched (`deep`: every byte), and the former primary stays as a copy, unless `ending`. `lost`: the primary is
    not there; what it alone held stays listed until its store is given up. Raises Conflict, StoreError.
    """
    keys_present(tenant)
    begun = Promotion.objects.filter(tenant=tenant, settled_at=None).first()
    if begun is not None and begun.after_id != store.pk:
        raise Conflict(
            f"the primary of {tenant.slug} is on its way from {begun.before_name} to {begun.after_name}",
            hint=f"finish that first: copy promote {tenant.slug} {begun.after_name}",
        )
    if begun is None:
        if store.pk == tenant.store_id:
            raise Conflict(
                f"store {store.name} is the primary of tenant {tenant.slug} already", hint="nothing is to do"
            )
        primary_checked(store)
        if lost:
            _not_there_checked(tenant)
        if not Copy.objects.filter(tenant=tenant, store=store).exists():
            copy_add(tenant, store, actor=actor)
    params = {"store": store.name, "store_id": store.pk, "lost": lost, "ending": ending, "deep": deep}
    with transaction.atomic():
        return operation_enqueue(
            kind="promote",
            tenant=tenant.slug,
            params=params,
            subject_id=tenant.pk,
            actor=actor,
            reason=reason,
            here=here,
        )


def _not_there_checked(tenant: Tenant) -> None:
    """Raise Conflict when the primary answers and holds the tenant's repository: then nothing has to be given up."""
    if primary_present(tenant) and tenant.repository_ready:
        raise Conflict(
            f"store {tenant.store.name} answers and holds the repository of {tenant.slug}: it is not lost",
            hint="leave out --lost: what it holds is brought along; what is damaged there is mended by copy repair, or "
            "ended by backup delete",
        )


def primary_present(tenant: Tenant) -> bool:
    """Whether the tenant's primary can be opened and holds its repository."""
    try:
        with wiring.store_open(tenant.store) as store:
            return wiring.repository_present(store, tenant.repository_id)
    except LastroError:
        return False


def copy_best(tenant: Tenant) -> Copy | None:
    """The copy that holds the most of the tenant's good backups and can be opened; None when none holds any."""
    good = Backup.objects.filter(tenant=tenant, state__in=GOOD_STATES)
    held: dict[str, int] = {}
    for copy_id in BackupCopy.objects.filter(
        copy__tenant=tenant, presence=BackupPresence.PRESENT, backup__in=good
    ).values_list("copy_id", flat=True):
        held[copy_id] = held.get(copy_id, 0) + 1
    rows = [row for row in copies_of(tenant) if held.get(row.pk)]
    for row in sorted(rows, key=lambda each: (-held[each.pk], each.position)):
        try:
            with wiring.store_open(row.store) as store:
                if wiring.repository_present(store, tenant.repository_id):
                    return row
        except StoreError:
            continue
    return None


def held_by_primary(tenant: Tenant) -> dict[int, str]:
    """Number -> digest of what the primary ought to hold: good backups, and those in the trash."""
    rows = Backup.objects.filter(tenant=tenant, number__isnull=False, left_at=None).exclude(manifest_sha256="")
    rows = rows.filter(Q(state__in=GOOD_STATES) | Q(trashed_at__isnull=False))
    return {n: sha for n, sha in rows.values_list("number", "manifest_sha256") if n is not None}


def alone_in_primary(tenant: Tenant) -> list[str]:
    """Ids of the backups that no copy is known to hold; newest first."""
    rows = Backup.objects.filter(tenant=tenant, number__isnull=False, state__in=GOOD_STATES, left_at=None)
    there = BackupCopy.objects.filter(copy__tenant=tenant, presence=BackupPresence.PRESENT)
    elsewhere = there.exclude(copy__store=tenant.store_id).values("backup")
    return list(rows.exclude(pk__in=elsewhere).order_by("-pk").values_list("pk", flat=True))


# ---------------------------------------------------------------- the switch


def primary_switch(
    tenant: Tenant,
    store: StoreConfig,
    *,
    actor: str,
    lost: bool,
    gone: bool = False,
    ending: bool = False,
    whole: Collection[int] = (),
    hurt: Collection[int] = (),
    account: Mapping[str, Any] | None = None,
    operation_id: str = "",
) -> Promotion:
    """Make the store the tenant's primary, inside the caller's transaction; nothing is deleted until it is reconciled.

    `lost`: the former primary cannot be reached; it stays as a copy that is switched off, with all that it held, so that
    what lies there alone is not ended; `gone` besides: it answers and holds nothing. `whole` and `hurt` are numbers of
    the backups that the new primary was seen to hold, as they are there.
    """
    before = tenant.store
    former, after = _rows(tenant, store)
    if gone:
        BackupCopy.objects.filter(copy=former).delete()
    else:
        _former_holds(tenant, former)
    health = CopyHealth.AWAY if lost else CopyHealth.WHOLE
    Copy.objects.filter(pk=former.pk).update(
        position=max(after.position, 1),
        enabled=not (lost or gone),
        health=CopyHealth.DAMAGED if gone else health,
        selection=0,
    )
    BackupCopy.objects.filter(copy=after).delete()  # Of a primary none is kept.
    whole_now = CopyHealth.DAMAGED if hurt else CopyHealth.WHOLE
    Copy.objects.filter(pk=after.pk).update(position=0, enabled=True, selection=0, health=whole_now)
    _damage_as_seen(tenant, whole, hurt)
    Backup.objects.filter(tenant=tenant).exclude(locked_until=None).update(locked_until=None)
    Tenant.objects.filter(pk=tenant.pk).update(store=store)
    behind_put(tenant, f"its backups go on in store {store.name}")
    # The index of a copy has generations of its own; reconciling finds how far they have come.
    fresh = {"sealed_generation": 0, "plain_generation": 0, "promised": {"at_least": after.selection}}
    RepositoryMirror.objects.filter(tenant=tenant).update(**fresh)
    _queued_cancel(after, actor=actor, why=f"store {store.name} is the primary now")
    Promotion.objects.filter(tenant=tenant, settled_at=None).update(settled_at=clock.now())  # Overtaken by this one.
    done = Promotion.objects.create(
        tenant=tenant,
        before=before,
        after=store,
        before_name=before.name,
        after_name=store.name,
        lost=lost,
        ending=ending,
        account=dict(account or {}),
        operation_id=operation_id,
        switched_at=clock.now(),
    )
    record(
        "tenant.store_changed",
        message=f"the backups of {tenant.slug} go on in store {store.name}"
        + (f", as {before.name} is not there" if lost else f"; {before.name} was their primary"),
        actor=actor,
        tenant=tenant.slug,
        level="warning",
        data={"from": before.name, "to": store.name, "lost": lost, "promotion": done.pk},
    )
    tenant.refresh_from_db()
    return done


def _rows(tenant: Tenant, store: StoreConfig) -> tuple[Copy, Copy]:
    """The rows of the former and of the new primary."""
    former = copy_primary(tenant)
    after, _ = Copy.objects.get_or_create(tenant=tenant, store=store)
    return former, after


def _former_holds(tenant: Tenant, former: Copy) -> None:
    """Write down what the former primary held, as of any copy."""
    BackupCopy.objects.filter(copy=former).delete()
    rows = Backup.objects.filter(tenant=tenant, number__isnull=False, left_at=None)
    rows = rows.filter(Q(state__in=GOOD_STATES) | Q(trashed_at__isnull=False))
    found = (
        BackupCopy(
            copy=former,
            backup_id=pk,
            presence=BackupPresence.DAMAGED if damaged else BackupPresence.PRESENT,
            locked_until=locked,
            verified_at=verified,
        )
        for pk, damaged, locked, verified in rows.values_list("pk", "damaged", "locked_until", "verified_at").iterator()
    )
    BackupCopy.objects.bulk_create(found, batch_size=_BATCH)


def _damage_as_seen(tenant: Tenant, whole: Collection[int], hurt: Collection[int]) -> None:
    """What was damaged in the former primary is whole where the new one has it whole, and the other way round."""
    rows = Backup.objects.filter(tenant=tenant, number__isnull=False)
    for damaged, numbers in ((False, sorted(whole)), (True, sorted(hurt))):
        for at in range(0, len(numbers), _BATCH):
            some = rows.filter(number__in=numbers[at : at + _BATCH], damaged=not damaged)
            some.update(damaged=damaged)


def _queued_cancel(copy: Copy, *, actor: str, why: str) -> None:
    """What waits to be done to it as to a copy has lost its sense."""
    waiting = Operation.objects.filter(subject_id=copy.pk, state=OperationState.QUEUED)
    for operation in list(waiting.values_list("pk", flat=True)):
        operation_cancel(operation, actor=actor, reason=why)


# ---------------------------------------------------------------- afterwards


def promotion_settled(promotion: Promotion, account: Mapping[str, Any], *, actor: str) -> Promotion:
    """Write down that nothing of it is left to be done, and what it came to."""
    with transaction.atomic():
        Promotion.objects.filter(pk=promotion.pk).update(settled_at=clock.now(), account=dict(account))
        record(
            "tenant.promoted",
            message=f"{promotion.after_name} is the primary of {promotion.tenant.slug}, in the place of "
            f"{promotion.before_name}",
            actor=actor,
            tenant=promotion.tenant.slug,
            level="warning",
            data={"promotion": promotion.pk, **account},
        )
    promotion.refresh_from_db()
    return promotion


def promotions_unsettled(tenants: Iterable[Tenant] | None = None) -> list[Promotion]:
    """Moves of primaries that were stopped after the switch: nothing of these tenants is deleted meanwhile."""
    rows = Promotion.objects.filter(settled_at=None).select_related("tenant").order_by("pk")
    return list(rows if tenants is None else rows.filter(tenant__in=tenants))
