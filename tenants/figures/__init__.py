"""Figures of the overview and of the metrics: counted by triggers, so that they are exact and cost the same at any size."""

import datetime
from collections.abc import Mapping
from typing import Any

from django.db import models

from core import clock
from core.ids import first_id
from operations.overview import overview_register

DAY = datetime.timedelta(days=1)


@overview_register("tenant_backups")
def backups() -> Mapping[str, Any]:
    """How backups of tenants went."""
    from tenants.figures.counting import counts_get
    from tenants.figures.triggers import COUNTED
    from tenants.models import Backup

    counts, (counted, _) = counts_get("backups"), COUNTED
    return {
        "total_count": counts.total,
        "last_24h": _since_yesterday(Backup, "bkp"),
        "success_count": counts.success,
        "failed_count": counts.failed,
        "avg_duration_ms": _mean(counts.duration_ms, counts.success),
        "avg_size_bytes": _mean(counts.size_bytes, counts.success),
        "last_success": _newest(Backup, counted.success),
        "last_failure": _newest(Backup, counted.failed),
    }


@overview_register("restores")
def restores() -> Mapping[str, Any]:
    """How restores went; `ttr` is the time to restore."""
    from tenants.figures.counting import counts_get
    from tenants.figures.triggers import COUNTED
    from tenants.models import Restore

    counts, (_, counted) = counts_get("restores"), COUNTED
    return {
        "total_count": counts.total,
        "last_24h": _since_yesterday(Restore, "rst"),
        "success_count": counts.success,
        "failed_count": counts.failed,
        "avg_ttr_ms": _mean(counts.duration_ms, counts.success),
        "last_restore": _newest(Restore, counted.success),
        "last_failure": _newest(Restore, counted.failed),
    }


def _since_yesterday(model: type[models.Model], prefix: str) -> int:
    """Rows made in the last 24 hours: their ids tell, so the primary key's index does."""
    return model._base_manager.filter(pk__gte=first_id(prefix, clock.now() - DAY)).count()


def _newest(model: type[models.Model], states: tuple[str, ...]) -> datetime.datetime | None:
    """When the newest one in these states ended: one step along the index for each state."""
    ended = (
        model._base_manager.filter(state=state, finished_at__isnull=False)
        .order_by("-finished_at")
        .values_list("finished_at", flat=True)
        .first()
        for state in states
    )
    return max((at for at in ended if at is not None), default=None)


def _mean(total: int, count: int) -> int | None:
    return round(total / count) if count else None
