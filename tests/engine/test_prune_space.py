"""What a prune says about space, what it leaves because the store has locked it, and when it does not trust the time."""

import datetime
import random
from collections.abc import Iterator
from contextlib import closing
from typing import Any, ClassVar

import pytest

from engine.adapters import parse_config
from engine.errors import ClockSkewed
from engine.keys import Keyring, RootKey
from engine.ports import ObjectInfo
from engine.progress import NullProgress
from engine.prune import PruneReport, prune
from engine.repository import Repository
from engine.space import Space
from engine.tombstones import Tombstone, entomb, tombstones_read
from stores._wrapper import StoreWrapper
from stores.s3 import S3Store
from tests.engine.memory_source import MemorySource, MemoryTable, backup, content, truth
from tests.services.seaweed import LOCKED, Seaweed

DAY = datetime.timedelta(days=1)


def _prune(repository: Repository, head: int, *ending: int, **options: Any) -> PruneReport:
    options.setdefault("dry_run", False)
    forget = dict.fromkeys(ending, "test")
    return prune(repository, forget=forget, head=head, progress=NullProgress(), **options)


def _packs(repository: Repository) -> dict[str, int]:
    found = {}
    for folder in ("data/", "meta/", "plain/data/", "plain/meta/"):
        found.update({info.key: info.size for info in repository.store.list(repository.prefix + folder)})
    return found


def _noise(seed: int) -> str:
    return random.Random(seed).randbytes(3000).hex()


def _fill(repository: Repository, count: int = 4) -> MemorySource:
    """Backups 1 to `count`, each with something that no other one has, and one table that all have."""
    same, own = MemoryTable("same", rows={1: _noise(0)}), MemoryTable("own", rows={1: ""})
    for number in range(1, count + 1):
        own.set(1, _noise(number))
        backup(repository, MemorySource([same, own]), number)
    return MemorySource([same, own])


def _adds_up(space: Space) -> bool:
    return space.total == space.live + space.trash + space.garbage + space.entombed


def test_every_byte_is_accounted_for(repository: Repository) -> None:
    """Goal: an operator sees what the space is for; end one backup, put another into the trash, compare with the store."""
    _fill(repository)
    whole = _prune(repository, 4, dry_run=True)
    assert whole.before == whole.after and whole.before.total == sum(_packs(repository).values())
    assert whole.before.garbage == whole.before.trash == 0 and whole.before.packs == len(_packs(repository))
    told = _prune(repository, 4, 1, dry_run=True, trash=frozenset({2}))
    done = _prune(repository, 4, 1, trash=frozenset({2}))
    assert told.before == done.before and _adds_up(done.before) and _adds_up(done.after)
    assert done.before.garbage > 0 and done.before.trash > 0
    assert done.after.total == sum(_packs(repository).values()) == done.bytes_after
    assert (done.after.trash, done.after.live) == (done.before.trash, done.before.live)
    emptied = _prune(repository, 4, 2)
    assert emptied.after.trash == 0 and emptied.after.total < done.after.total


def test_what_only_the_trash_needs_is_kept_for_it(repository: Repository) -> None:
    """Goal: a backup in the trash restores byte for byte; prune with it in the trash, and read it."""
    source = MemorySource([MemoryTable(rows={n: f"row {n}" for n in range(50)})])
    backup(repository, source, 1)
    before = truth(source)
    source = MemorySource([MemoryTable(rows={n: f"other {n}" for n in range(50)})])
    backup(repository, source, 2)
    report = _prune(repository, 2, trash=frozenset({1}))
    assert report.before.trash > 0 and report.packs_dropped == 0
    assert content(repository, repository.manifest(1)) == before


def test_grace_keeps_dropped_packs_for_another_prune(repository: Repository) -> None:
    """Goal: whoever still reads a dropped pack can end; prune with a grace, then without."""
    _fill(repository)
    first = _prune(repository, 4, 1, 2, grace=DAY)
    assert first.packs_swept == 0 and first.after.entombed > 0 and _adds_up(first.after)
    assert first.after.total == sum(_packs(repository).values())
    again = _prune(repository, 4, grace=DAY)
    assert again.packs_dropped == 0 and again.before.entombed == first.after.entombed
    assert _prune(repository, 4, dry_run=True, grace=DAY).after.entombed == first.after.entombed
    last = _prune(repository, 4)
    assert last.after.entombed == 0 and last.after.total == sum(_packs(repository).values())


