"""The rules about Lastro's own work: operations, the scheduler, the channels, its disk, and the looks themselves."""

import datetime
import os
from collections.abc import Iterator

from django.conf import settings
from django.db.models import Max

from operations.alerting.evaluating import BROKEN_RULE
from operations.alerting.levels import Levels
from operations.alerting.rules import Finding, Limit, rule_register
from operations.models import Channel, Operation, OperationState, Severity
from operations.scheduling import selectors as scheduling

RECENT_MAX = 2_000
OWN_RULES: set[str] = set()
"""Kinds of operations whose failures have rules of their own; apps above add theirs."""

_OK = (OperationState.SUCCEEDED, OperationState.WARNED)


@rule_register(
    "operation_failed",
    title="Operations failed",
    severity=Severity.WARNING,
    next_step="operation show ID says why; when that is mended: operation retry ID",
    limits={"hours": Limit(24, 1, 720, "h", "so far back failures are looked at")},
)
def operation_failed(levels: Levels, now: datetime.datetime) -> Iterator[Finding]:
    """The newest of its kind and tenant failed, or was lost, within the last hours, and none has succeeded since."""
    since = now - datetime.timedelta(hours=levels.most("hours"))
    bad = Operation.objects.filter(
        state__in=(OperationState.FAILED, OperationState.LOST), finished_at__gte=since
    ).exclude(kind__in=OWN_RULES)
    newest = list(bad.values("kind", "tenant").annotate(newest=Max("pk")).order_by()[:RECENT_MAX])
    if not newest:
        return
    good = Operation.objects.filter(
        state__in=_OK, finished_at__gte=since, kind__in={row["kind"] for row in newest}
    ).values("kind", "tenant")
    later = {(row["kind"], row["tenant"]): row["last"] for row in good.annotate(last=Max("pk")).order_by()}
    rows = Operation.objects.in_bulk([row["newest"] for row in newest])
    for row in rows.values():
        limit = datetime.timedelta(hours=levels.limit("hours", row.tenant))
        if later.get((row.kind, row.tenant), "") > row.pk or row.finished_at is None or now - row.finished_at > limit:
            continue
        error = row.error or {}
        lost = row.state == OperationState.LOST
        said = (
            "its process ended without a word"
            if lost
            else error.get("detail") or error.get("code") or "no reason is known"
        )
        yield Finding(
            f"{row.kind}:{row.tenant}",
            f"{row.kind} {row.state}: {said}",
            tenant=row.tenant,
            subject=f"{row.kind} of {row.tenant}" if row.tenant else row.kind,
            hint=f"operation show {row.pk}; then: operation retry {row.pk}",
            cause=str(error.get("code", "")),
            occurrence=row.pk,
        )


@rule_register(
    "run_missed",
    title="Planned runs were missed",
    severity=Severity.CRITICAL,
    next_step="is a worker running, and are there enough of them? schedule runs --state missed shows which",
    limits={"hours": Limit(24, 1, 720, "h", "so far back missed runs are looked at")},
)
def run_missed(levels: Levels, now: datetime.datetime) -> Iterator[Finding]:
    """Runs that were given up; a later run of the same schedule and tenant that went well ends the alert."""
    since = now - datetime.timedelta(hours=levels.most("hours"))
    missed = scheduling.runs_missed(since=since, limit=RECENT_MAX)
    newest = {(run.schedule_name, run.tenant): run for run in missed}
    if not newest:
        return
    done = scheduling.runs_ended(since=since, states=("ok", "warned"), limit=RECENT_MAX * 10)
    later = {(run.schedule_name, run.tenant): run.planned_for for run in done}
    for key, run in newest.items():
        if key in later and later[key] > run.planned_for:
            continue
        why = f": {run.note}" if run.note else ""
        yield Finding(
            f"{run.schedule_name}:{run.tenant}",
            f"{run.work} planned for {run.planned_for:%Y-%m-%d %H:%M} UTC was missed{why}",
            tenant=run.tenant,
            subject=f"{run.tenant or 'all'} ({run.schedule_name})",
            cause=run.schedule_name,
            occurrence=run.pk,
        )


