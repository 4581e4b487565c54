"""The rules of retention: against a model that looks at every pair of backups, and as laws that hold for any history."""

import datetime
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import UsageError
from tenants.retention.calendar import Cadence, Calendar, zone_of
from tenants.retention.decide import Forecast, Point, Rules, Verdict, decide
from tenants.retention.policy import DEFAULT, FOREVER, NOTHING, Policy, policy_of, policy_words, preset
from tenants.retention.simulate import simulate
from tenants.retention.words import goes, words
from tests.architecture.source import ROOT

UTC = datetime.UTC
NOW = datetime.datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
CADENCE = Cadence()
DAY = datetime.timedelta(days=1)


def _verdicts(points: Iterable[Point], rules: Rules, now: datetime.datetime = NOW, zone: str = "UTC") -> list[Verdict]:
    return decide(points, rules, Forecast(CADENCE, Calendar(zone_of(zone)), now))


def _kept(points: Iterable[Point], rules: Rules, now: datetime.datetime = NOW, zone: str = "UTC") -> set[str]:
    return {verdict.point.id for verdict in _verdicts(points, rules, now, zone) if verdict.kept}


# ---------------------------------------------------------------- an independent model

_PERIODS: dict[str, Callable[[datetime.date], object]] = {
    "daily_count": lambda date: date,
    "weekly_count": lambda date: date.isocalendar()[:2],
    "monthly_count": lambda date: (date.year, date.month),
    "yearly_count": lambda date: date.year,
}
_SLACK = datetime.timedelta(hours=1)


def _order(point: Point) -> tuple[datetime.datetime, int, str]:
    return point.at, point.number, point.id


def _newest(candidates: list[Point]) -> Point:
    whole = [each for each in candidates if not each.damaged]
    return max(whole or candidates, key=_order)


@dataclass
class _Model:
    """What stays, by asking of each backup alone how many periods with a newer one there are."""

    points: list[Point]
    rules: Rules
    now: datetime.datetime
    zone: str

    def kept(self) -> set[str]:
        return {point.id for point in self.points if self._stays(point)}

    def _date(self, at: datetime.datetime) -> datetime.date:
        return at.astimezone(UTC if self.zone == "UTC" else ZoneInfo(self.zone)).date()

    def _stays(self, point: Point) -> bool:
        if self.rules.tenant_held or point.held or point.at > self.now + _SLACK:
            return True
        if point.undo_until is not None and point.undo_until > self.now:
            return True
        return any(self._stays_for(point, source, self.rules.of(source)) for source in point.sources)

    def _stays_for(self, point: Point, source: str, policy: Policy) -> bool:
        age = (self._date(self.now) - self._date(point.at)).days
        if age < policy.incremental_days or set(point.tags) & set(policy.kept_tags):
            return True
        if point.before_deployment and age < policy.pre_deploy_days:
            return True
        return self._counted(point, source, policy) or self._last_good(point, source)

    def _counted(self, point: Point, source: str, policy: Policy) -> bool:
        beside = [
            each
            for each in self.points
            if source in each.sources and each.trigger != "safety" and each.at <= self.now + _SLACK
            if (each.trigger == "import") == (point.trigger == "import")
        ]
        for name, period in _PERIODS.items():
            for full in (False, True):
                count = getattr(policy, name.replace("_count", "_full_count") if full else name, 0)
                mine = {each: period(self._date(each.at)) for each in beside if each.full or not full}
                if count and point in mine and self._is_among(point, mine, count):
                    return True
        return False

    @staticmethod
    def _is_among(point: Point, mine: dict[Point, Any], count: int) -> bool:
        newer = {period for period in mine.values() if period > mine[point]}
        same = [each for each, period in mine.items() if period == mine[point]]
        return len(newer) < count and _newest(same) == point

    def _last_good(self, point: Point, source: str) -> bool:
        holders = [each for each in self.points if source in each.sources]
        whole = [each for each in holders if not each.damaged]
        plain = [each for each in whole if each.trigger not in ("safety", "import") and each.at <= self.now + _SLACK]
        return max(plain or whole or holders, key=_order) == point


_TRIGGERS = ("schedule", "schedule", "schedule", "manual", "safety", "import", "deployment")


