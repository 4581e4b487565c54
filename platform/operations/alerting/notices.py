"""What is said on request though nothing is wrong: successes, and the weekly report."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.db import transaction
from django.utils.module_loading import autodiscover_modules

from audit.services import record
from core import clock
from core.errors import Conflict
from core.models import Fact
from operations.alerting.telling import message_queue
from operations.models import AlertMessage, Channel, MessageKind, Severity

REPORT_WEEKDAY, REPORT_HOUR = 0, 7
"""Mondays at 07:00 UTC."""
REPORT_FACT = "alert_report_sent"
LINES_MAX = 20

Report = Callable[[datetime.datetime, datetime.datetime], Mapping[str, Any]]
_reports: list[Report] = []


def report_register(report: Report) -> Report:
    """Have this make the weekly report: `{subject, lead, figures [[name, value]], worst [{tenant, state, what}], more}`.

    Slugs, states and figures only: a report outlives the tenants in it.
    """
    _reports[:] = [report]
    return report


def notice_tell(subject: str, *, lead: str, lines: Sequence[str], data: Mapping[str, Any]) -> int:
    """Say that something went well to the channels that ask for it, in the caller's transaction; how many deliveries."""
    channels = list(Channel.objects.filter(enabled=True, notices=True, tenant=""))
    if not channels:
        return 0
    content = {
        "subject": subject,
        "lead": lead,
        "lines": list(lines[:LINES_MAX]),
        "more": max(0, len(lines) - LINES_MAX),
        "data": dict(data),
    }
    message = AlertMessage(kind=MessageKind.NOTICE, severity=Severity.INFO, content=content, count=len(lines))
    return len(message_queue(message, channels, now=clock.now()))


def report_make(*, days: int = 7) -> dict[str, Any]:
    """The report about the last days, as it would be sent. Raises Conflict when nothing can report."""
    autodiscover_modules("alert_rules")
    if not _reports:
        raise Conflict("there is nothing to report about")
    until = clock.now()
    return dict(_reports[0](until - datetime.timedelta(days=days), until))


def report_send(*, actor: str, days: int = 7) -> int:
    """Queue the report for the channels that ask for reports; how many deliveries."""
    content = report_make(days=days)
    with transaction.atomic():
        channels = list(Channel.objects.filter(enabled=True, reports=True, tenant=""))
        if not channels:
            raise Conflict("no channel asks for reports", hint="channel set NAME --reports yes")
        content["lines"] = [f"{name}: {value}" for name, value in content.get("figures", ())]
        content["lines"] += [f"{row['tenant']} ({row['state']}): {row['what']}" for row in content.get("worst", ())]
        message = AlertMessage(kind=MessageKind.REPORT, severity=Severity.INFO, content=content)
        queued = message_queue(message, channels, now=clock.now())
        record("alert_report.queued", message=f"report to {len(queued)} channels", actor=actor, data={"days": days})
    return len(queued)


def report_due() -> bool:
    """Queue the weekly report when its time has come, once on all machines together; whether it was."""
    now = clock.now()
    monday = (now - datetime.timedelta(days=(now.weekday() - REPORT_WEEKDAY) % 7)).date()
    if datetime.datetime.combine(monday, datetime.time(REPORT_HOUR), datetime.UTC) > now:
        monday -= datetime.timedelta(days=7)
    fact, is_first = Fact.objects.get_or_create(pk=REPORT_FACT, defaults={"value": monday.isoformat()})
    if is_first or fact.value >= monday.isoformat():
        return False
    if not Channel.objects.filter(enabled=True, reports=True, tenant="").exists():
        return False
    with transaction.atomic():
        moved = Fact.objects.filter(pk=REPORT_FACT, value=fact.value).update(value=monday.isoformat())
        return bool(moved) and report_send(actor="system:alerts") > 0
