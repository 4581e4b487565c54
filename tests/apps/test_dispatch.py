"""Who gets a worker next: priorities, turn and turn about between tenants, quotas, and reservations that run out."""

import datetime
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction

from audit.models import Entry
from core import clock
from core.errors import NotFound
from engine.errors import UsageError
from operations import priorities, services, waking
from operations.dispatch import RESERVED, hand_back, operation_pick, put_off
from operations.models import Operation
from operations.quotas import quota_list, quota_remove, quota_set
from operations.transitions import operation_to
from operations.uptime import uptime
from tests.apps.work import handlers  # noqa: F401 - registers the made-up kinds
from tests.services.absent import absent
from tests.services.redis_server import redis_serving

pytestmark = pytest.mark.django_db(transaction=True)

ACTOR, HERE, THERE = "ana", "host:1/", "host:2/"


def _ask(tenant: str, *, priority: int = priorities.ASKED, lane: str = "") -> Operation:
    with priorities.priority_set(priority):
        operation = services.operation_enqueue(kind="test.quick", tenant=tenant, params={}, actor=ACTOR)
    if lane:
        Operation.objects.filter(pk=operation.pk).update(lane=lane)
    return operation


def _take(cluster: str = HERE) -> str:
    """Pick as a cluster does and claim as its worker does; the tenant's slug, empty for none."""
    picked = operation_pick(cluster)
    if picked is None:
        return ""
    now = clock.catalogue_now()
    picked.refresh_from_db()
    operation_to(picked, "running", worker=f"{cluster}7", heartbeat_at=now, started_at=now)
    return picked.tenant


def _end(tenant: str) -> None:
    operation_to(Operation.objects.get(tenant=tenant, state="running"), "succeeded", finished_at=clock.now())


def test_a_restore_passes_a_queue_of_backups() -> None:
    """Goal: whoever waits for their data is first; many asked and scheduled operations, then a rescue."""
    for number in range(20):
        _ask(f"t{number}", priority=priorities.SCHEDULED)
    _ask("asked")
    _ask("urgent", priority=priorities.RESCUE)
    assert [_take(), _take(), _take()] == ["urgent", "asked", "t0"]
    assert priorities.priority_of("restore") < priorities.priority_of("backup") < priorities.priority_of("prune")


def test_one_tenants_flood_keeps_nobody_waiting() -> None:
    """Goal: turn and turn about; a tenant asks for a hundred things, then nine others for one each, then two of them again."""
    for _ in range(100):
        _ask("flood")
    for number in range(9):
        _ask(f"t{number}")
    order = []
    for _ in range(14):
        tenant = _take()
        order.append(tenant)
        _end(tenant)
        if len(order) == 6:
            _ask("t0")
            _ask("t1")
    assert order[:10] == ["flood", *(f"t{number}" for number in range(9))]
    assert sorted(order[10:13]) == ["flood", "t0", "t1"], "and the flood itself does not starve"


