"""The same plan once more, for what is there now."""

from collections.abc import Mapping

from core import sealing
from operations.models import Operation
from tenants.models import Restore, RestorePlan
from tenants.selectors import backup_usable, source_get
from tenants.services.plans import plan_queue
from tenants.services.undos import undo_plan_start
from tenants.services.wishes import targets_seal
from tenants.targets import Targets


def plan_again_start(
    of: RestorePlan | Restore, *, actor: str, reason: str = "", here: bool = False
) -> tuple[RestorePlan, Operation]:
    """Queue the preview of what an earlier plan or restore was about: its backup, mode, choices and targets.

    Raises NotFound when the backup, the base or a source is gone, and what `undo_plan_start` raises.
    """
    names = source_names(of)
    if of.undoes is not None:
        return undo_plan_start(of.undoes, sources=names, actor=actor, reason=reason or of.reason, here=here)
    for name in names:
        source_get(of.tenant, name)
    plan = RestorePlan(
        tenant=of.tenant,
        backup=backup_usable(of.backup_id),
        base=backup_usable(of.base_id) if of.base_id else None,
        mode=of.mode,
        in_place=of.in_place,
        sources=names,
        wishes=of.wishes,
        targets=of.targets,
        reason=reason or of.reason,
        created_by=actor,
    )
    plan.sealed = targets_seal(plan.pk, targets_of(of))
    return plan, plan_queue(plan, actor=actor, reason=plan.reason, here=here)


def source_names(of: RestorePlan | Restore) -> list[str]:
    """The sources that it is about, by name."""
    return sorted(of.sources if isinstance(of, RestorePlan) else of.sources.values_list("name", flat=True))


def targets_of(of: RestorePlan | Restore) -> Targets:
    """Its targets, secrets opened."""
    sealed: Mapping[str, Mapping[str, str]] = of.sealed
    secret = {name: sealing.unseal(own, owner=f"restore:{of.pk}:{name}") for name, own in sealed.items()}
    return Targets(plain=dict(of.targets), secret=secret)
