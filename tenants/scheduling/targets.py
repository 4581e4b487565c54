"""For whom a schedule is: tenants with their stores, in one query however many there are."""

from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet

from operations.models import Schedule
from operations.scheduling.works import Target
from tenants.models import Source, Tenant


def sources_chosen(selection: dict[str, list[str]]) -> Q:
    """Which sources a selection means; all that are enabled when it names none."""
    chosen = Q(enabled=True)
    for key, field in (("classes", "criticality"), ("categories", "category"), ("sources", "name")):
        if selection.get(key):
            chosen &= Q(**{f"{field}__in": selection[key]})
    return chosen


def backup(schedule: Schedule) -> list[Target]:
    """Tenants with at least one source that the schedule means."""
    sources = Source.objects.filter(sources_chosen(schedule.selection), tenant=OuterRef("pk"))
    return _listed(_tenants(schedule.selection).filter(Exists(sources)))


def drill(schedule: Schedule) -> list[Target]:
    """Tenants with something to rehearse."""
    return _listed(_classes(schedule, Source.objects.filter(last_good_backup__isnull=False)))


def verify(schedule: Schedule) -> list[Target]:
    """Tenants with a backup to look at."""
    return drill(schedule)


def prune(schedule: Schedule) -> list[Target]:
    """Tenants with a repository."""
    return _listed(_classes(schedule, Source.objects.all()).filter(repository_ready=True))


def _classes(schedule: Schedule, sources: "QuerySet[Source]") -> "QuerySet[Tenant]":
    """Tenants of which one of these sources is of a chosen class."""
    sources = sources.filter(tenant=OuterRef("pk"))
    if classes := schedule.selection.get("classes"):
        sources = sources.filter(criticality__in=classes)
    return _tenants(schedule.selection).filter(Exists(sources))


def _tenants(selection: dict[str, Any]) -> "QuerySet[Tenant]":
    rows = Tenant.objects.filter(archived_at=None, shredded_at=None)
    return rows.filter(slug__in=selection["tenants"]) if selection.get("tenants") else rows


def _listed(rows: "QuerySet[Tenant]") -> list[Target]:
    return [Target(slug, store) for slug, store in rows.order_by("slug").values_list("slug", "store__name")]
