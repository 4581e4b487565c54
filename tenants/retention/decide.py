"""Decide for every backup of a tenant which rule keeps it and until when; the same answer in any order, any number of times.

Rules look at one source at a time: a backup of another source never pushes a source's last weekly one out. A backup
stays as long as any rule keeps any of its sources. Counts are of periods that have a backup, so that nothing goes when
no more backups come; the date on which a counted one goes is worked out from the cadence of those to come.
"""

import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tenants.retention.calendar import DAYS, MONTHS, WEEKS, YEARS, Cadence, Calendar, Period
from tenants.retention.policy import FOREVER, Policy

NEVER = datetime.datetime.max.replace(tzinfo=datetime.UTC)
FUTURE_SLACK = datetime.timedelta(hours=1)
"""A backup from further ahead was taken by a wrong clock: it stays, and pushes no other one out."""
SAFETY, IMPORT = "safety", "import"
PRE_DEPLOY_TRIGGERS = frozenset({"deployment", "pre-deploy", "pre_deploy"})
PRE_DEPLOY_TAGS = frozenset({"pre-deploy", "pre_deploy"})


@dataclass(frozen=True, slots=True)
class Point:
    """One good backup as the rules see it; `at` is aware UTC."""

    id: str
    number: int
    at: datetime.datetime
    full: bool = True
    sources: tuple[str, ...] = ()
    """Ids of the sources that it holds."""
    trigger: str = "manual"
    tags: tuple[str, ...] = ()
    held: bool = False
    damaged: bool = False
    undo_until: datetime.datetime | None = None
    """The end of the term of a restore that this safety backup undoes."""

    @property
    def before_deployment(self) -> bool:
        return self.trigger in PRE_DEPLOY_TRIGGERS or bool(PRE_DEPLOY_TAGS.intersection(self.tags))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one backup: the rule that keeps it longest, or none."""

    point: Point
    rule: str
    """Empty: no rule keeps it."""
    goes_at: datetime.datetime | None
    """When it goes; None: not as far as anybody can tell. Of one that no rule keeps, the time of the decision."""
    rank: int = 0
    source: str = ""
    """Id of the source for which the rule keeps it, where the tenant's sources have different histories."""

    @property
    def kept(self) -> bool:
        return bool(self.rule)


@dataclass(frozen=True, slots=True)
class Rules:
    """All that a decision depends on, beside the backups."""

    policy: Policy
    sources: Mapping[str, Policy] = field(default_factory=dict)
    """Policies of the sources that have one of their own, by id."""
    tenant_held: bool = False
    ended_sources: frozenset[str] = frozenset()
    """Sources that are backed up no more."""

    def of(self, source: str) -> Policy:
        """The policy of one source."""
        return self.sources.get(source, self.policy)


class Forecast:
    """When the periods of a rule will have their next backups; worked out once for all tenants of a run."""

    def __init__(self, cadence: Cadence, calendar: Calendar, now: datetime.datetime) -> None:
        self.calendar, self.now = calendar, now
        self._cadence = cadence
        self._today = calendar.day(now)
        self._firsts: dict[tuple[str, bool], list[tuple[int, datetime.datetime]]] = {}

    @property
    def today(self) -> int:
        return self._today

    def next(self, *, full: bool) -> datetime.datetime:
        """When the next backup is taken, or the next full one."""
        return self._first(DAYS, full, 0)[1]

    def displaced(self, period: Period, full: bool, number: int) -> datetime.datetime:
        """When a newer backup takes the place of the period's newest one; NEVER when none will."""
        first, at = self._first(period, full, 0)
        return at if first == number else NEVER

    def filled(self, period: Period, full: bool, newest: int, count: int) -> datetime.datetime:
        """When `count` periods behind the period `newest` have a backup."""
        if count > 10_000:
            return NEVER
        skip = 1 if self._first(period, full, 0)[0] <= newest else 0
        return self._first(period, full, count - 1 + skip)[1]

    def _first(self, period: Period, full: bool, nth: int) -> tuple[int, datetime.datetime]:
        """Number of the nth period from now on that gets a backup, and when it gets the first."""
        found = self._firsts.setdefault((period.noun, full), [])
        while len(found) <= nth:
            after = self.now
            if found:
                following = period.first(found[-1][0] + 1)
                if following >= datetime.date.max.toordinal() - 800:
                    return found[-1][0] + 1, NEVER
                after = self.calendar.begins(following) - datetime.timedelta(microseconds=1)
            at = self._cadence.next(self.calendar, after, full=full)
            found.append((period.of(self.calendar.day(at)), at))
        return found[nth]


