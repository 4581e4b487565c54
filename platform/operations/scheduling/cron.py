"""Cron expressions of five fields in a time zone: read, judged, and turned into instants. Pure: no Django, no clock.

Rules, where implementations differ:
- With both a day of the month and a weekday restricted, either suffices; a field that begins with `*` does not count as
  restricted (as in Vixie's cron).
- A local time that a change of clocks skips is run right after the gap; several in one gap are one.
- A local time that comes twice is run the first time only. But an expression whose hours are all 24 means a distance, not a
  time of day: it goes on through both hours.
"""

import calendar
import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from engine.errors import UsageError

EXAMPLE = "0 2 * * 0"
EXAMPLE_SAID = f'five fields (minute hour day month weekday), for example "{EXAMPLE}": Sundays at 02:00'
CHARS_MAX = 120
YEARS_MAX = 40
"""Whatever comes at all comes within this: 29 February on a given weekday takes 28 years, or 40 over a century."""
INTERVAL_MIN = datetime.timedelta(minutes=5)

_MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_abbr) if name}
_DAYS = {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
_NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    least: int
    most: int
    names: dict[str, int]


_FIELDS = (
    _Field("minute", 0, 59, {}),
    _Field("hour", 0, 23, {}),
    _Field("day of the month", 1, 31, {}),
    _Field("month", 1, 12, _MONTHS),
    _Field("weekday", 0, 7, _DAYS),
)


@dataclass(frozen=True, slots=True)
class Cron:
    """An expression, read; `text` is as it is kept."""

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool
    """Both kinds of days are restricted: one that fits suffices."""

    @property
    def every_hour(self) -> bool:
        """It means a distance between runs, not times of the day."""
        return len(self.hours) == 24

    def on(self, date: datetime.date) -> bool:
        """Whether it has times on this date."""
        if date.month not in self.months:
            return False
        by_day, by_weekday = date.day in self.days, date.isoweekday() % 7 in self.weekdays
        return by_day or by_weekday if self.either_day else by_day and by_weekday


def cron_read(text: str) -> Cron:
    """Read an expression. Raises UsageError that names the field and what is wrong with it, and gives an example."""
    text = " ".join(text.split())
    if len(text) > CHARS_MAX:
        raise UsageError(f"a cron expression has {CHARS_MAX} characters at the most", hint=EXAMPLE_SAID)
    text = _NICKNAMES.get(text.lower(), text)
    parts = text.split(" ") if text else []
    if len(parts) != len(_FIELDS):
        raise UsageError(f"{text!r} is no cron expression: it has {len(parts)} fields, not five", hint=EXAMPLE_SAID)
    sets = [_field(number, each, part) for number, (each, part) in enumerate(zip(_FIELDS, parts, strict=True), 1)]
    minutes, hours, days, months, weekdays = sets
    cron = Cron(
        text,
        tuple(sorted(minutes)),
        tuple(sorted(hours)),
        frozenset(days),
        frozenset(months),
        frozenset(day % 7 for day in weekdays),
        either_day=not parts[2].startswith("*") and not parts[4].startswith("*"),
    )
    _comes_checked(cron)
    return cron


def _field(number: int, field: _Field, text: str) -> set[int]:
    values: set[int] = set()
    for part in text.split(","):
        values |= _part(number, field, part)
    return values


def _part(number: int, field: _Field, text: str) -> set[int]:
    span, slash, step_text = text.partition("/")
    step = 1
    if slash:
        if not (step_text.isascii() and step_text.isdigit() and 1 <= int(step_text[:6]) <= field.most):
            raise _wrong(number, field, text, f"a step is a number from 1 to {field.most}")
        step = int(step_text)
    if span == "*":
        # A weekday of 7 is Sunday again: `*/2` would otherwise count it twice.
        return set(range(field.least, (6 if field.name == "weekday" else field.most) + 1, step))
    first_text, dash, last_text = span.partition("-")
    first = _value(number, field, text, first_text)
    if not dash:
        return set(range(first, field.most + 1, step)) if slash else {first}
    last = _value(number, field, text, last_text)
    if last < first:
        raise _wrong(number, field, text, f"a range goes upwards; write {first}-{field.most},{field.least}-{last}")
    return set(range(first, last + 1, step))


def _value(number: int, field: _Field, part: str, text: str) -> int:
    if text.lower() in field.names:
        return field.names[text.lower()]
    if text.isascii() and re.fullmatch(r"\d{1,4}", text) and field.least <= int(text) <= field.most:
        return int(text)
    also = f", or {', '.join(list(field.names)[:2])} …" if field.names else ""
    raise _wrong(number, field, part, f"it takes {field.least} to {field.most}{also}")


def _wrong(number: int, field: _Field, part: str, why: str) -> UsageError:
    return UsageError(f"cron field {number} ({field.name}) cannot be {part!r}: {why}", hint=EXAMPLE_SAID)


def _comes_checked(cron: Cron) -> None:
    if next(_dates(cron, datetime.date(2000, 1, 1)), None) is None:
        raise UsageError(
            f"{cron.text!r} never comes: no month that it names has such a day",
            hint='the last day of every month cannot be written; for example "0 0 28 * *", on the 28th of every month',
        )


def _dates(cron: Cron, begin: datetime.date) -> Iterator[datetime.date]:
    """Dates that it has times on, for at most YEARS_MAX without one."""
    date, patience = begin, begin.year + YEARS_MAX
    while date.year <= min(patience, datetime.MAXYEAR - 2):
        if date.month not in cron.months:
            date = (date.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)
            continue
        if cron.on(date):
            patience = date.year + YEARS_MAX
            yield date
        date += datetime.timedelta(days=1)


def times_from(cron: Cron, zone: ZoneInfo, begin: datetime.datetime) -> Iterator[datetime.datetime]:
    """Its instants at or after `begin`, in UTC, each once, in order; endless for all that matters."""
    # A day before: a time that was skipped is moved on, over midnight too where a whole day was left out.
    last = begin - datetime.timedelta(microseconds=1)
    for date in _dates(cron, begin.astimezone(zone).date() - datetime.timedelta(days=1)):
        for instant in sorted(set(_instants(cron, zone, date))):
            if instant > last:
                last = instant
                yield instant


def time_next(cron: Cron, zone: ZoneInfo, after: datetime.datetime) -> datetime.datetime:
    """The first instant later than `after`."""
    return next(times_from(cron, zone, after + datetime.timedelta(microseconds=1)))


def _instants(cron: Cron, zone: ZoneInfo, date: datetime.date) -> Iterator[datetime.datetime]:
    for hour in cron.hours:
        for minute in cron.minutes:
            local = datetime.datetime(date.year, date.month, date.day, hour, minute, tzinfo=zone)
            yield from _both(local) if cron.every_hour else (_once(local),)


def _exists(local: datetime.datetime) -> bool:
    back = local.astimezone(datetime.UTC).astimezone(local.tzinfo)
    return back.replace(tzinfo=None, fold=0) == local.replace(tzinfo=None, fold=0)


def _both(local: datetime.datetime) -> Iterator[datetime.datetime]:
    if _exists(local):
        yield local.astimezone(datetime.UTC)
        yield local.replace(fold=1).astimezone(datetime.UTC)


def _once(local: datetime.datetime) -> datetime.datetime:
    """The instant of a local time: the first of two, the end of the gap for one that is skipped."""
    if _exists(local):
        return local.astimezone(datetime.UTC)
    # PEP 495: read with fold=1 a skipped time lies before the change, with fold=0 after it.
    zone = local.tzinfo
    before, after = local.replace(fold=1).astimezone(datetime.UTC), local.astimezone(datetime.UTC)
    offset = before.astimezone(zone).utcoffset()
    while after - before > datetime.timedelta(seconds=1):
        middle = before + (after - before) // 2
        middle = middle.replace(microsecond=0)
        before, after = (middle, after) if middle.astimezone(zone).utcoffset() == offset else (before, middle)
    return after


def interval_min(cron: Cron, zone: ZoneInfo, begin: datetime.datetime) -> datetime.timedelta:
    """The least distance between two of its next 300 times."""
    times = times_from(cron, zone, begin)
    least, last = datetime.timedelta.max, next(times)
    for _, each in zip(range(300), times, strict=False):
        least, last = min(least, each - last), each
    return least


def cron_words(text: str) -> str:
    """The expression in words: `At 02:00, only on Sunday`; itself where it cannot be told."""
    from cron_descriptor import CasingTypeEnum, ExpressionDescriptor, Options
    from cron_descriptor.Exception import FormatError

    options = Options()
    options.use_24hour_time_format = True
    options.casing_type = CasingTypeEnum.Sentence
    options.throw_exception_on_parse_error = True
    try:
        return str(ExpressionDescriptor(text, options).get_full_description())
    except (FormatError, ValueError, KeyError, IndexError):
        return text
