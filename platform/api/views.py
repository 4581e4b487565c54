"""What every view of the API shares."""

from contextlib import ExitStack
from typing import Any, ClassVar

from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

import audit.services
from api.authentication import BearerAuthentication, actor_of, token_of
from api.bodies import Body
from api.problems import answer
from core.origin import acting
from operations.models import Operation
from operations.presentation import operation_json
from operations.selectors import operation_get

RETRY_AFTER_SECONDS = 2
OPERATIONS = "/api/v1/operations/"
_SUBJECTS = {"bkp": "backups", "rst": "restores", "pln": "restore-plans", "drl": "drills"}


class View(APIView):
    """One resource; `scopes` names what each changing method needs (see api.permissions)."""

    authentication_classes: ClassVar[Any] = [BearerAuthentication]
    scopes: ClassVar[dict[str, str]] = {}

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Have whatever is recorded say from where it came, and for whom."""
        with ExitStack() as self._origin:
            self._origin.enter_context(acting(address=request.META.get("REMOTE_ADDR", "")))
            return super().dispatch(request, *args, **kwargs)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        # PostgreSQL takes no NUL, not even to say that there is no such name.
        if "\0" in request.path_info:
            raise NotFound("there is nothing at this address")
        if bad := [name for name, values in request.query_params.lists() if "\0" in "".join((name, *values))]:
            raise ValidationError({bad[0].replace("\0", ""): ["holds a NUL"]})
        self._origin.enter_context(acting(token=token_of(request).prefix, behalf=token_of(request).account.username))

    def check_permissions(self, request: Request) -> None:
        """What is refused counts, too: it costs an entry in the audit log."""
        super().check_throttles(request)
        super().check_permissions(request)

    def check_throttles(self, request: Request) -> None:
        """Done, before the permissions."""

    def finalize_response(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        done = super().finalize_response(request, response, *args, **kwargs)
        done["Cache-Control"] = "no-store"
        return done

    def get_exception_handler(self) -> Any:
        return answer

    def body(self, kind: type[Body]) -> dict[str, Any]:
        """The checked body. Raises ValidationError with pointers."""
        given = kind(data=self.request.data)
        given.is_valid(raise_exception=True)
        return dict(given.validated_data)


def read_recorded(request: Request, noun: str, subject: Any) -> None:
    """Put on record that somebody read what tells of a tenant's data: `<noun>.read`."""
    tenant = subject.tenant.slug
    audit.services.record(
        f"{noun}.read",
        message=f"{noun} {subject.pk} of {tenant} read",
        actor=actor_of(request),
        tenant=tenant,
        data={noun: subject.pk},
    )


def operation_shown(operation: Operation) -> dict[str, Any]:
    """An operation with the addresses of what belongs to it."""
    links = {"self": f"{OPERATIONS}{operation.pk}"}
    subject = _SUBJECTS.get(operation.subject_id[:3])
    if subject:
        links["subject"] = f"/api/v1/{subject}/{operation.subject_id}"
    if operation.tenant:
        links["tenant"] = f"/api/v1/tenants/{operation.tenant}"
    return {**operation_json(operation), "links": links}


def accepted(operation: Operation, **more: Any) -> Response:
    """202 with the operation, its address and when to look again."""
    fresh = operation_get(operation.pk)
    response = Response({**operation_shown(fresh), **more}, status=202)
    response["Location"] = f"{OPERATIONS}{operation.pk}"
    response["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response
