"""Reading tenants, their sources, backups and restores."""

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Case, Count, Min, OuterRef, Q, QuerySet, Subquery, Value, When

from core.errors import NotFound
from tenants.models import Backup, BackupSource, BackupState, Module, Restore, RestorePlan, Source, StoreConfig, Tenant
from tenants.models.backup import GOOD_STATES
from tenants.shredded import keys_present

LIST_MAX = 200
AGE_MAX = datetime.timedelta(hours=24)
"""Older than this, the last good backup of a source leaves it unprotected."""


def tenant_get(slug: str) -> Tenant:
    """Find a tenant. Raises NotFound."""
    try:
        return Tenant.objects.select_related("store").get(slug=slug)
    except Tenant.DoesNotExist:
        raise NotFound(f"there is no tenant {slug[:60]!r}", hint="tenant list shows them") from None


def store_list() -> list[StoreConfig]:
    """Every store by name."""
    return list(StoreConfig.objects.order_by("name"))


def store_usage(row: StoreConfig) -> dict[str, int]:
    """How many tenants take their backups into the store, and how many keep a copy there."""
    return {"tenants": row.tenants.count(), "copies": row.copies.filter(position__gt=0).count()}


def source_get(tenant: Tenant, name: str) -> Source:
    """Find a source of the tenant. Raises NotFound."""
    try:
        return Source.objects.select_related("tenant").get(tenant=tenant, name=name)
    except Source.DoesNotExist:
        if Source.every.filter(tenant=tenant, name=name).exists():
            raise NotFound(
                f"source {name} of tenant {tenant.slug} was removed",
                hint=f"bring it back: source reinstate {tenant.slug} {name}",
            ) from None
        known = ", ".join(Source.objects.filter(tenant=tenant).order_by("name").values_list("name", flat=True)[:20])
        raise NotFound(
            f"tenant {tenant.slug} has no source {name[:60]!r}",
            hint=f"it has: {known}" if known else "source add adds one",
        ) from None


def source_guarded() -> QuerySet[Source]:
    """Sources that ought to have a recent backup: none that is left out or removed, of no archived tenant."""
    return Source.objects.filter(enabled=True, tenant__archived_at=None)


def source_list(tenant: Tenant) -> list[Source]:
    """Sources of the tenant by name."""
    return list(Source.objects.select_related("tenant", "last_good_backup").filter(tenant=tenant).order_by("name"))


_NOUNS = {
    "bkp_": ("a backup", "backup show"),
    "rst_": ("a restore", "restore show"),
    "pln_": ("a plan", "restore show"),
    "drl_": ("a drill", "drill show"),
    "opr_": ("an operation", "operation show"),
}


def wrong_id_hint(given: str, wanted: str, hint: str) -> str:
    """The hint about an id that was not found; before it what the id is, when it is not of the `wanted` prefix."""
    if given[:4] == wanted or given[:4] not in _NOUNS:
        return hint
    noun, command = _NOUNS[given[:4]]
    return f"that is the id of {noun}: {command} {given[:60]}; {hint}"


def backup_get(backup_id: str) -> Backup:
    """Find a backup. Raises NotFound."""
    try:
        return Backup.objects.select_related("tenant__store", "parent").get(pk=backup_id)
    except Backup.DoesNotExist:
        raise NotFound(
            f"there is no backup {backup_id[:60]!r}",
            hint=wrong_id_hint(backup_id, "bkp_", "backup list TENANT shows them"),
        ) from None


def backup_usable(backup_id: str) -> Backup:
    """Find a backup that can be read, in the trash too. Raises NotFound, also for one that failed or was ended.

    Raises KeysDestroyed for one of a tenant that was shredded.
    """
    backup = backup_get(backup_id)
    keys_present(backup.tenant)
    if backup.state not in GOOD_STATES and backup.trashed_at is None:
        raise NotFound(
            f"backup {backup.pk} is {backup.state}: there is nothing to read", hint="backup list TENANT shows good ones"
        )
    return backup


def backup_list(
    tenant: Tenant | None = None,
    *,
    states: Sequence[str] = (),
    tag: str = "",
    before: str = "",
    limit: int = LIST_MAX,
    trashed: bool = False,
) -> list[Backup]:
    """Backups, newest first; `before` is the id after which the page goes on, `trashed` asks for those in the trash."""
    rows: QuerySet[Backup] = Backup.objects.select_related("tenant__store", "parent")
    rows = rows.prefetch_related("sources", "copies__copy__store")
    if tenant is not None:
        rows = rows.filter(tenant=tenant)
    if states:
        rows = rows.filter(state__in=states)
    if trashed:
        rows = rows.filter(trashed_at__isnull=False)
    if before:
        rows = rows.filter(pk__lt=before)
    rows = rows.order_by("-id")
    if not tag:
        return list(rows[: min(limit, LIST_MAX)])
    # SQLite cannot look into JSON arrays through the ORM; tags are rare, the page is bounded.
    return [backup for backup in rows[: LIST_MAX * 10] if tag in backup.tags][:limit]


def backup_parents(sources: Collection[Source], *, since: datetime.datetime | None, encrypt: bool) -> dict[str, Backup]:
    """By source name the backup to compare it with: the newest good one (at or before `since`) that holds it.

    One look-up in an index per source, however many backups there are. A source that no backup holds is left out.
    """
    parents: dict[str, Backup] = {}
    for source in sources:
        kept = BackupSource.objects.filter(
            source=source,
            state=BackupSource.State.KEPT,
            kind=source.kind,
            backup__state__in=GOOD_STATES,
            backup__encrypt=encrypt,
            backup__damaged=False,
            backup__left_at=None,
        )
        if since is not None:
            kept = kept.filter(backup__taken_at__lte=since)
        newest = kept.select_related("backup").order_by("-backup_id").first()
        if newest is not None:
            parents[source.name] = newest.backup
    return parents


