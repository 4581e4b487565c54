"""Reading what copies there are, what they hold, and whether they are enough."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from django.db.models import Count, F, Max, Q, QuerySet

from core.errors import NotFound
from tenants.models import Backup, BackupCopy, BackupPresence, Copy, CopyFinding, CopyHealth, StoreConfig, Tenant
from tenants.models.backup import GOOD_STATES

BATCH = 2_000


def copy_primary(tenant: Tenant) -> Copy:
    """The row of the tenant's primary store, made when it is first asked for; it follows the tenant's store."""
    row = Copy.objects.select_related("store", "tenant__store").filter(tenant=tenant, store=tenant.store_id).first()
    if row is None:
        Copy.objects.get_or_create(
            tenant=tenant, store_id=tenant.store_id, defaults={"position": 0, "health": CopyHealth.WHOLE}
        )
        return copy_primary(tenant)
    if row.position != 0 or row.health == CopyHealth.NEW:  # "Nothing was copied yet" is true of it, and says nothing.
        row.position, row.health = 0, CopyHealth.WHOLE if row.health == CopyHealth.NEW else CopyHealth(row.health)
        Copy.objects.filter(pk=row.pk).update(position=0, health=row.health)
    return row


def copy_get(tenant: Tenant, store: StoreConfig) -> Copy:
    """The tenant's copy in this store, or the row of its primary. Raises NotFound."""
    if store.pk == tenant.store_id:
        return copy_primary(tenant)
    row = Copy.objects.select_related("store", "tenant__store").filter(tenant=tenant, store=store).first()
    if row is None:
        raise NotFound(
            f"tenant {tenant.slug} has no copy in store {store.name}",
            hint=f"copy add {tenant.slug} {store.name} makes one; copy list {tenant.slug} shows those there are",
        )
    return row


def copy_of(copy_id: str) -> Copy:
    """Find a copy by its id. Raises NotFound when it was removed meanwhile."""
    try:
        return Copy.objects.select_related("store", "tenant__store").get(pk=copy_id)
    except Copy.DoesNotExist:
        raise NotFound(f"there is no copy {copy_id[:60]!r}", hint="it was removed; copy list TENANT") from None


def copies_of(tenant: Tenant) -> list[Copy]:
    """The tenant's copies beside the primary, by position."""
    rows = Copy.objects.select_related("store", "tenant__store").filter(tenant=tenant)
    return list(rows.exclude(store=tenant.store_id).order_by("position", "pk"))


def copies_readable(tenant: Tenant, *, backups: Collection[Backup] = ()) -> list[Copy]:
    """Copies to read from: those that hold any of these backups; without backups all that were ever filled.

    A former primary has no selection of its own, and is known by the backups that it held.
    """
    rows = list(copies_of(tenant))
    if not rows or not backups:
        return [copy for copy in rows if copy.selection]
    held = Q(backups__backup__in=[backup.pk for backup in backups], backups__presence=BackupPresence.PRESENT)
    counts = dict(
        Copy.objects.filter(pk__in=[row.pk for row in rows])
        .annotate(held=Count("backups", filter=held))
        .values_list("pk", "held")
    )
    return [row for row in rows if counts.get(row.pk, 0)]


def findings_open(copy: Copy, *, limit: int = 1_000) -> list[CopyFinding]:
    """What is lost or altered there and was not mended yet, newest first."""
    return list(CopyFinding.objects.filter(copy=copy, mended_at=None).order_by("-pk")[:limit])


def presences(copy: Copy) -> dict[int, tuple[str, int]]:
    """Backup number -> (presence, row id) of everything recorded about a copy."""
    rows = BackupCopy.objects.filter(copy=copy).values_list("backup__number", "presence", "pk")
    return {number: (presence, pk) for number, presence, pk in rows.iterator(chunk_size=BATCH) if number is not None}


def presence_counts(copies: Collection[Copy]) -> dict[str, dict[str, int]]:
    """By copy how many backups it holds, lacks and has damaged; of a primary what the backups' own rows say."""
    found: dict[str, dict[str, int]] = {copy.pk: {} for copy in copies}
    rows = BackupCopy.objects.filter(copy__in=list(found)).values("copy_id", "presence").annotate(count=Count("pk"))
    for copy_id, presence, number in rows.values_list("copy_id", "presence", "count"):
        found[copy_id][presence] = number
    for copy in copies:
        if copy.is_primary:
            here = Backup.objects.filter(tenant=copy.tenant, state__in=GOOD_STATES, left_at=None)
            counts = {
                BackupPresence.PRESENT: here.filter(damaged=False),
                BackupPresence.DAMAGED: here.filter(damaged=True),
            }
            found[copy.pk] = {str(what): number for what, rows in counts.items() if (number := rows.count())}
    return found


def copies_due(*, primaries: bool) -> "QuerySet[Copy]":
    """Copies of tenants that are still there, the longest not run first."""
    rows = Copy.objects.filter(enabled=True, tenant__archived_at=None, tenant__shredded_at=None)
    return (rows if primaries else rows.exclude(store=F("tenant__store"))).order_by("run_at", "pk")