# ---------------------------------------------------------------- locks


@pytest.fixture
def locked(s3_server: Seaweed, root_key: RootKey) -> Iterator[Repository]:
    """A repository in a bucket with Object Lock, all of it locked for a day."""
    values = s3_server.values(LOCKED, lock_mode="governance", lock_days="1")
    keyring = Keyring.create(root_key, tenant_id="ten_test", repository_id="rep_test")
    with closing(S3Store(parse_config(S3Store.Config, values))) as store:
        yield Repository.create(store, repository_id="rep_test", tenant_id="ten_test", keyring=keyring, root=None)


def test_what_is_locked_stays_entombed_until_its_date(locked: Repository) -> None:
    """Goal: a prune neither fails nor storms over locks; end a backup in a locked bucket, prune three times."""
    source = _fill(locked, 3)
    packs = _packs(locked)
    first = _prune(locked, 3, 2)
    assert first.forgotten == (2,) and first.packs_dropped > 0 and first.packs_swept == 0
    assert _packs(locked).keys() >= packs.keys()
    assert first.after.locked_packs == first.packs_dropped and first.after.locked == first.after.entombed > 0
    until = first.after.locked_until
    assert until is not None and DAY / 2 < until - datetime.datetime.now(datetime.UTC) <= 2 * DAY
    again = _prune(locked, 3, 2)
    assert again.before.locked == first.after.locked and again.after.locked_until == until
    assert again.packs_dropped == 0 and _adds_up(again.after)
    assert _prune(locked, 3, 1, 2).packs_rewritten == 0, "rewriting a locked pack frees nothing"
    assert content(locked, locked.manifest(3)) == truth(source)


def test_a_pack_goes_when_its_lock_is_over(repository: Repository) -> None:
    """Goal: locked packs are not forgotten; tombstones with dates ahead and behind, in a store that has no locks."""
    _fill(repository)
    domain = repository.sealed
    _prune(repository, 4, 1, 2, grace=DAY)
    (tombstone,), _ = tombstones_read(repository, domain, NullProgress())
    repository.store.delete(tombstone.key)
    now = datetime.datetime.now(datetime.UTC)
    (later,) = entomb(repository, domain, tombstone.packs[:1], until=now + DAY)
    list(entomb(repository, domain, tombstone.packs[1:], until=now - DAY))
    report = _prune(repository, 4)
    left, _ = tombstones_read(repository, domain, NullProgress())
    assert report.packs_swept == len(tombstone.packs) - 1 and report.after.locked_packs == 1
    assert [(each.packs, each.until) for each in left] == [(later.packs, later.until)]


def test_a_tombstone_from_the_future_waits() -> None:
    """Goal: a clock that jumped back sweeps nothing; ask a tombstone at times around its own."""
    now = datetime.datetime.now(datetime.UTC)
    none = datetime.timedelta(0)
    assert Tombstone("k", now + DAY, ()).waits(now, none)
    assert not Tombstone("k", now - DAY, ()).waits(now, none)
    assert Tombstone("k", now - DAY, ()).waits(now, 2 * DAY)
    assert Tombstone("k", now - DAY, (), until=now + DAY).waits(now, none)


# ---------------------------------------------------------------- the store's clock


class _OtherClock(StoreWrapper):
    """A store whose server has another time; a real one cannot be set in a test."""

    kind: ClassVar[str] = "local"
    by = datetime.timedelta(hours=3)

    def stat(self, key: str) -> ObjectInfo:
        info = super().stat(key)
        return ObjectInfo(info.key, info.size, info.modified + self.by)


@pytest.mark.parametrize("hours", [3, -30])
def test_nothing_goes_when_the_store_has_another_time(repository: Repository, hours: int) -> None:
    """Goal: whoever sets this host's clock ends nothing; prune where the store's clock is far away."""
    _fill(repository)
    store = _OtherClock(repository.store)
    store.by = datetime.timedelta(hours=hours)
    other = Repository.open(store, repository_id="rep_test", keyring=repository.keyring)
    packs, numbers = _packs(repository), repository.numbers()
    with pytest.raises(ClockSkewed, match=f"{abs(hours)}.0 hours") as caught:
        _prune(other, 4, 1, 2, 3)
    assert caught.value.seen - datetime.datetime.now(datetime.UTC) < 4 * datetime.timedelta(hours=1)
    assert _packs(repository) == packs and repository.numbers() == numbers
