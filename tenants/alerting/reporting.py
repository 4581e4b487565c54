"""The weekly report: how the tenants stand, what was done, what is worst."""

import datetime
from typing import Any

from django.conf import settings
from django.db.models import Count, Q, Sum

from core import clock
from operations.alerting.notices import report_register
from operations.models import LIVE_STATES, Alert, Severity
from tenants.alerting.anomalies import bytes_text
from tenants.models import Backup, BackupState, Drill, DrillState, Restore, Tenant
from tenants.models.backup import GOOD_STATES
from tenants.selectors import protection_counts

WORST_MAX = 20
STATES = {Severity.CRITICAL: "critical", Severity.WARNING: "warning", Severity.INFO: "notice"}


@report_register
def weekly(since: datetime.datetime, until: datetime.datetime) -> dict[str, Any]:
    """Slugs, states, times and figures; nothing of what tenants keep."""
    worst, concerned = _worst()
    tenants = Tenant.objects.filter(archived_at=None).count()
    critical = sum(1 for row in concerned.values() if row["critical"])
    warned = len(concerned) - critical
    figures = [
        ["tenants", f"{tenants:,}"],
        ["tenants in order", f"{max(0, tenants - len(concerned)):,}"],
        ["tenants with warnings", f"{warned:,}"],
        ["tenants with critical alerts", f"{critical:,}"],
        *_sources(),
        *_done(since, until),
    ]
    days = round((until - since).total_seconds() / 86_400)
    lead = (
        f"{critical} of {tenants} tenants need somebody now."
        if critical
        else f"All {tenants} tenants are free of critical alerts."
    )
    return {
        "subject": f"Lastro: report {since:%Y-%m-%d} to {until:%Y-%m-%d}",
        "lead": lead,
        "days": days,
        "figures": figures,
        "worst": worst[:WORST_MAX],
        "more": max(0, len(worst) - WORST_MAX),
    }


def _worst() -> tuple[list[dict[str, Any]], dict[str, dict[str, int]]]:
    """Tenants with open alerts, the worst first; by slug how many of each severity."""
    rows = Alert.objects.filter(state__in=LIVE_STATES).exclude(tenant="").values("tenant")
    counted = rows.annotate(
        critical=Count("pk", filter=Q(severity=Severity.CRITICAL)),
        warnings=Count("pk", filter=Q(severity=Severity.WARNING)),
    ).order_by("-critical", "-warnings", "tenant")
    concerned = {row["tenant"]: {"critical": row["critical"], "warnings": row["warnings"]} for row in counted}
    codes: dict[str, list[str]] = {}
    shown = list(concerned)[:WORST_MAX]
    for tenant, rule in (
        rows.filter(tenant__in=shown).values_list("tenant", "rule").distinct().order_by("tenant", "rule")
    ):
        codes.setdefault(tenant, []).append(rule)
    worst = [
        {
            "tenant": tenant,
            "state": "critical" if counts["critical"] else "warning",
            "what": ", ".join(codes.get(tenant, ())),
            "link": f"{settings.LASTRO_PUBLIC_URL}/?tenant={tenant}" if settings.LASTRO_PUBLIC_URL else "",
        }
        for tenant, counts in concerned.items()
    ]
    return worst, concerned


def _sources() -> list[list[str]]:
    counts = protection_counts(now=clock.now())
    return [
        ["sources", f"{counts.sources:,}"],
        [f"sources without a backup of {counts.hours} h", f"{counts.unprotected:,}"],
    ]


def _done(since: datetime.datetime, until: datetime.datetime) -> list[list[str]]:
    backups = Backup.objects.filter(finished_at__gte=since, finished_at__lt=until).aggregate(
        good=Count("pk", filter=Q(state__in=GOOD_STATES)),
        failed=Count("pk", filter=Q(state=BackupState.FAILED)),
        stored=Sum("stored_bytes", filter=Q(state__in=GOOD_STATES)),
    )
    drills = Drill.objects.filter(finished_at__gte=since, finished_at__lt=until).aggregate(
        passed=Count("pk", filter=Q(state=DrillState.PASSED)), failed=Count("pk", filter=Q(state=DrillState.FAILED))
    )
    restores = Restore.objects.filter(created_at__gte=since, created_at__lt=until).count()
    return [
        ["backups that went well", f"{backups['good']:,}"],
        ["backups that failed", f"{backups['failed']:,}"],
        ["stored anew", bytes_text(backups["stored"] or 0)],
        ["drills passed", f"{drills['passed']:,}"],
        ["drills failed", f"{drills['failed']:,}"],
        ["restores", f"{restores:,}"],
    ]
