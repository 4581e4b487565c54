"""The operation `prune`: chunks that no kept backup needs, and images that no undo needs, leave the store."""

import dataclasses
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.db.models import Q

from engine.errors import ClockSkewed, StoreDenied
from engine.prune import PruneReport, prune
from engine.repository import Repository
from engine.space import Space
from operations.context import OperationContext
from operations.handlers import register
from tenants import wiring
from tenants.handlers.backup import tenant_resource
from tenants.models import Backup, BackupCopy, BackupPresence, Tenant
from tenants.models.backup import ENDED_STATES
from tenants.outputs import moment
from tenants.services.change_images import DroppedImages, change_images_prune
from tenants.services.clock_watch import THAW_HINT, clock_looked_at, freeze_for_store
from tenants.services.numbers import numbers_close
from tenants.services.plans import plans_forget
from tenants.services.reconciling import manifests_known, reconciled_checked, strangers_noted


@register("prune", resource=tenant_resource, phases=("mark", "repack", "sweep", "change images"))
def run(context: OperationContext) -> Mapping[str, Any]:
    """Prune the tenant's repository; with `dry_run` only say what would be done.

    While deletion is frozen nothing is done either, and the result says why.
    """
    tenant = Tenant.objects.select_related("store").get(pk=context.operation.subject_id)
    dry_run = bool(context.params.get("dry_run"))
    frozen = "" if dry_run else frozen_reason(context)
    return {"tenant": tenant.slug, "frozen": frozen, **prune_tenant(context, tenant, dry_run=dry_run or bool(frozen))}


def frozen_reason(context: OperationContext) -> str:
    """Why deletion is frozen, warned of too; empty when it is not."""
    frozen = clock_looked_at()
    if frozen is None:
        return ""
    context.warn("retention.frozen", f"deletion is frozen: {frozen.reason} ({THAW_HINT})")
    return frozen.reason


@dataclass(frozen=True)
class _Pruned:
    report: PruneReport
    images: DroppedImages


def prune_tenant(
    context: OperationContext, tenant: Tenant, *, dry_run: bool, emptied: Collection[int] = ()
) -> dict[str, Any]:
    """Prune, and forget what has ended: what left the trash, what the primary lets go, and the numbers in `emptied`.

    Raises ClockSkewed, after deletion was frozen, when the store's clock is far from this host's.
    """
    with wiring.repository_open(tenant) as repository:
        if not dry_run:
            reconciled_checked(tenant, repository)
            numbers_close(context, tenant, repository)
        try:
            done = _prune(context, tenant, repository, dry_run=dry_run, emptied=emptied)
        except ClockSkewed as error:
            freeze_for_store(error.seen, store=tenant.store.name)
            raise
        if not dry_run:
            _unfinished_clear(repository)
    if not dry_run:
        plans_forget(tenant)
    return {"dry_run": dry_run, **_report(done.report), "change_images": dataclasses.asdict(done.images)}


def _unfinished_clear(repository: Repository) -> None:
    """Abort what killed writers left half-way, where the kind of store keeps such things and lets us."""
    clear = getattr(repository.store, "clear_stale", None)
    if clear is not None:
        with suppress(StoreDenied):
            clear()


def _prune(
    context: OperationContext, tenant: Tenant, repository: Repository, *, dry_run: bool, emptied: Collection[int]
) -> _Pruned:
    # Ended in the catalogue while the store was not told (a kill in between, a locked manifest): told again here.
    present = set(repository.numbers())
    with strangers_noted(tenant):
        report = prune(
            repository,
            forget={number: why for number, why in _ended(tenant, emptied).items() if number in present},
            head=tenant.numbers_closed,
            dry_run=dry_run,
            progress=context,
            known=None if dry_run else manifests_known(tenant),
            trash=_trash(tenant) - frozenset(emptied),
        )
    context.phase("change images")
    return _Pruned(report, change_images_prune(context, tenant, repository, dry_run=dry_run))


def _ended(tenant: Tenant, emptied: Collection[int]) -> dict[int, str]:
    """Numbers that the primary store may forget, and why. What lies in the trash is not among them.

    What it let go of stays as long as it is there and held, or no copy holds it whole any more: the decision may be old.
    """
    whole = BackupCopy.objects.filter(copy__tenant=tenant, presence=BackupPresence.PRESENT)
    left = Q(left_at__isnull=False, held=False, tenant__held=False, pk__in=whole.values("backup"))
    rows = Backup.objects.filter(Q(state__in=ENDED_STATES, trashed_at=None) | left, tenant=tenant)
    found = {
        number: "kept by copies alone" if left_at and state not in ENDED_STATES else str(state)
        for number, state, left_at in rows.values_list("number", "state", "left_at")
        if number is not None
    }
    return {**found, **dict.fromkeys(emptied, "its term in the trash is over")}


def _trash(tenant: Tenant) -> frozenset[int]:
    rows = Backup.objects.filter(tenant=tenant, trashed_at__isnull=False, number__isnull=False)
    return frozenset(number for number in rows.values_list("number", flat=True) if number is not None)


def _report(report: PruneReport) -> dict[str, Any]:
    rest = {
        field.name: getattr(report, field.name)
        for field in dataclasses.fields(report)
        if field.name not in ("before", "after")
    }
    return {**rest, "forgotten": list(report.forgotten), "before": _space(report.before), "after": _space(report.after)}


def _space(space: Space) -> dict[str, Any]:
    return {**dataclasses.asdict(space), "locked_until": moment(space.locked_until)}
