"""`/restore-plans`, `/restores`, `/drills`: the way back, and its rehearsal."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from access.models import Scope
from api import shapes
from api.authentication import actor_of, token_of
from api.bodies import Body
from api.cursors import between, page_answer
from api.idempotency import repeatable
from api.permissions import ScopeMissing, permitted, refused, tenants_permitted
from api.resources.backups import NAMES_MAX, backup_of
from api.resources.tenants import tenant_of
from api.schema import BETWEEN, LISTED, REPEATABLE, REPEATABLE_REQUIRED, TENANT, accepts, answers
from api.views import View, accepted, read_recorded
from engine.plans import MODES
from tenants import outputs, plan_outputs, restore_outputs
from tenants.models import Drill, Restore, RestorePlan
from tenants.plan_selectors import plan_get
from tenants.selectors import restore_get
from tenants.services.drills import drill_get, drill_start
from tenants.services.plans import plan_start
from tenants.services.restores import RestoreWish, restore_start, restore_start_planned
from tenants.services.undos import undo_plan_start, undo_start


def _names() -> Any:
    return shapes.Texts(child=shapes.Text(max_length=300), max_length=NAMES_MAX, default=list)


class WishBody(Body):
    mode = shapes.Choice(choices=list(MODES), default="full")
    sources = _names()
    modules = _names()
    policies = _names()
    clocks = _names()
    base = shapes.Text(
        max_length=40, required=False, help_text="backup from which both sides changed (three-way merge)"
    )
    targets = shapes.Texts(
        child=shapes.Text(max_length=2000), max_length=NAMES_MAX, default=list,
        help_text="KEY=VALUE or SOURCE.KEY=VALUE; needs `admin`, since it names places of this host",
    )  # fmt: skip
    reason = shapes.Text(max_length=500, allow_blank=True, default="")


class PlanBody(WishBody):
    backup = shapes.Text(max_length=40, required=False)
    restore = shapes.Text(max_length=40, required=False, help_text="preview the undoing of this restore instead")


class RestoreBody(WishBody):
    backup = shapes.Text(max_length=40, required=False)
    plan = shapes.Text(max_length=40, required=False, help_text="do exactly what this plan previewed")
    validate_ = shapes.Flag(default=True)
    prove = shapes.Flag(default=False)


class UndoBody(Body):
    sources = _names()
    prove = shapes.Flag(default=False)
    reason = shapes.Text(max_length=500, allow_blank=True, default="")


class DrillBody(Body):
    tenant = shapes.Text(max_length=63)
    backup = shapes.Text(max_length=40, required=False, help_text="the tenant's newest good one unless named")
    sources = _names()
    reason = shapes.Text(max_length=500, allow_blank=True, default="")


def restore_of(request: Request, restore_id: str) -> Restore:
    """The restore, if the token may touch its tenant. Raises NotFound."""
    what = f"there is no restore {restore_id[:60]!r}"
    return permitted(request, lambda: restore_get(restore_id), lambda row: row.tenant.slug, what=what)


def plan_of(request: Request, plan_id: str) -> RestorePlan:
    """The plan, if the token may touch its tenant. Raises NotFound."""
    what = f"there is no plan {plan_id[:60]!r}"
    return permitted(request, lambda: plan_get(plan_id), lambda row: row.tenant.slug, what=what)


def restore_begin(request: Request, given: dict[str, Any]) -> tuple[Restore, Any]:
    """Queue a restore as a body asks; the scope is the confirmation."""
    if bool(given.get("plan")) == bool(given.get("backup")):
        raise ValidationError({"plan": ["give a plan or a backup, and not both"]})
    if given.get("plan"):
        plan = plan_of(request, given["plan"])
        if not plan.in_place:
            elsewhere_checked(request)
        wish = _wish(request, {**given, "mode": ""}, confirmed=plan.tenant.slug)
        return restore_start_planned(plan, wish, actor=actor_of(request), reason=given["reason"])
    backup = backup_of(request, given["backup"], usable=True)
    wish = _wish(request, given, confirmed=backup.tenant.slug)
    return restore_start(backup, wish, actor=actor_of(request), reason=given["reason"])


def elsewhere_checked(request: Request) -> None:
    """Raise ScopeMissing unless the token may have something restored to another place, whoever named that."""
    if Scope.ADMIN not in token_of(request).scopes or tenants_permitted(request) is not None:
        error = ScopeMissing(
            "a restore to another place writes on this host or in any database",
            hint="it needs the scope admin, without a limit to tenants",
        )
        raise refused(request, error, scope=Scope.ADMIN.value)


def _wish(request: Request, given: dict[str, Any], *, confirmed: str | None) -> RestoreWish:
    if given["targets"]:
        elsewhere_checked(request)
    return RestoreWish(
        mode=given["mode"],
        sources=tuple(given["sources"]),
        modules=tuple(given["modules"]),
        policies=tuple(given["policies"]),
        clocks=tuple(given["clocks"]),
        base=given.get("base", ""),
        targets=tuple(given["targets"]),
        # What exists at another place is never overwritten from here: an empty place needs no confirmation.
        confirmed=None if given["targets"] else confirmed,
        validate=given.get("validate", True),
        prove=given.get("prove", False),
    )


class PlansView(View):
    scopes = {"POST": Scope.RESTORE_WRITE}

    @extend_schema(parameters=[*LISTED, TENANT, *BETWEEN], responses=answers(shapes.page_of(shapes.PlanShape)))
    def get(self, request: Request) -> Response:
        """Plans, newest first, without what they found."""
        rows = RestorePlan.objects.select_related("tenant", "backup")
        return page_answer(request, _listed(request, rows, "pln"), plan_outputs.plan_head)

    @extend_schema(parameters=[REPEATABLE], request=PlanBody, responses=accepts())
    @repeatable()
    def post(self, request: Request) -> Response:
        """Preview a restore, or the undoing of one: row for row what applying the plan will do. Nothing is changed."""
        given = self.body(PlanBody)
        if bool(given.get("restore")) == bool(given.get("backup")):
            raise ValidationError({"backup": ["give a backup or a restore, and not both"]})
        if given.get("restore"):
            restore = restore_of(request, given["restore"])
            _, operation = undo_plan_start(
                restore, sources=tuple(given["sources"]), actor=actor_of(request), reason=given["reason"]
            )
            return accepted(operation)
        backup = backup_of(request, given["backup"], usable=True)
        wish = _wish(request, given, confirmed=None)
        _, operation = plan_start(backup, wish, wish.targets, actor=actor_of(request), reason=given["reason"])
        return accepted(operation)


class PlanView(View):
    scopes = {"GET": Scope.RESTORE_WRITE}

    @extend_schema(responses=answers(shapes.PlanWholeShape))
    def get(self, request: Request, plan_id: str) -> Response:
        """One plan with its samples, which are the tenant's data: it needs `restore:write`, and the audit log has it."""
        plan = plan_of(request, plan_id)
        shown = plan_outputs.plan(plan)
        read_recorded(request, "plan", plan)
        return Response(shown)


