"""Restores asked for: from a backup, from a plan, or as the undoing of another restore."""

from collections.abc import Mapping, Sequence

from django.db import transaction

from access.approvals import Action, approval_ask, approval_use
from audit.services import record
from core.errors import Busy
from engine.errors import UsageError
from operations.models import FINAL_STATES, Operation
from operations.services import operation_enqueue, operations_reap
from tenants.models import Restore, RestoreKind, RestorePlan, RestoreSource, RestoreState, Source, Tenant
from tenants.models.backup import Backup
from tenants.selectors import backup_usable, source_get
from tenants.services.plans import plan_agrees, plan_take, plan_targets, plan_usable
from tenants.services.wishes import RestoreWish, confirmation_checked, targets_seal, wish_resolve
from tenants.transitions import restore_transition

__all__ = ["RestoreWish", "restore_queue", "restore_start", "restore_start_planned"]


def restore_start(
    backup: Backup, wish: RestoreWish, *, actor: str, reason: str = "", here: bool = False
) -> tuple[Restore, Operation]:
    """Queue a restore. Nothing is touched when any of this is raised.

    ConfirmationNeeded unless the tenant's slug confirms it (for an alternative target it may be left out, and
    what exists there is then not overwritten), NotFound for a source that is gone, UsageError for what cannot be right,
    Busy while another restore of the tenant is under way.
    """
    meant = wish_resolve(backup, wish, wish.targets)
    in_place = not meant.targets
    _permitted(backup.tenant, wish, in_place=in_place)
    restore = Restore(
        tenant=backup.tenant,
        backup=backup,
        base=meant.base,
        mode=meant.selection.mode,
        wishes=meant.selection.as_json(),
        in_place=in_place,
        targets=meant.targets.plain,
        validate_after=wish.validate,
        safety_wanted=in_place,
        prove=wish.prove,
        reason=reason,
        created_by=actor,
    )
    restore.sealed = targets_seal(restore.pk, meant.targets)
    return restore, restore_queue(restore, meant.sources, confirmed=wish.confirmed is not None, here=here)


def restore_start_planned(
    plan: RestorePlan, wish: RestoreWish, *, actor: str, reason: str = "", here: bool = False
) -> tuple[Restore, Operation]:
    """Queue what a plan previewed; it will be done exactly so or not at all.

    What `wish` names beside the plan must be what the plan says (UsageError). Raises PlanExpired, Conflict for a
    plan that was used or never ready, and what `restore_start` raises.
    """
    plan_usable(plan)
    plan_agrees(plan, wish, wish.targets)
    if plan.undoes is None:
        backup_usable(plan.backup_id)
    _permitted(plan.tenant, wish, in_place=plan.in_place)
    sources = {name: source_get(plan.tenant, name) for name in plan.sources}
    restore = Restore(
        tenant=plan.tenant,
        backup=plan.backup,
        base=plan.base,
        kind=plan.kind,
        undoes=plan.undoes,
        plan=plan,
        mode=plan.mode,
        wishes=plan.wishes,
        in_place=plan.in_place,
        targets=plan.targets,
        validate_after=wish.validate,
        safety_wanted=plan.in_place,
        prove=wish.prove,
        reason=reason or plan.reason,
        created_by=actor,
    )
    restore.sealed = targets_seal(restore.pk, plan_targets(plan))
    return restore, restore_queue(restore, sources, confirmed=wish.confirmed is not None, here=here)


def _permitted(tenant: Tenant, wish: RestoreWish, *, in_place: bool) -> None:
    confirmation_checked(tenant, wish.confirmed, in_place=in_place)
    if not wish.safety_backup and in_place:
        raise UsageError(
            "a restore in place always takes a safety backup first",
            hint="leave out --no-safety-backup, or give --target",
        )


def _action(restore: Restore, sources: Sequence[str]) -> Action:
    """What a second master has to agree to, where restores in place need that."""
    details = {
        "kind": restore.kind,
        "from": restore.plan_id or restore.undoes_id or restore.backup_id,
        "mode": restore.mode,
        "sources": list(sources),
        "wishes": restore.wishes,
        "reason": restore.reason,
    }
    return Action("restores", "restore.in-place", restore.tenant.slug, details, tenant_id=restore.tenant_id)


def restore_queue(restore: Restore, sources: Mapping[str, Source], *, confirmed: bool, here: bool) -> Operation:
    """Save a new restore and queue it, approved by whoever confirmed it; takes its plan. Raises Busy."""
    tenant, actor = restore.tenant, restore.created_by
    action = _action(restore, sorted(sources))
    approval = approval_ask(action, requested_by=actor) if restore.in_place else None
    operations_reap()
    with transaction.atomic():
        # Of two that ask at the same moment the second waits here and then sees the first one's operation.
        Tenant.objects.select_for_update().get(pk=tenant.pk)
        _alone(tenant)
        if restore.in_place:
            approval_use(approval, action, actor=actor)
        if restore.plan is not None:
            plan_take(restore.plan, actor=actor)
        restore.save(force_insert=True)
        RestoreSource.objects.bulk_create(
            RestoreSource(restore=restore, name=name, kind=source.kind) for name, source in sources.items()
        )
        operation = operation_enqueue(
            kind="restore",
            tenant=tenant.slug,
            params={"overwrite": confirmed},
            subject_id=restore.pk,
            actor=actor,
            reason=restore.reason,
            here=here,
        )
        Restore.objects.filter(pk=restore.pk).update(operation_id=operation.pk)
        restore_transition(restore, to=RestoreState.APPROVED, actor=actor, reason="confirmed" if confirmed else "")
        _record(restore, sorted(sources), confirmed=confirmed)
    return operation


def _alone(tenant: Tenant) -> None:
    """One restore at a time: a second one asked for by mistake must not follow the first."""
    busy = Operation.objects.filter(kind="restore", tenant=tenant.slug).exclude(state__in=FINAL_STATES).first()
    if busy is not None:
        raise Busy(
            f"a restore of {tenant.slug} is under way: {busy.subject_id}",
            hint=f"wait for it or cancel it: operation show {busy.pk}",
            operation=busy.pk,
        )


def _record(restore: Restore, sources: Sequence[str], *, confirmed: bool) -> None:
    tenant, actor = restore.tenant.slug, restore.created_by
    if restore.kind == RestoreKind.UNDO:
        what = f"undo of {restore.undoes_id} for {tenant}"
    else:
        what = f"{restore.mode} restore of {tenant} from {restore.backup_id}"
    data = {
        "restore": restore.pk,
        "backup": restore.backup_id,
        "plan": restore.plan_id or "",
        "undoes": restore.undoes_id or "",
        "in_place": restore.in_place,
        "sources": list(sources),
        "reason": restore.reason,
    }
    where = f" in place: {', '.join(sources)}" if restore.in_place else ""
    record("restore.requested", message=what + where, actor=actor, tenant=tenant, level="warning", data=data)
    approval = "confirmed by name" if confirmed else "needs no confirmation: nothing that exists is overwritten"
    record(
        "restore.approved",
        message=f"{restore.pk} of {tenant}: {approval}",
        actor=actor,
        tenant=tenant,
        level="warning",
        data={"restore": restore.pk, "plan": restore.plan_id or "", "confirmed": confirmed, "reason": restore.reason},
    )