def _history(rng: random.Random, count: int, now: datetime.datetime = NOW) -> list[Point]:
    return [
        Point(
            id=f"b{number}",
            number=number,
            at=now - datetime.timedelta(minutes=rng.randrange(-3_000 if rng.random() < 0.03 else 0, 900 * 1_440)),
            full=rng.random() < 0.4,
            sources=tuple(rng.sample(("db", "files", "old"), rng.randint(1, 3))),
            trigger=rng.choice(_TRIGGERS),
            tags=("audit",) if rng.random() < 0.03 else (),
            held=rng.random() < 0.02,
            damaged=rng.random() < 0.1,
            undo_until=now + rng.choice((-DAY, DAY)) if rng.random() < 0.05 else None,
        )
        for number in range(1, count + 1)
    ]


def _policy(rng: random.Random) -> Policy:
    return Policy(
        incremental_days=rng.choice((0, 1, 7, 30)),
        weekly_full_count=rng.choice((0, 1, 4)),
        monthly_full_count=rng.choice((0, 3, FOREVER)),
        daily_count=rng.choice((0, 7)),
        weekly_count=rng.choice((0, 5)),
        monthly_count=rng.choice((0, 12)),
        yearly_count=rng.choice((0, 2, FOREVER)),
        pre_deploy_days=rng.choice((0, 30)),
        kept_tags=rng.choice(((), ("audit",))),
    )


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Auckland", "America/Sao_Paulo"])
def test_decisions_are_those_of_the_model(rng: random.Random, zone: str) -> None:
    """Goal: exactly what the rules say stays; compare random histories and policies with the plain model."""
    for _ in range(60):
        points = _history(rng, rng.randint(1, 60))
        rules = Rules(_policy(rng), {"db": _policy(rng)} if rng.random() < 0.5 else {})
        assert _kept(points, rules, zone=zone) == _Model(points, rules, NOW, zone).kept()


@pytest.mark.parametrize("zone", ["UTC", "Europe/Lisbon"])
def test_a_simulated_year_is_what_the_model_makes_of_it(zone: str) -> None:
    """Goal: the simulator tells the truth; a year of daily backups, and each day's ending done by the model."""
    rules = Rules(replace(DEFAULT, yearly_count=2))
    calendar = Calendar(zone_of(zone))
    fates = simulate([], rules, CADENCE, calendar, now=NOW, days=365, sources=("db",))
    present: list[Point] = []
    gone: dict[str, datetime.datetime] = {}
    made = [fate.verdict.point for fate in fates]
    today = NOW.astimezone(zone_of(zone)).date()
    for number in range(1, 366):
        wall = datetime.datetime.combine(today + number * DAY, datetime.time(4), tzinfo=zone_of(zone))
        moment = wall.astimezone(UTC)
        present += [point for point in made if moment - DAY - datetime.timedelta(hours=1) < point.at <= moment
                    and point not in present and point.id not in gone]  # fmt: skip
        stays = _Model(present, rules, moment, zone).kept()
        gone.update({point.id: moment for point in present if point.id not in stays})
        present = [point for point in present if point.id in stays]
    assert len(made) == 365
    assert {fate.verdict.point.id: fate.gone_at for fate in fates if fate.gone_at} == gone
    assert all(fate.verdict.kept for fate in fates)


def test_the_date_that_is_named_is_the_date_on_which_it_goes() -> None:
    """Goal: deletions can be listed ahead; let a year pass by the cadence and compare with the dates named at its end."""
    calendar = Calendar(UTC)
    rules = Rules(replace(DEFAULT, daily_count=10, weekly_count=6, monthly_count=2))
    year = simulate([], rules, CADENCE, calendar, now=NOW - 400 * DAY, days=400, sources=("db",))
    points = [
        replace(point, id=f"real-{point.number}") for point in (f.verdict.point for f in year if f.gone_at is None)
    ]
    named = {verdict.point.id: verdict.goes_at for verdict in _verdicts(points, rules)}
    ahead = simulate(points, rules, CADENCE, calendar, now=NOW, days=200, sources=("db",))
    went = {fate.verdict.point.id: fate.gone_at for fate in ahead if not fate.simulated}
    assert len(points) > 15
    for point, at in named.items():
        gone_at = went[point]
        assert at is not None and gone_at is not None
        # The rules are looked at once a day, at four in the morning.
        assert at <= gone_at < at + DAY, point


# ---------------------------------------------------------------- laws

