"""The trash: ended backups wait there, restorable, until their term is over; only then may the store forget them."""

import datetime
from collections.abc import Collection, Sequence

from django.conf import settings
from django.db import transaction

from audit.services import record
from core import clock
from core.errors import Conflict
from engine.errors import BackupMissing
from operations.context import OperationContext
from tenants import wiring
from tenants.models import Backup, BackupState, Source, Tenant
from tenants.models.backup import ENDED_STATES, GOOD_STATES
from tenants.transitions import backup_transition, backups_transition

NAMED_MAX = 200
"""Ids that an audit entry names; it counts them all."""


def backup_trash(backup: Backup, *, actor: str, reason: str) -> None:
    """Put one backup into the trash by hand, in the caller's transaction."""
    backup_transition(
        backup,
        to=BackupState.DELETED,
        actor=actor,
        reason=reason,
        expected={"held": False, "tenant__held": False},
        trashed_at=clock.now(),
    )
    record(
        "backup.trashed",
        message=f"backup {backup.pk} of {backup.tenant.slug} is in the trash",
        actor=actor,
        tenant=backup.tenant.slug,
        level="warning",
        data={"backup": backup.pk, "number": backup.number, "reason": reason, "days": settings.LASTRO_TRASH_DAYS},
    )


def backups_expire(context: OperationContext, tenant: Tenant, ids: Sequence[str], *, reason: str) -> list[str]:
    """Put backups that no rule keeps into the trash; the ids of those that were put there.

    A hold, or a source's last good backup, that came between the decision and this moment is respected.
    """
    if not ids:
        return []
    with transaction.atomic():
        context.fence()
        last = set(Source.every.filter(tenant=tenant).values_list("last_good_backup_id", flat=True))
        moved = backups_transition(
            [pk for pk in ids if pk not in last],
            to=BackupState.EXPIRED,
            actor=context.operation.actor,
            reason=reason,
            expected={"tenant": tenant, "tenant__held": False, "held": False},
            trashed_at=clock.now(),
        )
        if moved:
            record(
                "backup.expired",
                message=f"{len(moved)} backups of {tenant.slug} are in the trash",
                actor=context.operation.actor,
                tenant=tenant.slug,
                data={"count": len(moved), "backups": moved[:NAMED_MAX], "reason": reason},
            )
    return moved


def backups_leave(context: OperationContext, tenant: Tenant, ids: Sequence[str]) -> int:
    """Note that the primary store lets go of backups which copies keep; how many."""
    if not ids:
        return 0
    with transaction.atomic():
        context.fence()
        rows = Backup.objects.filter(pk__in=ids, tenant=tenant, state__in=GOOD_STATES, left_at=None, held=False)
        count = rows.update(left_at=clock.now())
        if count:
            record(
                "backup.left_primary",
                message=f"{count} backups of {tenant.slug} are kept by copies alone now",
                actor=context.operation.actor,
                tenant=tenant.slug,
                data={"count": count, "backups": list(ids)[:NAMED_MAX], "store": tenant.store.name},
            )
    return count


def trash_due(tenant: Tenant) -> list[Backup]:
    """Backups whose term in the trash is over, and that nothing holds."""
    if tenant.held:
        return []
    over = clock.now() - datetime.timedelta(days=settings.LASTRO_TRASH_DAYS)
    rows = Backup.objects.filter(tenant=tenant, trashed_at__lte=over, held=False)
    return list(rows.order_by("number").only("pk", "number", "state", "tenant_id"))


def trash_emptied(context: OperationContext, tenant: Tenant, backups: Collection[Backup]) -> None:
    """Record that the store has forgotten these backups: they cannot be taken back any more."""
    if not backups:
        return
    ids = [backup.pk for backup in backups]
    with transaction.atomic():
        context.fence()
        for begin in range(0, len(ids), 500):
            Backup.objects.filter(pk__in=ids[begin : begin + 500], state__in=ENDED_STATES).update(trashed_at=None)
        record(
            "backup.forgotten",
            message=f"{len(ids)} backups of {tenant.slug} were forgotten for good",
            actor=context.operation.actor,
            tenant=tenant.slug,
            level="warning",
            data={"count": len(ids), "backups": ids[:NAMED_MAX]},
        )


def backup_undelete(backup: Backup, *, actor: str, reason: str = "") -> Backup:
    """Take a backup back out of the trash, and hold it: the rules that ended it would do so again.

    Raises Conflict when it is not in the trash, or when no store holds it any more.
    """
    if backup.trashed_at is None:
        gone = backup.state in ENDED_STATES
        raise Conflict(
            f"backup {backup.pk} {'was forgotten for good' if gone else 'is not in the trash'}",
            hint="backup list TENANT --trash shows what can be taken back",
        )
    _still_stored(backup)
    back = BackupState.WARNED if backup.warnings else BackupState.SUCCEEDED
    said = reason or "taken back from the trash"
    with transaction.atomic():
        backup_transition(
            backup,
            to=back,
            actor=actor,
            reason=said,
            expected={"trashed_at": backup.trashed_at},
            trashed_at=None,
            expires_at=None,
            held=True,
            held_reason=said[:500],
        )
        record(
            "backup.undeleted",
            message=f"backup {backup.pk} of {backup.tenant.slug} was taken back from the trash, and is held",
            actor=actor,
            tenant=backup.tenant.slug,
            level="warning",
            data={"backup": backup.pk, "reason": said},
        )
    return backup


def _still_stored(backup: Backup) -> None:
    """A run that was killed while it emptied the trash may have told the store before the catalogue."""
    from tenants.models import BackupCopy, BackupPresence

    if BackupCopy.objects.filter(backup=backup, presence=BackupPresence.PRESENT).exists():
        return
    try:
        with wiring.repository_open(backup.tenant) as repository:
            wiring.manifest_of(repository, backup)
    except BackupMissing:
        raise Conflict(
            f"backup {backup.pk} was forgotten by the store already", hint="the next run of retention says so, too"
        ) from None