@dataclass(frozen=True, slots=True)
class _Counted:
    """A rule that counts periods."""

    name: str
    period: Period
    full: bool
    count: Callable[[Policy], int]


_COUNTED = (
    _Counted("daily", DAYS, False, lambda policy: policy.daily_count),
    _Counted("weekly", WEEKS, False, lambda policy: policy.weekly_count),
    _Counted("weekly_full", WEEKS, True, lambda policy: policy.weekly_full_count),
    _Counted("monthly", MONTHS, False, lambda policy: policy.monthly_count),
    _Counted("monthly_full", MONTHS, True, lambda policy: policy.monthly_full_count),
    _Counted("yearly", YEARS, False, lambda policy: policy.yearly_count),
)
_STRENGTH = {
    name: strength
    for strength, name in enumerate(
        ("tenant_held", "held", "tag", "undo", "future", "yearly", "monthly_full", "monthly", "weekly_full", "weekly",
         "pre_deploy", "days", "daily", "last_good")
    )
}  # fmt: skip
"""Which rule is named when two keep a backup equally long."""


class _Best:
    """The strongest reason for each point of one decision."""

    def __init__(self, count: int) -> None:
        self.rules = [""] * count
        self.untils = [NEVER] * count
        self.ranks = [0] * count
        self.sources = [""] * count

    def keep(self, at: int, rule: str, until: datetime.datetime, *, rank: int = 0, source: str = "") -> None:
        now = self.rules[at]
        if not now or until > self.untils[at] or (until == self.untils[at] and _STRENGTH[rule] < _STRENGTH[now]):
            self.rules[at], self.untils[at], self.ranks[at], self.sources[at] = rule, until, rank, source


def decide(points: Iterable[Point], rules: Rules, forecast: Forecast) -> list[Verdict]:
    """The verdict on every point, oldest first. Points are backups that exist and are good."""
    ordered = sorted(points, key=lambda point: (point.at, point.number, point.id))
    calendar = forecast.calendar
    days = [calendar.day(point.at) for point in ordered]
    ahead = forecast.now + FUTURE_SLACK
    best = _Best(len(ordered))
    for at, point in enumerate(ordered):
        _keep_alone(best, at, point, rules, ahead)
    lines = list(_lines(ordered, rules, ahead))
    for line in lines:
        _keep_days(best, line, ordered, days, forecast)
        for counted in _COUNTED:
            _keep_counted(best, line, counted, ordered, days, forecast)
    _keep_last_good(best, ordered, rules, forecast, ahead)
    return [
        Verdict(
            point,
            best.rules[at],
            (None if best.untils[at] == NEVER else best.untils[at]) if best.rules[at] else forecast.now,
            best.ranks[at],
            best.sources[at],
        )
        for at, point in enumerate(ordered)
    ]


def _keep_alone(best: _Best, at: int, point: Point, rules: Rules, ahead: datetime.datetime) -> None:
    """What keeps a backup whatever others there are."""
    if rules.tenant_held:
        best.keep(at, "tenant_held", NEVER)
    if point.held:
        best.keep(at, "held", NEVER)
    if point.at > ahead:
        best.keep(at, "future", NEVER)
    if point.undo_until is not None and point.undo_until > ahead - FUTURE_SLACK:
        best.keep(at, "undo", point.undo_until)
    if point.tags:
        policies = {rules.of(source) for source in point.sources} or {rules.policy}
        if any(set(policy.kept_tags).intersection(point.tags) for policy in policies):
            best.keep(at, "tag", NEVER)


