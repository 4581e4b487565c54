"""Pages of lists: by key and never by number, so that page 10,000 costs what page 1 costs and inserts shift nothing."""

import base64
import binascii
import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode

from django.db.models import Model, QuerySet
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from core.ids import first_id

Row = TypeVar("Row", bound=Model)

LIMIT, LIMIT_MAX = 50, 200
KEY_CHARS_MAX = 200
_FORWARD, _BACK = "n", "p"


@dataclass(frozen=True)
class Window:
    """Which page of a list was asked for: `limit` rows after `key`, or before it when `back`."""

    limit: int
    key: str = ""
    back: bool = False


def window_of(request: Request) -> Window:
    """Read `limit` and `cursor`. Raises ValidationError naming the parameter."""
    text = request.query_params.get("limit", str(LIMIT))
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= LIMIT_MAX:
        raise ValidationError({"limit": [f"a number from 1 to {LIMIT_MAX}"]})
    cursor = request.query_params.get("cursor", "")
    if not cursor:
        return Window(int(text))
    try:
        way, _, key = base64.b64decode(cursor + "=" * (-len(cursor) % 4), "-_", validate=True).decode().partition(":")
    except (ValueError, binascii.Error):
        way, key = "", ""
    if way not in (_FORWARD, _BACK) or not key or len(key) > KEY_CHARS_MAX or "\0" in key:
        raise ValidationError({"cursor": ["not one that this list gave; leave it out to begin anew"]})
    return Window(int(text), key, back=way == _BACK)


def page_answer(
    request: Request,
    rows: QuerySet[Row],
    show: Callable[[Row], Mapping[str, Any]],
    *,
    key: str = "id",
    newest_first: bool = True,
) -> Response:
    """Answer one page of the rows, in the order of their unique column `key`."""
    window = window_of(request)
    descending = newest_first != window.back
    if window.key:
        rows = rows.filter(**{f"{key}__{'lt' if descending else 'gt'}": window.key})
    found: Sequence[Row] = list(rows.order_by(f"-{key}" if descending else key)[: window.limit + 1])
    more = len(found) > window.limit
    found = found[: window.limit]
    if window.back:
        found = found[::-1]
    # Whoever came by a cursor came from somewhere: there is a page on that side, though it may be empty by now.
    has_next, has_prev = (more, bool(window.key)) if not window.back else (True, more)
    ends = [str(getattr(row, key)) for row in (found[0], found[-1])] if found else []
    following = _cursor(_FORWARD, ends[1]) if ends and has_next else None
    before = _cursor(_BACK, ends[0]) if ends and has_prev else None
    response = Response({"data": [show(row) for row in found], "page": {"next": following, "prev": before}})
    links = [
        f'<{_address(request, cursor)}>; rel="{name}"'
        for cursor, name in ((following, "next"), (before, "prev"))
        if cursor is not None
    ]
    if links:
        response["Link"] = ", ".join(links)
    return response


def between(request: Request, rows: QuerySet[Row], *, prefix: str) -> QuerySet[Row]:
    """Narrow to what was made in `from` … `to` (RFC 3339): ids sort by time. Raises ValidationError."""
    for name, lookup in (("from", "id__gte"), ("to", "id__lt")):
        if text := request.query_params.get(name, ""):
            rows = rows.filter(**{lookup: first_id(prefix, _moment(name, text))})
    return rows


def chosen(request: Request, name: str, choices: Sequence[str]) -> list[str]:
    """Read a parameter that may be given several times, each one of the choices. Raises ValidationError."""
    values = request.query_params.getlist(name)
    if unknown := [value for value in values if value not in choices]:
        raise ValidationError({name: [f"{unknown[0][:60]!r} is none of: {', '.join(choices)}"]})
    return values


def _moment(name: str, text: str) -> datetime.datetime:
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ValidationError({name: ["a time such as 2026-11-22T08:00:00Z"]}) from None
    if at.tzinfo is None:
        raise ValidationError({name: ["a time with its offset, such as 2026-11-22T08:00:00Z"]})
    if not 1970 <= at.year < 9999:
        raise ValidationError({name: ["a time from 1970 on"]})
    return at


def _cursor(way: str, key: str) -> str:
    return base64.urlsafe_b64encode(f"{way}:{key}".encode()).decode().rstrip("=")


def _address(request: Request, cursor: str) -> str:
    kept = [(name, value) for name, values in request.query_params.lists() for value in values if name != "cursor"]
    return f"{request.path}?{urlencode([*kept, ('cursor', cursor)])}"
