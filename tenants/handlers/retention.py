"""The operation `retention`: what no rule keeps goes into the trash, what was there long enough is forgotten."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.faults import kill_point
from operations.context import OperationContext
from operations.handlers import register
from tenants import wiring
from tenants.handlers.backup import tenant_resource
from tenants.handlers.prune import frozen_reason, prune_tenant
from tenants.locking import locks_follow
from tenants.models import Backup, Tenant
from tenants.retention_selectors import Keeping, keepings
from tenants.services.retention import expiries_put
from tenants.services.trash import backups_expire, backups_leave, trash_due, trash_emptied

NAMED_MAX = 1_000


@register("retention", resource=tenant_resource, phases=("decide", "mark", "repack", "sweep", "change images"))
def run(context: OperationContext) -> Mapping[str, Any]:
    """Apply the tenant's policies to its backups, empty the trash, and prune when something was ended.

    While deletion is frozen nothing is decided, and the result says why.
    """
    tenant = Tenant.objects.select_related("store").get(pk=context.operation.subject_id)
    dry_run, wants_prune = bool(context.params.get("dry_run")), bool(context.params.get("prune", True))
    context.phase("decide")
    frozen = frozen_reason(context)
    if frozen:
        return {**_nothing(tenant, dry_run), "frozen": frozen}
    found = keepings(tenant)
    going = [each.known.point.id for each in found if not each.verdict.kept]
    leaving = [each.known.point.id for each in found if each.leaves]
    due = trash_due(tenant)  # Before anything is added: it stays for a run at least.
    trashed, left = (going, len(leaving)) if dry_run else _end(context, tenant, found, going, leaving)
    locked = 0 if dry_run else _lock(context, tenant, found)
    pruned = None
    if wants_prune and not dry_run and (due or left):
        pruned = _empty(context, tenant, due)
    return {
        **_nothing(tenant, dry_run),
        "kept": len(found) - len(trashed),
        "trashed": trashed[:NAMED_MAX],
        "trashed_total": len(trashed),
        "left_primary": left,
        "locks_extended": locked,
        "forgotten": len(due) if pruned or dry_run else 0,
        "prune": pruned,
    }


def _nothing(tenant: Tenant, dry_run: bool) -> dict[str, Any]:
    return {
        "tenant": tenant.slug,
        "dry_run": dry_run,
        "frozen": "",
        "kept": 0,
        "trashed": [],
        "trashed_total": 0,
        "left_primary": 0,
        "locks_extended": 0,
        "forgotten": 0,
        "prune": None,
    }


def _end(
    context: OperationContext, tenant: Tenant, found: list[Keeping], going: Sequence[str], leaving: Sequence[str]
) -> tuple[list[str], int]:
    context.check()
    expiries_put(found)
    trashed = backups_expire(context, tenant, going, reason="no rule of retention keeps it")
    kill_point("retention.trashed")
    return trashed, backups_leave(context, tenant, leaving)


def _lock(context: OperationContext, tenant: Tenant, found: list[Keeping]) -> int:
    if not hasattr(wiring.store_kind(tenant.store.kind), "lock"):
        return 0
    with wiring.repository_open(tenant) as repository:
        return locks_follow(context, tenant, repository, found)


def _empty(context: OperationContext, tenant: Tenant, due: Sequence[Backup]) -> Mapping[str, Any]:
    """Let the store forget first: a kill in between leaves backups in the trash that are found gone when they are due."""
    numbers = [backup.number for backup in due if backup.number is not None]
    report = prune_tenant(context, tenant, dry_run=False, emptied=numbers)
    kill_point("retention.forgotten")
    trash_emptied(context, tenant, due)
    return report
