"""What `doctor` looks at: each check says what it found, how bad that is, and what to do."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from django.core import checks as django_checks
from django.db import DatabaseError, connection
from django.db.models import Max

from core import clock
from core.rootkey import root_key, root_key_place
from core.text import counted
from engine.errors import LastroError
from operations.leases import lease_duration
from operations.models import ACTIVE_STATES, Operation
from operations.workers import worker_alive, worker_seen_at
from tenants import wiring
from tenants.models import Backup, Drill, DrillState, Source, StoreConfig, Tenant
from tenants.models.backup import GOOD_STATES
from tenants.selectors import source_guarded
from tenants.services.stores import store_default, store_test

OK, WARNING, CRITICAL = "ok", "warning", "critical"
FREE_BYTES_MIN = 1 << 30
NAMED_MAX = 5
REPOSITORIES_LOOKED_AT_MAX = 1_000


@dataclass(frozen=True)
class Sign:
    """One thing looked at."""

    name: str
    status: str
    message: str
    hint: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def diagnose(*, network: bool = True) -> list[Sign]:
    """Look at everything. A check that fails on the way is itself a critical sign; the others go on.

    Without `network` no store is asked: what the watch last saw of them counts, and the answer comes at once.
    """
    catalogue = _tried("catalogue", _catalogue)
    if catalogue[0].status == CRITICAL:
        return catalogue
    signs = list(catalogue)
    for name, check in _CHECKS:
        signs += _tried(name, check if network else _OFFLINE.get(name, check))
    return signs


def worst(signs: list[Sign]) -> str:
    """The worst status among the signs."""
    found = {sign.status for sign in signs}
    return next((status for status in (CRITICAL, WARNING) if status in found), OK)


def _tried(name: str, check: Callable[[], Iterator[Sign]]) -> list[Sign]:
    try:
        return list(check())
    except LastroError as error:
        return [Sign(name, CRITICAL, error.message, error.hint)]
    except (DatabaseError, OSError) as error:
        return [Sign(name, CRITICAL, f"{type(error).__name__}: {str(error).strip()[:200]}")]


def _catalogue() -> Iterator[Sign]:
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if missing:
        yield Sign("catalogue", CRITICAL, f"{counted(len(missing), 'migration')} not applied", "run: manage.py migrate")
    else:
        yield Sign("catalogue", OK, f"{connection.vendor}, {Tenant.objects.filter(archived_at=None).count()} tenants")


def _settings() -> Iterator[Sign]:
    found = [
        each
        for each in django_checks.run_checks(include_deployment_checks=True)
        if (each.id or "").startswith("lastro.")
    ]
    for each in found:
        status = CRITICAL if each.is_serious() else WARNING
        yield Sign("settings", status, str(each.msg), str(each.hint or ""), {"id": each.id})
    if not found:
        yield Sign("settings", OK, "nothing to remark")


def _root_key() -> Iterator[Sign]:
    yield Sign("root key", OK, f"{root_key().key_id} ({root_key_place()}) opens this catalogue")


def _stores() -> Iterator[Sign]:
    store_default()
    rows = list(StoreConfig.objects.order_by("name"))
    for row in rows:
        yield _store(row)
    if len(rows) < 2 and Tenant.objects.exists():
        yield Sign(
            "store copies",
            WARNING,
            "there is a single store: with it the backups and the tenants' keys would be lost together",
            "add a second store in another place: store add NAME --kind …",
        )


def _store(row: StoreConfig) -> Sign:
    try:
        probe, gone = store_test(row), _repositories_missing(row)
    except LastroError as error:
        return Sign(
            f"store {row.name}",
            CRITICAL,
            f"{error.message}{_kept_there(row)}",
            "; ".join(filter(None, (error.hint, _given_up(row)))),
        )
    figures = {"free_bytes": probe.free_bytes}
    if not probe.conditional and row.tenants.exists():
        return Sign(f"store {row.name}", CRITICAL, "two writers can create one object", "use another store", figures)
    if gone:
        named = _some(gone, len(gone))
        hint = f"is it mounted, and is it the right one? Until then these tenants have no backup; {_given_up(row)}"
        return Sign(f"store {row.name}", CRITICAL, f"it does not hold the repository of {named}", hint, figures)
    if probe.free_bytes is not None and probe.free_bytes < FREE_BYTES_MIN:
        return Sign(f"store {row.name}", WARNING, "less than 1 GB is free", "free space there", figures)
    if line := next((step for step in probe.steps if step.name == "line"), None):
        return Sign(f"store {row.name}", WARNING, line.said, line.hint, figures)
    can = "conditional create holds" if probe.conditional else "no conditional create, so for copies only"
    if not probe.deletes:
        hint = "prune and shredding need other credentials than these"
        return Sign(f"store {row.name}", OK, f"append-only: written and read back; {can}", hint, figures)
    return Sign(f"store {row.name}", OK, f"written, read back and deleted; {can}", "", figures)


def _some(names: list[str], count: int) -> str:
    more = f" and {count - NAMED_MAX} more" if count > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more


def _given_up(row: StoreConfig) -> str:
    return f"if it is gone for good: store remove {row.name} --lost --to NAME"


def _kept_there(row: StoreConfig) -> str:
    """Who is without backups while the store is away."""
    tenants = Tenant.objects.filter(store=row).order_by("slug")
    names = list(tenants.values_list("slug", flat=True)[:NAMED_MAX])
    return f"; it keeps the backups of {_some(names, tenants.count())}" if names else ""


def _repositories_missing(row: StoreConfig) -> list[str]:
    """Tenants whose repository ought to be in this store: an unmounted folder can be written and read very well."""
    tenants = Tenant.objects.filter(store=row, repository_ready=True).order_by("-id")[:REPOSITORIES_LOOKED_AT_MAX]
    with wiring.store_open(row) as store:
        return [each.slug for each in tenants if not wiring.repository_present(store, each.repository_id)]


def _tools() -> Iterator[Sign]:
    if not Source.objects.filter(kind="postgresql", enabled=True).exists():
        return
    found = _pg_dumps()
    if found:
        yield Sign("pg_dump", OK, ", ".join(found))
    else:
        yield Sign("pg_dump", WARNING, "none was found", "install the client tools of your server's major version")


def _pg_dumps() -> list[str]:
    from pathlib import Path

    paths = {str(path) for path in Path("/usr/lib/postgresql").glob("*/bin/pg_dump")}
    on_path = shutil.which("pg_dump")
    return sorted(paths | ({on_path} if on_path else set()))


def _workers() -> Iterator[Sign]:
    seen = worker_seen_at()
    if seen is None:
        yield Sign("workers", WARNING, "no worker has ever run", "start one: manage.py worker")
    elif not worker_alive():
        yield Sign("workers", WARNING, f"no worker since {seen:%Y-%m-%d %H:%M} UTC", "start one: manage.py worker")
    else:
        yield Sign("workers", OK, "at work")


def _operations() -> Iterator[Sign]:
    cutoff = clock.catalogue_now() - lease_duration()
    stale = Operation.objects.filter(state__in=ACTIVE_STATES, heartbeat_at__lt=cutoff)
    names = list(stale.values_list("pk", flat=True)[:NAMED_MAX])
    if names:
        yield Sign("operations", WARNING, f"without a heartbeat: {', '.join(names)}", "run: operation reap")
    else:
        yield Sign("operations", OK, f"{Operation.objects.filter(state__in=ACTIVE_STATES).count()} running")


def _ages() -> Iterator[Sign]:
    from tenants.freshness import age_limits

    now, limits = clock.now(), age_limits()
    sources = source_guarded()
    late = sources.filter(limits.late(now))
    count = late.count()
    figures = {"sources": sources.count(), "late": count}
    if not count:
        yield Sign("backup ages", OK, f"{figures['sources']} sources are within their limits", "", figures)
        return
    rows = late.select_related("tenant").order_by("last_good_at")[:NAMED_MAX]
    named = ", ".join(f"{row.tenant.slug}/{row.name}" for row in rows)
    more = f" and {count - NAMED_MAX} more" if count > NAMED_MAX else ""
    yield Sign(
        "backup ages",
        CRITICAL,
        f"no recent good backup of {named}{more}",
        f"limits: {limits.critical_hours:g} h for critical sources, {limits.hours:g} h for others; run: backup create TENANT",
        figures,
    )


def _damage() -> Iterator[Sign]:
    """Of what can still be restored: a backup that ended harms nobody."""
    rows = Backup.objects.filter(damaged=True, state__in=GOOD_STATES).order_by("-id")
    damaged = list(rows.values_list("pk", flat=True)[:NAMED_MAX])
    if damaged:
        yield Sign(
            "damage", CRITICAL, f"stored bytes altered or missing: {', '.join(damaged)}", "take a full backup now"
        )


def _deletion() -> Iterator[Sign]:
    """Nothing is ended while the time cannot be trusted: loud, because stores fill up meanwhile."""
    from tenants.services.clock_watch import THAW_HINT, clock_looked_at

    frozen = clock_looked_at()
    trashed = Backup.objects.filter(trashed_at__isnull=False).count()
    figures = {"trashed": trashed}
    if frozen is None:
        yield Sign("retention", OK, f"the clock agrees with its witnesses; {trashed} backups in the trash", "", figures)
        return
    since = f"{frozen.created_at:%Y-%m-%d %H:%M}"
    yield Sign("retention", WARNING, f"deletion is frozen since {since} UTC: {frozen.reason}", THAW_HINT, figures)


def _copies() -> Iterator[Sign]:
    from tenants.copy_diagnosis import copy_signs

    for told in copy_signs():
        yield Sign(*told)


def _keys() -> Iterator[Sign]:
    from tenants.key_diagnosis import key_signs

    for told in key_signs():
        yield Sign(*told)


def _recovery(*, network: bool = True) -> Iterator[Sign]:
    from tenants.recovery_diagnosis import recovery_signs

    for told in recovery_signs(network=network):
        yield Sign(*told)


def _watch() -> Iterator[Sign]:
    from tenants.freshness import watch_signs

    for told in watch_signs():
        yield Sign(*told)


def _stores_seen() -> Iterator[Sign]:
    from tenants.freshness import store_signs

    for told in store_signs():
        yield Sign(*told)


def _disk() -> Iterator[Sign]:
    status = os.statvfs(wiring.data_folder())
    free = status.f_bavail * status.f_frsize
    if free < FREE_BYTES_MIN:
        yield Sign("data folder", WARNING, "less than 1 GB is free", "free space there", {"free_bytes": free})
    else:
        yield Sign("data folder", OK, str(wiring.data_folder()), "", {"free_bytes": free})


def _drills() -> Iterator[Sign]:
    """The newest drill of each tenant, one grouped query; tenants without any are not complained of."""
    newest = (
        Drill.objects.exclude(state=DrillState.RUNNING).values("tenant").annotate(newest=Max("pk")).values("newest")
    )
    last = Drill.objects.filter(pk__in=newest, tenant__archived_at=None)
    failed = last.filter(state=DrillState.FAILED)
    count = failed.count()
    figures = {"tenants": last.count(), "failed": count}
    if not count:
        yield Sign("drills", OK, f"the last drills of {figures['tenants']} tenants passed", "", figures)
        return
    names = list(failed.order_by("tenant__slug").values_list("tenant__slug", flat=True)[:NAMED_MAX])
    first = failed.order_by("tenant__slug").values_list("pk", flat=True)[0]
    yield Sign(
        "drills", CRITICAL, f"the last drill failed: {_some(names, count)}", f"see why: drill show {first}", figures
    )


_CHECKS: tuple[tuple[str, Callable[[], Iterator[Sign]]], ...] = (
    ("settings", _settings),
    ("root key", _root_key),
    ("keys", _keys),
    ("stores", _stores),
    ("copies", _copies),
    ("pg_dump", _tools),
    ("workers", _workers),
    ("watch", _watch),
    ("operations", _operations),
    ("backup ages", _ages),
    ("damage", _damage),
    ("drills", _drills),
    ("retention", _deletion),
    ("recovery", _recovery),
    ("data folder", _disk),
)


def _left_out() -> Iterator[Sign]:
    """How the installation is set up does not change from minute to minute: no monitor has to be told for ever."""
    return iter(())


_OFFLINE: dict[str, Callable[[], Iterator[Sign]]] = {
    "settings": _left_out,
    "pg_dump": _left_out,
    "stores": _stores_seen,
    "recovery": partial(_recovery, network=False),
}