# ---------------------------------------------------------------- enough copies?

COPIES_MIN, MEDIA_MIN, OFFSITE_MIN = 3, 2, 1


@dataclass(frozen=True)
class Protection:
    """Whether a tenant meets the 3-2-1 rule: three copies, the live data being one of them; two media and one place
    off site among the stores that hold its newest good backup whole."""

    tenant: str
    copies: int
    media: tuple[str, ...]
    offsite: tuple[str, ...]
    """Names of the stores that stand elsewhere."""
    lacks: tuple[str, ...] = ()
    next_step: str = ""
    stores: tuple[dict[str, Any], ...] = field(default_factory=tuple)

    @property
    def holds(self) -> bool:
        return not self.lacks


def medium_of(store: StoreConfig) -> str:
    """What the store keeps things on: as its operator says, else its kind."""
    return store.medium or store.kind


def tenants_page(*, after: str = "", limit: int) -> list[Tenant]:
    """Tenants by slug, with their stores; `after` is the slug after which the page goes on."""
    rows = Tenant.objects.select_related("store").filter(slug__gt=after, archived_at=None, shredded_at=None)
    return list(rows.order_by("slug")[:limit])


def protections(tenants: Collection[Tenant]) -> list[Protection]:
    """The rule for each of these tenants; a handful of queries, however many there are."""
    ids = [tenant.pk for tenant in tenants]
    good = Backup.objects.filter(tenant__in=ids, state__in=GOOD_STATES, damaged=False, left_at=None)
    newest = dict(good.values("tenant_id").annotate(newest=Max("pk")).values_list("tenant_id", "newest"))
    rows: dict[str, list[Copy]] = {}
    for copy in Copy.objects.filter(tenant__in=ids).select_related("store").order_by("position", "pk"):
        rows.setdefault(copy.tenant_id, []).append(copy)
    holding = set(
        BackupCopy.objects.filter(backup__in=list(newest.values()), presence=BackupPresence.PRESENT).values_list(
            "copy_id", flat=True
        )
    )
    return [_protection(each, newest.get(each.pk), rows.get(each.pk, []), holding) for each in tenants]


def _protection(tenant: Tenant, newest: str | None, rows: list[Copy], holding: Collection[str]) -> Protection:
    stores = [_store_line(tenant.store, is_primary=True, counts=newest is not None, health="primary")]
    counted = [tenant.store] if newest is not None else []
    for copy in rows:
        if copy.store_id == tenant.store_id:
            continue
        counts = copy.pk in holding and copy.enabled and copy.health != CopyHealth.DAMAGED
        if counts:
            counted.append(copy.store)
        stores.append(
            _store_line(copy.store, is_primary=False, counts=counts, health=copy.health, enabled=copy.enabled)
        )
    media = tuple(sorted({medium_of(store) for store in counted}))
    offsite = tuple(sorted(store.name for store in counted if store.offsite))
    lacks, step = _lacking(tenant, len(counted) + 1, media, offsite, newest, stores)
    return Protection(tenant.slug, len(counted) + 1, media, offsite, lacks, step, tuple(stores))


def _store_line(
    store: StoreConfig, *, is_primary: bool, counts: bool, health: str, enabled: bool = True
) -> dict[str, Any]:
    return {
        "store": store.name,
        "kind": store.kind,
        "medium": medium_of(store),
        "offsite": store.offsite,
        "primary": is_primary,
        "holds_newest": counts,
        "health": health,
        "enabled": enabled,
    }


def _lacking(
    tenant: Tenant,
    copies: int,
    media: Collection[str],
    offsite: Collection[str],
    newest: str | None,
    stores: list[dict[str, Any]],
) -> tuple[tuple[str, ...], str]:
    if newest is None:
        return ("there is no good backup yet",), f"backup create {tenant.slug}"
    lacks = []
    if copies < COPIES_MIN:
        lacks.append(f"{copies} of {COPIES_MIN} copies (the live data counts as one)")
    if len(media) < MEDIA_MIN:
        lacks.append(f"{len(media)} of {MEDIA_MIN} media ({', '.join(media)})")
    if not offsite:
        lacks.append("no copy off site")
    # One that was switched off, because it is lost or was replaced, is not to be run.
    behind = [each["store"] for each in stores if not each["holds_newest"] and each["enabled"]]
    if not lacks:
        return (), ""
    if behind:
        return tuple(lacks), f"bring the copy up to date: copy run {tenant.slug} --store {behind[0]}"
    if copies >= COPIES_MIN and not offsite:
        return tuple(
            lacks
        ), "if one of its stores stands elsewhere, say so: store set NAME --offsite yes; else add one that does"
    return tuple(lacks), f"add a store elsewhere (store add NAME --kind …), then: copy add {tenant.slug} NAME"
