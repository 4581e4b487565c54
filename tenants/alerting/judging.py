"""Each new backup is held against those before it, once; what is out of the ordinary becomes a row that rules ask for.

In batches: a fixed number of queries for BATCH backups, whatever the number of tenants. Baseline, anomalies and the mark
on the backup are written in one transaction, so that a kill leaves a backup unjudged or judged, never counted twice.
"""

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from django.db import transaction

from core import clock
from engine.faults import kill_point
from operations.alerting.levels import Levels
from operations.alerting.notices import notice_tell
from operations.models import Channel
from tenants.alerting.unusual import SAMPLES_MIN, Tolerance, Unusual, unusual
from tenants.models import Anomaly, Backup, BackupSource, Baseline, Metric, Module, Origin
from tenants.models.backup import GOOD_STATES

BATCH = 200
BACKUPS_MAX = 2_000
"""In one look; more wait for the next."""
OLD = datetime.timedelta(days=2)
"""What was found to have been taken longer ago (an adoption) is no news, and is marked only."""
PARTS_READ_MAX = 100_000
MEAN_DAYS = datetime.timedelta(days=7)
MEAN_SAMPLES_MIN = 3
CHAIN_CODE = "eventlog.chain_broken"
NOT_JUDGED = ("safety",)
"""Triggers of backups that say nothing about the usual: they keep what a restore is about to throw away."""


@dataclass(frozen=True)
class _Limits:
    """What is in force for a tenant."""

    figures: Tolerance
    parts: Tolerance
    mean_percent: float
    mean_least: float
    packed_percent: float
    packed_usual_percent: float
    packed_least: float


def backups_judge(levels: Mapping[str, Levels]) -> int:
    """Judge what is new; how many backups."""
    unjudged = Backup.objects.filter(judged=False, state__in=GOOD_STATES)
    unjudged.filter(finished_at__lt=clock.now() - OLD).update(judged=True)
    count = 0
    while count < BACKUPS_MAX:
        ids = list(unjudged.order_by("pk").values_list("pk", flat=True)[:BATCH])
        if not ids:
            break
        _judge(ids, levels)
        count += len(ids)
    return count


def _judge(ids: list[str], levels: Mapping[str, Levels]) -> None:
    backups = Backup.objects.select_related("tenant").in_bulk(ids)
    usable = {pk: row for pk, row in backups.items() if row.trigger not in NOT_JUDGED and row.origin == Origin.RUN}
    kept = BackupSource.objects.filter(
        backup_id__in=list(usable), state=BackupSource.State.KEPT, source__isnull=False
    ).order_by("backup_id")
    rows = list(kept)
    newest = {row.source_id: row for row in rows if row.source_id}
    baselines = Baseline.objects.in_bulk(list(newest))
    parts = _parts(newest)
    together = {
        pk: ",".join(sorted(each.name for each in group)) for pk, group in groupby(rows, key=lambda row: row.backup_id)
    }
    found: list[Anomaly] = []
    for row in rows:
        assert row.source_id is not None
        baseline = baselines.setdefault(row.source_id, Baseline(source_id=row.source_id))
        backup = usable[row.backup_id]
        is_newest = newest[row.source_id] is row
        entry = _entry(row, backup, parts.get(row.source_id, {}) if is_newest else {}, together[row.backup_id])
        if is_newest:
            found += _anomalies(row, backup, entry, baseline.window, _limits(levels, backup.tenant.slug))
        baseline.window = [*baseline.window, entry][-Baseline.WINDOW :]
    with transaction.atomic():
        Anomaly.objects.filter(source_id__in=list(newest), current=True).update(current=False)
        Anomaly.objects.bulk_create(found, batch_size=BATCH)
        Baseline.objects.bulk_create(
            baselines.values(), update_conflicts=True, unique_fields=["source"], update_fields=["window"]
        )
        marked = Backup.objects.filter(pk__in=ids, judged=False).update(judged=True)
        if marked != len(ids):
            transaction.set_rollback(True)  # Another process judged them meanwhile: its word stands.
            return
        _notice(list(usable.values()))
        kill_point("alert.judged")


def _parts(newest: Mapping[str, BackupSource]) -> dict[str, dict[str, int]]:
    """By source the items of its largest modules, as its newest backup saw them."""
    found: dict[str, dict[str, int]] = {}
    rows = Module.objects.filter(source_id__in=list(newest)).order_by("source_id", "-items")
    for source_id, name, items in rows.values_list("source_id", "name", "items")[:PARTS_READ_MAX]:
        own = found.setdefault(source_id, {})
        if len(own) < Baseline.PARTS_MAX:
            own[name] = items
    return found


def _entry(row: BackupSource, backup: Backup, parts: Mapping[str, int], together: str) -> dict[str, Any]:
    return {
        "backup": backup.pk,
        "at": (backup.taken_at or backup.created_at).isoformat(),
        "size": row.size_bytes,
        "rows": row.rows,
        "files": row.files,
        "parts": dict(parts),
        "together": together[:200],
        "new": backup.new_bytes if backup.compress else 0,
        "packed": backup.new_packed_bytes if backup.compress else 0,
    }


