"""Plans of restores: asked for, made by a worker, used once."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from django.conf import settings
from django.db import transaction

from audit.services import record
from core import clock, sealing
from core.errors import Conflict, StateConflict
from engine.errors import LastroError, StalePlan, UsageError
from operations.context import OperationContext
from operations.models import Operation
from operations.services import operation_enqueue
from tenants.models import Backup, PlanState, Restore, RestoreKind, RestorePlan, RestoreState, Tenant
from tenants.previews import totals
from tenants.selection import Selection, Wish
from tenants.services.wishes import targets_seal, wish_resolve
from tenants.targets import Targets
from tenants.tenant_sealing import document_open, document_seal, keyring_of
from tenants.transitions import plan_transition

_ERROR_CHARS_MAX = 2_000


class PlanExpired(StalePlan):
    """The plan is older than plans may be."""

    code = "plan.expired"


_STALE = (StalePlan.code, PlanExpired.code)


def plan_start(
    backup: Backup, wish: Wish, targets: Sequence[str] = (), *, actor: str, reason: str = "", here: bool = False
) -> tuple[RestorePlan, Operation]:
    """Queue the preview of a restore; nothing but reading is done. Raises what `wish_resolve` raises."""
    meant = wish_resolve(backup, wish, targets)
    plan = RestorePlan(
        tenant=backup.tenant,
        backup=backup,
        base=meant.base,
        mode=meant.selection.mode,
        in_place=not meant.targets,
        sources=list(meant.selection.sources),
        wishes=meant.selection.as_json(),
        targets=meant.targets.plain,
        reason=reason,
        created_by=actor,
    )
    plan.sealed = targets_seal(plan.pk, meant.targets)
    return plan, plan_queue(plan, actor=actor, reason=reason, here=here)


def plan_queue(plan: RestorePlan, *, actor: str, reason: str, here: bool) -> Operation:
    """Save a new plan and queue its making."""
    with transaction.atomic():
        plan.save(force_insert=True)
        operation = operation_enqueue(
            kind="plan",
            tenant=plan.tenant.slug,
            params={},
            subject_id=plan.pk,
            actor=actor,
            reason=reason,
            here=here,
        )
        RestorePlan.objects.filter(pk=plan.pk).update(operation_id=operation.pk)
        plan.operation_id = operation.pk
        what = f"undo of {plan.undoes_id}" if plan.undoes_id else f"{plan.mode} restore from {plan.backup_id}"
        record(
            "plan.requested",
            message=f"plan of a {what} for {plan.tenant.slug}",
            actor=actor,
            tenant=plan.tenant.slug,
            data={"plan": plan.pk, "backup": plan.backup_id, "sources": sorted(plan.sources), "reason": reason},
        )
    return operation


def plan_made(context: OperationContext, plan: RestorePlan, sources: Sequence[Mapping[str, Any]]) -> None:
    """Keep the previews, sealed; from now on the plan can be run until it expires."""
    now = clock.now()
    previews = document_seal(keyring_of(plan.tenant), f"plan:{plan.pk}", {"sources": list(sources)})
    with transaction.atomic():
        context.fence()
        plan_transition(
            plan,
            to=PlanState.READY,
            actor=context.operation.actor,
            previews=previews,
            totals=totals(sources),
            made_at=now,
            expires_at=now + datetime.timedelta(hours=settings.LASTRO_PLAN_HOURS),
        )
        record(
            "plan.made",
            message=f"plan {plan.pk} for {plan.tenant.slug} is ready",
            actor=context.operation.actor,
            tenant=plan.tenant.slug,
            data={"plan": plan.pk, "backup": plan.backup_id, "totals": plan.totals},
        )


def plan_failed(plan: RestorePlan, error: LastroError, *, actor: str) -> None:
    """Record that no preview could be made; a settled plan stays."""
    with transaction.atomic():
        plan.refresh_from_db()
        if plan.state != PlanState.MAKING:
            return
        plan_transition(
            plan,
            to=PlanState.FAILED,
            actor=actor,
            reason=error.code,
            error_code=error.code,
            error=error.message[:_ERROR_CHARS_MAX],
            error_hint=error.hint[:_ERROR_CHARS_MAX],
        )


def plans_forget(tenant: Tenant) -> int:
    """Drop what old plans showed, a term of undo after they expired; who planned what and when stays."""
    begun = clock.now() - datetime.timedelta(days=settings.LASTRO_UNDO_DAYS)
    return RestorePlan.objects.filter(tenant=tenant, expires_at__lt=begun).exclude(previews=b"").update(previews=b"")


def plan_previews(plan: RestorePlan) -> list[dict[str, Any]]:
    """The previews per source, opened by the tenant's key; empty while there are none."""
    if not plan.previews:
        return []
    opened = document_open(keyring_of(plan.tenant), f"plan:{plan.pk}", bytes(plan.previews))
    sources: list[dict[str, Any]] = opened["sources"]
    return sources


def plan_digests(plan: RestorePlan) -> dict[str, str]:
    """Per source the digest of the changes that were approved. Raises StalePlan when what was shown is gone."""
    if not plan.previews:
        raise StalePlan(f"what plan {plan.pk} showed was dropped", hint=f"plan again: {plan_command(plan)}")
    return {source["name"]: str(source["digest"]) for source in plan_previews(plan)}


