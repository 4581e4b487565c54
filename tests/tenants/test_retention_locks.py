"""Object Lock follows retention, against a real server: before the manifest, once in a window, with few rights."""

import datetime
from pathlib import Path

import pytest

from core import clock
from engine import index_set
from engine.errors import StoreDenied
from engine.locking import AHEAD_MAX, WINDOW, LockBook, lock_goal
from engine.ports import LockingStore
from operations.models import Operation
from stores.s3 import S3Store
from tenants import wiring
from tenants.models import Backup, Source, StoreConfig, Tenant
from tenants.retention.policy import policy_of
from tenants.selectors import backup_usable
from tenants.services.backups import backup_delete_start, backup_hold
from tenants.services.retention import Place, policy_put, retention_start
from tenants.services.stores import store_add
from tenants.services.tenants import tenant_add
from tests.services.seaweed import APPENDER, LOCKED, Seaweed
from tests.tenants.conftest import ACTOR, House

DAY = datetime.timedelta(days=1)
NOW = datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC)


@pytest.fixture
def vault(house: House, s3_server: Seaweed) -> StoreConfig:
    """A store in a bucket with Object Lock that locks each new object for a day."""
    values = s3_server.values(LOCKED, lock_mode="governance", lock_days="1")
    return store_add("vault", kind="s3", values=values, actor=ACTOR, test=False)


@pytest.fixture
def aurora(house: House, vault: StoreConfig) -> Tenant:
    tenant = tenant_add("aurora", name="Aurora", actor=ACTOR, store_name="vault")
    house.files(tenant, a="one" * 1000, b="two" * 1000)
    return tenant


def _locks(tenant: Tenant, part: str) -> dict[str, datetime.datetime | None]:
    with wiring.store_open(tenant.store) as store:
        assert isinstance(store, LockingStore)
        keys = [info.key for info in store.list(f"r/{tenant.repository_id}/") if part in info.key]
        return {key: store.locked_until(key) for key in keys}


def _edit(house: House, tenant: Tenant, text: str) -> None:
    (house.folder(Source.objects.get(tenant=tenant)) / "a").write_text(text * 1000)


def _run(house: House, tenant: Tenant) -> Operation:
    return house.run(retention_start(tenant, actor=ACTOR, here=True))


def test_dates_are_rounded_up_and_never_far_ahead() -> None:
    """Goal: an object is asked for once in a window; goals around the edge of one, of what never goes, of absurd dates."""
    goal = lock_goal(NOW + 7 * DAY, NOW)
    assert NOW + 7 * DAY <= goal < NOW + 7 * DAY + WINDOW
    assert lock_goal(goal, NOW) == goal and lock_goal(goal + datetime.timedelta(seconds=1), NOW) == goal + WINDOW
    assert lock_goal(None, NOW) <= NOW + 90 * DAY
    assert lock_goal(NOW + 9999 * DAY, NOW) < NOW + AHEAD_MAX + WINDOW
    assert lock_goal(NOW - 50 * DAY, NOW) >= NOW


def test_all_that_a_backup_needs_is_locked_as_long_as_it_stays(house: House, aurora: Tenant) -> None:
    """Goal: who holds the credentials deletes no backup before its time; look at every object of two backups."""
    first = house.backup(aurora)
    assert first.locked_until is not None and first.taken_at is not None
    assert first.locked_until >= first.taken_at + 21 * DAY, "a full one stays for weeks"
    packs = {**_locks(aurora, "/data/"), **_locks(aurora, "/meta/")}
    assert len(packs) >= 2 and set(packs.values()) == {first.locked_until}
    assert set(_locks(aurora, "/manifests/").values()) == {first.locked_until}
    assert _locks(aurora, "keyring") == {}, "a key that cannot be deleted cannot be shredded"
    _edit(house, aurora, "three")
    second = house.backup(aurora, "incremental")
    assert second.parent_id == first.pk and second.locked_until is not None
    later = {**_locks(aurora, "/data/"), **_locks(aurora, "/meta/")}
    assert all(until is not None and until >= second.locked_until for until in later.values())
    assert {key: later[key] for key in packs} == packs, "what was locked for longer stays so"