@rule_register(
    "run_late",
    title="Planned runs wait to begin",
    severity=Severity.WARNING,
    next_step="start more workers, or raise the limits: schedule quota; operation list --state running shows what holds them up",
    limits={"minutes": Limit(120, 5, 10_080, "min", "so long a run may wait beyond its time")},
)
def run_late(levels: Levels, now: datetime.datetime) -> Iterator[Finding]:
    """One alert about all of them: a queue that is too long is one thing that is wrong."""
    late = scheduling.runs_overdue(now=now, by=datetime.timedelta(minutes=levels.limit("minutes")), limit=RECENT_MAX)
    if late:
        many = f"{len(late)}{'+' if len(late) == RECENT_MAX else ''}"
        yield Finding(
            "queue", f"{many} runs wait, the longest since {late[0].due_at:%Y-%m-%d %H:%M} UTC", subject="scheduler"
        )


@rule_register(
    "scheduler_stalled",
    title="The scheduler stands still",
    severity=Severity.CRITICAL,
    next_step="is a worker running? lastro worker; lastro doctor says since when nobody plans",
)
def scheduler_stalled(levels: Levels, now: datetime.datetime) -> Iterator[Finding]:
    """Nobody plans although there is something to plan; asked here by the watch, which does not need the scheduler."""
    if scheduling.scheduler_stalled(now=now):
        last = scheduling.scheduler_last_tick()
        since = f"since {last:%Y-%m-%d %H:%M} UTC" if last else "yet"
        yield Finding("scheduler", f"nothing was planned {since}: no backup begins by itself", subject="scheduler")


@rule_register(
    "channel_failing",
    title="Channels do not take messages",
    severity=Severity.WARNING,
    next_step="alert deliveries --channel NAME says what it answered; mend it and try it: channel test NAME",
    limits={"minutes": Limit(15, 1, 1_440, "min", "so long a channel may fail before the others hear of it")},
)
def channel_failing(levels: Levels, now: datetime.datetime) -> Iterator[Finding]:
    """Told by the other channels."""
    since = now - datetime.timedelta(minutes=levels.limit("minutes"))
    for row in Channel.objects.filter(enabled=True, failing_since__lte=since):
        assert row.failing_since is not None
        yield Finding(
            f"channel:{row.pk}",
            f"nothing gets through since {row.failing_since:%Y-%m-%d %H:%M} UTC: {row.error}",
            subject=f"channel {row.name}",
            hint=f"alert deliveries --channel {row.name}; then: channel test {row.name}",
        )


@rule_register(
    "data_folder_filling",
    title="The data folder fills up",
    severity=Severity.WARNING,
    next_step="free space on the disk of LASTRO_DATA: without any, nothing can be recorded and every backup fails",
    limits={"free_gb": Limit(1, 0, 100_000, "GB", "at least so much has to be free")},
)
def data_folder_filling(levels: Levels, now: datetime.datetime) -> Iterator[Finding]:
    """Of the host that looks."""
    status = os.statvfs(settings.LASTRO_DATA)
    free = status.f_bavail * status.f_frsize
    if free < levels.limit("free_gb") * 1e9:
        yield Finding("data", f"only {free / 1e9:.1f} GB are free", subject=f"data folder of {os.uname().nodename}")


@rule_register(
    BROKEN_RULE,
    title="Rules that could not look",
    severity=Severity.WARNING,
    next_step="the log (LASTRO_DATA/log) says why; until then nothing of this rule is opened or ended",
)
def alerting_broken(levels: Levels, now: datetime.datetime) -> Iterator[Finding]:
    """Filled by the look itself."""
    return iter(())