@dataclass(frozen=True, slots=True)
class _Line:
    """The history of sources that lie in the same backups and follow the same policy; places in the ordered points."""

    policy: Policy
    places: Sequence[int]
    counted: Sequence[int]
    """Without safety backups: what a restore throws away represents no week or month."""
    source: str


def _lines(ordered: Sequence[Point], rules: Rules, ahead: datetime.datetime) -> Iterator[_Line]:
    """Histories of their own: by source, packages that were imported apart. Equal ones are looked at once."""
    places: dict[tuple[str, bool], list[int]] = {}
    for at, point in enumerate(ordered):
        if point.at <= ahead:
            for source in point.sources or ("",):
                places.setdefault((source, point.trigger == IMPORT), []).append(at)
    seen: set[tuple[Policy, tuple[int, ...]]] = set()
    for (source, _), line in sorted(places.items()):
        key = (rules.of(source), tuple(line))
        if key not in seen:
            seen.add(key)
            counted = [at for at in line if ordered[at].trigger != SAFETY]
            yield _Line(key[0], line, counted, source)


def _keep_days(best: _Best, line: _Line, ordered: Sequence[Point], days: Sequence[int], forecast: Forecast) -> None:
    keeping = line.policy.incremental_days
    deploying = line.policy.pre_deploy_days
    for at in reversed(line.places):
        age = forecast.today - days[at]
        if age >= max(keeping, deploying):
            break
        if age < keeping:
            best.keep(at, "days", _end(forecast, days[at], keeping), source=line.source)
        if age < deploying and ordered[at].before_deployment:
            best.keep(at, "pre_deploy", _end(forecast, days[at], deploying), source=line.source)


def _end(forecast: Forecast, day: int, count: int) -> datetime.datetime:
    return NEVER if count == FOREVER else forecast.calendar.begins(day + count)


def _keep_counted(
    best: _Best,
    line: _Line,
    rule: _Counted,
    ordered: Sequence[Point],
    days: Sequence[int],
    forecast: Forecast,
) -> None:
    count = rule.count(line.policy)
    if not count:
        return
    newest = -1
    for rank, (number, at) in enumerate(_newest_of_each(line, rule, ordered, days)):
        if rank == count:
            return
        newest = number if rank == 0 else newest
        until = NEVER if count == FOREVER else forecast.filled(rule.period, rule.full, newest, count - rank)
        if rank == 0:
            until = min(until, forecast.displaced(rule.period, rule.full, number))
        best.keep(at, rule.name, until, rank=rank + 1, source=line.source)


def _newest_of_each(
    line: _Line, rule: _Counted, ordered: Sequence[Point], days: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Number and newest backup of each period, the newest first; a damaged one only where there is no other."""
    period, chosen = -1, -1
    for at in reversed(line.counted):
        point = ordered[at]
        if rule.full and not point.full:
            continue
        number = rule.period.of(days[at])
        if number != period:
            if chosen >= 0:
                yield period, chosen
            period, chosen = number, at
        elif ordered[chosen].damaged and not point.damaged:
            chosen = at
    if chosen >= 0:
        yield period, chosen


def _keep_last_good(
    best: _Best, ordered: Sequence[Point], rules: Rules, forecast: Forecast, ahead: datetime.datetime
) -> None:
    """The newest backup of each source that can be trusted, and what is left where none can."""
    found: dict[tuple[str, int], int] = {}
    for at, point in enumerate(ordered):
        trust = 0 if point.damaged else 1 if point.trigger in (SAFETY, IMPORT) or point.at > ahead else 2
        for source in point.sources or ("",):
            found[source, trust] = at
    for source in sorted({source for source, _ in found}):
        at = next(found[source, trust] for trust in (2, 1, 0) if (source, trust) in found)
        # Where nothing else keeps it, no backups seem to come: it stays until one does.
        lasting = not source or source in rules.ended_sources or not best.rules[at]
        best.keep(at, "last_good", NEVER if lasting else forecast.next(full=False), source=source)