def plan_usable(plan: RestorePlan) -> None:
    """Raise unless the plan can be run: PlanExpired, or Conflict for one that is used, failed or not ready."""
    if plan.state == PlanState.USED:
        by = Restore.objects.filter(plan=plan).order_by("-id").first()
        # A stale plan is as stale when it is run again; whatever else failed may succeed.
        is_worth = by is not None and by.state == RestoreState.FAILED and by.error_code not in _STALE
        retry = f"; operation retry {by.operation_id} runs that again" if by is not None and is_worth else ""
        raise Conflict(
            f"plan {plan.pk} was used{f' by {by.pk}, which is {by.state}' if by is not None else ''}",
            hint=f"plan again: {plan_command(plan)}{retry}",
        )
    if plan.state != PlanState.READY:
        raise Conflict(f"plan {plan.pk} is {plan.state}", hint=f"plan again: {plan_command(plan)}")
    if plan.expires_at is not None and clock.now() >= plan.expires_at:
        raise PlanExpired(
            f"plan {plan.pk} expired at {plan.expires_at:%Y-%m-%d %H:%M} UTC; nothing was changed",
            hint=f"plan again: {plan_command(plan)}",
        )


def plan_take(plan: RestorePlan, *, actor: str) -> None:
    """Mark the plan as used, in the caller's transaction; of two that try one gets Conflict."""
    try:
        plan_transition(plan, to=PlanState.USED, actor=actor)
    except StateConflict as error:
        raise Conflict(f"plan {plan.pk} is being used by another restore", hint=error.hint) from error


def plan_give_back(plan: RestorePlan, *, actor: str) -> None:
    """A restore that never ran leaves its plan for another one."""
    plan.refresh_from_db()
    if plan.state == PlanState.USED:
        plan_transition(plan, to=PlanState.READY, actor=actor, reason="its restore never ran")


def plan_agrees(plan: RestorePlan, wish: Wish, targets: Sequence[str]) -> None:
    """Raise UsageError when what is said again beside a plan is not what the plan says; what is not said is the plan's.

    Targets are compared after they were understood, and secrets with secrets.
    """
    if plan.kind == RestoreKind.UNDO:
        given = wish.mode or wish.sources or wish.modules or wish.policies or wish.clocks or wish.base or targets
        if given:
            raise UsageError(f"plan {plan.pk} undoes {plan.undoes_id}", hint="leave out everything else")
        return
    again = _said_again(plan, wish)
    if wish.mode and wish.mode != plan.mode:
        raise UsageError(f"plan {plan.pk} has mode {plan.mode}, not {wish.mode}", hint=_LEAVE_OUT)
    if wish.base and wish.base != plan.base_id:
        raise UsageError(f"plan {plan.pk} has base {plan.base_id or 'none'}, not {wish.base}", hint=_LEAVE_OUT)
    if again is None and not targets:
        return
    meant = wish_resolve(plan.backup, again or _own(plan), targets)
    if again is not None and (meant.selection.sources, meant.selection.as_json()) != (
        tuple(plan.sources),
        Selection.of(plan.mode, plan.sources, plan.wishes).as_json(),
    ):
        raise UsageError(f"plan {plan.pk} was made for another choice", hint=_LEAVE_OUT)
    if targets and not _same_targets(plan, meant.targets):
        raise UsageError(f"plan {plan.pk} was made for another target", hint=_LEAVE_OUT)


_LEAVE_OUT = "leave it out: the plan says it; or make another plan"


def _own(plan: RestorePlan) -> Wish:
    """The plan's own wish, as far as it takes to find its sources."""
    modules = tuple(f"{name}.{module}" for name, each in plan.wishes.get("modules", {}).items() for module in each)
    return Wish(mode=plan.mode, sources=tuple(plan.sources), modules=modules)


def _said_again(plan: RestorePlan, wish: Wish) -> Wish | None:
    if not (wish.sources or wish.modules or wish.policies or wish.clocks):
        return None
    own = _own(plan)
    return Wish(
        mode=plan.mode,
        sources=wish.sources or own.sources,
        modules=wish.modules or own.modules,
        policies=wish.policies or _pairs(plan.wishes.get("policies", {})),
        clocks=wish.clocks or _pairs(plan.wishes.get("clocks", {})),
        base=plan.base_id or "",
    )


def _pairs(settings_by_source: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    return tuple(
        f"{source}.{name}={value}" for source, own in settings_by_source.items() for name, value in own.items()
    )


def plan_targets(plan: RestorePlan) -> Targets:
    """The targets, secrets opened."""
    secret = {name: sealing.unseal(own, owner=f"restore:{plan.pk}:{name}") for name, own in plan.sealed.items()}
    return Targets(plain=dict(plan.targets), secret=secret)


def _same_targets(plan: RestorePlan, targets: Targets) -> bool:
    own = plan_targets(plan)
    return all(own.of(name) == targets.of(name) for name in plan.sources)


def plan_command(of: RestorePlan | Restore) -> str:
    """The command that makes a new plan of the same, secret targets included."""
    if of.undoes is None:
        return f"restore plan {of.pk}"
    names = of.sources if isinstance(of, RestorePlan) else list(of.sources.values_list("name", flat=True))
    is_part = set(names) != set(of.undoes.sources.values_list("name", flat=True))
    chosen = "".join(f" --source {name}" for name in sorted(names)) if is_part else ""
    return f"restore undo {of.undoes_id} --plan{chosen}"
