"""The figures of the overview: exact whatever happens to the rows, and the same price at any size."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction

from core import clock
from operations.overview import overview
from tenants.figures import counting, triggers
from tenants.figures.counting import changes_fold, counts_check, counts_get, counts_rebuild
from tenants.models import Backup, FigureChange, Restore, StoreConfig, Tenant

STATES = ("running", "succeeded", "warned", "failed", "expired", "deleted")


@pytest.fixture
def counting_on(db: None) -> Iterator[None]:
    triggers.install(connection)
    yield
    triggers.drop(connection)


def _tenant(slug: str = "aurora") -> Tenant:
    store = StoreConfig.objects.get_or_create(name="main", defaults={"kind": "local"})[0]
    return Tenant.objects.create(slug=slug, name=slug, repository_id=f"rep_{slug}", store=store)


def _backup(tenant: Tenant, number: int, state: str = "succeeded", **more: Any) -> Backup:
    return Backup(
        tenant=tenant, number=number, state=state, requested_type="full", type="full", manifest_sha256="0" * 64,
        finished_at=clock.now(), **more,
    )  # fmt: skip


@pytest.mark.seeded
def test_the_counters_are_the_rows(counting_on: None, rng: random.Random, rounds: Callable[[int], range]) -> None:
    """Goal: exact after any history; change rows in every way at random, fold now and then, compare with a count."""
    tenant, number = _tenant(), 0
    for _ in rounds(150):
        what = rng.choice(["one", "many", "state", "sizes", "delete", "fold", "undone", "restore"])
        ids = list(Backup.objects.values_list("pk", flat=True))
        if what == "one":
            number += 1
            _backup(tenant, number, rng.choice(STATES), size_bytes=rng.randrange(99)).save()
        elif what == "many":
            Backup.objects.bulk_create(
                _backup(tenant, number + n, rng.choice(STATES), duration_ms=n) for n in range(1, 9)
            )
            number += 8
        elif what == "state" and ids:
            Backup.objects.filter(pk__in=rng.sample(ids, len(ids) // 2)).update(state=rng.choice(STATES))
        elif what == "sizes" and ids:
            Backup.objects.filter(pk=rng.choice(ids)).update(
                size_bytes=rng.randrange(10**12), duration_ms=rng.randrange(99)
            )
        elif what == "delete" and ids:
            Backup.objects.filter(pk__in=rng.sample(ids, 1), restores=None).delete()
        elif what == "fold":
            changes_fold()
        elif what == "undone":
            with transaction.atomic():
                Backup.objects.update(size_bytes=7)
                transaction.set_rollback(rng.random() < 0.5)
        elif what == "restore" and ids:
            Restore.objects.create(tenant=tenant, backup_id=rng.choice(ids), state=rng.choice(["succeeded", "failed"]))
        assert not counts_check()
    changes_fold()
    assert not FigureChange.objects.exists()
    assert not counts_check()


def test_a_wrong_counter_is_found_and_made_right(counting_on: None) -> None:
    """Goal: no figure is believed for ever; write rows past the triggers, check, count anew."""
    tenant = _tenant()
    triggers.drop(connection)
    _backup(tenant, 1, size_bytes=10, duration_ms=4).save()
    triggers.install(connection)
    assert set(counts_check()) == {"backups"}
    assert counts_rebuild()["backups"].size_bytes == 10
    assert not counts_check()


def test_the_triggers_come_back_after_a_migration(counting_on: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: SQLite forgets a table's triggers when it is altered; drop them, let a migration end, count."""
    monkeypatch.setattr(counting, "KEPT", True)
    triggers.drop(connection)
    _backup(_tenant(), 1).save()
    call_command("migrate", verbosity=0)
    assert triggers.installed(connection)
    assert counts_get("backups").total == 1


def test_the_overview_says_what_happened(counting_on: None) -> None:
    """Goal: the fields that others count on, of rows with known values."""
    tenant, now = _tenant(), clock.now()
    long_ago = now - clock.datetime.timedelta(days=3)
    good = _backup(tenant, 1, size_bytes=100, duration_ms=10)
    good.save()
    _backup(tenant, 2, "deleted", size_bytes=300, duration_ms=30).save()
    _backup(tenant, 3, "failed", size_bytes=9_999).save()
    Backup.objects.filter(number=3).update(finished_at=long_ago)
    _backup(tenant, 4, "running").save()
    for state in ("succeeded", "failed", "undone"):
        Restore.objects.create(tenant=tenant, backup=good, state=state, duration_ms=60, finished_at=now)
    figures = overview()
    assert set(figures) == {"tenant_backups", "general_backups", "restores", "releases"}
    backups = figures["tenant_backups"]
    assert (backups["total_count"], backups["success_count"], backups["failed_count"]) == (4, 2, 1)
    assert (backups["avg_duration_ms"], backups["avg_size_bytes"], backups["last_24h"]) == (20, 200, 4)
    assert (backups["last_failure"], backups["last_success"] >= now) == (long_ago, True)
    restores = figures["restores"]
    assert (restores["total_count"], restores["success_count"], restores["avg_ttr_ms"]) == (3, 2, 60)
    assert restores["last_restore"] == now
    assert figures["releases"]["total_count"] == 0
    assert figures["releases"]["active_version"] is None
