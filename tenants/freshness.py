"""Is everything fresh? Asked by monitors from outside: of the catalogue alone, needing no worker, scheduler or store."""

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Q

from core import clock
from operations.alerting.rule_settings import levels_all
from operations.alerting.watching import SILENCE_MAX, watch_last, watch_silence
from operations.models import LIVE_STATES, Alert, AlertState, Channel, Severity
from tenants.models import Criticality, Source, StoreConfig, StoreLook, Tenant
from tenants.selectors import source_guarded

DEAD_AFTER = SILENCE_MAX * 3
Told = tuple[str, str, str, str, dict[str, Any]]
"""Name, status, message, hint, figures of a sign."""


@dataclass(frozen=True)
class AgeLimits:
    """How old the newest good backup of a source may be, as the rule `backup_age` has it for all tenants."""

    hours: float
    critical_hours: float

    def late(self, now: datetime.datetime) -> Q:
        """Sources that are older, or never had one."""
        before = now - datetime.timedelta(hours=self.hours)
        critical_before = now - datetime.timedelta(hours=self.critical_hours)
        critical = Q(criticality=Criticality.CRITICAL)
        return (
            Q(last_good_at=None) | Q(~critical, last_good_at__lt=before) | Q(critical, last_good_at__lt=critical_before)
        )


def age_limits() -> AgeLimits:
    """What is in force."""
    levels = levels_all()["backup_age"]
    return AgeLimits(levels.limit("hours"), levels.limit("critical_hours"))


@dataclass(frozen=True)
class Freshness:
    """What a monitor asks: is anybody at work, and is everything recent?"""

    watch_at: datetime.datetime | None
    watch_silent: bool
    sources: int
    late: int
    oldest_hours: float | None

    @property
    def is_fresh(self) -> bool:
        return not self.watch_silent and not self.late


def freshness_now() -> Freshness:
    """Three queries along indexes. Without any source nothing can be late, and nobody has to be at work."""
    now = clock.now()
    sources = source_guarded()
    count = sources.count()
    oldest = sources.exclude(last_good_at=None).order_by("last_good_at").values_list("last_good_at", flat=True).first()
    silence = watch_silence(now=now)
    return Freshness(
        watch_at=watch_last(),
        watch_silent=bool(count) and (silence is None or silence > SILENCE_MAX),
        sources=count,
        late=sources.filter(age_limits().late(now)).count(),
        oldest_hours=round((now - oldest).total_seconds() / 3600, 1) if oldest else None,
    )


def watch_signs() -> Iterator[Told]:
    """Does anybody look for alerts, and would anybody hear of them?"""
    silence, last = watch_silence(now=clock.now()), watch_last()
    figures = {"silence_seconds": round(silence.total_seconds()) if silence is not None else None, **alert_counts()}
    hint = "it looks every minute while a worker command runs: lastro worker; by hand: alert run"
    if silence is None or last is None:
        if Source.objects.exists():
            yield "watch", "warning", "nobody has looked for alerts yet", hint, figures
    elif silence > SILENCE_MAX:
        status = "critical" if silence > DEAD_AFTER else "warning"
        yield "watch", status, f"nobody looks for alerts since {last:%Y-%m-%d %H:%M} UTC", hint, figures
    else:
        told = f"last look {last:%Y-%m-%d %H:%M:%S} UTC; {figures['critical']} critical and {figures['warning']} other alerts are open"
        yield "watch", "ok", told, "", figures
    yield from _channels()


def _channels() -> Iterator[Told]:
    rows = list(Channel.objects.filter(enabled=True))
    failing = [row.name for row in rows if row.failing_since]
    if failing:
        names = ", ".join(failing[:5])
        yield "channels", "warning", f"nothing gets through: {names}", f"channel test {failing[0]} says why", {}
    elif rows:
        yield "channels", "ok", f"{len(rows)} of them", "", {}
    elif Tenant.objects.exists():
        hint = "channel add NAME --kind email --set to=…; docs/alerts.md has the others"
        yield "channels", "warning", "there is none: nobody is told when a backup fails", hint, {}


def alert_counts() -> dict[str, int]:
    """Open alerts that nobody has acknowledged, critical ones and others."""
    found = Alert.objects.filter(state__in=LIVE_STATES).aggregate(
        critical=Count("pk", filter=Q(severity=Severity.CRITICAL, state=AlertState.OPEN)),
        warning=Count("pk", filter=~Q(severity=Severity.CRITICAL) & Q(state=AlertState.OPEN)),
    )
    return {"critical": found["critical"], "warning": found["warning"]}


def store_signs() -> Iterator[Told]:
    """What the watch last saw of the stores."""
    looks = {row.store_id: row for row in StoreLook.objects.all()}
    for store in StoreConfig.objects.order_by("name"):
        row = looks.get(store.pk)
        if row is None:
            continue  # Never looked at: the sign about the watch says that nobody does.
        if row.failing_since:
            said = f"no good answer since {row.failing_since:%Y-%m-%d %H:%M} UTC: {row.error}"
            yield f"store {store.name}", "critical", said, row.hint or f"store test {store.name}", {}
        else:
            figures = {"free_bytes": row.free_bytes}
            yield f"store {store.name}", "ok", f"answered {row.looked_at:%Y-%m-%d %H:%M} UTC", "", figures