def _limits(levels: Mapping[str, Levels], tenant: str) -> _Limits:
    usual, mean, packed = levels["anomaly"], levels["size_changed"], levels["encrypted_by_others"]
    numbers = {name: usual.limit(name, tenant) for name in ("deviations", "fall_percent", "rise_percent")}
    return _Limits(
        figures=Tolerance(**numbers, least=usual.limit("least_bytes", tenant)),
        parts=Tolerance(**numbers, least=usual.limit("least_rows", tenant)),
        mean_percent=mean.limit("percent", tenant),
        mean_least=mean.limit("least_bytes", tenant),
        packed_percent=packed.limit("percent", tenant),
        packed_usual_percent=packed.limit("usual_percent", tenant),
        packed_least=packed.limit("least_bytes", tenant),
    )


def _anomalies(
    row: BackupSource, backup: Backup, entry: Mapping[str, Any], window: list[dict[str, Any]], limits: _Limits
) -> Iterable[Anomaly]:
    source_id = row.source_id
    assert source_id is not None

    def anomaly(metric: Metric, found: Unusual, part: str = "", said: str = "") -> Anomaly:
        return Anomaly(
            source_id=source_id,
            backup=backup,
            metric=metric,
            part=part[:255],
            value=found.value,
            usual=found.usual,
            least=found.least,
            most=found.most,
            count=found.count,
            said=said[:300],
        )

    mean = _against_mean(entry, window, limits)
    if mean is not None:
        yield anomaly(Metric.SIZE_MEAN, mean)
    elif size := unusual(entry["size"], [each["size"] for each in window], limits.figures):
        yield anomaly(Metric.SIZE, size)
    parts = list(_unusual_parts(entry, window, limits))
    for part, found in parts:
        yield anomaly(Metric.PART, found, part)
    for metric, name in ((Metric.ROWS, "rows"), (Metric.FILES, "files")):
        # The sum says nothing new where its parts were told.
        whole = unusual(entry[name], [each[name] for each in window], limits.parts)
        if whole is not None and not parts:
            yield anomaly(metric, whole)
    packed = _packed(entry, window, limits)
    if packed is not None:
        yield anomaly(Metric.COMPRESSIBILITY, packed)
    nothing = Unusual(0, 0, 0, 0, 0)
    if row.kind == "eventlog":
        for warning in backup.warnings:
            if warning.get("code") == CHAIN_CODE:
                yield anomaly(Metric.CHAIN, nothing, said=str(warning.get("message", "")))
                break
    if backup.missed:
        yield anomaly(Metric.OVERLOOKED, Unusual(backup.missed, 0, 0, 0, 0))


def _against_mean(entry: Mapping[str, Any], window: list[dict[str, Any]], limits: _Limits) -> Unusual | None:
    since = datetime.datetime.fromisoformat(entry["at"]) - MEAN_DAYS
    sizes = [each["size"] for each in window if datetime.datetime.fromisoformat(each["at"]) >= since]
    if len(sizes) < MEAN_SAMPLES_MIN:
        return None
    mean = sum(sizes) / len(sizes)
    change = abs(entry["size"] - mean)
    if change < limits.mean_least or change < limits.mean_percent / 100 * mean or not change:
        return None
    return Unusual(entry["size"], mean, min(sizes), max(sizes), len(sizes))


def _unusual_parts(
    entry: Mapping[str, Any], window: list[dict[str, Any]], limits: _Limits
) -> Iterable[tuple[str, Unusual]]:
    known = [each["parts"] for each in window if each["parts"]]
    if not known or not entry["parts"]:
        return
    # A module that is gone counts as empty, if it was there in the backup before.
    names = {*entry["parts"], *(known[-1] if len(entry["parts"]) < Baseline.PARTS_MAX else ())}
    for name in sorted(names):
        before = [parts[name] for parts in known if name in parts]
        found = unusual(entry["parts"].get(name, 0), before, limits.parts)
        if found is not None:
            yield name, found


def _packed(entry: Mapping[str, Any], window: list[dict[str, Any]], limits: _Limits) -> Unusual | None:
    """New content that hardly shrinks where it used to: as after somebody has encrypted it."""
    if entry["new"] < limits.packed_least:
        return None
    alike = [each for each in window if each["together"] == entry["together"] and each["new"] >= limits.packed_least]
    before = [100 * each["packed"] / each["new"] for each in alike]
    value = 100 * entry["packed"] / entry["new"]
    # Fewer samples do: content that compressed well in each of three backups does not stop by chance.
    if len(before) < MEAN_SAMPLES_MIN or value < limits.packed_percent:
        return None
    middle = sorted(before)[len(before) // 2]
    if middle > limits.packed_usual_percent:
        return None
    return Unusual(value, middle, min(before), max(before), len(before))


def _notice(backups: list[Backup]) -> None:
    if not backups or not Channel.objects.filter(enabled=True, notices=True).exists():
        return
    lines = [
        f"{row.tenant.slug}: {row.type} backup {row.state} at {row.finished_at:%Y-%m-%d %H:%M} UTC, "
        f"{row.size_bytes:,} bytes in {row.duration_ms / 1000:.1f} s"
        for row in backups
    ]
    what = (
        f"{len(backups)} backups went well" if len(backups) > 1 else f"a backup of {backups[0].tenant.slug} went well"
    )
    data = {"backups": [row.pk for row in backups[:20]], "count": len(backups)}
    notice_tell(f"Lastro: {what}", lead=f"{what}.", lines=lines, data=data)


assert MEAN_SAMPLES_MIN < SAMPLES_MIN <= Baseline.WINDOW
