"""`Idempotency-Key`: the same request again gets the first answer and does nothing."""

import datetime
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from django.db import IntegrityError, transaction
from rest_framework.exceptions import APIException, ValidationError
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from api.authentication import token_of
from api.models import Repeat
from core import clock
from core.errors import Conflict
from engine.errors import LastroError, UsageError

HEADER = "Idempotency-Key"
KEPT = datetime.timedelta(hours=24)
_KEY = re.compile(r"[!-~]{1,128}")
_HEADERS_KEPT = ("Location", "Retry-After")

Method = Callable[..., Response]


class KeyReused(UsageError):
    code = "request.key_reused"


class StillRunning(Conflict):
    code = "request.still_running"


def repeatable(*, required: bool = False) -> Callable[[Method], Method]:
    """Answer a POST with a key that this token has used within 24 hours as it was answered then.

    Another body under the key raises KeyReused (422). While the first is under way, or when its process died before it
    could answer, or nobody foresaw how it ended, StillRunning (409): whether it did anything is for the list of
    operations to say. Refusals are not kept.
    """

    def decorate(method: Method) -> Method:
        @wraps(method)
        def once(view: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
            key = request.headers.get(HEADER, "")
            if not key:
                if required:
                    raise ValidationError({HEADER: ["required here: a text of your own that names this one request"]})
                return method(view, request, *args, **kwargs)
            if not _KEY.fullmatch(key):
                raise ValidationError({HEADER: ["1 to 128 printable ASCII characters without blanks"]})
            return _once(method, view, request, key, *args, **kwargs)

        return once

    return decorate


def _once(method: Method, view: Any, request: Request, key: str, *args: Any, **kwargs: Any) -> Response:
    token = token_of(request)
    canonical = json.dumps(request.data, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(f"{request.method} {request.path}\n{canonical}".encode()).hexdigest()
    Repeat.objects.filter(token=token, key=key, created_at__lt=clock.now() - KEPT).delete()
    try:
        with transaction.atomic():
            row = Repeat.objects.create(token=token, key=key, digest=digest)
    except IntegrityError:
        return _before(Repeat.objects.filter(token=token, key=key).first(), digest)
    try:
        response = method(view, request, *args, **kwargs)
    except (LastroError, APIException):
        # What was refused did nothing: the next one may say it better under the same key.
        row.delete()
        raise
    # As it is rendered, so that the repeat is the same to the letter.
    row.status, row.body = response.status_code, json.loads(JSONRenderer().render(response.data))
    row.headers = {name: response[name] for name in _HEADERS_KEPT if response.has_header(name)}
    row.tenant = _tenant(response.data or {})
    row.save(update_fields=["status", "body", "headers", "tenant"])
    return response


def _tenant(told: Mapping[str, Any]) -> str:
    """Whom the answer is about: the operation says it, which older addresses wrap."""
    within = told.get("operation")
    return str((within if isinstance(within, Mapping) else told).get("tenant") or "")


def _before(row: Repeat | None, digest: str) -> Response:
    if row is None:
        raise StillRunning("the first request with this key has just been refused", hint="ask again")
    if row.digest != digest:
        raise KeyReused("this key was used for another request", hint="take a new key for each request")
    if row.status is None:
        raise StillRunning(
            "the first request with this key has not been answered yet",
            hint="look at /api/v1/operations; should its server have died, take a new key",
        )
    response = Response(row.body, status=row.status)
    for name, value in row.headers.items():
        response[name] = value
    response["Idempotent-Replayed"] = "true"
    return response