def test_quotas_are_exact_however_many_pick() -> None:
    """Goal: at most so many at once over all machines; eight clusters pick together under quotas of store, tenant, all."""
    for number in range(40):
        _ask(f"t{number}", lane=f"s{number % 2}")
    quota_set("store", "s0", 3, actor=ACTOR)
    quota_set("store", "", 5, actor=ACTOR)
    quota_set("all", "", 7, actor=ACTOR)
    taken: list[str] = []

    def cluster(number: int) -> None:
        try:
            while tenant := _take(f"host:{number}/"):
                taken.append(tenant)
        finally:
            connection.close()

    threads = [threading.Thread(target=cluster, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lanes = Counter(Operation.objects.filter(state="running").values_list("lane", flat=True))
    assert len(taken) == len(set(taken)) == 7 and lanes["s0"] <= 3 and lanes["s1"] <= 5
    quota_remove("all", "", actor=ACTOR)
    while _take():
        pass
    lanes = Counter(Operation.objects.filter(state="running").values_list("lane", flat=True))
    assert lanes == {"s0": 3, "s1": 5}


def test_a_tenant_with_a_quota_of_nought_waits() -> None:
    """Goal: a tenant can be stopped without touching others; set nought, lift it."""
    _ask("a")
    _ask("b")
    row = quota_set("tenant", "", 1, actor=ACTOR)
    Operation.objects.filter(tenant="a").update(resource="")
    type(row).objects.create(scope="tenant", name="a", running_max=0)
    assert (_take(), _take()) == ("b", "")
    type(row).objects.filter(name="a").delete()
    assert _take() == "a"


def test_a_busy_tenant_is_passed_over() -> None:
    """Goal: no worker is sent to wait; two operations of one tenant and one of another."""
    _ask("a")
    _ask("a")
    _ask("b")
    assert (_take(), _take(), _take()) == ("a", "b", "")
    _end("a")
    assert _take() == "a"


def test_what_a_dead_cluster_picked_goes_to_the_next() -> None:
    """Goal: nothing is lost between picking and claiming; pick, die, wait; pick, hand back."""
    with clock.held(clock.now()) as advance:
        operation = _ask("a")
        assert operation_pick(HERE) == operation and operation_pick(THERE) is None
        advance(RESERVED + datetime.timedelta(seconds=1))
        assert operation_pick(THERE) == operation
        assert hand_back(HERE) == 0 and hand_back(THERE) == 1
        assert operation_pick(HERE) == operation
        put_off(operation.pk)
        assert operation_pick(HERE) is None


def test_bad_quotas_are_refused() -> None:
    """Goal: every door is checked; out of range, of nobody, and one that is not there; each change on record."""
    for most in (-1, 10_001):
        with pytest.raises(UsageError, match="a quota is a number"):
            quota_set("all", "", most, actor=ACTOR)
    with pytest.raises(NotFound, match="no tenant 'nobody'"):
        quota_set("tenant", "nobody", 1, actor=ACTOR)
    with pytest.raises(NotFound, match="no such quota"):
        quota_remove("store", "x", actor=ACTOR)
    quota_set("store", "x", 1, actor=ACTOR)
    quota_set("store", "x", 2, actor=ACTOR)
    quota_remove("store", "x", actor=ACTOR)
    assert quota_list() == []
    entries = Entry.objects.filter(type__startswith="quota.").order_by("sequence")
    assert [(entry.type, entry.data["before"]) for entry in entries] == [
        ("quota.set", None), ("quota.set", 1), ("quota.removed", 2)
    ]  # fmt: skip


def test_redis_wakes_and_may_be_lost(tmp_path: Path, settings: Any) -> None:
    """Goal: a token comes at once, and a Redis that is lost and back costs no operation; queue, stop it, queue, start it."""
    with redis_serving(tmp_path) as server:
        if server is None:
            absent("Redis", remedy="make services")
        settings.LASTRO_REDIS_URL = server.url
        waker = waking.Waker()
        _ask("a")
        began = uptime()
        assert waker.wait() and uptime() - began < waking.PATIENCE_SECONDS, "a token lay there"
        assert _take() == "a"
        with transaction.atomic():
            _ask("b")
            transaction.set_rollback(True)
        assert _tokens(server.url) == 0, "nothing is announced that was not committed"
        server.stop()
        _ask("c")
        assert not waker.wait(), "away: the worker looks for itself"
        assert _take() == "c"
        server.start()
        settings.LASTRO_REDIS_URL = f"redis://127.0.0.1:{server.port}/0"
        waking._away_until = 0.0
        _ask("d")
        assert waking.Waker().wait() and _take() == "d"
        for _ in range(3):
            _ask("e")
        assert _tokens(server.url) == 3


def _tokens(url: str) -> int:
    import redis

    return int(redis.Redis.from_url(url).llen(waking.KEY))
