"""The bytes of an entry that are hashed: its fields as RFC 8785 canonical JSON."""

import datetime
from typing import Any

import rfc8785

from audit.models import Entry


def entry_fields(entry: Entry) -> dict[str, Any]:
    """The fields of an entry as they are exported and hashed."""
    return {
        "id": entry.pk,
        "sequence": entry.sequence,
        "timestamp": timestamp_text(entry.timestamp),
        "type": entry.type,
        "level": entry.level,
        "message": entry.message,
        "user_id": entry.user_id,
        "tenant": entry.tenant,
        "data": entry.data,
    }


def entry_bytes(entry: Entry) -> bytes:
    return rfc8785.dumps(entry_fields(entry))


def timestamp_text(at: datetime.datetime) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return f"{at.astimezone(datetime.UTC):%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"