def restore_get(restore_id: str) -> Restore:
    """Find a restore. Raises NotFound."""
    try:
        return Restore.objects.select_related("tenant__store", "backup", "safety_backup").get(pk=restore_id)
    except Restore.DoesNotExist:
        raise NotFound(
            f"there is no restore {restore_id[:60]!r}",
            hint=wrong_id_hint(restore_id, "rst_", "restore list TENANT shows them"),
        ) from None


def restore_list(tenant: Tenant, *, limit: int = LIST_MAX) -> list[Restore]:
    """Restores of the tenant, newest first."""
    rows = Restore.objects.filter(tenant=tenant).select_related("backup", "safety_backup").prefetch_related("sources")
    return list(rows.order_by("-id")[: min(limit, LIST_MAX)])


def sources_not_held(row: Restore | RestorePlan, names: Collection[str]) -> list[str]:
    """The sources that existed beside those of the backup when all of it was to be restored in place, by name.

    Nothing happens to them, which nobody may take for restored; empty when sources or modules were chosen.
    """
    kept = BackupSource.objects.filter(backup_id=row.backup_id, state=BackupSource.State.KEPT)
    held = set(kept.values_list("name", flat=True))
    if not row.in_place or row.undoes_id or row.mode == "selective" or held != set(names):
        return []
    beside = Source.objects.filter(tenant_id=row.tenant_id, enabled=True, created_at__lte=row.created_at)
    return sorted(beside.exclude(name__in=held).values_list("name", flat=True))


def module_list(tenant: Tenant, *, source: str = "") -> list[Module]:
    """Modules of the tenant's sources, as the newest backups saw them."""
    rows = Module.objects.filter(source__tenant=tenant).select_related("source")
    if source:
        rows = rows.filter(source=source_get(tenant, source))
    return list(rows.order_by("source__name", "name")[: LIST_MAX * 10])


@dataclass(frozen=True)
class ProtectionCounts:
    """How many sources there are, and how many have no good backup of the last `hours`."""

    tenants: int
    sources: int
    unprotected: int
    hours: int


def protection_counts(*, now: datetime.datetime) -> ProtectionCounts:
    """Count what is protected at this moment; sources that are left out do not count."""
    sources = source_guarded()
    limit = now - AGE_MAX
    return ProtectionCounts(
        tenants=Tenant.objects.filter(archived_at=None).count(),
        sources=sources.count(),
        unprotected=sources.filter(Q(last_good_at=None) | Q(last_good_at__lt=limit)).count(),
        hours=round(AGE_MAX.total_seconds() / 3600),
    )


@dataclass(frozen=True)
class TenantLine:
    """A tenant with what a list shows of it; `oldest_good_at` is None as soon as one source was never backed up."""

    tenant: Tenant
    source_count: int
    oldest_good_at: datetime.datetime | None
    newest: Backup | None
    key: str
    """What the next page goes on after."""


def tenant_list(*, after: str = "", limit: int = LIST_MAX) -> list[TenantLine]:
    """Tenants by slug; `after` is the slug after which the page goes on. Two queries, whatever the page."""
    rows = _tenant_rows().filter(slug__gt=after).order_by("slug")
    return _lines(rows[: min(limit, LIST_MAX + 1)])


def tenant_list_worst(*, now: datetime.datetime, after: str = "", limit: int = LIST_MAX) -> list[TenantLine]:
    """Tenants that need somebody first: without a recent good backup of each source, then with a failed newest one,
    then those in order, then those with nothing to protect; each group by slug. `after` is `<urgency>:<slug>`."""
    newest_state = Subquery(_newest().values("state")[:1])
    rows = _tenant_rows().annotate(
        newest_state=newest_state,
        urgency=Case(
            When(source_count=0, then=Value(3)),
            When(Q(never_count__gt=0) | Q(oldest__lt=now - AGE_MAX), then=Value(0)),
            When(newest_state=BackupState.FAILED, then=Value(1)),
            default=Value(2),
        ),
    )
    urgency, _, slug = after.partition(":")
    if urgency.isascii() and urgency.isdigit():
        rows = rows.filter(Q(urgency__gt=int(urgency[:4])) | Q(urgency=int(urgency[:4]), slug__gt=slug))
    return _lines(rows.order_by("urgency", "slug")[: min(limit, LIST_MAX + 1)])


def _newest() -> QuerySet[Backup]:
    return Backup.objects.filter(tenant=OuterRef("pk")).exclude(state=BackupState.DELETED).order_by("-id")


def _tenant_rows() -> "QuerySet[Any]":
    guarded = Q(sources__enabled=True, sources__archived_at=None)
    return Tenant.objects.filter(archived_at=None).annotate(
        source_count=Count("sources", filter=guarded),
        never_count=Count("sources", filter=guarded & Q(sources__last_good_at=None)),
        oldest=Min("sources__last_good_at", filter=guarded),
        newest_id=Subquery(_newest().values("pk")[:1]),
    )


def _lines(wanted: "QuerySet[Any]") -> list[TenantLine]:
    rows = list(wanted)
    backups = Backup.objects.in_bulk([row.newest_id for row in rows if row.newest_id])
    return [
        TenantLine(
            row,
            row.source_count,
            None if row.never_count else row.oldest,
            backups.get(row.newest_id),
            f"{row.urgency}:{row.slug}" if hasattr(row, "urgency") else row.slug,
        )
        for row in rows
    ]
