"""What would be lost now and how long it would take to be back; what was kept over time. Constant queries for all tenants."""

import datetime
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from django.db.models import Max, OuterRef, Subquery

from tenants.models import Backup, BackupSource, Drill, DrillState, Objective, Source, SourceClass, Tenant
from tenants.models.backup import ENDED_STATES, GOOD_STATES
from tenants.objectives.rules import (
    Breach,
    Point,
    Stretch,
    Terms,
    Version,
    attained,
    breaches,
    length_words,
    stretches,
    terms_at,
)
from tenants.selectors import source_guarded

DRILLS_MAX = 1_000
"""Drills of one tenant judged in a report; more do not fit into its period in practice."""


def versions_of(tenant: Tenant | None = None, *, in_force: bool = False) -> dict[str, list[Version]]:
    """Versions by place: those that speak for a tenant, or all of them."""
    rows = Objective.objects.order_by("place", "valid_from")
    if tenant is not None:
        rows = rows.filter(tenant=None) | rows.filter(tenant=tenant)
    if in_force:
        rows = rows.filter(valid_until=None)
    found: dict[str, list[Version]] = defaultdict(list)
    for place, rpo, rto, begin, until in rows.values_list(
        "place", "rpo_seconds", "rto_seconds", "valid_from", "valid_until"
    ):
        found[place].append(Version(rpo, rto, begin, until))
    return found


# ---------------------------------------------------------------- now


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a source stands at one moment."""

    tenant: str
    source_id: str
    source: str
    criticality: str
    terms: Terms
    last_good_at: datetime.datetime | None
    loses_seconds: int
    """What would be lost now, in time: since the last good backup, or since the source was added."""
    back_seconds: int | None
    """How long it would take to be back, by the tenant's last drill that passed, as it grew since; None: never rehearsed."""

    @property
    def rpo_kept(self) -> bool:
        """Whether no more would be lost than allowed."""
        return self.loses_seconds <= self.terms.rpo_seconds

    @property
    def rto_kept(self) -> bool | None:
        """Whether it would be back in time; None where nobody knows."""
        return None if self.back_seconds is None else self.back_seconds <= self.terms.rto_seconds


def standings(*, now: datetime.datetime, tenant: Tenant | None = None) -> list[Standing]:
    """Every source that ought to be backed up, by tenant and name: four queries, however many there are."""
    rows = source_guarded().filter(tenant__shredded_at=None)
    rows = rows.filter(tenant=tenant) if tenant is not None else rows
    versions, back = versions_of(tenant, in_force=True), _back_seconds(tenant)
    fields = ("tenant__slug", "tenant_id", "pk", "name", "criticality", "last_good_at", "created_at")
    return [
        Standing(
            slug,
            source_id,
            name,
            criticality,
            terms_at(versions, tenant_id, criticality, source_id, now),
            last_good_at,
            max(0, int((now - (last_good_at or created_at)).total_seconds())),
            back.get(tenant_id),
        )
        for slug, tenant_id, source_id, name, criticality, last_good_at, created_at in rows.order_by(
            "tenant__slug", "name"
        ).values_list(*fields)
    ]


def objectives_breached(*, now: datetime.datetime) -> list[Standing]:
    """Sources of which more would be lost, or which would take longer to be back, than allowed now."""
    return [each for each in standings(now=now) if not each.rpo_kept or each.rto_kept is False]


def _back_seconds(tenant: Tenant | None) -> dict[str, int]:
    """By tenant the time of the last drill that passed, in proportion to what is to be restored today."""
    passed = Drill.objects.filter(state=DrillState.PASSED, tenant=OuterRef("pk")).order_by("-id")
    newest = Backup.objects.filter(state__in=GOOD_STATES, tenant=OuterRef("pk")).order_by("-number")
    rows = Tenant.objects.filter(archived_at=None)
    rows = rows.filter(pk=tenant.pk) if tenant is not None else rows
    known = rows.values_list(
        "pk",
        Subquery(passed.values("restore_ms")[:1]),
        Subquery(passed.values("restored_bytes")[:1]),
        Subquery(newest.values("size_bytes")[:1]),
    )
    return {pk: _scaled(ms, was, size) for pk, ms, was, size in known if ms is not None}


