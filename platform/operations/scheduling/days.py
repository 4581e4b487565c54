"""Rules that pick days: `never`, `always`, weekdays (`sun`, `mon,thu`), days of the month (`1`, `1,15`), or both mixed."""

import datetime
from collections.abc import Callable

from engine.errors import UsageError

_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_EXAMPLE = (
    'for example "sun" (full on Sundays, incremental otherwise), "1" (on the first of the month), "always" or "never"'
)


def days_read(text: str) -> str:
    """Check a rule and return it as it is kept; empty for never. Raises UsageError."""
    text = text.strip().lower()
    if text in ("", "never"):
        return ""
    if text == "always":
        return text
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        number = part.isascii() and part.isdigit() and 1 <= int(part[:4]) <= 31
        if part not in _WEEKDAYS and not number:
            raise UsageError(f"{part[:30]!r} is no day", hint=_EXAMPLE)
    return ",".join(dict.fromkeys(parts))


def days_rule(text: str) -> Callable[[datetime.date], bool]:
    """The rule as a question to a date; `text` as `days_read` gave it."""
    if text in ("", "always"):
        return lambda date: bool(text)
    parts = text.split(",")
    weekdays = {_WEEKDAYS.index(part) for part in parts if part in _WEEKDAYS}
    numbers = {int(part) for part in parts if part.isdigit()}
    return lambda date: date.weekday() in weekdays or date.day in numbers


def days_words(text: str) -> str:
    """The rule in words."""
    if not text:
        return "never full"
    return "always full" if text == "always" else f"full on {text.replace(',', ', ')}, incremental otherwise"
