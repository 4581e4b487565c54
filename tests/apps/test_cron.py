"""Cron expressions: what they mean, on days when clocks change too, and what is said about bad ones."""

import datetime
import random
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter

from engine.errors import UsageError
from operations.scheduling.cron import cron_read, cron_words, interval_min, time_next, times_from
from operations.scheduling.days import days_read, days_rule
from operations.scheduling.planning import HORIZON, Rule, jitter, plan

UTC = datetime.UTC


def _times(text: str, zone: str, day: str, count: int) -> list[str]:
    begin = datetime.datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    times = times_from(cron_read(text), ZoneInfo(zone), begin.astimezone(UTC))
    return [f"{at:%d %H:%M}" for _, at in zip(range(count), times, strict=False)]


@pytest.mark.parametrize(
    ("text", "zone", "day", "expected"),
    [
        # Lisbon, 2026-03-29: 01:00 UTC+0 becomes 02:00 UTC+1.
        ("30 1 * * *", "Europe/Lisbon", "2026-03-28", ["28 01:30", "29 01:00", "30 00:30"]),
        ("0 1 * * *", "Europe/Lisbon", "2026-03-28", ["28 01:00", "29 01:00", "30 00:00"]),
        ("0,15,30,45 1 * * *", "Europe/Lisbon", "2026-03-29", ["29 01:00", "30 00:00"]),
        ("0 2 * * *", "Europe/Lisbon", "2026-03-29", ["29 01:00", "30 01:00"]),
        ("30 1,2 * * *", "Europe/Lisbon", "2026-03-29", ["29 01:00", "29 01:30", "30 00:30"]),
        ("*/30 * * * *", "Europe/Lisbon", "2026-03-29", ["29 00:00", "29 00:30", "29 01:00", "29 01:30"]),
        # 2026-10-25: 02:00 UTC+1 becomes 01:00 UTC+0.
        ("30 1 * * *", "Europe/Lisbon", "2026-10-25", ["25 00:30", "26 01:30"]),
        ("0 2 * * *", "Europe/Lisbon", "2026-10-25", ["25 02:00", "26 02:00"]),
        ("*/30 * * * *", "Europe/Lisbon", "2026-10-25", ["24 23:00", "24 23:30", "25 00:00", "25 00:30", "25 01:00"]),
        # New York, 2026-03-08: 02:00 is skipped; 2026-11-01: 01:00 comes twice.
        ("30 2 * * *", "America/New_York", "2026-03-08", ["08 07:00", "09 06:30"]),
        ("30 1 * * *", "America/New_York", "2026-11-01", ["01 05:30", "02 06:30"]),
        # Lord Howe moves by half an hour: 2026-10-04 02:00 becomes 02:30.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-04", ["03 15:30", "04 15:15"]),
        # Samoa left out the whole of 2011-12-30.
        ("0 12 30 12 *", "Pacific/Apia", "2011-12-29", ["30 10:00", "29 22:00"]),
        # Midnight itself is skipped in Beirut: 2026-03-29.
        ("0 0 * * *", "Asia/Beirut", "2026-03-28", ["27 22:00", "28 22:00", "29 21:00"]),
    ],
)
def test_times_on_days_when_clocks_change(text: str, zone: str, day: str, expected: list[str]) -> None:
    """Goal: a skipped time runs right after the gap, a doubled one once, every hour means a distance; a table of cases."""
    assert _times(text, zone, day, len(expected)) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has 0 fields, not five"),
        ("0 2 * *", "has 4 fields, not five"),
        ("0 0 2 * * *", "has 6 fields, not five"),
        ("61 * * * *", r"field 1 \(minute\) cannot be '61': it takes 0 to 59"),
        ("0 25 * * *", r"field 2 \(hour\) cannot be '25'"),
        ("0 0 0 * *", r"field 3 \(day of the month\)"),
        ("0 0 1 foo *", "it takes 1 to 12, or jan, feb"),
        ("0 0 * * 8", "it takes 0 to 7, or sun, mon"),
        ("*/0 * * * *", "a step is a number from 1 to 59"),
        ("30-10 * * * *", "a range goes upwards; write 30-59,0-10"),
        ("1,,2 * * * *", "cannot be ''"),
        ("²  * * * *", "cannot be '²'"),
        ("0 0 31 2 *", "never comes"),
        ("0 0 30,31 2 *", "never comes"),
        ("0 0 31 4,6,9,11 *", "never comes"),
        ("0 " * 100, "120 characters"),
    ],
)
def test_a_bad_expression_says_what_is_wrong(text: str, said: str) -> None:
    """Goal: nobody has to guess; read bad expressions, look at message and example."""
    with pytest.raises(UsageError, match=said) as refused:
        cron_read(text)
    assert '"0 ' in refused.value.hint


