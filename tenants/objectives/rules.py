"""Which objectives are in force where, and which were when. Pure: no queries, no clock."""

import datetime
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

HOUR = 3_600
DEFAULT_RPO = {"critical": 4 * HOUR, "important": 24 * HOUR, "normal": 24 * HOUR}
DEFAULT_RTO = {"critical": HOUR, "important": 4 * HOUR, "normal": 24 * HOUR}


@dataclass(frozen=True, slots=True)
class Terms:
    """What is in force for a source: seconds that may be lost, and seconds until it must be back."""

    rpo_seconds: int
    rto_seconds: int


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a place's objectives; None leaves that to the next wider place."""

    rpo_seconds: int | None
    rto_seconds: int | None
    valid_from: datetime.datetime
    valid_until: datetime.datetime | None = None

    def holds(self, at: datetime.datetime) -> bool:
        """Whether it was in force at that moment."""
        return self.valid_from <= at and (self.valid_until is None or at < self.valid_until)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time in which the same terms held."""

    begin: datetime.datetime
    end: datetime.datetime
    terms: Terms


def place_of(tenant: str = "", criticality: str = "", source: str = "") -> str:
    """The key of a place, as Objective.place holds it."""
    return f"{tenant}/{criticality}/{source}"


def places_of(tenant: str, criticality: str, source: str) -> tuple[str, ...]:
    """The places that speak for a source, the narrowest first."""
    return (
        place_of(tenant, source=source),
        place_of(tenant, criticality),
        place_of(tenant),
        place_of("", criticality),
        place_of(),
    )


def terms_at(
    versions: Mapping[str, Sequence[Version]], tenant: str, criticality: str, source: str, at: datetime.datetime
) -> Terms:
    """The terms in force for a source at a moment; each of the two from the narrowest place that sets it."""
    holding = [
        version
        for place in places_of(tenant, criticality, source)
        for version in versions.get(place, ())
        if version.holds(at)
    ]
    rpo = next((each.rpo_seconds for each in holding if each.rpo_seconds is not None), DEFAULT_RPO[criticality])
    rto = next((each.rto_seconds for each in holding if each.rto_seconds is not None), DEFAULT_RTO[criticality])
    return Terms(rpo, rto)


def class_at(classes: Sequence[tuple[datetime.datetime, str]], now_class: str, at: datetime.datetime) -> str:
    """The class of a source at a moment; `classes` are those it had, each until when, oldest first."""
    return next((name for until, name in classes if at < until), now_class)


def stretches(
    versions: Mapping[str, Sequence[Version]],
    classes: Sequence[tuple[datetime.datetime, str]],
    *,
    tenant: str,
    source: str,
    now_class: str,
    begin: datetime.datetime,
    end: datetime.datetime,
) -> list[Stretch]:
    """The terms of a source from `begin` to `end`, in stretches without gaps."""
    names = {now_class, *(name for _, name in classes)}
    speaking = {place for name in names for place in places_of(tenant, name, source)}
    moments = {until for until, _ in classes}
    for place in speaking:
        for version in versions.get(place, ()):
            moments |= {version.valid_from, *([version.valid_until] if version.valid_until else [])}
    cuts = [begin, *sorted(at for at in moments if begin < at < end), end]
    found: list[Stretch] = []
    for at, until in itertools.pairwise(cuts):
        terms = terms_at(versions, tenant, class_at(classes, now_class, at), source, at)
        if found and found[-1].terms == terms:
            found[-1] = Stretch(found[-1].begin, until, terms)
        elif at < until:
            found.append(Stretch(at, until, terms))
    return found


# ---------------------------------------------------------------- what was kept


@dataclass(frozen=True, slots=True)
class Point:
    """A recovery point: when its data was read, and from when on it could be returned to."""

    taken_at: datetime.datetime
    available_at: datetime.datetime


@dataclass(frozen=True, slots=True)
class Breach:
    """A time in which more would have been lost than the objective of then allowed."""

    begin: datetime.datetime
    end: datetime.datetime
    rpo_seconds: int

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return (self.end - self.begin).total_seconds()


def breaches(points: Iterable[Point], terms: Sequence[Stretch], *, since: datetime.datetime) -> list[Breach]:
    """When the newest recovery point was older than allowed, exactly; before the first one data counts from `since`.

    `points` in order of `available_at`, with those before the first stretch that still counted in it.
    """
    if not terms:
        return []
    begin, end = terms[0].begin, terms[-1].end
    newest, steps = since, []
    at = begin
    for point in points:
        if point.available_at > begin:
            if point.available_at >= end:
                break
            steps.append((at, point.available_at, newest))
            at = point.available_at
        newest = max(newest, point.taken_at)
    steps.append((at, end, newest))
    found: list[Breach] = []
    for first, last, base in steps:
        for stretch in terms:
            _over(found, max(first, stretch.begin), min(last, stretch.end), base, stretch.terms.rpo_seconds)
    return found


def _over(
    found: list[Breach], first: datetime.datetime, last: datetime.datetime, base: datetime.datetime, rpo_seconds: int
) -> None:
    over = max(first, base + datetime.timedelta(seconds=rpo_seconds))
    if over >= last:
        return
    if found and found[-1].end == over and found[-1].rpo_seconds == rpo_seconds:
        found[-1] = Breach(found[-1].begin, last, rpo_seconds)
    else:
        found.append(Breach(over, last, rpo_seconds))


def attained(found: Sequence[Breach], terms: Sequence[Stretch]) -> float:
    """The part of the time, 0 to 1, in which the objective was kept; 1 for no time at all."""
    total = sum((each.end - each.begin).total_seconds() for each in terms)
    return 1 - sum(each.seconds for each in found) / total if total else 1.0


def length_words(seconds: float) -> str:
    """A length of time for people, in its two largest units: `2 h 14 min`, `3 d 5 h`, `48 s`."""
    rest, parts = int(seconds), []
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
        if len(parts) == 2 or (parts and unit == "min"):
            break
    return " ".join(parts) or "0 s"