def _scaled(restore_ms: int, restored_bytes: int, size_bytes: int | None) -> int:
    grown = max(1.0, size_bytes / restored_bytes) if restored_bytes and size_bytes else 1.0
    return -(-int(restore_ms * grown) // 1_000)


def standing_words(rows: Sequence[Standing]) -> str:
    """What a tenant's standing means: `lose 2 h 14 min, back in 6 min`."""
    if not rows:
        return "nothing to lose: no source is backed up"
    if never := [each.source for each in rows if each.last_good_at is None]:
        return f"lose everything of {', '.join(never[:5])}: never backed up"
    lost = length_words(max(each.loses_seconds for each in rows))
    back = max((each.back_seconds for each in rows if each.back_seconds is not None), default=None)
    return f"lose {lost}, " + (
        f"back in {length_words(back)}" if back is not None else "back in nobody knows: no drill has passed"
    )


# ---------------------------------------------------------------- over time


@dataclass(frozen=True, slots=True)
class Measured:
    """One drill held against the objective in force when it ended."""

    drill_id: str
    at: datetime.datetime
    seconds: float
    rto_seconds: int

    @property
    def kept(self) -> bool:
        """Whether it was back in time."""
        return self.seconds <= self.rto_seconds


@dataclass(frozen=True, slots=True)
class Kept:
    """How a source's objectives were kept over a time."""

    source: str
    terms: tuple[Stretch, ...]
    breaches: tuple[Breach, ...]
    drills: tuple[Measured, ...]

    @property
    def attained(self) -> float:
        """The part of the time in which no more would have been lost than allowed."""
        return attained(self.breaches, self.terms)


def objectives_kept(
    tenant: Tenant, *, begin: datetime.datetime, end: datetime.datetime, source: str = ""
) -> list[Kept]:
    """How the objectives of a tenant's sources were kept from `begin` to `end`, each moment by the version of then."""
    sources = list(Source.objects.filter(tenant=tenant, created_at__lt=end).order_by("name"))
    sources = [each for each in sources if not source or each.name == source]
    versions, classes = versions_of(tenant), _classes(sources)
    points, drills = _points(sources, begin, end), _drills(tenant, begin, end)
    found = []
    for each in sources:
        terms = stretches(
            versions, classes.get(each.pk, ()), tenant=tenant.pk, source=each.pk, now_class=each.criticality,
            begin=max(begin, each.created_at), end=end,
        )  # fmt: skip
        over = breaches(points.get(each.pk, ()), terms, since=each.created_at)
        found.append(Kept(each.name, tuple(terms), tuple(over), tuple(_measured(each, drills, terms))))
    return found


def _classes(sources: Sequence[Source]) -> Mapping[str, list[tuple[datetime.datetime, str]]]:
    found: dict[str, list[tuple[datetime.datetime, str]]] = defaultdict(list)
    rows = SourceClass.objects.filter(source__in=sources).order_by("until")
    for source_id, until, criticality in rows.values_list("source_id", "until", "criticality"):
        found[source_id].append((until, criticality))
    return found


def _points(sources: Sequence[Source], begin: datetime.datetime, end: datetime.datetime) -> Mapping[str, list[Point]]:
    """Recovery points of the time, and before each source's first one the newest that there was when it began.

    Backups that retention has ended since count: they could be returned to while they were the newest.
    """
    kept = BackupSource.objects.filter(
        source__in=sources,
        state=BackupSource.State.KEPT,
        backup__state__in=(*GOOD_STATES, *ENDED_STATES),
        backup__taken_at__isnull=False,
        backup__finished_at__isnull=False,
    ).order_by()
    before = kept.filter(backup__finished_at__lte=begin).values_list("source_id").annotate(Max("backup__taken_at"))
    found: dict[str, list[Point]] = defaultdict(list)
    for source_id, taken_at in before:
        found[source_id].append(Point(taken_at, begin))
    during = kept.filter(backup__finished_at__gt=begin, backup__finished_at__lt=end).order_by("backup__finished_at")
    for source_id, taken_at, at in during.values_list("source_id", "backup__taken_at", "backup__finished_at"):
        assert taken_at is not None and at is not None  # So the query says.
        found[source_id].append(Point(taken_at, at))
    return found


def _drills(tenant: Tenant, begin: datetime.datetime, end: datetime.datetime) -> list[Drill]:
    rows = Drill.objects.filter(tenant=tenant, state=DrillState.PASSED, finished_at__gte=begin, finished_at__lt=end)
    return list(rows.order_by("finished_at")[:DRILLS_MAX])


def _measured(source: Source, drills: Sequence[Drill], terms: Sequence[Stretch]) -> list[Measured]:
    found = []
    for drill in drills:
        at = drill.finished_at
        held = next((each.terms for each in terms if at and each.begin <= at < each.end), None)
        if at is not None and held is not None and source.name in drill.sources:
            found.append(Measured(drill.pk, at, drill.restore_ms / 1_000, held.rto_seconds))
    return found
