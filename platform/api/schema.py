"""How views say in the OpenAPI schema what they take and answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse

from api.cursors import LIMIT, LIMIT_MAX
from api.idempotency import HEADER
from api.permissions import READING
from api.shapes import OperationShape, ProblemShape

_WORDS = {
    400: "The body or a header cannot be read",
    401: "No live token",
    403: "The token lacks the scope, or a second master must agree first",
    404: "There is no such thing, or the token may not touch it",
    409: "It does not fit the present state",
    413: "The body is too large",
    415: "The body is no JSON",
    422: "A member or parameter is wrong; `errors` points at it",
    429: "Too many requests; see Retry-After",
    500: "Our own error, or stored data is damaged",
    502: "A store, source or target refused",
    503: "The catalogue, a store or a source cannot be reached",
}


def _parameter(name: str, words: str, **more: Any) -> OpenApiParameter:
    return OpenApiParameter(name, description=words, required=False, **more)


OBJECT = OpenApiTypes.OBJECT
LISTED = [
    _parameter(
        "limit",
        f"rows on a page, 1 to {LIMIT_MAX} ({LIMIT})",
        type={"type": "integer", "minimum": 1, "maximum": LIMIT_MAX},
    ),
    _parameter("cursor", "`page.next` or `page.prev` of an answer"),
]
BETWEEN = [
    _parameter("from", "made at or after this time", type={"type": "string", "format": "date-time"}),
    _parameter("to", "made before this time", type={"type": "string", "format": "date-time"}),
]
TENANT = _parameter("tenant", "only of this tenant (slug)")
SEARCHED = _parameter("q", "only where this text is part of the slug or name")
REPEATABLE = OpenApiParameter(
    HEADER, location=OpenApiParameter.HEADER, description="the same key again within 24 hours gets the first answer",
    type={"type": "string", "pattern": "^[!-~]{1,128}$"},
)  # fmt: skip
REPEATABLE_REQUIRED = OpenApiParameter(
    HEADER, location=OpenApiParameter.HEADER, description="names this one request; the same key again gets the first answer",
    type={"type": "string", "pattern": "^[!-~]{1,128}$"}, required=True,
)  # fmt: skip


def states(name: str, choices: Sequence[str]) -> OpenApiParameter:
    """A parameter that may be given several times."""
    return _parameter(name, "only these; may be given several times", many=True, enum=list(choices))


def answers(shape: Any, *, status: int = 200, words: str = "") -> dict[int, Any]:
    """What a view answers: the shape, or any of the problems."""
    shown = OpenApiResponse(shape, description=words or "Done")
    return {status: shown, **_problems()}


def accepts() -> dict[int, Any]:
    """What a view that starts long work answers."""
    return answers(OperationShape, status=202, words="Begun: follow the operation at Location")


def _problems() -> Mapping[int, Any]:
    return {code: OpenApiResponse(ProblemShape, description=words) for code, words in _WORDS.items()}


class Schema(AutoSchema):
    """Problems have a media type of their own; operations are named after method and address, and say their scope."""

    def get_operation_id(self) -> str:
        parts = [part.strip("{}") if "{" not in part else f"by_{part.strip('{}')}" for part in self.path.split("/")[2:]]
        return "_".join([self.method.lower(), *parts]).replace("-", "_").rstrip("_")

    def get_operation(self, *args: Any, **kwargs: Any) -> Any:
        operation = super().get_operation(*args, **kwargs)
        if operation is not None:
            operation["x-scope"] = str({**READING, **self.view.scopes}[self.method])
        return operation

    def _get_response_for_code(
        self, serializer: Any, status_code: str, media_types: Any = None, direction: Any = "response"
    ) -> Any:
        if int(status_code) >= 400:
            media_types = ["application/problem+json"]
        return super()._get_response_for_code(serializer, status_code, media_types, direction)


class BearerScheme(OpenApiAuthenticationExtension):
    target_class = "api.authentication.BearerAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "description": "a token of `token add`"}


def without_aliases(endpoints: list[Any]) -> list[Any]:
    """The spelling with a trailing slash is the same address."""
    return [each for each in endpoints if not each[0].endswith("/") or each[0].startswith("/api/schema")]
