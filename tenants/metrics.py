"""Figures of backups, restores and stores; of each tenant as long as there are few, else of the most urgent ones."""

import datetime
from collections.abc import Iterator
from dataclasses import dataclass

from django.conf import settings
from django.db.models import Count, OuterRef, Subquery
from prometheus_client.core import Metric

from core import clock
from core.ids import first_id
from operations.exposition import gauge, metrics_register
from tenants.models import Backup, BackupState, Drill, Restore, Source, StoreConfig, Tenant

REST = "(rest)"
"""Label of all tenants beyond LASTRO_METRICS_TENANTS together; no slug has brackets."""
DAY = datetime.timedelta(days=1)


@dataclass(slots=True)
class _Standing:
    """How a tenant stands: the least fresh source decides."""

    slug: str
    age_hours: float = 0.0
    newest: datetime.datetime | None = None
    size_bytes: int = 0
    duration_ms: int = 0
    success: bool = True


@metrics_register("backups")
def backups() -> Iterator[Metric]:
    """The figures that every monitoring of backups begins with."""
    standings, now = _standings(), clock.now()
    shown, rest = _bounded(standings)
    age = gauge("backup_age_hours", "Hours since the last good backup of the tenant's least fresh source", "tenant")
    size = gauge("backup_size_bytes", "Size of the tenant's newest good backup", "tenant")
    duration = gauge("backup_duration_seconds", "How long that backup took", "tenant")
    success = gauge("backup_success", "1 when the tenant's newest finished backup is good", "tenant")
    last = gauge(
        "last_backup_timestamp",
        "When the tenant's newest good backup was taken, in seconds since 1970; 0: never",
        "tenant",
    )
    for each in shown:
        age.add_metric([each.slug], round(each.age_hours, 3))
        size.add_metric([each.slug], each.size_bytes)
        duration.add_metric([each.slug], each.duration_ms / 1000)
        success.add_metric([each.slug], int(each.success))
        last.add_metric([each.slug], each.newest.timestamp() if each.newest else 0)
    if rest:
        age.add_metric([REST], round(max(each.age_hours for each in rest), 3))
        size.add_metric([REST], sum(each.size_bytes for each in rest))
        duration.add_metric([REST], max(each.duration_ms for each in rest) / 1000)
        success.add_metric([REST], int(all(each.success for each in rest)))
        last.add_metric([REST], min(each.newest.timestamp() if each.newest else 0 for each in rest))
    yield from (age, size, duration, success, last)
    tenants = gauge("lastro_tenants", "Tenants, by whether their newest finished backup is good", "standing")
    good = sum(each.success for each in standings)
    tenants.add_metric(["good"], good)
    tenants.add_metric(["failed"], len(standings) - good)
    yield tenants
    recent = gauge("lastro_backups_last_day", "Backups begun in the last 24 hours, by state", "state")
    rows = (
        Backup.objects.filter(pk__gte=first_id("bkp", now - DAY))
        .order_by()
        .values_list("state")
        .annotate(n=Count("pk"))
    )
    for state, count in rows:
        recent.add_metric([state], count)
    yield recent


def _bounded(standings: list[_Standing]) -> tuple[list[_Standing], list[_Standing]]:
    """The tenants that are shown: all, or those that failed and then the least fresh."""
    most = settings.LASTRO_METRICS_TENANTS
    if len(standings) <= most:
        return standings, []
    urgent = sorted(standings, key=lambda each: (each.success, -each.age_hours, each.slug))
    return urgent[:most], urgent[most:]


def _standings() -> list[_Standing]:
    """Every tenant that is still there, by two questions."""
    now = clock.now()
    ended = Backup.objects.filter(tenant=OuterRef("pk")).exclude(state=BackupState.RUNNING).order_by("-id")
    tenants = Tenant.objects.filter(archived_at=None, shredded_at=None).order_by("slug")
    found: dict[str, _Standing] = {}
    for pk, slug, state in tenants.values_list("pk", "slug", Subquery(ended.values("state")[:1])):
        # Nothing was tried yet: that is no failure, and the age says the rest.
        found[pk] = _Standing(slug, success=state is None or state != BackupState.FAILED)
    sources = Source.objects.filter(tenant__in=tenants, enabled=True).values_list(
        "tenant_id", "created_at", "last_good_at", "last_good_backup__size_bytes", "last_good_backup__duration_ms"
    )
    for tenant_id, created_at, good_at, size, duration in sources.iterator(chunk_size=5_000):
        standing = found.get(tenant_id)
        if standing is None:
            continue
        standing.age_hours = max(standing.age_hours, (now - (good_at or created_at)).total_seconds() / 3600)
        if good_at is not None and (standing.newest is None or good_at > standing.newest):
            standing.newest, standing.size_bytes, standing.duration_ms = good_at, size or 0, duration or 0
    return list(found.values())


@metrics_register("totals")
def totals() -> Iterator[Metric]:
    """Backups and restores since the beginning, from the counters of the overview."""
    from tenants.figures.counting import counts_get

    ended = {subject: counts_get(subject) for subject in ("backups", "restores")}
    for subject, counts in ended.items():
        family = gauge(f"lastro_{subject}", f"All {subject} that the catalogue knows, by how they ended", "result")
        family.add_metric(["success"], counts.success)
        family.add_metric(["failed"], counts.failed)
        family.add_metric(["other"], counts.total - counts.success - counts.failed)
        yield family
    size = gauge("lastro_backups_bytes", "Sum of the sizes of all good backups that there were")
    size.add_metric([], ended["backups"].size_bytes)
    yield size
    mean = gauge("restore_duration_seconds", "Mean time of a successful restore")
    restores = ended["restores"]
    mean.add_metric([], restores.duration_ms / restores.success / 1000 if restores.success else 0)
    yield mean
    last = gauge("last_restore_timestamp", "When the newest restore ended, in seconds since 1970, by how", "result")
    for result, state in (("success", "succeeded"), ("failed", "failed")):
        at = _newest(Restore, state)
        last.add_metric([result], at.timestamp() if at else 0)
    yield last


def _newest(model: type[Restore], state: str) -> datetime.datetime | None:
    rows = model.objects.filter(state=state, finished_at__isnull=False).order_by("-finished_at")
    return rows.values_list("finished_at", flat=True).first()


@metrics_register("stores")
def stores() -> Iterator[Metric]:
    """What the newest test of each store found, and the drills."""
    up = gauge("lastro_store_up", "1 when the newest test of the store was passed", "store", "kind")
    tested = gauge(
        "lastro_store_tested_timestamp_seconds", "When that test was, in seconds since 1970; 0: never", "store", "kind"
    )
    for row in StoreConfig.objects.order_by("name").only("name", "kind", "tested", "tested_at"):
        up.add_metric([row.name, row.kind], int(row.tested.get("status") not in (None, "failed")))
        tested.add_metric([row.name, row.kind], row.tested_at.timestamp() if row.tested_at else 0)
    yield from (up, tested)
    drills = gauge("lastro_drills_last_week", "Drills begun in the last seven days, by state", "state")
    since = Drill.objects.filter(pk__gte=first_id("drl", clock.now() - 7 * DAY))
    for state, count in since.order_by().values_list("state").annotate(n=Count("pk")):
        drills.add_metric([state], count)
    yield drills
