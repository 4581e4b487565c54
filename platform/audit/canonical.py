"""The bytes of an entry that are hashed: its fields as RFC 8785 canonical JSON."""

import datetime
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from audit.models import Entry

SAFE_INTEGER_MAX = (1 << 53) - 1
TEXT_CHARS_MAX = 4_000
ITEMS_MAX = 200
DEPTH_MAX = 8

# RFC 8785 without numbers that have a fraction is what this encoder writes when the names are ASCII: names are sorted
# by code points, which UTF-16 orders alike there, and strings have the same short escapes and no others.
_encode: Callable[[Any], str] = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
).encode


def entry_fields(entry: Entry) -> dict[str, Any]:
    """The fields of an entry as they are exported and hashed; `origin` only where there is one."""
    fields = {
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
    if entry.origin:
        fields["origin"] = entry.origin
    return fields


def entry_bytes(entry: Entry) -> bytes:
    """What the leaf hash is taken of."""
    return canonical(entry_fields(entry))


def canonical(fields: Mapping[str, Any]) -> bytes:
    """RFC 8785 form of a JSON object; fast where its values are the usual ones. Raises ValueError for what has none."""
    if _is_plain(fields, 0):
        return _encode(fields).encode()
    import rfc8785

    return rfc8785.dumps(cast(Any, dict(fields)))


def _is_plain(value: Any, depth: int) -> bool:
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is int:
        return -SAFE_INTEGER_MAX <= value <= SAFE_INTEGER_MAX
    if depth > DEPTH_MAX:
        return False
    if kind is dict:
        for name, each in value.items():
            if type(name) is not str or not name.isascii():
                return False
            if type(each) is not str and not _is_plain(each, depth + 1):
                return False
        return True
    if kind is list:
        return all(_is_plain(each, depth + 1) for each in value)
    return False


def timestamp_text(at: datetime.datetime) -> str:
    """RFC 3339 in UTC with milliseconds."""
    if at.tzinfo is not datetime.UTC:
        at = at.astimezone(datetime.UTC)
    return f"{at.isoformat(timespec='milliseconds')[:-6]}Z"


# ---------------------------------------------------------------- what may come in


def bounded(value: Any, depth: int = 0) -> Any:
    """JSON that any database keeps as it is and that has a canonical form: long texts and lists are cut, and said so.

    No NUL, no half surrogates (names of files), no number that a reader in another language would round.
    """
    if isinstance(value, str):
        return text_bounded(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -SAFE_INTEGER_MAX <= value <= SAFE_INTEGER_MAX else str(value)
    if isinstance(value, float):
        return (
            int(value)
            if math.isfinite(value) and value == int(value) and abs(value) < SAFE_INTEGER_MAX
            else repr(value)
        )
    if depth >= DEPTH_MAX:
        return "…"
    if isinstance(value, Mapping):
        kept = {
            text_bounded(str(name))[:100]: bounded(each, depth + 1) for name, each in list(value.items())[:ITEMS_MAX]
        }
        return kept if len(value) <= ITEMS_MAX else {**kept, "…": f"{len(value) - ITEMS_MAX} more"}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else list(value)
        kept_items = [bounded(each, depth + 1) for each in items[:ITEMS_MAX]]
        return kept_items if len(items) <= ITEMS_MAX else [*kept_items, f"… {len(items) - ITEMS_MAX} more"]
    if isinstance(value, datetime.datetime):
        return timestamp_text(value)
    return text_bounded(str(value))


def text_bounded(text: str, most: int = TEXT_CHARS_MAX) -> str:
    """A text without NUL and half surrogates, cut to a length."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    if "\0" in text:
        text = text.replace("\0", "\\x00")
    return text if len(text) <= most else f"{text[: most - 1]}…"
