"""Objectives: what is in force, what was kept judged by the version of then, and what would be lost now."""

import datetime
import itertools
import random

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from audit.models import Entry
from core import clock
from core.errors import Conflict
from engine.errors import UsageError
from tenants.models import Backup, BackupSource, Drill, DrillState, Source, Tenant
from tenants.objective_selectors import objectives_breached, objectives_kept, standing_words, standings
from tenants.objectives.rules import (
    Breach,
    Point,
    Stretch,
    Terms,
    Version,
    attained,
    breaches,
    class_at,
    length_words,
    place_of,
    stretches,
    terms_at,
)
from tenants.services.objectives import ObjectivePlace, objective_list, objective_reset, objective_set
from tenants.services.sources import source_update
from tests.tenants.conftest import ACTOR, House

NOON = datetime.datetime(2026, 11, 1, 12, tzinfo=datetime.UTC)
HOUR, DAY, MINUTE = datetime.timedelta(hours=1), datetime.timedelta(days=1), datetime.timedelta(minutes=1)


def _at(hours: float) -> datetime.datetime:
    return NOON + hours * HOUR


def _stretch(begin: float, end: float, rpo_hours: float) -> Stretch:
    return Stretch(_at(begin), _at(end), Terms(int(rpo_hours * 3_600), 3_600))


def test_the_narrowest_place_speaks() -> None:
    """Goal: each of the two objectives comes from the narrowest place that sets it; versions at every place."""
    versions = {
        place_of(): [Version(8 * 3_600, None, NOON)],
        place_of("", "critical"): [Version(None, 1_800, NOON)],
        place_of("t"): [Version(7 * 3_600, None, NOON, _at(10))],
        place_of("t", "critical"): [Version(None, 900, _at(5))],
        place_of("t", source="s"): [Version(600, None, _at(8))],
    }
    said = [terms_at(versions, "t", "critical", "s", _at(hours)) for hours in (-1, 0, 5, 8)]
    assert [(each.rpo_seconds, each.rto_seconds) for each in said] == [
        (14_400, 3_600), (25_200, 1_800), (25_200, 900), (600, 900)
    ]  # fmt: skip
    assert terms_at(versions, "t", "normal", "x", _at(11)) == Terms(8 * 3_600, 86_400)


def test_breaches_are_exact() -> None:
    """Goal: to the second, over a change of the objective too; points, a gap, and a version that begins in the gap."""
    points = [Point(_at(-3), _at(0)), Point(_at(3), _at(3.5)), Point(_at(20), _at(21))]
    terms = [_stretch(0, 10, 4), _stretch(10, 24, 12)]
    found = breaches(points, terms, since=_at(-100))
    # 4 h after -3 is 1; the next point can be used from 3.5; 4 h after 3 is 7; from 10 on 12 h count, over at 15.
    assert found == [
        Breach(_at(1), _at(3.5), 14_400),
        Breach(_at(7), _at(10), 14_400),
        Breach(_at(15), _at(21), 43_200),
    ]
    assert attained(found, terms) == pytest.approx(1 - (2.5 + 3 + 6) / 24)
    never = breaches([], [_stretch(0, 10, 4)], since=_at(0))
    assert never == [Breach(_at(4), _at(10), 14_400)], "before the first backup data counts from the source's beginning"
    assert breaches(points, [], since=NOON) == [] and attained([], []) == 1


def test_breaches_agree_with_looking_at_every_minute(rng: random.Random) -> None:
    """Goal: no case forgotten; random backups and versions, each minute of two days judged by itself."""
    for _ in range(20):
        taken = sorted(rng.sample(range(2_880), rng.randint(0, 6)))
        points = [Point(NOON + each * MINUTE, NOON + (each + rng.randint(1, 90)) * MINUTE) for each in taken]
        points.sort(key=lambda point: point.available_at)
        cuts = [0, *sorted(rng.sample(range(1, 2_880), 2)), 2_880]
        terms = [
            Stretch(NOON + begin * MINUTE, NOON + end * MINUTE, Terms(60 * rng.randint(10, 900), 1))
            for begin, end in itertools.pairwise(cuts)
        ]
        found = breaches(points, terms, since=NOON)
        for minute in range(0, 2_880, 7):
            at = NOON + minute * MINUTE + datetime.timedelta(seconds=30)
            newest = max([point.taken_at for point in points if point.available_at <= at], default=NOON)
            held = next(each for each in terms if each.begin <= at < each.end)
            over = at - newest > datetime.timedelta(seconds=held.terms.rpo_seconds)
            assert over == any(each.begin <= at < each.end for each in found), (at, points, terms)


