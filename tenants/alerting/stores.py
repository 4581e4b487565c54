"""The rules about stores and copies, and the probe that asks the stores: reads only, nothing is written into them."""

import datetime
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from django.db import connection
from django.db.models import Count, Q

from core import clock
from engine.errors import LastroError
from operations.alerting.evaluating import one_line
from operations.alerting.levels import Levels
from operations.alerting.rules import Finding, Limit, rule_register
from operations.alerting.watching import probe_register
from operations.models import Severity
from tenants import wiring
from tenants.models import Copy, CopyFinding, CopyHealth, StoreConfig, StoreLook, Tenant

FOUND_MAX = 20_000
NAMED_MAX = 5
THREADS = 8
LOOKED_AT = 3
"""Repositories that a look asks a store for: an unmounted folder can be listed very well."""


@dataclass(frozen=True)
class _Seen:
    error_code: str = ""
    error: str = ""
    hint: str = ""
    free_bytes: int | None = None


@probe_register("stores", minutes=5)
def stores_look() -> None:
    """Open every store, ask for some repositories that it should hold, and for its free space."""
    rows = list(StoreConfig.objects.order_by("name"))
    wanted = {row.pk: _repositories(row) for row in rows}
    with ThreadPoolExecutor(THREADS, "store-look") as pool:
        seen = list(pool.map(lambda row: _seen(row, wanted[row.pk]), rows))
    now = clock.now()
    before = StoreLook.objects.in_bulk([row.pk for row in rows])
    for row, found in zip(rows, seen, strict=True):
        old = before.get(row.pk)
        failing = (old.failing_since if old and old.failing_since else now) if found.error else None
        StoreLook.objects.update_or_create(
            store=row,
            defaults={
                "looked_at": now,
                "failing_since": failing,
                "error_code": found.error_code[:100],
                "error": one_line(found.error, 500),
                "hint": one_line(found.hint, 500),
                "free_bytes": found.free_bytes,
            },
        )


def _repositories(row: StoreConfig) -> list[tuple[str, str]]:
    kept = Tenant.objects.filter(store=row, repository_ready=True, archived_at=None).order_by("-id")
    return list(kept.values_list("slug", "repository_id")[:LOOKED_AT])


def _seen(row: StoreConfig, wanted: list[tuple[str, str]]) -> _Seen:
    """In a thread; opening a store may ask the catalogue for the root key."""
    try:
        with wiring.store_open(row) as store:
            gone = [slug for slug, repository in wanted if not wiring.repository_present(store, repository)]
            free = getattr(store, "free_bytes", None)
            free_bytes = int(free()) if callable(free) else None
    except (LastroError, OSError) as error:
        code = getattr(error, "code", "store.failed")
        return _Seen(code, getattr(error, "message", str(error)), getattr(error, "hint", ""))
    finally:
        connection.close()
    if gone:
        said = f"it does not hold the repository of {', '.join(gone)}"
        return _Seen("store.repository_missing", said, "is it mounted, and is it the right one?")
    return _Seen(free_bytes=free_bytes)


@rule_register(
    "store_unreachable",
    title="Stores cannot be reached",
    severity=Severity.CRITICAL,
    next_step="store test NAME says what fails; until it answers, backups into it fail and its copies wait",
    limits={"minutes": Limit(0, 0, 1_440, "min", "so long a store may be away before anybody hears of it")},
    calm_minutes=6,
)
def store_unreachable(levels: Levels, now: datetime.datetime) -> Iterator[Finding]:
    """One alert a store, however many tenants are in it."""
    since = now - datetime.timedelta(minutes=levels.limit("minutes"))
    rows = StoreLook.objects.filter(failing_since__lte=since).select_related("store")
    rows = rows.annotate(
        tenants_count=Count("store__tenants", filter=Q(store__tenants__archived_at=None), distinct=True),
        copies_count=Count(
            "store__copies", filter=Q(store__copies__enabled=True, store__copies__position__gt=0), distinct=True
        ),
    )
    for row in rows:
        concerns = f"it keeps the backups of {row.tenants_count} tenants and copies of {row.copies_count}"
        assert row.failing_since is not None
        yield Finding(
            row.store_id,
            f"no good answer since {row.failing_since:%Y-%m-%d %H:%M} UTC: {row.error}; {concerns}",
            subject=f"store {row.store.name}",
            hint=f"{row.hint + '; ' if row.hint else ''}store test {row.store.name}",
            cause=row.store.name,
            occurrence=row.failing_since.isoformat(),
        )


