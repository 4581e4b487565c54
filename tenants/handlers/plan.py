"""The operation `plan`: says what a restore or an undo would do. Reads only, beside backups of the same tenant."""

from collections.abc import Mapping
from typing import Any

from core.errors import InternalError
from engine.errors import LastroError
from engine.faults import kill_point
from engine.plans import Preview
from operations.context import OperationContext
from operations.handlers import register
from operations.models import Operation
from tenants import plan_outputs, reading, wiring
from tenants.handlers.courses import Backups, ToBefore, request_of
from tenants.handlers.whole import around_damage
from tenants.models import PlanState, RestorePlan, Source
from tenants.plan_selectors import plan_get
from tenants.previews import preview_json
from tenants.selectors import restore_get, source_get
from tenants.services.plans import plan_failed, plan_made
from tenants.transitions import plan_transition


def _resource(operation: Operation) -> str:
    """Plans of a tenant are made one after another, so that its servers carry one at a time; backups go on."""
    return f"plan:{operation.tenant}"


def _ended(operation: Operation, text: str, code: str, actor: str) -> None:
    plan = RestorePlan.objects.filter(pk=operation.subject_id).first()
    if plan is not None:
        error = LastroError(text, hint=f"run it again: operation retry {operation.pk}")
        error.code = code
        plan_failed(plan, error, actor=actor)


def _lost(operation: Operation) -> None:
    _ended(operation, "its worker ended without a word", "operation.lost", "system:reaper")


def _dropped(operation: Operation) -> None:
    _ended(operation, f"it never ran: the operation {operation.state}", "operation.not_run", operation.actor)


def _retry(operation: Operation) -> Mapping[str, Any]:
    plan = plan_get(operation.subject_id)
    if plan.state == PlanState.FAILED:
        plan_transition(plan, to=PlanState.MAKING, actor=operation.actor, error_code="", error="", error_hint="")
    return {}


@register("plan", resource=_resource, phases=("preview",), on_lost=_lost, on_dropped=_dropped, on_retry=_retry)
def run(context: OperationContext) -> Mapping[str, Any]:
    """Preview every source and keep what was found; the result names the plan only, as it may be read by anyone."""
    plan = plan_get(context.operation.subject_id)
    try:
        with reading.backups_open(plan.tenant, [plan.backup]) as repository:
            sources = around_damage(context, repository, plan, lambda backups: _previews(context, plan, backups))
        kill_point("plan.previewed")
        plan_made(context, plan, sources)
    except LastroError as error:
        plan_failed(plan, error, actor=context.operation.actor)
        raise
    except BaseException as error:
        plan_failed(plan, InternalError(f"ended by {type(error).__name__}"), actor=context.operation.actor)
        raise
    return plan_outputs.plan_head(plan)


def _previews(context: OperationContext, plan: RestorePlan, backups: Backups) -> list[dict[str, Any]]:
    sources = []
    for name in sorted(plan.sources):
        context.check()
        context.phase(f"preview {name}")
        source = source_get(plan.tenant, name)
        preview = _preview(context, plan, backups, source)
        sources.append(preview_json(name, source.kind, preview))
    return sources


def _preview(context: OperationContext, plan: RestorePlan, backups: Backups, source: Source) -> Preview:
    connector = wiring.connector_at(source, plan)
    if plan.undoes is not None:
        course = ToBefore(context, restore_get(plan.undoes.pk), backups, label=plan.pk)
        return course.preview_source(connector, source.name)
    # `overwrite` says that what stands at the target may be compared; nothing is written by a preview.
    request = request_of(plan, backups, source.name, overwrite=True)
    return connector.preview(backups.wanted(plan.backup, source.name), request, context)
