"""Previews as JSON, their totals, and what they mean in words and in time."""

import dataclasses
import datetime
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from django.db.models import Sum

from engine.plans import Preview
from tenants.models import BackupSource, Drill, DrillState, Restore, RestoreKind, RestoreState, Tenant

HISTORY_MAX = 10
"""So many of the last restores of a kind make the estimate."""
TABLE_COUNTS = ("insert", "update", "delete", "unchanged", "kept", "conflicts", "collisions", "withheld", "stays")
FILE_COUNTS = ("created", "replaced", "removed", "unchanged", "kept", "conflicts")


def preview_json(name: str, kind: str, preview: Preview) -> dict[str, Any]:
    """One source's preview."""
    return {
        "name": name,
        "kind": kind,
        "digest": preview.digest,
        "tables": [dataclasses.asdict(table) for table in preview.tables],
        "files": dataclasses.asdict(preview.files) if preview.files else None,
        "samples": {table: [dataclasses.asdict(row) for row in rows] for table, rows in preview.samples.items()},
        "paths": [dataclasses.asdict(path) for path in preview.paths],
        "drift": [dataclasses.asdict(each) for each in preview.drift],
        "dependencies": [{**dataclasses.asdict(each), "sentence": each.sentence} for each in preview.dependencies],
        "warnings": list(preview.warnings),
        "staged_bytes": preview.staged_bytes,
        "facts": dict(preview.facts),
    }


def totals(sources: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Sums over all tables and over all files."""
    rows, files = dict.fromkeys(TABLE_COUNTS, 0), dict.fromkeys(FILE_COUNTS, 0)
    for source in sources:
        for table in source["tables"]:
            for count in TABLE_COUNTS:
                rows[count] += int(table[count])
        for count in FILE_COUNTS:
            files[count] += int((source["files"] or {}).get(count, 0))
    return {"rows": rows, "files": files}


# ---------------------------------------------------------------- what would be lost


def loss_sentences(source: Mapping[str, Any], since: datetime.datetime | None) -> list[str]:
    """What the tenant made since the backup and would no longer have; empty when nothing."""
    when = f"since {since:%Y-%m-%d %H:%M} UTC" if since else "since"
    sentences = [
        _loss(_rows(int(table["delete"]), table["name"]), int(table["delete"]), int(table["update"]), table, when)
        for table in source["tables"]
        if table["delete"] or table["update"]
    ]
    files = source["files"]
    if files and (files["removed"] or files["replaced"]):
        removed = int(files["removed"])
        said = f"{removed} file{'s' * (removed != 1)} of {source['name']}"
        whole = {"name": source["name"]}
        sentences.append(_loss(said, removed, int(files["replaced"]), whole, when, noun="file"))
    return sentences


def undo_sentences(source: Mapping[str, Any], since: datetime.datetime | None) -> list[str]:
    """What somebody changed since the restore and an undo would overwrite; files are not told apart from its own."""
    when = f"since {since:%Y-%m-%d %H:%M} UTC" if since else "since"
    return [
        f"{_rows(int(table['conflicts']), table['name'])} changed {when} would be overwritten"
        for table in source["tables"]
        if table["conflicts"]
    ]


def _rows(count: int, table: str) -> str:
    noun = table.rpartition(".")[2]
    if count != 1 and noun.endswith("s"):
        return f"{count} {noun}"
    return f"{count} row{'s' * (count != 1)} of {noun}"


def _loss(made: str, removed: int, changed: int, part: Mapping[str, Any], when: str, *, noun: str = "row") -> str:
    if removed and changed:
        return f"{made} made {when} would be lost, {changed} changed since would go back"
    if removed:
        return f"{made} made {when} would be lost"
    what = _rows(changed, part["name"]) if noun == "row" else f"{changed} file{'s' * (changed != 1)} of {part['name']}"
    return f"{what} changed {when} would go back"


# ---------------------------------------------------------------- how long it will take


def estimate(tenant: Tenant, sources: Sequence[str], backup_id: str, *, mode: str, in_place: bool) -> dict[str, Any]:
    """Seconds that such a restore will take: the data's size by the median throughput of the last ones.

    `from` is "tenant", "drills" (of the tenant), "all tenants" or None, when there was none yet and `seconds` is None.
    """
    size = _size(backup_id, sources)
    kind = {"kind": RestoreKind.RESTORE, "mode": mode, "in_place": in_place}
    ways: tuple[tuple[str, Callable[[], list[float]]], ...] = (
        ("tenant", lambda: _restore_speeds(tenant=tenant, **kind)),
        ("drills", lambda: _drill_speeds(tenant)),
        ("all tenants", lambda: _restore_speeds(**kind)),
    )
    for label, measured in ways:
        speeds = measured()
        if speeds and size:
            seconds = max(1, round(size / statistics.median(speeds)))
            return {"seconds": seconds, "from": label, "restores": len(speeds), "size_bytes": size}
    return {"seconds": None, "from": None, "restores": 0, "size_bytes": size}


def _restore_speeds(**scope: Any) -> list[float]:
    """Bytes per second of the last restores."""
    past = Restore.objects.filter(**scope, state=RestoreState.SUCCEEDED).exclude(duration_ms=0)
    sizes = [
        (row.duration_ms, _size(row.backup_id, list(row.sources.values_list("name", flat=True))))
        for row in past.order_by("-id")[:HISTORY_MAX]
    ]
    return [size / milliseconds * 1000 for milliseconds, size in sizes if size]


def _drill_speeds(tenant: Tenant) -> list[float]:
    past = Drill.objects.filter(tenant=tenant, state=DrillState.PASSED).exclude(restore_ms=0).exclude(restored_bytes=0)
    return [row.restored_bytes / row.restore_ms * 1000 for row in past.order_by("-id")[:HISTORY_MAX]]


def _size(backup_id: str, sources: Sequence[str]) -> int:
    rows = BackupSource.objects.filter(backup_id=backup_id, name__in=list(sources))
    return int(rows.aggregate(total=Sum("size_bytes"))["total"] or 0)