@rule_register(
    "store_filling",
    title="Stores fill up",
    severity=Severity.WARNING,
    next_step="free space there, or let retention keep less: retention simulate; a full store fails every backup",
    limits={"free_gb": Limit(5, 0, 1_000_000, "GB", "at least so much has to be free")},
)
def store_filling(levels: Levels, now: datetime.datetime) -> Iterator[Finding]:
    """Stores that can tell their free space: local folders and SFTP."""
    least = levels.limit("free_gb") * 1e9
    for row in StoreLook.objects.filter(free_bytes__lt=least).select_related("store"):
        severity = Severity.CRITICAL if (row.free_bytes or 0) < least / 10 else Severity.WARNING
        yield Finding(
            row.store_id,
            f"only {(row.free_bytes or 0) / 1e9:.1f} GB are free",
            subject=f"store {row.store.name}",
            severity=severity,
        )


@rule_register(
    "copy_damaged",
    title="Copies are damaged",
    severity=Severity.CRITICAL,
    next_step="mend it from the other copies: copy repair TENANT --store STORE",
)
def copy_damaged(levels: Levels, now: datetime.datetime) -> Iterator[Finding]:
    """Repositories in a store in which objects are lost or altered."""
    found = Count("findings", filter=Q(findings__mended_at=None))
    rows = Copy.objects.filter(health=CopyHealth.DAMAGED, enabled=True, tenant__archived_at=None)
    for row in rows.select_related("tenant", "store").annotate(found=found).order_by("pk")[:FOUND_MAX]:
        slug, store = row.tenant.slug, row.store.name
        yield Finding(
            row.pk,
            f"{row.found} objects in store {store} are lost or altered",
            tenant=slug,
            subject=f"{slug} in {store}",
            hint=f"copy repair {slug} --store {store}",
            cause=f"store {store}",
            occurrence=_newest_finding(row),
        )


def _newest_finding(row: Copy) -> str:
    """Only of damaged copies, of which there are few; along an index."""
    newest = CopyFinding.objects.filter(copy=row, mended_at=None).order_by("-id").values_list("pk", flat=True)
    return newest.first() or ""


@rule_register(
    "copy_behind",
    title="Copies are behind",
    severity=Severity.WARNING,
    next_step="copy status TENANT says what is lacking; at once: copy run TENANT",
    limits={"hours": Limit(30, 1, 8_760, "h", "so long a copy may lack what it should hold")},
)
def copy_behind(levels: Levels, now: datetime.datetime) -> Iterator[Finding]:
    """Copies that lack backups and have not been brought up to date for long."""
    least = now - datetime.timedelta(hours=levels.least("hours"))
    behind = Q(health__in=(CopyHealth.BEHIND, CopyHealth.AWAY, CopyHealth.NEW))
    late = Q(run_at__lt=least) | Q(run_at=None, created_at__lt=least)
    rows = Copy.objects.filter(behind, late, enabled=True, position__gt=0, tenant__archived_at=None)
    for row in rows.select_related("tenant", "store").order_by("pk")[:FOUND_MAX]:
        slug, store = row.tenant.slug, row.store.name
        since = row.run_at or row.created_at
        if now - since <= datetime.timedelta(hours=levels.limit("hours", slug)):
            continue
        why = f": {row.error}" if row.error else ""
        yield Finding(
            row.pk,
            f"the copy in store {store} was last brought up to date {since:%Y-%m-%d %H:%M} UTC{why}",
            tenant=slug,
            subject=f"{slug} in {store}",
            hint=row.error_hint or f"copy run {slug}",
            cause=f"store {store}",
        )


@rule_register(
    "copies_short",
    title="Tenants have too few copies",
    severity=Severity.WARNING,
    next_step="copy status --short names them, and what each lacks of 3-2-1",
)
def copies_short(levels: Levels, now: datetime.datetime) -> Iterable[Finding]:
    """What `doctor` says of the 3-2-1 rule and of reading stored bytes in turn; damage has a rule of its own."""
    from tenants.copy_diagnosis import copy_signs

    for name, status, message, hint, _ in copy_signs():
        if status != "ok" and name != "copy health":
            yield Finding(name, message, subject=name, hint=hint)