class RestoresView(View):
    scopes = {"POST": Scope.RESTORE_WRITE}

    @extend_schema(parameters=[*LISTED, TENANT, *BETWEEN], responses=answers(shapes.page_of(shapes.RestoreShape)))
    def get(self, request: Request) -> Response:
        """Restores, newest first, without what they did to which table."""
        rows = Restore.objects.select_related("tenant", "backup", "safety_backup")
        return page_answer(request, _listed(request, rows, "rst"), restore_outputs.restore_head)

    @extend_schema(parameters=[REPEATABLE_REQUIRED], request=RestoreBody, responses=accepts())
    @repeatable(required=True)
    def post(self, request: Request) -> Response:
        """Restore: exactly a plan, or from a backup. In place a safety backup comes first, and it can be undone."""
        _, operation = restore_begin(request, self.body(RestoreBody))
        return accepted(operation)


class RestoreView(View):
    @extend_schema(responses=answers(shapes.RestoreWholeShape))
    def get(self, request: Request, restore_id: str) -> Response:
        """One restore with its checks and what became of each source."""
        restore = restore_of(request, restore_id)
        shown = restore_outputs.restore(restore)
        read_recorded(request, "restore", restore)
        return Response(shown)


class UndoView(View):
    scopes = {"POST": Scope.RESTORE_WRITE}

    @extend_schema(parameters=[REPEATABLE_REQUIRED], request=UndoBody, responses=accepts())
    @repeatable(required=True)
    def post(self, request: Request, restore_id: str) -> Response:
        """Put back exactly what was there before; when it was changed since, the operation ends with a stale plan."""
        given = self.body(UndoBody)
        restore = restore_of(request, restore_id)
        _, operation = undo_start(
            restore,
            confirmed=restore.tenant.slug,
            sources=tuple(given["sources"]),
            prove=given["prove"],
            actor=actor_of(request),
            reason=given["reason"],
        )
        return accepted(operation)


class DrillsView(View):
    scopes = {"POST": Scope.RESTORE_WRITE}

    @extend_schema(parameters=[*LISTED, TENANT, *BETWEEN], responses=answers(shapes.page_of(shapes.DrillShape)))
    def get(self, request: Request) -> Response:
        """Drills, newest first."""
        rows = Drill.objects.select_related("tenant", "backup")
        return page_answer(request, _listed(request, rows, "drl"), outputs.drill_line)

    @extend_schema(parameters=[REPEATABLE], request=DrillBody, responses=accepts())
    @repeatable()
    def post(self, request: Request) -> Response:
        """Rehearse a restore into a throw-away place, check it, time it, clear it away."""
        given = self.body(DrillBody)
        tenant = tenant_of(request, given["tenant"])
        backup = backup_of(request, given["backup"], usable=True) if given.get("backup") else None
        _, operation = drill_start(
            tenant, backup=backup, sources=tuple(given["sources"]), actor=actor_of(request), reason=given["reason"]
        )
        return accepted(operation)


class DrillView(View):
    @extend_schema(responses=answers(shapes.DrillWholeShape))
    def get(self, request: Request, drill_id: str) -> Response:
        """One drill with its evidence."""
        what = f"there is no drill {drill_id[:60]!r}"
        drill = permitted(request, lambda: drill_get(drill_id), lambda row: row.tenant.slug, what=what)
        shown = outputs.drill(drill)
        read_recorded(request, "drill", drill)
        return Response(shown)


def _listed(request: Request, rows: Any, prefix: str) -> Any:
    rows = between(request, rows, prefix=prefix)
    limited = tenants_permitted(request)
    if limited is not None:
        rows = rows.filter(tenant__slug__in=limited)
    if slug := request.query_params.get("tenant", ""):
        rows = rows.filter(tenant=tenant_of(request, slug))
    return rows