_numbers = st.integers(0, 900 * 24)
_points = st.builds(
    lambda hours, full, sources, trigger, tags, held, damaged: Point(
        "", 0, NOW - datetime.timedelta(hours=hours), full, tuple(sources), trigger, tuple(tags), held, damaged
    ),
    _numbers,
    st.booleans(),
    st.sets(st.sampled_from(("db", "files")), min_size=1),
    st.sampled_from(_TRIGGERS),
    st.sets(st.sampled_from(("audit", "pre-deploy")), max_size=1),
    st.just(False),
    st.booleans(),
)
_histories = st.lists(_points, min_size=1, max_size=40).map(
    lambda points: [replace(point, id=f"b{n}", number=n) for n, point in enumerate(points, 1)]
)
_counts = st.sampled_from((0, 1, 2, 5, FOREVER))
_policies = st.builds(
    Policy,
    incremental_days=st.sampled_from((0, 3, 30)),
    weekly_full_count=_counts,
    monthly_full_count=_counts,
    daily_count=_counts,
    weekly_count=_counts,
    monthly_count=_counts,
    yearly_count=_counts,
    pre_deploy_days=st.sampled_from((0, 30)),
    kept_tags=st.sampled_from(((), ("audit",))),
)
_LAWS = settings(max_examples=120, deadline=None)


@_LAWS
@given(_histories, _policies, st.sampled_from([name for name in Policy.__slots__ if name != "kept_tags"]))
def test_raising_a_number_never_ends_more(points: list[Point], policy: Policy, name: str) -> None:
    """Goal: a larger number is never a surprise; raise each and compare what stays."""
    more = replace(policy, **{name: min(FOREVER, getattr(policy, name) + 1)})
    assert _kept(points, Rules(policy)) <= _kept(points, Rules(more))


@_LAWS
@given(_histories, _policies, st.data())
def test_a_hold_never_ends_anything(points: list[Point], policy: Policy, data: st.DataObject) -> None:
    """Goal: a hold only keeps; hold any backup, or the tenant, and compare."""
    chosen = data.draw(st.sampled_from(points))
    held = [replace(point, held=True) if point == chosen else point for point in points]
    before = _kept(points, Rules(policy))
    assert before | {chosen.id} == _kept(held, Rules(policy))
    assert _kept(points, Rules(policy, tenant_held=True)) == {point.id for point in points}


@_LAWS
@given(_histories, _policies)
def test_the_last_good_backup_of_each_source_stays(points: list[Point], policy: Policy) -> None:
    """Goal: no policy takes the last way back; look for each source's newest sound backup among those kept."""
    kept = _kept(points, Rules(policy))
    for source in {source for point in points for source in point.sources}:
        holders = [point for point in points if source in point.sources]
        sound = [point for point in holders if not point.damaged] or holders
        assert any(point.id in kept for point in sound)


@_LAWS
@given(_histories, _policies, st.randoms(use_true_random=False))
def test_order_and_repetition_change_nothing(points: list[Point], policy: Policy, rng: random.Random) -> None:
    """Goal: the same answer always; shuffle the backups, and decide again about those that stayed."""
    rules = Rules(policy)
    kept = _kept(points, rules)
    shuffled = points[:]
    rng.shuffle(shuffled)
    assert _kept(shuffled, rules) == kept
    assert _kept([point for point in points if point.id in kept], rules) == kept


# ---------------------------------------------------------------- single promises


def test_the_rules_need_no_django() -> None:
    """Goal: whoever checks the rules needs nothing of the house; import them where Django cannot be."""
    names = ("calendar", "decide", "policy", "simulate", "words")
    imports = "".join(f"import tenants.retention.{name}; " for name in names)
    paths = [str(ROOT), str(ROOT / "platform")]
    code = f"import sys; sys.path[:0] = {paths!r}; sys.modules['django'] = None; {imports}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _daily(days: int, **more: object) -> list[Point]:
    """One backup at midnight of each of the last days, Sundays' full; the newest today."""
    midnight = NOW.replace(hour=0)
    return [
        Point(f"d{n}", days - n, midnight - n * DAY, full=(midnight - n * DAY).weekday() == 6, sources=("db",), **more)  # type: ignore[arg-type]
        for n in range(days)
    ]


def test_the_defaults_keep_what_the_design_says() -> None:
    """Goal: 7 days, 4 weekly and 3 monthly full ones; decide about a year of daily backups."""
    kept = {verdict.point.id: verdict for verdict in _verdicts(_daily(365), Rules(DEFAULT)) if verdict.kept}
    ages = sorted(int(each[1:]) for each in kept)
    assert ages[:7] == [0, 1, 2, 3, 4, 5, 6]
    assert ages[7:] == [
        7,
        14,
        21,
        28,
        56,
    ]  # Sundays; the last ones of October and September were four and eight weeks ago.
    assert words(kept["d28"], Rules(DEFAULT)).startswith("newest full backup of its month: number 2 of 3")
    assert goes(kept["d6"]) == "2026-11-23 00:00"