def test_rare_times_come_all_the_same() -> None:
    """Goal: what comes once in many years is not refused; leap days, one of them on a Monday."""
    after = datetime.datetime(2026, 1, 1, tzinfo=UTC)
    assert f"{time_next(cron_read('0 0 29 2 *'), ZoneInfo('UTC'), after):%Y-%m-%d}" == "2028-02-29"
    # A field that begins with a star does not count as restricted: both have to fit, as in cron itself.
    both = time_next(cron_read("0 0 */28 2 mon"), ZoneInfo("UTC"), after)
    assert (f"{both:%a}", both.month, both.day in (1, 29)) == ("Mon", 2, True)


def test_the_same_times_as_another_reader(rng: random.Random) -> None:
    """Goal: an expression means here what it means elsewhere; random ones in UTC beside croniter's answer."""

    def part(least: int, most: int) -> str:
        first = rng.randint(least, most - 1)  # croniter reads a range of one value as no restriction.
        last, step = rng.randint(first + 1, most), rng.randint(2, most)
        return rng.choice(["*", f"{first}", f"{first}-{last}", f"*/{step}", f"{first},{most}"])

    for _ in range(150):
        text = " ".join(part(*span) for span in ((0, 59), (0, 23), (1, 28), (1, 12), (0, 6)))
        begin = datetime.datetime(2026, 1, 1, tzinfo=UTC) + datetime.timedelta(minutes=rng.randint(0, 2_000_000))
        other = croniter(text, begin, implement_cron_bug=True)  # Stars as in Vixie's cron.
        ours = times_from(cron_read(text), ZoneInfo("UTC"), begin + datetime.timedelta(seconds=1))
        assert [next(ours) for _ in range(5)] == [other.get_next(datetime.datetime) for _ in range(5)], (text, begin)


def test_words_and_distances() -> None:
    """Goal: an operator reads what was meant; words of some expressions, and the least time between two runs."""
    assert cron_words("0 2 * * 0") == "At 02:00, only on Sunday"
    zone, begin = ZoneInfo("Europe/Lisbon"), datetime.datetime(2026, 10, 24, tzinfo=UTC)
    assert interval_min(cron_read("*/5 * * * *"), zone, begin) == datetime.timedelta(minutes=5)
    assert interval_min(cron_read("0 0 1,2 * *"), zone, begin) == datetime.timedelta(days=1)


def test_days_of_full_backups() -> None:
    """Goal: "full on Sundays, incremental otherwise"; ask rules about a fortnight."""
    days = [datetime.date(2026, 11, 22) + datetime.timedelta(days=number) for number in range(14)]
    assert [day.day for day in days if days_rule(days_read("Sun"))(day)] == [22, 29]
    assert [day.day for day in days if days_rule(days_read("1, sat"))(day)] == [28, 1, 5]
    assert all(map(days_rule("always"), days)) and not any(map(days_rule(days_read("never")), days))
    for bad in ("sunday", "32", "0", "sun;mon", "-1"):
        with pytest.raises(UsageError, match="is no day"):
            days_read(bad)


def test_what_an_outage_leaves() -> None:
    """Goal: one run makes up for all, full if any was to be; plan after 17 days of silence."""
    first = datetime.datetime(2026, 11, 2, tzinfo=UTC)
    now = first + datetime.timedelta(days=17, hours=12)
    planned = plan(Rule("0 0 * * *", "UTC", "sun"), next_at=first, now=now)
    missed, made_up = planned.slots
    assert (missed.planned_for, missed.occurrences, missed.catch_up) == (first, 17, True)
    assert (made_up.planned_for, made_up.occurrences, made_up.full) == (now.replace(hour=0), 1, True)
    assert planned.next_at == now.replace(hour=0) + datetime.timedelta(days=1)
    again = plan(Rule("0 0 * * *", "UTC"), next_at=planned.next_at, now=planned.next_at - HORIZON)
    assert [slot.planned_for for slot in again.slots] == [planned.next_at]


def test_jitter_is_the_tenants_own() -> None:
    """Goal: ten thousand tenants do not arrive at once, and each at the same moment every day; look at their spread."""
    waits = [jitter("sch_1", f"t{number}", 900).total_seconds() for number in range(10_000)]
    assert waits == [jitter("sch_1", f"t{number}", 900).total_seconds() for number in range(10_000)]
    assert min(waits) >= 0 and max(waits) < 900
    per_minute = [sum(60 * minute <= wait < 60 * minute + 60 for wait in waits) for minute in range(15)]
    assert max(per_minute) < 1.25 * 10_000 / 15
    assert jitter("sch_1", "t1", 0) == datetime.timedelta()
