"""Copies of a tenant's repository in further stores: added, changed, removed, and their work asked for."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import F, Max

from audit.services import record
from core.errors import Conflict
from engine.errors import RepositoryMissing
from operations.models import Operation, OperationState
from operations.services import operation_enqueue
from tenants import wiring
from tenants.copy_opening import copy_on
from tenants.copy_selectors import copies_due, copies_of, copy_primary
from tenants.models import Copy, CopyHealth, StoreConfig, Tenant
from tenants.services.backups import tenant_active

COPY_KINDS = ("copy", "copy_verify", "copy_repair")
VERIFY_MODES = ("structure", "sample", "deep")
REPAIR_ACTOR = "system:repair"
AFTER_ACTOR = "system:copies"
ALL_AT_ONCE = 2
"""Copies that a scheduled run over all tenants works on at a time."""
_PAGE = 200


def copy_add(tenant: Tenant, store: StoreConfig, *, actor: str, afterwards: bool = True, images: bool = False) -> Copy:
    """Have a store hold a copy of the tenant's backups; nothing is copied yet.

    Raises Conflict when it does already, WrongKey when the place holds another repository, StoreError when the store
    cannot be used.
    """
    tenant_active(tenant)
    if store.pk == tenant.store_id:
        raise Conflict(
            f"store {store.name} is the primary of tenant {tenant.slug}", hint="a copy lies in another store"
        )
    primary = copy_primary(tenant)
    place = max(Copy.objects.filter(tenant=tenant).aggregate(last=Max("position"))["last"] or 0, 0) + 1
    copy = Copy(tenant=tenant, store=store, position=place, afterwards=afterwards, images=images)
    _place_tried(copy)
    try:
        with transaction.atomic():
            copy.save(force_insert=True)
            record(
                "copy.added",
                message=f"backups of {tenant.slug} are to be copied from {primary.store.name} to {store.name}",
                actor=actor,
                tenant=tenant.slug,
                data={"copy": copy.pk, "store": store.name, "afterwards": afterwards, "images": images},
            )
    except IntegrityError:
        raise Conflict(
            f"tenant {tenant.slug} has a copy in store {store.name} already",
            hint=f"copy run {tenant.slug} --store {store.name} brings it up to date",
        ) from None
    return copy


def _place_tried(copy: Copy) -> None:
    """Look whether the store answers and what it holds under this repository's name."""
    with wiring.store_open(copy.store) as store, suppress(RepositoryMissing):
        copy_on(copy, store)


def copy_set(
    copy: Copy, *, actor: str, enabled: bool | None = None, afterwards: bool | None = None, images: bool | None = None
) -> Copy:
    """Change what is given: whether it is kept up at all, at once after each backup, with change images."""
    changes = {"enabled": enabled, "afterwards": afterwards, "images": images}
    changes = {name: value for name, value in changes.items() if value is not None}
    with transaction.atomic():
        Copy.objects.filter(pk=copy.pk).update(**changes)
        record(
            "copy.changed",
            message=f"copy of {copy.tenant.slug} in {copy.store.name} changed",
            actor=actor,
            tenant=copy.tenant.slug,
            data={"copy": copy.pk, **changes},
        )
    copy.refresh_from_db()
    return copy


def copy_remove(copy: Copy, *, actor: str, reason: str = "") -> None:
    """Keep the copy up no more and forget what it holds; the objects stay in the store as they are.

    Raises Conflict for the primary, and when a backup would be in no store that is known any more.
    """
    tenant = copy.tenant
    if copy.store_id == tenant.store_id:
        raise Conflict(f"store {copy.store.name} is the primary of tenant {tenant.slug}", hint="it is no copy")
    alone = _held_here_alone(copy)
    if alone:
        raise Conflict(
            f"{len(alone)} backups of {tenant.slug} are in no other store any more, {alone[0]} among them",
            hint=f"copy add {tenant.slug} NAME and copy run bring them elsewhere; or: backup delete them",
        )
    with transaction.atomic():
        record(
            "copy.removed",
            message=f"backups of {tenant.slug} are no longer copied to {copy.store.name}; what lies there stays",
            actor=actor,
            tenant=tenant.slug,
            level="warning",
            data={"copy": copy.pk, "store": copy.store.name, "reason": reason},
        )
        Copy.objects.filter(pk=copy.pk).delete()


