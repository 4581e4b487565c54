"""Errors as `application/problem+json` (RFC 9457), whoever raised them."""

import itertools
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.db import OperationalError
from django.http import Http404
from rest_framework import exceptions
from rest_framework.response import Response

from core.errors import CatalogueUnready, problem
from core.origin import origin_field
from engine.errors import LastroError

CONTENT_TYPE = "application/problem+json"
TYPE = "urn:lastro:problem:"

log = logging.getLogger(__name__)

ERRORS_MAX, DETAIL_CHARS_MAX = 100, 500

_HINTS = {
    401: "send a live token: Authorization: Bearer <token>",
    404: "see /api/schema/ for what there is",
    405: "see /api/schema/ for the methods",
    406: "ask for application/json",
    415: "send application/json",
    429: "wait as long as Retry-After says",
}


def problem_json(
    *,
    status: int,
    code: str,
    title: str,
    detail: str,
    hint: str = "",
    retryable: bool = False,
    errors: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """The members of a problem; `errors` are `{pointer, detail}`, a JSON pointer into the body or the name of a parameter."""
    return {
        "type": f"{TYPE}{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": origin_field("request"),
        "errors": list(errors),
        "retryable": retryable,
        "hint": hint,
    }


def answer(error: Exception, context: Mapping[str, Any]) -> Response:
    """What the API answers for anything that a view raised; what nobody foresaw is logged under an id and told as 500."""
    if isinstance(error, OperationalError):
        log.error("the catalogue cannot be used", exc_info=error)
        error = CatalogueUnready("the catalogue cannot be used at the moment", hint="try again; the log says why")
    if isinstance(error, LastroError):
        return _of_ours(error)
    if isinstance(error, Http404):
        error = exceptions.NotFound()
    elif isinstance(error, PermissionDenied):
        error = exceptions.PermissionDenied()
    elif isinstance(error, RequestDataTooBig):
        return _problem(413, "request.too_large", "Body too large", "the body is larger than is taken")
    elif isinstance(error, SuspiciousOperation):
        return _problem(400, "request.refused", "Bad request", "the request cannot be understood")
    if isinstance(error, exceptions.ValidationError):
        return _invalid(error)
    if isinstance(error, exceptions.APIException):
        return _of_framework(error)
    return _unforeseen(error)


def _of_ours(error: LastroError) -> Response:
    told = problem(error)
    status = told["status"]
    body = problem_json(
        status=status,
        code=error.code,
        title=told["title"],
        detail=error.message,
        hint=error.hint,
        retryable=error.retryable,
    )
    for name in ("operation", "approval"):
        if found := getattr(error, name, ""):
            body[name] = found
    response = Response(body, status=status, content_type=CONTENT_TYPE)
    if status == 503 or error.retryable:
        response["Retry-After"] = "30"
    return response


def _of_framework(error: exceptions.APIException) -> Response:
    status = error.status_code
    detail = str(error.detail)
    response = _problem(status, f"request.{error.default_code}", error.default_detail, detail, _HINTS.get(status, ""))
    if header := getattr(error, "auth_header", ""):
        response["WWW-Authenticate"] = header
    if (wait := getattr(error, "wait", None)) is not None:
        response["Retry-After"] = str(int(wait) + 1)
        response.data["retryable"] = True
    return response


def _invalid(error: exceptions.ValidationError) -> Response:
    errors = list(itertools.islice(_pointers(error.detail, ""), ERRORS_MAX))
    detail = errors[0]["detail"] if len(errors) == 1 else f"{len(errors)} things are wrong with the request"
    body = problem_json(
        status=422, code="request.invalid", title="Invalid request", detail=detail, errors=errors, hint="see errors"
    )
    return Response(body, status=422, content_type=CONTENT_TYPE)


def _pointers(detail: Any, pointer: str) -> Iterator[dict[str, str]]:
    """Flatten the framework's nested details into JSON pointers (RFC 6901)."""
    if isinstance(detail, Mapping):
        for key, value in detail.items():
            # What is wrong with an object as a whole the framework files under this name.
            step = "" if key == "non_field_errors" else "/" + str(key).replace("~", "~0").replace("/", "~1")
            yield from _pointers(value, pointer + step)
    elif isinstance(detail, list | tuple) and any(isinstance(each, Mapping | list | tuple) for each in detail):
        for number, value in enumerate(detail):
            yield from _pointers(value, f"{pointer}/{number}")
    else:
        for text in detail if isinstance(detail, list | tuple) else [detail]:
            yield {"pointer": pointer, "detail": str(text)[:DETAIL_CHARS_MAX]}


def _unforeseen(error: Exception) -> Response:
    reference = uuid.uuid4().hex[:12]
    log.error("unforeseen error %s", reference, exc_info=error, extra={"reference": reference})
    return _problem(500, "internal.error", "Internal error", f"unforeseen; the log has it under {reference}")


def _problem(status: int, code: str, title: Any, detail: str, hint: str = "") -> Response:
    body = problem_json(status=status, code=code, title=str(title).rstrip("."), detail=detail, hint=hint)
    return Response(body, status=status, content_type=CONTENT_TYPE)
