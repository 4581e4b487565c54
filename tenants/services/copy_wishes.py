"""What a copy should hold and what it may drop, worked out from the catalogue and the rules of retention."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.copy import CopyWish
from tenants.models import Backup, BackupCopy, BackupPresence, BackupState, Copy, RepositoryMirror
from tenants.models.backup import GOOD_STATES
from tenants.retention_selectors import PolicyBook, kept_numbers, rules_of, sources_of
from tenants.services.change_images import images_wanted
from tenants.services.clock_watch import clock_looked_at

_ENDED = (BackupState.EXPIRED, BackupState.DELETED)


@dataclass(frozen=True)
class Wishes:
    """Backups by number, as a copy is concerned."""

    wanted: frozenset[int]
    known: frozenset[int]
    drop: frozenset[int]
    """What may leave the copy now; empty while deletion is frozen."""
    until: Mapping[int, datetime.datetime | None] = field(default_factory=dict)
    """When the rules let each of them go; None for never."""
    why_not: str = ""
    """Why nothing may leave it."""


def wishes_of(copy: Copy) -> Wishes:
    """What the copy should hold: the good backups that its rules keep; and what it may drop of what it holds."""
    tenant = copy.tenant
    kept = kept_numbers(tenant, copy.store)
    wanted = frozenset(each.number for each in kept if not each.trashed)
    stays = frozenset(each.number for each in kept)
    rows = Backup.objects.filter(tenant=tenant, number__isnull=False)
    known = frozenset(rows.filter(state__in=(*GOOD_STATES, *_ENDED)).values_list("number", flat=True))
    why_not = _frozen(copy)
    drop = frozenset() if why_not else frozenset(_droppable(copy) - stays)
    return Wishes(
        wanted,
        frozenset(n for n in known if n is not None),
        frozenset(n for n in drop if n),
        {each.number: each.until for each in kept if not each.trashed},
        why_not,
    )


def _frozen(copy: Copy) -> str:
    """Why nothing is deleted now, "" when it may be."""
    frozen = clock_looked_at()
    if frozen is not None:
        return frozen.reason
    if copy.tenant.held:
        return f"tenant {copy.tenant.slug} is held: {copy.tenant.held_reason or 'no reason given'}"
    behind = RepositoryMirror.objects.filter(tenant=copy.tenant, behind_since__isnull=False).first()
    return "" if behind is None else f"catalogue and store are to be reconciled first: {behind.behind_reason}"


def _droppable(copy: Copy) -> set[int]:
    """Backups that were ended for good, and with rules of its own those that the primary goes on holding.

    What is in the trash stays, and what only copies hold any more waits for its own way through the trash. A number that
    the catalogue does not know is nobody's to drop.
    """
    held = Backup.objects.filter(tenant=copy.tenant, number__isnull=False, held=False)
    ended = held.filter(state__in=_ENDED, trashed_at=None)
    numbers = set(ended.values_list("number", flat=True))
    if _has_own_rules(copy):
        numbers |= set(held.filter(state__in=GOOD_STATES, left_at=None).values_list("number", flat=True))
    return {number for number in numbers if number is not None}


def _has_own_rules(copy: Copy) -> bool:
    if copy.rules is not None:
        return True
    book, sources = PolicyBook.load(copy.tenant), sources_of(copy.tenant)
    own = rules_of(copy.tenant, copy.store, book=book, sources=sources)
    return own != rules_of(copy.tenant, book=book, sources=sources)


def copy_wish(copy: Copy, wishes: Wishes, *, look: bool, read_back: bool, recheck: bool = False) -> CopyWish:
    """The engine's order for a run of the copy; with `recheck` every backup that it holds is looked through again."""
    tenant = copy.tenant
    doubtful = BackupCopy.objects.filter(copy=copy).exclude(presence=BackupPresence.PRESENT)
    again = wishes.wanted if recheck else frozenset(n for n in doubtful.values_list("backup__number", flat=True) if n)
    return CopyWish(
        copy=copy.pk,
        wanted=wishes.wanted,
        known=wishes.known,
        head=tenant.numbers_closed,
        selection=copy.selection,
        erasures=tenant.erasures_number,
        recheck=again,
        look=look,
        read_back=read_back,
        images=tuple(sorted(images_wanted(tenant))) if copy.images else (),
    )