def test_a_class_that_changed_counts_until_then() -> None:
    """Goal: the past is judged by the class of then; a source that was normal, then critical, then important."""
    classes = [(_at(5), "normal"), (_at(9), "critical")]
    assert [class_at(classes, "important", _at(hours)) for hours in (0, 5, 8.9, 9)] == [
        "normal", "critical", "critical", "important"
    ]  # fmt: skip
    found = stretches({}, classes, tenant="t", source="s", now_class="important", begin=_at(0), end=_at(20))
    assert [(each.begin, each.terms.rpo_seconds // 3_600, each.terms.rto_seconds // 3_600) for each in found] == [
        (_at(0), 24, 24), (_at(5), 4, 1), (_at(9), 24, 4)
    ]  # fmt: skip


def test_lengths_in_words() -> None:
    """Goal: a person reads it at once; some lengths."""
    lengths = (0, 48, 60, 360, 8_040, 3_661, 93_600, 86_400)
    assert [length_words(each) for each in lengths] == [
        "0 s", "48 s", "1 min", "6 min", "2 h 14 min", "1 h 1 min", "1 d 2 h", "1 d"
    ]  # fmt: skip


def _backup(source: Source, *, taken: datetime.datetime, finished: datetime.datetime, state: str = "succeeded") -> None:
    number = Backup.objects.count() + 1
    backup = Backup.objects.create(
        tenant=source.tenant, number=number, state=state, requested_type="full", type="full", manifest_sha256="a",
        taken_at=taken, finished_at=finished, size_bytes=2_000,
    )  # fmt: skip
    BackupSource.objects.create(backup=backup, source=source, name=source.name, kind=source.kind,
                                category=source.category, state="kept")  # fmt: skip
    Source.objects.filter(pk=source.pk).update(last_good_at=taken, last_good_backup=backup)


def test_the_past_is_judged_by_its_own_versions(house: House) -> None:
    """Goal: a stricter objective makes no breach of yesterday; change objective and class between backups."""
    with clock.held(NOON) as advance:
        tenant = house.tenant()
        source = house.files(tenant)
        _backup(source, taken=_at(1), finished=_at(2))
        advance(20 * HOUR)
        objective_set(ObjectivePlace(tenant), rpo_seconds=4 * 3_600, rto_seconds=None, actor=ACTOR)
        advance(2 * HOUR)
        _backup(source, taken=_at(21), finished=_at(22), state="expired")
        advance(2 * HOUR)
        source_update(source, values={}, criticality="critical", actor=ACTOR)
        objective_reset(ObjectivePlace(tenant), actor=ACTOR)
        objective_set(ObjectivePlace(tenant, source=source), rpo_seconds=7_200, rto_seconds=60, actor=ACTOR)
        advance(6 * HOUR)
        (kept,) = objectives_kept(tenant, begin=NOON, end=clock.now())
    assert [(each.begin, each.end, each.rpo_seconds) for each in kept.breaches] == [
        (_at(20), _at(22), 14_400),
        (_at(24), _at(30), 7_200),
    ]
    assert [each.terms.rpo_seconds // 3_600 for each in kept.terms] == [24, 4, 2]
    assert kept.attained == pytest.approx(1 - 8 / 30)
    told = list(Entry.objects.filter(type__startswith="objective.").order_by("sequence").values_list("type", flat=True))
    assert told == ["objective.set", "objective.reset", "objective.set"]
    assert [row.source for row in objective_list()] == [source]


def test_what_would_be_lost_now(house: House) -> None:
    """Goal: "lose 2 h 14 min, back in 6 min"; a backup, a drill that passed, and twice the data since."""
    with clock.held(NOON) as advance:
        tenant = house.tenant()
        source = house.files(tenant)
        (new,) = standings(now=clock.now(), tenant=tenant)
        assert (new.last_good_at, new.back_seconds, new.rto_kept) == (None, None, None)
        assert standing_words([new]) == "lose everything of assets: never backed up"
        _backup(source, taken=NOON, finished=NOON)
        advance(2 * HOUR + 14 * MINUTE)
        assert standing_words(standings(now=clock.now())).endswith("back in nobody knows: no drill has passed")
        Drill.objects.create(
            tenant=tenant, backup=Backup.objects.get(), state=DrillState.PASSED, sources=["assets"],
            restore_ms=180_000, restored_bytes=1_000, finished_at=clock.now(),
        )  # fmt: skip
        rows = standings(now=clock.now())
        assert standing_words(rows) == "lose 2 h 14 min, back in 6 min"
        assert objectives_breached(now=clock.now()) == []
        objective_set(ObjectivePlace(criticality="normal"), rpo_seconds=None, rto_seconds=300, actor=ACTOR)
        (over,) = objectives_breached(now=clock.now())
        assert (over.rpo_kept, over.rto_kept) == (True, False)
        (kept,) = objectives_kept(tenant, begin=NOON, end=clock.now() + MINUTE)
        assert [(each.seconds, each.rto_seconds, each.kept) for each in kept.drills] == [(180.0, 300, True)]


def test_bad_objectives_are_refused(house: House) -> None:
    """Goal: every door is checked; nothing, too short, a source with a class, taking back what was not set."""
    tenant = house.tenant()
    source = house.files(tenant)
    for place, rpo in (
        (ObjectivePlace(), None),
        (ObjectivePlace(), 59),
        (ObjectivePlace(tenant, "critical", source), 60),
    ):
        with pytest.raises(UsageError):
            objective_set(place, rpo_seconds=rpo, rto_seconds=None, actor=ACTOR)
    with pytest.raises(Conflict, match="no objective was set for tenant aurora"):
        objective_reset(ObjectivePlace(tenant), actor=ACTOR)


def test_as_many_queries_for_many_as_for_one(house: House) -> None:
    """Goal: ten thousand tenants cost no more round trips; count them for one and for thirty."""
    first = house.tenant()
    house.files(first)

    def asked() -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            objectives_breached(now=NOON)
        return len(queries)

    few = asked()
    for number in range(30):
        tenant = Tenant.objects.create(
            slug=f"t{number}", name="T", store=first.store, repository_id=f"rep_{number}", keyring=b"k"
        )
        Source.objects.create(tenant=tenant, name="a", kind="files", category="assets")
    assert asked() == few <= 4
