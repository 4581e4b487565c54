"""Rules for what is said of a store beside its settings."""

import re
from collections.abc import Mapping

from engine.errors import UsageError

MEDIUM_CHARS_MAX = 40
BYTES_PER_SECOND_MIN = 1_000
BYTES_PER_SECOND_MAX = 1 << 50

_RATE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,3})?)\s*(k|M|G|Ki|Mi|Gi)?B?(?:/s)?\Z")
_UNITS = {None: 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_MEDIUM = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _./-]*\Z")
_SWITCH = {"yes": True, "no": False}


def bandwidth_checked(text: str) -> int:
    """Bytes per second of `20M`, `500k`, `1.5Mi`; 0 for no limit. Raises UsageError."""
    found = _RATE.match(text.strip())
    rate = int(float(found[1]) * _UNITS[found[2]]) if found else -1
    if rate != 0 and not BYTES_PER_SECOND_MIN <= rate <= BYTES_PER_SECOND_MAX:
        raise UsageError(
            f"{text[:40]!r} is no bandwidth", hint="bytes per second such as 500k, 20M or 1Gi; 0 for no limit"
        )
    return rate


def medium_checked(text: str) -> str:
    """What a store is kept on, in a few plain words; empty for its kind. Raises UsageError."""
    text = text.strip()
    if text and (len(text) > MEDIUM_CHARS_MAX or not _MEDIUM.match(text)):
        raise UsageError(
            f"{text[:60]!r} is no medium",
            hint=f"up to {MEDIUM_CHARS_MAX} letters and digits: disk, tape, object storage",
        )
    return text


def about_checked(about: Mapping[str, str | None]) -> dict[str, object]:
    """The fields of a StoreConfig that were named, as its columns take them. Raises UsageError.

    `offsite`, `keeps_keys`: yes or no; `paid`: yes, no or auto (by its kind); `medium`; `bandwidth`.
    """
    columns: dict[str, object] = {}
    for name, value in about.items():
        if value is None:
            continue
        if name == "medium":
            columns["medium"] = medium_checked(value)
        elif name == "bandwidth":
            columns["bytes_per_second"] = bandwidth_checked(value)
        elif name == "paid" and value == "auto":
            columns["paid"] = None
        elif value in _SWITCH:
            columns[name] = _SWITCH[value]
        else:
            raise UsageError(f"{name}: {value[:40]!r} is not yes or no")
    return columns
