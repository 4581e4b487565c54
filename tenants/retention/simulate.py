"""Run a policy through days to come: backups by a cadence, a daily look at the rules, and what became of each backup."""

import datetime
from collections.abc import Iterable
from dataclasses import dataclass

from tenants.retention.calendar import Cadence, Calendar
from tenants.retention.decide import Forecast, Point, Rules, Verdict, decide

RUN_AFTER_MIDNIGHT = datetime.timedelta(hours=4)
"""When the rules are looked at each day."""
SIMULATED = "simulated-"


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one backup: the last verdict that kept it, and when it went."""

    verdict: Verdict
    gone_at: datetime.datetime | None
    """None: it was still there on the last day."""

    @property
    def simulated(self) -> bool:
        return self.verdict.point.id.startswith(SIMULATED)


def simulate(
    points: Iterable[Point],
    rules: Rules,
    cadence: Cadence,
    calendar: Calendar,
    *,
    now: datetime.datetime,
    days: int,
    sources: tuple[str, ...] = (),
) -> list[Fate]:
    """The fate of every backup, those there are and those to come, oldest first.

    The rules are looked at once now and then daily. `sources` are those that the backups to come will hold.
    """
    present = list(points)
    last: dict[str, Verdict] = {}
    fates: list[Fate] = []
    number = max((point.number for point in present), default=0)
    today = calendar.day(now)
    moments = [now] + [calendar.at(today + n, RUN_AFTER_MIDNIGHT) for n in range(1, days + 1)]
    begun = now
    for moment in moments:
        for day in range(calendar.day(begun), calendar.day(moment) + 1):
            for at, full in cadence.of_day(calendar, day):
                if begun < at <= moment:
                    number += 1
                    present.append(Point(f"{SIMULATED}{number}", number, at, full, sources, "schedule"))
        begun = moment
        kept = []
        for verdict in decide(present, rules, Forecast(cadence, calendar, moment)):
            if verdict.kept:
                last[verdict.point.id] = verdict
                kept.append(verdict.point)
            else:
                fates.append(Fate(last.pop(verdict.point.id, verdict), moment))
        present = kept
    fates += [Fate(last[point.id], None) for point in present]
    return sorted(fates, key=lambda fate: (fate.verdict.point.at, fate.verdict.point.number))
