"""The rules about what is out of the ordinary in the newest backups, in words that say what was usual."""

import datetime
from collections.abc import Iterable, Iterator, Mapping

from operations.alerting.levels import Levels
from operations.alerting.rules import Finding, Limit, preparation_register, rule_register
from operations.models import Severity
from tenants.alerting.judging import backups_judge
from tenants.models import Anomaly, Metric

CURRENT_MAX = 20_000


@preparation_register("backups")
def _judge(levels: Mapping[str, Levels]) -> None:
    backups_judge(levels)


def _current(*metrics: Metric) -> Iterator[Anomaly]:
    rows = Anomaly.objects.filter(current=True, metric__in=metrics, source__enabled=True, source__archived_at=None)
    rows = rows.filter(source__tenant__archived_at=None).select_related("source__tenant").order_by("pk")
    return iter(rows[:CURRENT_MAX])


def _finding(row: Anomaly, message: str, hint: str, *, cause: str = "", severity: str = "") -> Finding:
    tenant = row.source.tenant.slug
    return Finding(
        f"{row.source_id}:{row.metric}:{row.part}"[:200],
        message,
        tenant=tenant,
        subject=f"{tenant}/{row.source.name}",
        hint=hint,
        cause=cause,
        occurrence=row.backup_id,
        severity=severity,
    )


def _compare(row: Anomaly) -> str:
    return f"is that meant? Look: backup browse {row.backup_id}, backup list {row.source.tenant.slug}; then: alert ack ALERT"


def _number(value: float) -> str:
    return f"{value:,.0f}"


def bytes_text(value: float) -> str:
    """`1.2 GB`, with powers of a thousand."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _moved(row: Anomaly) -> str:
    return "fell" if row.value < row.usual else "rose"


_WHAT = {Metric.SIZE: "the size", Metric.ROWS: "all rows", Metric.FILES: "the number of files"}


@rule_register(
    "anomaly",
    title="Backups are out of the ordinary",
    severity=Severity.WARNING,
    next_step="compare the backup with the one before it: backup diff; what is meant is acknowledged: alert ack ALERT",
    limits={
        "deviations": Limit(8, 1, 100, "deviations", "so far from the median of the last 14 backups is unusual"),
        "fall_percent": Limit(30, 1, 100, "%", "and at least so much less"),
        "rise_percent": Limit(200, 1, 100_000, "%", "or so much more"),
        "least_rows": Limit(100, 0, 1e12, "rows or files", "and at least so many rows or files"),
        "least_bytes": Limit(10_000_000, 0, 1e15, "bytes", "or, for sizes, so many bytes"),
    },
)
def anomaly(levels: Levels, now: datetime.datetime) -> Iterable[Finding]:
    """Size, rows and files of each source and module against the last 14 backups."""
    for row in _current(Metric.SIZE, Metric.ROWS, Metric.FILES, Metric.PART):
        shown = bytes_text if row.metric == Metric.SIZE else _number
        what = f"rows of {row.part}" if row.metric == Metric.PART else _WHAT[Metric(row.metric)]
        if row.metric == Metric.PART and row.source.kind == "files":
            what = f"files of {row.part}"
        words = (
            f"{what} {_moved(row)} from about {shown(row.usual)} to {shown(row.value)}; "
            f"the last {row.count} backups lay between {shown(row.least)} and {shown(row.most)}"
        )
        yield _finding(row, words, _compare(row))


@rule_register(
    "size_changed",
    title="Backups changed in size",
    severity=Severity.WARNING,
    next_step="compare the backup with the one before it: backup diff; what is meant is acknowledged: alert ack ALERT",
    limits={
        "percent": Limit(50, 1, 100_000, "%", "more or less than the mean of 7 days"),
        "least_bytes": Limit(1_000_000, 0, 1e15, "bytes", "and at least so many bytes"),
    },
)
def size_changed(levels: Levels, now: datetime.datetime) -> Iterable[Finding]:
    """The size of a source against the mean of its backups of seven days."""
    for row in _current(Metric.SIZE_MEAN):
        words = (
            f"the size {_moved(row)} from {bytes_text(row.usual)} on average of 7 days to {bytes_text(row.value)}; "
            f"{row.count} backups lay between {bytes_text(row.least)} and {bytes_text(row.most)}"
        )
        yield _finding(row, words, _compare(row))


@rule_register(
    "encrypted_by_others",
    title="New content hardly compresses any more",
    severity=Severity.CRITICAL,
    next_step="was data encrypted by somebody else? Keep the good backups: backup hold BACKUP; and look into the newest: backup browse",
    limits={
        "percent": Limit(90, 10, 200, "%", "new content that keeps so much of its size is suspicious"),
        "usual_percent": Limit(70, 1, 100, "%", "where at the most so much was usual"),
        "least_bytes": Limit(1_000_000, 1, 1e15, "bytes", "of new content"),
    },
)
def encrypted_by_others(levels: Levels, now: datetime.datetime) -> Iterable[Finding]:
    """A collapse of compressibility, as ransomware causes it."""
    for row in _current(Metric.COMPRESSIBILITY):
        words = (
            f"new content keeps {row.value:.0f} % of its size when compressed, where {row.usual:.0f} % was usual "
            f"({row.count} backups between {row.least:.0f} % and {row.most:.0f} %): was it encrypted by somebody else?"
        )
        hint = f"look: backup browse {row.backup_id}; keep the good ones: backup hold BACKUP (backup list {row.source.tenant.slug})"
        yield _finding(row, words, hint)


@rule_register(
    "chain_broken",
    title="Event logs have a broken chain",
    severity=Severity.CRITICAL,
    next_step="the log was changed or is damaged at its source; the backup keeps it as it is, older ones hold it whole",
)
def chain_broken(levels: Levels, now: datetime.datetime) -> Iterable[Finding]:
    """The newest backup of an event log found its chain broken."""
    for row in _current(Metric.CHAIN):
        hint = f"compare with an older one: backup list {row.source.tenant.slug}; backup browse {row.backup_id}"
        yield _finding(row, row.said, hint)


@rule_register(
    "incremental_missed",
    title="Incremental backups overlooked changes",
    severity=Severity.CRITICAL,
    next_step="the full backup has everything; the incrementals before it lack it. Please report this: it must never happen",
)
def incremental_missed(levels: Levels, now: datetime.datetime) -> Iterable[Finding]:
    """A full read found what an incremental had missed."""
    for row in _current(Metric.OVERLOOKED):
        words = f"a full read found {_number(row.value)} differences that incremental backups had overlooked"
        yield _finding(row, words, f"backup show {row.backup_id}; restore from it, not from the ones before it")
