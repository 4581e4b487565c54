"""Every request has an id, in its answer, in the log lines it causes and in the audit entries it leaves."""

import logging
import re
import secrets
import time
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from core.origin import acting

log = logging.getLogger("requests")

HEADER = "X-Request-ID"
_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{7,63}")
"""What is taken from a caller: nothing that a log, a shell or a page would read as anything else."""
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_REFUSED = (401, 403)
_QUIET = ("/health/", "/metrics", "/static/")

Answer = Callable[[HttpRequest], HttpResponse]


class RequestIds:
    """Middleware, the outermost: names the request, says where it comes from, records refused changes."""

    def __init__(self, get_response: Answer) -> None:
        self._answer = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        begun = time.monotonic()
        given = request.headers.get(HEADER, "")
        name = given if _SANE.fullmatch(given) else secrets.token_hex(16)
        with acting(address=str(request.META.get("REMOTE_ADDR", "")), request=name):
            response = self._answer(request)
            if request.method not in _SAFE_METHODS and response.status_code in _REFUSED:
                _record(request, response)
            if not request.path.startswith(_QUIET):
                told = {"method": request.method, "route": _route(request), "status": response.status_code}
                log.info(
                    "%(method)s %(route)s %(status)s",
                    told,
                    extra={"duration_ms": round((time.monotonic() - begun) * 1000)},
                )
        response[HEADER] = name
        return response


def _route(request: HttpRequest) -> str:
    """The pattern that matched, never the path: a path may hold what somebody typed into the wrong field."""
    match = request.resolver_match
    return f"/{match.route}" if match is not None else "(no such page)"


def _record(request: HttpRequest, response: HttpResponse) -> None:
    from audit.refusals import request_refused

    user = getattr(request, "user", None)
    actor = user.get_username() if user is not None and user.is_authenticated else ""
    request_refused(str(request.method), _route(request), response.status_code, actor=actor)
