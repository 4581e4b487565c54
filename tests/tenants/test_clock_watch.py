"""Nothing is ended by a clock that jumped: every way in which it may, and the way back."""

import datetime

import pytest

from core import clock
from core.errors import Conflict
from operations.models import Operation
from tenants.diagnosis import diagnose
from tenants.models import Backup, ClockWitness, DeletionFreeze, Source, Tenant
from tenants.services.backups import backup_delete_start, prune_start
from tenants.services.clock_watch import clock_looked_at, freeze_active, thaw
from tenants.services.retention import retention_look, retention_start
from tests.tenants.conftest import ACTOR, House
from tests.tenants.test_retention import NOON, aged, typed

DAY, HOUR = datetime.timedelta(days=1), datetime.timedelta(hours=1)


@pytest.fixture
def aurora(house: House) -> Tenant:
    """Three backups: one that goes by the rules within days, one in the trash, the newest."""
    tenant = house.tenant()
    house.files(tenant)
    for number in (3, 2, 1):
        folder = house.folder(Source.objects.get(tenant=tenant))
        (folder / "day").write_text(str(number) * 500)
        aged(house.backup(tenant), NOON - number * DAY, type="incremental")
    return tenant


def _trash_one(house: House) -> Backup:
    backup = Backup.objects.order_by("number")[0]
    house.run(backup_delete_start(backup, actor=ACTOR, here=True))
    backup.refresh_from_db()
    return backup


def _run(house: House, tenant: Tenant) -> Operation:
    return house.run(retention_start(tenant, actor=ACTOR, here=True))


def test_a_clock_set_forward_ends_nothing(house: House, aurora: Tenant) -> None:
    """Goal: an attacker who sets the clock gains no deletion; jump 40 days, run everything, then thaw in the open."""
    with clock.held(NOON) as advance:
        trashed = _trash_one(house)
        assert retention_look(actor=ACTOR).frozen == ""
        advance(40 * DAY, step=True)
        looked = retention_look(actor=ACTOR)
        assert "forward by 40.0 days" in looked.frozen or "40.0 days" in looked.frozen
        ended = _run(house, aurora)
        assert ended.state == "warned" and ended.result["trashed"] == [] and ended.result["frozen"] == looked.frozen
        pruned = house.run(prune_start(aurora, dry_run=False, actor=ACTOR, here=True))
        assert pruned.state == "warned" and pruned.result["dry_run"] and pruned.result["packs_swept"] == 0
        assert pruned.warnings[0]["code"] == "retention.frozen" and "retention thaw" in pruned.warnings[0]["message"]
        kept = typed("backup", "delete", trashed.pk, "--now", "--confirm", "aurora", code=3)
        assert kept["frozen"] and kept["trashed_at"] is not None
        sign = next(sign for sign in diagnose() if sign.name == "retention")
        assert sign.status == "warning" and "frozen since" in sign.message and "thaw" in sign.hint
        assert typed("retention", "run", code=3)["frozen"]
        advance(-40 * DAY, step=True)
        assert clock_looked_at() is not None, "a clock that is right again proves nothing about what it did meanwhile"
        typed("retention", "thaw", code=6)
        again = typed("retention", "thaw", "--confirm", "all")
        assert again["terms_begun_again"] == 1 and freeze_active() is None
        advance(6 * DAY)
        trashed.refresh_from_db()
        assert trashed.trashed_at == NOON
        assert _run(house, aurora).result["forgotten"] == 0
        advance(1 * DAY)
        assert _run(house, aurora).result["forgotten"] == 1


def test_small_steps_add_up(db: None) -> None:
    """Goal: a clock that is set by little and little is seen; half an hour each real hour."""
    with clock.held(NOON) as advance:
        assert clock_looked_at() is None
        advance(HOUR)
        advance(HOUR / 2, step=True)
        assert clock_looked_at() is None
        advance(HOUR)
        advance(HOUR / 2 + datetime.timedelta(minutes=1), step=True)
        frozen = clock_looked_at()
        assert frozen is not None and frozen.code == "clock.stepped" and "forward" in frozen.reason


def test_a_clock_that_stands_before_what_was_seen(house: House, aurora: Tenant) -> None:
    """Goal: a clock set back makes no young backups old; set it back, on this machine and after a restart."""
    with clock.held(NOON) as advance:
        assert clock_looked_at() is None
        advance(-2 * HOUR, step=True)
        frozen = clock_looked_at()
        assert frozen is not None and frozen.code == "clock.backward"
    DeletionFreeze.objects.all().delete()
    ClockWitness.objects.all().delete()
    with clock.held(NOON - 5 * DAY):  # Only the newest backup tells.
        frozen = clock_looked_at()
        assert frozen is not None and frozen.code == "clock.backward" and "4.0 days" in frozen.reason


def test_a_machine_that_was_off_for_long(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: after a restart nobody can tell a long pause from a clock set forward; restart after days, few and many."""
    boot = {"id": "first"}
    monkeypatch.setattr(clock, "machine", lambda: clock.Machine(boot["id"], HOUR))
    with clock.held(NOON) as advance:
        assert clock_looked_at() is None
        boot["id"] = "second"
        advance(3 * DAY)
        assert clock_looked_at() is None
        boot["id"] = "third"
        advance(5 * DAY)
        frozen = clock_looked_at()
        assert frozen is not None and frozen.code == "clock.gap" and "5.0 days" in frozen.reason


def test_a_machine_that_ran_on_without_us(db: None) -> None:
    """Goal: a worker that was stopped for a month is no reason to freeze; let a month pass on a running machine."""
    with clock.held(NOON) as advance:
        assert clock_looked_at() is None
        advance(30 * DAY)
        assert clock_looked_at() is None
        assert ClockWitness.objects.count() == 1


def test_a_snapshot_of_the_machine_is_noticed(db: None) -> None:
    """Goal: a machine taken back in time does not act upon old knowledge; its own time stood still, the clock did not."""
    with clock.held(NOON) as advance:
        assert clock_looked_at() is None
        advance(9 * DAY, step=True)  # Restored, resumed, and set right by the network.
        frozen = clock_looked_at()
        assert frozen is not None and "paused" in frozen.reason


def test_the_catalogues_server_is_a_witness(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: one wrong host of many ends nothing; give the shared clock another time than this host's."""
    monkeypatch.setattr(clock, "catalogue_now", lambda: clock.now() - 3 * HOUR)
    frozen = clock_looked_at()
    assert frozen is not None and frozen.code == "clock.catalogue"


def test_a_store_with_another_time_freezes(house: House, aurora: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: the store's clock stops what this host's would end; a prune that meets three hours between them."""
    from engine import prune as engine_prune

    real = engine_prune._refuse_skewed
    monkeypatch.setattr(engine_prune, "_refuse_skewed", lambda seen: real(seen + 3 * HOUR))
    ended = house.run(prune_start(aurora, dry_run=False, actor=ACTOR, here=True), ok=False)
    assert ended.state == "failed" and ended.error is not None and ended.error["code"] == "repository.clock_skewed"
    frozen = freeze_active()
    assert frozen is not None and frozen.code == "clock.store" and "store default" in frozen.reason


def test_thawing_is_for_what_is_frozen(db: None) -> None:
    """Goal: nobody thaws by habit; thaw when nothing is frozen, and freeze once for many who see it."""
    with pytest.raises(Conflict, match="not frozen"):
        thaw(actor=ACTOR)
    with clock.held(NOON) as advance:
        clock_looked_at()
        advance(2 * DAY, step=True)
        assert clock_looked_at() == clock_looked_at() == DeletionFreeze.objects.get()
