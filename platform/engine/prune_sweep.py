"""Sweep: packs that a prune dropped are put under tombstones, and deleted when nothing stands against it.

What the store has locked stays entombed until its date; nothing is asked about it before, and nothing fails.
"""

import datetime
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from engine.errors import ObjectMissing
from engine.faults import kill_point
from engine.pack_table import pack_key
from engine.ports import LockingStore
from engine.progress import Progress
from engine.prune_mark import KEEP, REWRITE, Judged, Work
from engine.repository import Repository, delete_unlocked
from engine.tombstones import Tombstone, entomb

SWEEP_BATCH = 500
"""Packs that are deleted at a time, between two looks at whether to stop."""
ASKED_AT_ONCE = 8
"""Requests at a time where a store is asked about single objects."""
Left = dict[int, datetime.datetime | None]
"""Ordinals of dropped packs that stay for now; for one that the store has locked until when."""


def locked_kept(repository: Repository, work: Work, judged: Judged) -> None:
    """Keep thin packs that the store has locked: storing them anew would take space, and free none until their date."""
    thin = [ordinal for ordinal, fate in enumerate(judged.fates) if fate == REWRITE]
    for ordinal, until in zip(thin, _locks(repository, work, thin), strict=True):
        if until is not None:
            judged.fates[ordinal] = KEEP


def packs_entomb(repository: Repository, work: Work, dropped: Sequence[int]) -> list[Tombstone]:
    """Put up tombstones, those of locked packs by the day on which the store lets them go."""
    by_day: dict[datetime.datetime | None, list[str]] = {}
    for ordinal, until in zip(dropped, _locks(repository, work, dropped), strict=True):
        by_day.setdefault(until, []).append(work.table.at(ordinal)[1])
    return [
        tombstone
        for until, names in by_day.items()
        for tombstone in entomb(repository, work.domain, sorted(names), until=until)
    ]


def _locks(repository: Repository, work: Work, dropped: Sequence[int]) -> Iterator[datetime.datetime | None]:
    store = repository.store
    if not isinstance(store, LockingStore) or not store.lock_days:
        yield from (None for _ in dropped)
        return

    def lock(ordinal: int) -> datetime.datetime | None:
        folder, name, _ = work.table.at(ordinal)
        try:
            return _next_day(store.locked_until(pack_key(work.domain, folder, name)))
        except ObjectMissing:
            return None

    with ThreadPoolExecutor(ASKED_AT_ONCE, thread_name_prefix="locks") as pool:
        for begin in range(0, len(dropped), SWEEP_BATCH):
            yield from pool.map(lock, dropped[begin : begin + SWEEP_BATCH])


def _next_day(at: datetime.datetime | None) -> datetime.datetime | None:
    """The midnight behind a time, so that packs of many backups share few tombstones."""
    if at is None:
        return None
    at = at.astimezone(datetime.UTC)
    return datetime.datetime.combine(at.date() + datetime.timedelta(days=1), datetime.time(), datetime.UTC)


@dataclass
class Swept:
    """How many packs went, and those that could not."""

    packs: int
    left: Left


def packs_sweep(
    repository: Repository, work: Work, tombstones: Sequence[Tombstone], grace: datetime.timedelta, progress: Progress
) -> Swept:
    """Delete packs whose tombstone is older than the grace and that no index names; what is locked stays."""
    progress.phase("sweep")
    staying = _indexed(work)
    swept = Swept(0, {})
    for tombstone in sorted(tombstones, key=lambda each: each.key):
        now = datetime.datetime.now(datetime.UTC)
        found = (ordinal for ordinal in map(work.table.ordinal, tombstone.packs) if ordinal >= 0)
        going = [ordinal for ordinal in found if not staying[ordinal]]
        if tombstone.waits(now, grace):
            swept.left.update(dict.fromkeys(going, tombstone.until if tombstone.locked(now) else None))
            continue
        locked = _sweep_packs(repository, work, going, progress)
        for ordinal in going:
            staying[ordinal] = 1  # Another tombstone may name it, too.
        swept.packs += len(going) - len(locked)
        swept.left.update(locked)
        _entomb_again(repository, work, locked)
        delete_unlocked(repository.store, [tombstone.key])
    delete_unlocked(repository.store, work.broken)
    return swept


def _indexed(work: Work) -> bytearray:
    """By ordinal 1 for each pack that the index names."""
    flags = bytearray(len(work.table))
    for segment in work.domain.index.segments:
        for number in range(segment.pack_count):
            ordinal = work.table.ordinal(segment.pack(number)[0])
            if ordinal >= 0:
                flags[ordinal] = 1
    return flags


def _sweep_packs(repository: Repository, work: Work, going: Sequence[int], progress: Progress) -> Left:
    """Delete these packs; those that the store has locked, and until when."""
    locked: Left = {}
    for begin in range(0, len(going), SWEEP_BATCH):
        progress.check()
        repository.guard.check()
        batch = going[begin : begin + SWEEP_BATCH]
        keys = {pack_key(work.domain, *work.table.at(ordinal)[:2]): ordinal for ordinal in batch}
        left = delete_unlocked(repository.store, list(keys))
        tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
        locked.update({keys[key]: _next_day(until or tomorrow) for key, until in left.items()})
        kill_point("prune.pack_deleted")
    return locked


def _entomb_again(repository: Repository, work: Work, locked: Left) -> None:
    by_day: dict[datetime.datetime | None, list[str]] = {}
    for ordinal, until in locked.items():
        by_day.setdefault(until, []).append(work.table.at(ordinal)[1])
    for until, names in by_day.items():
        for _ in entomb(repository, work.domain, sorted(names), until=until):
            kill_point("prune.entombed_again")