def test_sources_do_not_push_each_other_out() -> None:
    """Goal: a backup of one source alone takes no week away from another; alternate between two sources."""
    rules = Rules(replace(NOTHING, weekly_count=4))
    points = [replace(point, sources=("db",) if n % 2 else ("files",)) for n, point in enumerate(_daily(60))]
    kept = [point for point in points if point.id in _kept(points, rules)]
    assert sum("db" in point.sources for point in kept) == 4
    assert sum("files" in point.sources for point in kept) == 4


def test_a_removed_source_keeps_its_last_backup() -> None:
    """Goal: what is taken no more can still be got back; end a source and look at its newest backup."""
    points = [*_daily(5), Point("old", 9, NOW - 500 * DAY, sources=("gone",))]
    found = {
        verdict.point.id: verdict for verdict in _verdicts(points, Rules(DEFAULT, ended_sources=frozenset({"gone"})))
    }
    assert found["old"].kept and found["old"].goes_at is None


def test_safety_backups_live_as_long_as_their_undo_term() -> None:
    """Goal: an undo finds its safety backup, and no longer; look before and after the term, and at the week's full one."""
    undo = Point("safe", 900, NOW - 20 * DAY, sources=("db",), trigger="safety", undo_until=NOW + 10 * DAY)
    found = {verdict.point.id: verdict for verdict in _verdicts([*_daily(40), undo], Rules(DEFAULT))}
    assert found["safe"].rule == "undo" and found["safe"].goes_at == NOW + 10 * DAY
    assert "safe" not in _kept([*_daily(40), undo], Rules(DEFAULT), NOW + 11 * DAY)
    assert found["d21"].kept and found["d14"].kept


def test_a_backup_from_the_future_pushes_nothing_out() -> None:
    """Goal: backups of a clock that ran ahead cost no older one its place; add a month of them."""
    points = _daily(60)
    ahead = [Point(f"f{n}", 900 + n, NOW + n * DAY, sources=("db",)) for n in range(2, 60)]
    assert _kept([*points, *ahead], Rules(DEFAULT)) == _kept(points, Rules(DEFAULT)) | {point.id for point in ahead}


def test_days_are_those_of_the_time_zone() -> None:
    """Goal: the day ends where the people are; the same instant is another day in Auckland."""
    rules = Rules(replace(NOTHING, incremental_days=1))
    now = datetime.datetime(2026, 11, 22, 23, 30, tzinfo=UTC)
    evening = [Point("a", 1, now - datetime.timedelta(hours=13), sources=("db",)), Point("b", 2, now, sources=("db",))]
    assert _kept(evening, rules, now) == {"a", "b"}
    assert _kept(evening, rules, now, "Pacific/Auckland") == {"b"}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("daily", "7", "knows no 'daily'"),
        ("daily_count", "-1", "whole number"),
        ("daily_count", "10001", "whole number"),
        ("daily_count", "7.5", "whole number"),
        ("daily_count", True, "whole number"),
        ("incremental_days", None, "whole number"),
        ("kept_tags", "a b", "cannot be a tag"),
        ("kept_tags", 7, "takes tags"),
    ],
)
def test_numbers_that_cannot_be_are_refused(name: str, value: object, said: str) -> None:
    """Goal: no policy is taken for another one; give what cannot be right."""
    with pytest.raises(UsageError, match=said):
        policy_of({name: value})


def test_policies_survive_their_way_through_files() -> None:
    """Goal: what was set is what is read; write and read presets, and say them in words."""
    for policy in (DEFAULT, NOTHING, preset("tiers", store_kind="gcs"), replace(DEFAULT, kept_tags=("a", "b"))):
        assert policy_of(policy.to_json()) == policy
    assert policy_of({"yearly_count": "forever", "kept_tags": "b,a"}) == replace(
        NOTHING, yearly_count=FOREVER, kept_tags=("a", "b")
    )
    assert policy_words(DEFAULT).startswith("every backup of the last 7 days; the newest full one of each of 4 weeks")
    assert "for ever" in policy_words(preset("tiers", store_kind="azure"))
    with pytest.raises(UsageError, match="no tier"):
        preset("tiers")
