"""The rules about backups and drills: failed, too old, too slow, damaged, not proven."""

import datetime
from collections.abc import Iterable, Iterator, Sequence

from django.db.models import Count, F, Max, OuterRef, Q, Subquery

from operations.alerting.levels import Levels
from operations.alerting.rules import Finding, Limit, rule_register
from operations.models import Severity
from tenants.models import Backup, BackupSource, BackupState, Criticality, Drill, DrillState, Source, Tenant
from tenants.models.backup import GOOD_STATES
from tenants.selectors import source_guarded

FOUND_MAX = 20_000
BATCH = 500
STORE_CODES = ("store.",)


def _active() -> "Q":
    return Q(tenant__archived_at=None, tenant__shredded_at=None)


@rule_register(
    "backup_failed",
    title="Backups failed",
    severity=Severity.CRITICAL,
    next_step="backup show BACKUP says why; when that is mended: backup create TENANT",
)
def backup_failed(levels: Levels, now: datetime.datetime) -> Iterator[Finding]:
    """Sources that the newest backup tried to read and did not keep; by source, so that others do not hide it."""
    missing = BackupSource.objects.filter(source=OuterRef("pk"), state=BackupSource.State.MISSING)
    newest = Subquery(missing.exclude(backup__trigger="safety").order_by("-backup_id").values("backup_id")[:1])
    bad = source_guarded().annotate(bad=newest).filter(bad__isnull=False)
    bad = bad.filter(Q(last_good_backup=None) | Q(bad__gt=F("last_good_backup_id")))
    sources = list(bad.select_related("tenant__store").order_by("pk")[: FOUND_MAX + 1])
    failures = _failures(sources)
    for source in sources:
        row = failures.get((source.pk, source.bad))
        if row is not None:
            yield _failure(source, row)


def _failures(sources: Sequence[Source]) -> dict[tuple[str, str], BackupSource]:
    found = {}
    for at in range(0, len(sources), BATCH):
        wanted = {each.pk: each.bad for each in sources[at : at + BATCH]}  # type: ignore[attr-defined]
        rows = BackupSource.objects.filter(backup_id__in=set(wanted.values()), source_id__in=list(wanted))
        for row in rows.select_related("backup"):
            found[str(row.source_id), row.backup_id] = row
    return found


def _failure(source: Source, row: BackupSource) -> Finding:
    backup, slug = row.backup, source.tenant.slug
    code = row.error_code or backup.error_code
    said = row.error or backup.error or "it ended before this source was read"
    cause = f"{code} at store {source.tenant.store.name}" if code.startswith(STORE_CODES) else code
    at = backup.finished_at or backup.created_at
    return Finding(
        source.pk,
        f"the backup of {at:%Y-%m-%d %H:%M} UTC failed: {said}",
        tenant=slug,
        subject=f"{slug}/{source.name}",
        hint=backup.error_hint or f"backup show {backup.pk}; then: backup create {slug} --source {source.name}",
        cause=cause,
        occurrence=backup.pk,
    )


@rule_register(
    "backup_age",
    title="Sources have no recent backup",
    severity=Severity.CRITICAL,
    next_step="is a worker running, and is there a schedule? At once: backup create TENANT",
    limits={
        "hours": Limit(24, 0.1, 8_760, "h", "so old may the newest good backup of a source be"),
        "critical_hours": Limit(4, 0.1, 8_760, "h", "of a critical source"),
    },
)
def backup_age(levels: Levels, now: datetime.datetime) -> Iterator[Finding]:
    """By what was read, not by when it was written down; a new source has as long until its first backup."""
    least = datetime.timedelta(hours=min(levels.least("hours"), levels.least("critical_hours")))
    late = source_guarded().filter(Q(last_good_at=None, created_at__lt=now - least) | Q(last_good_at__lt=now - least))
    fields = ("pk", "name", "criticality", "last_good_at", "created_at", "tenant__slug")
    for pk, name, criticality, good_at, created_at, slug in late.values_list(*fields).order_by("pk"):
        hours = levels.limit("critical_hours" if criticality == Criticality.CRITICAL else "hours", slug)
        since = good_at or created_at
        if now - since <= datetime.timedelta(hours=hours):
            continue
        had = f"no good backup since {since:%Y-%m-%d %H:%M} UTC" if good_at else "it never had a good backup"
        yield Finding(
            pk,
            f"{had}; {hours:g} h are allowed",
            tenant=slug,
            subject=f"{slug}/{name}",
            hint=f"backup create {slug} --source {name}",
        )


