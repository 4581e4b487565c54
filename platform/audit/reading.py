"""Reading the log from end to end: quickly, in bounded memory, and exactly as it is stored.

Pages by sequence number instead of one long cursor: entries never change, so a page is as good as a snapshot, and nothing
is held open meanwhile.
"""

import datetime
import json
from collections.abc import Iterator
from typing import Any

from django.db import connection

from audit.canonical import timestamp_text

PAGE_ROWS = 5_000
NO_TIME = "not a time of this log"
"""Stands for a stored time with anything but whole milliseconds: it was not written here."""
NO_JSON = "not JSON"

_COLUMNS = "id, sequence, {time}, type, level, message, user_id, tenant, {data}, {origin}, leaf_hash, root_hash"
_PAGE = "SELECT {columns} FROM audit_entry WHERE sequence >= %s AND sequence < %s ORDER BY sequence"
# As text: Django's converters of SQLite columns and psycopg's of JSON take longer than all the rest.
_RAW = {
    "sqlite": {"time": "timestamp || ''", "data": "data", "origin": "origin"},
    "postgresql": {"time": "timestamp", "data": "data::text", "origin": "origin::text"},
}

Stored = tuple[dict[str, Any], str, str]
"""The fields that are hashed, and the two hashes that stand beside them."""


def stored_entries(begin: int, end: int) -> Iterator[Stored]:
    """All entries from one sequence number up to another, in order; one that stands twice comes twice."""
    read_time = _time_of_text if connection.vendor == "sqlite" else _time_of_value
    statement = _PAGE.format(columns=_COLUMNS.format(**_RAW[connection.vendor]))
    for at in range(begin, end, PAGE_ROWS):
        with connection.cursor() as cursor:
            # The bounds, and no LIMIT, make a page cheap whatever the planner knows of the table.
            cursor.execute(statement, [at, min(at + PAGE_ROWS, end)])
            page = cursor.fetchall()
        for pk, sequence, time, type_, level, message, user, tenant, data, origin, leaf, root in page:
            fields = {
                "id": pk, "sequence": sequence, "timestamp": read_time(time), "type": type_, "level": level,
                "message": message, "user_id": user, "tenant": tenant, "data": _loaded(data),
            }  # fmt: skip
            if origin != "{}":
                fields["origin"] = _loaded(origin)
            yield fields, leaf, root


def _loaded(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError):
        return NO_JSON


def _time_of_text(stored: Any) -> str:
    """From the text that Django keeps in SQLite."""
    if isinstance(stored, str) and (len(stored) == 19 or (len(stored) == 26 and stored[23:] == "000")):
        return f"{stored[:10]}T{stored[11:19]}.{stored[20:23] or '000'}Z"
    return NO_TIME


def _time_of_value(stored: Any) -> str:
    if isinstance(stored, datetime.datetime) and not stored.microsecond % 1000:
        return timestamp_text(stored)
    return NO_TIME