def test_an_object_is_locked_again_once_in_a_window(
    house: House, aurora: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: a daily full backup asks no million objects every day; count the extensions of three, then lose the record."""
    asked: list[str] = []
    real = S3Store.lock

    def counted(store: S3Store, key: str, until: datetime.datetime) -> None:
        asked.append(key)
        real(store, key, until)

    monkeypatch.setattr(S3Store, "lock", counted)

    def packs() -> list[str]:
        found = [key for key in asked if "/data/" in key or "/meta/" in key]
        asked.clear()
        return found

    house.backup(aurora)
    assert len(packs()) > 0
    house.backup(aurora)
    packs()  # What this one stored anew.
    house.backup(aurora)
    assert packs() == [], "nothing was new, and everything is known to be locked"
    for file in wiring.cache_folder().glob("*-locks.sqlite3"):
        file.write_bytes(b"not a database" * 100)
    last = house.backup(aurora)
    assert packs() and last.state == "succeeded" and last.locked_until is not None


def test_holds_and_longer_policies_are_locked_by_the_next_run(house: House, aurora: Tenant) -> None:
    """Goal: locks follow what is decided later; hold one backup, keep others for longer, run retention."""
    first = house.backup(aurora)
    _edit(house, aurora, "three")
    second = house.backup(aurora, "incremental")
    backup_hold(first, held=True, reason="lawsuit", actor=ACTOR)
    policy_put(Place(aurora), policy_of({"incremental_days": 200}), actor=ACTOR)
    done = _run(house, aurora).result
    assert done is not None and done["locks_extended"] == 2
    for backup, days in ((first, 58), (second, 199)):
        backup.refresh_from_db()
        assert backup.locked_until is not None and backup.locked_until >= clock.now() + days * DAY
    assert min(filter(None, _locks(aurora, "/manifests/0000000002").values())) == second.locked_until
    again = _run(house, aurora).result
    assert again is not None and again["locks_extended"] == 0


def test_rights_to_append_suffice_for_backups(
    house: House, s3_server: Seaweed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: a stolen credential of the host deletes nothing; back up often by an identity that may not delete."""
    bucket = s3_server.bucket()
    s3_server.append_only(bucket)
    values = s3_server.values(bucket, who=APPENDER)
    store_add("append", kind="s3", values=values, actor=ACTOR, test=False)
    tenant = tenant_add("boreal", name="Boreal", actor=ACTOR, store_name="append")
    house.files(tenant)
    monkeypatch.setattr(index_set, "SEGMENTS_MAX", 3)
    for number in range(6):  # More than the index merges at.
        _edit(house, tenant, f"text {number}")
        backup = house.backup(tenant, "incremental")
        assert backup.state == "succeeded", backup.warnings
    first = Backup.objects.filter(tenant=tenant).order_by("number")[0]
    deleting = backup_delete_start(first, actor=ACTOR, here=True, now=True)
    refused = house.run(deleting, ok=False)
    assert refused.error is not None and refused.error["code"] == "store.denied" and refused.error["hint"]
    with wiring.repository_open(tenant) as repository:
        assert len(repository.numbers()) == 6
    first.refresh_from_db()
    assert first.trashed_at is not None, "what the store still has can be taken back"
    house.restore(backup_usable(first.pk), targets=[f"path={house.data / 'first'}"])
    house.restore(Backup.objects.get(pk=backup.pk), targets=[f"path={house.data / 'out'}"])


def test_a_store_that_refuses_locks_is_said(house: House, aurora: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a backup that could not be locked is a backup, and loud; refuse extensions, as a bucket's policy may."""

    def refused(store: S3Store, key: str, until: datetime.datetime) -> None:
        raise StoreDenied(f"locking {key} is not allowed", hint="the credentials need s3:PutObjectRetention")

    monkeypatch.setattr(S3Store, "lock", refused)
    backup = house.backup(aurora)
    assert backup.state == "warned" and backup.locked_until is None
    assert [each["code"] for each in backup.warnings] == ["backup.not_locked"]
    house.restore(backup, targets=[f"path={house.data / 'out'}"])
    monkeypatch.undo()
    done = _run(house, aurora).result
    assert done is not None and done["locks_extended"] == 1, "the next run makes up for it"


def test_the_record_of_locks_may_be_lost(tmp_path: Path) -> None:
    """Goal: a cache is no condition; ask without a file, and of a folder that cannot be made."""
    names = [bytes([n]) * 32 for n in range(5)]
    for path in (None, Path("/proc/nowhere/locks.sqlite3")):
        book = LockBook(path)
        book.note(names, NOW)
        assert book.lacking(names, NOW) == names
    book = LockBook(tmp_path / "locks.sqlite3")
    book.note(names[:3], NOW)
    assert book.lacking(names, NOW - DAY) == names[3:] == book.lacking(names, NOW)
    assert book.lacking(names, NOW + DAY) == names
