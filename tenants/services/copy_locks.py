"""Locks in a copy's store follow the copy's retention, as those of the primary follow its own (tenants.locking)."""

import datetime
from collections.abc import Mapping

from core import clock
from engine.errors import BackupMissing, DamageError
from engine.locking import Locker, lock_goal
from engine.repository import Repository
from engine.selections import selection_read
from operations.context import OperationContext
from tenants.copy_selectors import BATCH
from tenants.locking import store_locks
from tenants.models import BackupCopy, BackupPresence, Copy


def copy_locks_follow(
    context: OperationContext, copy: Copy, target: Repository, until: Mapping[int, datetime.datetime | None]
) -> int:
    """Have the store keep from deletion what each backup of the copy needs, until its rules let it go; how many.

    Nothing is asked for where an earlier run did so for the same stretch of 30 days.
    """
    if not store_locks(target):
        return 0
    now, count = clock.now(), 0
    rows = BackupCopy.objects.filter(copy=copy, presence=BackupPresence.PRESENT).select_related("backup")
    for row in rows.order_by("-backup_id").iterator(chunk_size=BATCH):
        number = row.backup.number
        if number is None or number not in until:
            continue
        goal = lock_goal(until[number], now)
        if row.locked_until is not None and row.locked_until >= goal:
            continue
        context.check()
        try:
            locked = _locked(context, row, target, number, goal)
        except (BackupMissing, DamageError) as error:
            context.warn("copy.not_locked", f"backup {row.backup_id} could not be locked: {error.message}")
            continue
        if locked is None:
            return count  # It refuses all of them alike, and has been warned of.
        BackupCopy.objects.filter(pk=row.pk).update(locked_until=locked)
        count += 1
    return count


def _locked(
    context: OperationContext, row: BackupCopy, target: Repository, number: int, goal: datetime.datetime
) -> datetime.datetime | None:
    manifest = target.manifest(number)
    domain = target.domain(encrypted=row.backup.encrypt)
    locker = Locker(target, domain, until=goal, covered=False, progress=context)
    locker.extend_for(manifest.document["sources"])
    locker.seal(number)
    return locker.locked_until


def copy_selection_seen(copy: Copy, target: Repository) -> None:
    """Remember the newest selection that the store shows, after a run that ended half-way."""
    Copy.objects.filter(pk=copy.pk).update(selection=selection_read(target, at_least=copy.selection).serial)
