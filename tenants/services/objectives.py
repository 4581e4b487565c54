"""Objectives set and taken back: a new version each time, the old one ended, on record."""

from dataclasses import dataclass

from django.db import transaction

from audit.services import record
from core import clock
from core.errors import Conflict
from core.text import reason_checked
from engine.errors import UsageError
from tenants.models import Objective, Source, Tenant
from tenants.objectives.rules import length_words, place_of

SECONDS_MIN, SECONDS_MAX = 60, 10 * 366 * 86_400


@dataclass(frozen=True, slots=True)
class ObjectivePlace:
    """For what objectives hold: everything, a tenant, a class, a tenant's class, or one source."""

    tenant: Tenant | None = None
    criticality: str = ""
    source: Source | None = None

    @property
    def key(self) -> str:
        return place_of(self.tenant.pk if self.tenant else "", self.criticality, self.source.pk if self.source else "")

    @property
    def said(self) -> str:
        """The place as messages name it."""
        if self.source is not None:
            return f"source {self.source.name} of {self.source.tenant.slug}"
        whose = f"tenant {self.tenant.slug}" if self.tenant else "every tenant"
        return f"{self.criticality} sources of {whose}" if self.criticality else whose


def objective_set(
    place: ObjectivePlace, *, rpo_seconds: int | None, rto_seconds: int | None, actor: str, reason: str = ""
) -> Objective:
    """Set what may be lost and how long it may take there, from now on; None keeps what the place has.

    Raises UsageError for a length out of range, for nothing to set, and for a source together with a class.
    """
    if place.source is not None and place.criticality:
        raise UsageError("a source has one class", hint="leave --class or --source out")
    if rpo_seconds is None and rto_seconds is None:
        raise UsageError("nothing to set was given", hint="--rpo 4h, --rto 1h, or both")
    for name, seconds in (("rpo", rpo_seconds), ("rto", rto_seconds)):
        if seconds is not None and not SECONDS_MIN <= seconds <= SECONDS_MAX:
            raise UsageError(f"an {name} of {seconds} s is out of range", hint="from 1m to 10 years (520w)")
    reason = reason_checked(reason)
    now = clock.now()
    with transaction.atomic():
        before = _in_force(place)
        row = Objective(
            place=place.key,
            tenant=place.tenant or (place.source.tenant if place.source else None),
            criticality=place.criticality,
            source=place.source,
            rpo_seconds=before.rpo_seconds if before and rpo_seconds is None else rpo_seconds,
            rto_seconds=before.rto_seconds if before and rto_seconds is None else rto_seconds,
            valid_from=now,
            set_by=actor[:200],
            reason=reason,
        )
        _end(before)
        row.save(force_insert=True)
        _record(place, "objective.set", before, row, actor, reason)
    return row


def objective_reset(place: ObjectivePlace, *, actor: str, reason: str = "") -> None:
    """Take back what was set for a place, so that the next wider one speaks. Raises Conflict when nothing was."""
    reason = reason_checked(reason)
    with transaction.atomic():
        before = _in_force(place)
        if before is None:
            raise Conflict(f"no objective was set for {place.said}", hint="objective list shows those that were")
        _end(before)
        _record(place, "objective.reset", before, None, actor, reason)


def objective_list() -> list[Objective]:
    """Everything that was set and is in force."""
    rows = Objective.objects.filter(valid_until=None).select_related("tenant", "source")
    return list(rows.order_by("tenant__slug", "criticality", "source__name"))


def _in_force(place: ObjectivePlace) -> Objective | None:
    return Objective.objects.select_for_update().filter(place=place.key, valid_until=None).first()


def _end(row: Objective | None) -> None:
    if row is not None:
        Objective.objects.filter(pk=row.pk, valid_until=None).update(valid_until=clock.now())


def _values(row: Objective | None) -> dict[str, int | None] | None:
    return {"rpo_seconds": row.rpo_seconds, "rto_seconds": row.rto_seconds} if row else None


def _record(
    place: ObjectivePlace, type: str, before: Objective | None, after: Objective | None, actor: str, reason: str
) -> None:
    tenant = place.tenant or (place.source.tenant if place.source else None)
    words = ""
    if after is not None:
        told = (("lose", after.rpo_seconds), ("back within", after.rto_seconds))
        words = ", ".join(f"{what} {length_words(seconds)}" for what, seconds in told if seconds is not None)
    record(
        type,
        message=f"objectives of {place.said}: {words or 'the wider ones again'}",
        actor=actor,
        tenant=tenant.slug if tenant else "",
        data={"place": place.key, "before": _values(before), "after": _values(after), "reason": reason},
    )
