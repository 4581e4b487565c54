"""Copies opened: one alone, or all of a tenant's as one repository that is read from the nearest."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from engine.fallback import FallbackNote, Place, ReadingRepository
from engine.ports import Store
from engine.repository import Repository
from tenants import wiring
from tenants.copy_selectors import copies_readable, copy_primary
from tenants.models import Backup, Copy, Tenant
from tenants.owning import guard_of
from tenants.tenant_sealing import keyring_of

READ_MS_UNKNOWN = 50.0
"""What a store behind a network is taken for until it was measured."""
READ_SPEED_UNKNOWN = 20e6
"""Bytes a second, likewise."""
_WEIGHT = 0.3
"""Of the newest measurement in a moving average."""
_PACK_BYTES = 12 << 20
_MEASURED_BYTES_MIN = 8 << 20


def cache_of(copy: Copy) -> Path:
    """Where the index of this copy is kept near; the primary's lies where it always did."""
    return wiring.cache_folder() if copy.is_primary else wiring.cache_folder() / "copies" / copy.store_id


@contextmanager
def copy_open(copy: Copy) -> Iterator[Repository]:
    """Open the repository as it lies in the copy's store. Raises RepositoryMissing when nothing was copied yet."""
    with wiring.store_open(copy.store) as store:
        yield copy_on(copy, store)


def copy_on(copy: Copy, store: Store) -> Repository:
    """The copy's repository on its open store, guarded like the primary's; the time it takes to answer is remembered."""
    tenant, began = copy.tenant, time.monotonic()
    repository = Repository.open(
        store, repository_id=tenant.repository_id, keyring=keyring_of(tenant), cache=cache_of(copy)
    )
    _measured(copy, (time.monotonic() - began) * 1000)
    repository.guard = guard_of(tenant, store, store_id=copy.store_id, primary=copy.is_primary)
    return repository


def _measured(copy: Copy, milliseconds: float) -> None:
    before = copy.read_ms
    average = milliseconds if before is None else before + _WEIGHT * (milliseconds - before)
    # Written when it says something new: a row is not touched for every look into a backup.
    if before is None or not 0.5 * before < average < 2 * before:
        Copy.objects.filter(pk=copy.pk).update(read_ms=average)
    copy.read_ms = average


def nearness(copy: Copy) -> tuple[bool, float, int]:
    """Sorts copies from the nearest on: stores of this host first, then by the time that a pack of theirs takes."""
    remote = bool(getattr(wiring.store_kind(copy.store.kind), "remote", True))
    speed = copy.read_bytes_per_second or READ_SPEED_UNKNOWN
    milliseconds = (copy.read_ms or READ_MS_UNKNOWN) + 1000 * _PACK_BYTES / speed
    return remote, milliseconds if remote else 0.0, copy.position


def _order(copy: Copy) -> tuple[bool, tuple[bool, float, int]]:
    """The nearest first; one that is switched off, as a primary that is away, after all others."""
    return not copy.enabled and not copy.is_primary, nearness(copy)


def read_measured(copy: Copy, size: int, seconds: float) -> None:
    """Remember how fast so many bytes were read from the store; a few say nothing."""
    if size < _MEASURED_BYTES_MIN or seconds <= 0:
        return
    before, speed = copy.read_bytes_per_second, size / seconds
    average = speed if before is None else before + _WEIGHT * (speed - before)
    Copy.objects.filter(pk=copy.pk).update(read_bytes_per_second=average)
    copy.read_bytes_per_second = average


def place_on(copy: Copy, stack: ExitStack) -> Place:
    """The copy as a place to read from, opened when it is first needed and closed with the stack."""

    def opened() -> Repository:
        return stack.enter_context(copy_open(copy))

    return Place(copy.store.name, opened)


@contextmanager
def repository_reading(
    tenant: Tenant,
    *,
    backups: Collection[Backup] = (),
    but: Copy | None = None,
    primary_first: bool = False,
    on_notes: Callable[[Tenant, Sequence[FallbackNote]], None] | None = None,
) -> Iterator[Repository]:
    """Open the tenant's repository for reading, over all its copies: the nearest that holds the backups is asked first.

    A tenant without copies reads its primary alone. Writing (change images) goes to the primary. What had to be read
    elsewhere is given to `on_notes` at the end. Raises what the nearest place raised when none can be opened.
    """
    copies = [copy for copy in copies_readable(tenant, backups=backups) if but is None or copy.pk != but.pk]
    if not copies:
        with wiring.repository_open(tenant) as repository:
            yield repository
        return
    with ExitStack() as stack:
        primary = copy_primary(tenant)
        own = place_on(primary, stack)
        there = [primary, *copies] if but is None or but.pk != primary.pk else copies
        near = sorted(there, key=(lambda each: (not each.is_primary, each.position)) if primary_first else _order)
        places = [own if each.pk == primary.pk else place_on(each, stack) for each in near]
        nearest = next(
            (copy for copy, place in zip(near, places, strict=True) if place.repository is not None), near[0]
        )
        repository = ReadingRepository(places, keyring=keyring_of(tenant), cache=cache_of(nearest), writes_to=own)
        try:
            yield repository
        finally:
            notes = repository.notes.all()
            if notes and on_notes is not None:
                on_notes(tenant, notes)
