"""`/operations`: the course of long work."""

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from access.models import Scope
from api import shapes
from api.authentication import actor_of, token_of
from api.bodies import Body
from api.cursors import between, chosen, page_answer
from api.permissions import ScopeMissing, permitted, refused, tenant_permitted, tenants_permitted
from api.resources.restores import elsewhere_checked
from api.schema import BETWEEN, LISTED, TENANT, accepts, answers, states
from api.views import View, accepted, operation_shown
from operations.models import Operation, OperationState
from operations.selectors import operation_get
from operations.services import operation_cancel, operation_retry
from tenants.models import Restore, RestorePlan

_STEERED_WITH = {
    **dict.fromkeys(("backup", "copy", "copy_repair", "copy_verify", "delete", "verify"), Scope.BACKUP_WRITE),
    **dict.fromkeys(("archive", "drill", "plan", "restore"), Scope.RESTORE_WRITE),
}
"""What stopping an operation, or doing it again, needs; `admin` for all other kinds."""


class ReasonBody(Body):
    reason = shapes.Text(max_length=500, required=False, allow_blank=True, default="")


def operation_of(request: Request, operation_id: str) -> Operation:
    """The operation, if the token may see it: those of no tenant only without a limit. Raises NotFound."""
    what = f"no operation {operation_id[:60]!r}"
    operation = permitted(request, lambda: operation_get(operation_id), lambda row: _whose(request, row), what=what)
    return operation


def _whose(request: Request, operation: Operation) -> str:
    """The slug to be judged; what a limited token has begun itself, for all of its tenants, is its own."""
    own = not operation.tenant and operation.actor == actor_of(request)
    limited = tenants_permitted(request)
    return limited[0] if own and limited else operation.tenant


class OperationsView(View):
    @extend_schema(
        parameters=[*LISTED, TENANT, states("state", OperationState.values), *BETWEEN],
        responses=answers(shapes.page_of(shapes.OperationShape)),
    )
    def get(self, request: Request) -> Response:
        """Operations, newest first."""
        rows = between(request, Operation.objects.all(), prefix="opr")
        limited = tenants_permitted(request)
        if limited is not None:
            rows = rows.filter(tenant__in=limited)
        if slug := request.query_params.get("tenant", ""):
            tenant_permitted(request, slug, what=f"there is no tenant {slug[:60]!r}")
            rows = rows.filter(tenant=slug)
        if wanted := chosen(request, "state", OperationState.values):
            rows = rows.filter(state__in=wanted)
        return page_answer(request, rows, operation_shown)


class OperationView(View):
    @extend_schema(responses=answers(shapes.OperationShape))
    def get(self, request: Request, operation_id: str) -> Response:
        """One operation; poll it about every two seconds while it is not final."""
        return Response(operation_shown(operation_of(request, operation_id)))


class CancelView(View):
    scopes = {"POST": Scope.READ}  # and what the kind of work needs, below

    @extend_schema(request=ReasonBody, responses=accepts())
    def post(self, request: Request, operation_id: str) -> Response:
        """End it when it is queued, have it stop at its next check when it runs; twice is no error."""
        given = self.body(ReasonBody)
        operation = operation_of(request, operation_id)
        _may_steer(request, operation)
        return accepted(operation_cancel(operation.pk, actor=actor_of(request), reason=given["reason"]))


class RetryView(View):
    scopes = {"POST": Scope.READ}  # and what the kind of work needs, below

    @extend_schema(request=ReasonBody, responses=accepts())
    def post(self, request: Request, operation_id: str) -> Response:
        """Do again what was lost, failed or cancelled, as a new operation."""
        given = self.body(ReasonBody)
        operation = operation_of(request, operation_id)
        _may_steer(request, operation)
        return accepted(operation_retry(operation.pk, actor=actor_of(request), reason=given["reason"]))


def _may_steer(request: Request, operation: Operation) -> None:
    """Who could not have begun it may not stop it or begin it again."""
    scope = _STEERED_WITH.get(operation.kind, Scope.ADMIN)
    if not {scope, Scope.ADMIN} & set(token_of(request).scopes):
        hint = "token add --scope … makes one with it"
        error = ScopeMissing(f"a {operation.kind} needs the scope {scope}", hint=hint)
        raise refused(request, error, tenant=operation.tenant, scope=scope.value)
    elsewhere = (RestorePlan if operation.kind == "plan" else Restore)._base_manager.filter(in_place=False)
    if scope == Scope.RESTORE_WRITE and elsewhere.filter(pk=operation.subject_id).exists():
        elsewhere_checked(request)
