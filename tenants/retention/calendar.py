"""Calendar days, weeks, months and years in a time zone, and when the backups to come will be taken."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from zoneinfo import ZoneInfo

Zone = datetime.tzinfo
DAY = datetime.timedelta(days=1)
SUNDAY = 6


class Calendar:
    """Days of one time zone as ordinals (`date.toordinal`); the hour at which clocks change belongs to its day."""

    def __init__(self, zone: Zone) -> None:
        self._zone = zone
        self._utc = zone is datetime.UTC
        self._midnights: dict[int, datetime.datetime] = {}

    def day(self, at: datetime.datetime) -> int:
        """The day on which this aware time falls."""
        if self._utc and at.tzinfo is datetime.UTC:
            return at.toordinal()
        return at.astimezone(self._zone).toordinal()

    def at(self, day: int, since_midnight: datetime.timedelta) -> datetime.datetime:
        """The wall-clock time of a day, in UTC."""
        wall = datetime.datetime.combine(datetime.date.fromordinal(day), datetime.time()) + since_midnight
        return wall.replace(tzinfo=self._zone).astimezone(datetime.UTC)

    def begins(self, day: int) -> datetime.datetime:
        """When a day begins, in UTC; the last day of all for any behind it."""
        day = min(day, datetime.date.max.toordinal() - 2)
        found = self._midnights.get(day)
        if found is None:
            found = self._midnights[day] = self.at(day, datetime.timedelta(0))
        return found


def zone_of(name: str) -> Zone:
    """The time zone of this name. Raises ValueError when there is none."""
    if name.upper() == "UTC":
        return datetime.UTC
    try:
        return ZoneInfo(name)
    except (KeyError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError; a folder's name is an OSError.
        raise ValueError(f"there is no time zone {name[:60]!r}") from error


@dataclass(frozen=True, slots=True)
class Period:
    """A stretch of the calendar: `of` numbers it by any day in it, `first` is the first day of a number."""

    noun: str
    of: Callable[[int], int]
    first: Callable[[int], int]


def _month(day: int) -> int:
    date = datetime.date.fromordinal(day)
    return date.year * 12 + date.month - 1


def _month_first(number: int) -> int:
    return datetime.date(min(number // 12, datetime.MAXYEAR), number % 12 + 1, 1).toordinal()


def _year_first(number: int) -> int:
    return datetime.date(min(number, datetime.MAXYEAR), 1, 1).toordinal()


DAYS = Period("day", lambda day: day, lambda number: number)
# Day 1 of the calendar was a Monday, so ISO weeks are stretches of seven ordinals.
WEEKS = Period("week", lambda day: (day - 1) // 7, lambda number: number * 7 + 1)
MONTHS = Period("month", _month, _month_first)
YEARS = Period("year", lambda day: datetime.date.fromordinal(day).year, _year_first)


@dataclass(frozen=True, slots=True)
class Cadence:
    """When backups are taken: every so often from a time of the day on; the first one of one weekday is full."""

    every: datetime.timedelta = DAY
    begins: datetime.timedelta = datetime.timedelta(0)
    full_weekday: int = SUNDAY
    """0 is Monday; -1: every backup is full."""

    def full_day(self, day: int) -> bool:
        """Whether the day's first backup is full."""
        return self.full_weekday < 0 or (day - 1) % 7 == self.full_weekday

    def of_day(self, calendar: Calendar, day: int) -> list[tuple[datetime.datetime, bool]]:
        """Times of the day's backups, and whether each is full."""
        found, since = [], self.begins
        while since < DAY:
            found.append(
                (calendar.at(day, since), self.full_day(day) and (since == self.begins or self.full_weekday < 0))
            )
            since += self.every
        return found

    def next(self, calendar: Calendar, after: datetime.datetime, *, full: bool) -> datetime.datetime:
        """The first backup behind this time, or the first full one."""
        day = calendar.day(after)
        while True:
            for at, is_full in self.of_day(calendar, day):
                if at > after and (is_full or not full):
                    return at
            day += 1
            if full and self.full_weekday >= 0:
                day += (self.full_weekday - (day - 1)) % 7