def _held_here_alone(copy: Copy) -> list[str]:
    from tenants.models import BackupCopy, BackupPresence
    from tenants.models.backup import GOOD_STATES

    here = BackupCopy.objects.filter(
        copy=copy, presence=BackupPresence.PRESENT, backup__left_at__isnull=False, backup__state__in=GOOD_STATES
    )
    elsewhere = BackupCopy.objects.filter(copy__tenant=copy.tenant, presence=BackupPresence.PRESENT).exclude(copy=copy)
    return list(here.exclude(backup__in=elsewhere.values("backup")).values_list("backup", flat=True)[:100])


# ---------------------------------------------------------------- work


def copy_run_start(
    copy: Copy,
    *,
    actor: str,
    reason: str = "",
    here: bool = False,
    look: bool = True,
    read_back: bool = False,
    drop: bool = True,
) -> Operation:
    """Queue a run of the copy: bring what it lacks, then drop what its retention has let go."""
    params = {"look": look, "read_back": read_back, "drop": drop}
    return _start("copy", copy, params, actor=actor, reason=reason, here=here)


def copy_verify_start(
    copy: Copy, *, mode: str, actor: str, reason: str = "", here: bool = False, repair: bool = True
) -> Operation:
    """Queue a verification of the whole store: `structure`, the `sample` that is due, or every byte (`deep`).

    With `repair` what is found is mended from another copy by an operation of its own.
    """
    assert mode in VERIFY_MODES
    return _start("copy_verify", copy, {"mode": mode, "repair": repair}, actor=actor, reason=reason, here=here)


def copy_repair_start(copy: Copy, *, actor: str, reason: str = "", here: bool = False) -> Operation:
    """Queue the mending of everything that was found lost or altered in this store."""
    return _start("copy_repair", copy, {}, actor=actor, reason=reason, here=here)


def copies_all_start(*, what: str, at_once: int, actor: str, reason: str = "", here: bool = False) -> Operation:
    """Queue a run (`run`) or a verification (`structure`, `sample`) of the copies of all tenants, `at_once` at a time."""
    assert what == "run" or what in VERIFY_MODES
    with transaction.atomic():
        return operation_enqueue(
            kind="copies",
            tenant="",
            params={"what": what, "at_once": at_once},
            actor=actor,
            reason=reason,
            here=here,
        )


def copies_queue_after(tenant: Tenant, *, actor: str = AFTER_ACTOR) -> list[str]:
    """Queue the copies that every backup is followed by; one that waits already is not queued again."""
    followers = [copy for copy in copies_of(tenant) if copy.enabled and copy.afterwards and not _waits("copy", copy)]
    return [copy_run_start(copy, actor=actor, reason="after a backup", look=False).pk for copy in followers]


def repair_queue(copy: Copy, *, actor: str = REPAIR_ACTOR) -> str | None:
    """Queue the repair of a store in which something was found, unless one waits already."""
    if _waits("copy_repair", copy):
        return None
    return copy_repair_start(copy, actor=actor, reason="found by a verification").pk


def copies_page(*, primaries: bool) -> Iterator[Copy]:
    """Every copy to be worked on by a run over all tenants, the longest not run first."""
    if primaries:
        _primaries_known()
    ids = list(copies_due(primaries=primaries).values_list("pk", flat=True))
    for at in range(0, len(ids), _PAGE):
        page = Copy.objects.select_related("store", "tenant__store").in_bulk(ids[at : at + _PAGE])
        yield from (page[pk] for pk in ids[at : at + _PAGE] if pk in page)


def _primaries_known() -> None:
    """Make the rows of primaries that nobody has asked for yet."""
    without: Iterable[Any] = (
        Tenant.objects.filter(archived_at=None, shredded_at=None)
        .exclude(copies__store=F("store"))
        .values_list("pk", "store_id")
        .iterator(chunk_size=1_000)
    )
    batch = [Copy(tenant_id=pk, store_id=store_id, position=0, health=CopyHealth.WHOLE) for pk, store_id in without]
    Copy.objects.bulk_create(batch, batch_size=500, ignore_conflicts=True)


def _start(kind: str, copy: Copy, params: dict[str, Any], *, actor: str, reason: str, here: bool) -> Operation:
    with transaction.atomic():
        return operation_enqueue(
            kind=kind,
            tenant=copy.tenant.slug,
            params={"store": copy.store.name, "primary": copy.is_primary, **params},
            subject_id=copy.pk,
            actor=actor,
            reason=reason,
            here=here,
        )


def _waits(kind: str, copy: Copy) -> bool:
    """Whether such an operation is queued; one that runs may have looked already."""
    return Operation.objects.filter(kind=kind, subject_id=copy.pk, state=OperationState.QUEUED).exists()