@rule_register(
    "backup_slow",
    title="Backups take long",
    severity=Severity.WARNING,
    next_step="operation show ID says in which phase the time goes; a busy source or a slow store is the usual reason",
    limits={"minutes": Limit(60, 1, 43_200, "min", "so long a backup may take")},
)
def backup_slow(levels: Levels, now: datetime.datetime) -> Iterator[Finding]:
    """The newest good backup of a tenant, and those that run now."""
    least = datetime.timedelta(minutes=levels.least("minutes"))
    good = Backup.objects.filter(tenant=OuterRef("pk"), state__in=GOOD_STATES).order_by("-id").values("pk")[:1]
    newest = Tenant.objects.filter(archived_at=None).annotate(newest=Subquery(good)).values("newest")
    slow = Q(pk__in=newest, duration_ms__gt=least.total_seconds() * 1000)
    running = Q(state=BackupState.RUNNING, started_at__lt=now - least)
    for wanted in (slow, running):
        for row in Backup.objects.filter(wanted).select_related("tenant").order_by("pk")[:FOUND_MAX]:
            slug, minutes = row.tenant.slug, levels.limit("minutes", row.tenant.slug)
            is_over = row.state != BackupState.RUNNING
            begun = row.started_at or row.created_at
            took = datetime.timedelta(milliseconds=row.duration_ms) if is_over else now - begun
            if took <= datetime.timedelta(minutes=minutes):
                continue
            said = f"took {took.total_seconds() / 60:.0f} min" if is_over else f"runs since {begun:%Y-%m-%d %H:%M} UTC"
            yield Finding(
                f"{slug}:{'over' if is_over else 'running'}",
                f"the backup {said}; {minutes:g} min are allowed",
                tenant=slug,
                subject=slug,
                hint=f"operation show {row.operation_id}",
                occurrence=row.pk,
            )


@rule_register(
    "damage_found",
    title="Stored backups are damaged",
    severity=Severity.CRITICAL,
    next_step="mend it from another copy: copy repair TENANT; without one: backup create TENANT --type full",
)
def damage_found(levels: Levels, now: datetime.datetime) -> Iterator[Finding]:
    """Of what can still be restored: a backup that ended harms nobody."""
    rows = Backup.objects.filter(_active(), damaged=True, state__in=GOOD_STATES).values("tenant__slug")
    for row in rows.annotate(count=Count("pk"), newest=Max("pk")).order_by("tenant__slug")[:FOUND_MAX]:
        slug = row["tenant__slug"]
        yield Finding(
            slug,
            f"a verification found stored bytes of {row['count']} backups altered or missing, the newest is {row['newest']}",
            tenant=slug,
            subject=slug,
            hint=f"copy repair {slug}; without another copy: backup create {slug} --type full",
            occurrence=row["newest"],
        )


@rule_register(
    "drill_failed",
    title="Drills failed",
    severity=Severity.CRITICAL,
    next_step="drill show DRILL says which check did not hold: until it is mended nobody knows whether a restore works",
)
def drill_failed(levels: Levels, now: datetime.datetime) -> Iterable[Finding]:
    """The newest drill of a tenant."""
    ended = Drill.objects.filter(tenant=OuterRef("pk")).exclude(state=DrillState.RUNNING).order_by("-id").values("pk")
    newest = Tenant.objects.filter(archived_at=None).annotate(newest=Subquery(ended[:1])).values("newest")
    rows = Drill.objects.filter(pk__in=newest, state=DrillState.FAILED).select_related("tenant")
    for row in rows.order_by("pk")[:FOUND_MAX]:
        slug = row.tenant.slug
        failed = f"{row.checks_failed} checks did not hold" if row.checks_failed else row.error or "it did not end"
        yield Finding(
            slug,
            f"the drill of {row.finished_at or row.created_at:%Y-%m-%d %H:%M} UTC failed: {failed}",
            tenant=slug,
            subject=slug,
            hint=f"drill show {row.pk}; when it is mended: drill run {slug}",
            cause=row.error_code,
            occurrence=row.pk,
        )
