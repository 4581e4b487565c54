"""What people do with alerts: look at them, acknowledge, mute."""

import datetime
from collections.abc import Sequence
from typing import Any

from django.db import transaction
from django.db.models import QuerySet

from audit.services import record
from core import clock
from core.errors import Conflict, NotFound
from core.tenancy import tenant_checked
from core.text import reason_checked
from engine.errors import UsageError
from operations.alerting.rules import rule_find, rule_get
from operations.alerting.transitions import alert_to, alerts_acknowledge
from operations.models import LIVE_STATES, Alert, AlertDelivery, AlertState

LIST_MAX = 500
MUTE_MAX = datetime.timedelta(days=366)


def alert_get(alert_id: str) -> Alert:
    """Find an alert. Raises NotFound."""
    row = Alert.objects.filter(pk=alert_id).first()
    if row is None:
        raise NotFound(f"there is no alert {alert_id[:60]!r}", hint="alert list shows them")
    return row


def alert_list(
    *, tenant: str = "", rule: str = "", states: Sequence[str] = (), before: str = "", limit: int = LIST_MAX
) -> list[Alert]:
    """Newest first, those that live unless `states` says otherwise; `before` is the id after which the page goes on.

    Raises NotFound for a tenant or a `before`, NameUnknown for a rule, that there is not.
    """
    rows = Alert.objects.filter(state__in=states or LIVE_STATES).order_by("-id")
    if tenant:
        tenant_checked(tenant)
        rows = rows.filter(tenant=tenant)
    if rule:
        rows = rows.filter(rule=rule_get(rule).code)
    if before:
        rows = rows.filter(pk__lt=alert_get(before).pk)
    return list(rows[: min(limit, LIST_MAX)])


def alert_acknowledge(alert_id: str, *, actor: str, note: str = "") -> Alert:
    """Say that somebody is at it: it is neither repeated nor escalated. Doing so twice is no error."""
    row = alert_get(alert_id)
    note = reason_checked(note)
    if row.state == AlertState.ACKNOWLEDGED:
        return row
    if row.state == AlertState.RESOLVED:
        raise Conflict(f"alert {row.pk} is over since {row.resolved_at:%Y-%m-%d %H:%M} UTC", hint="nothing to do")
    with transaction.atomic():
        alert_to(
            row,
            AlertState.ACKNOWLEDGED,
            actor=actor,
            reason=note,
            acknowledged_at=clock.now(),
            acknowledged_by=actor[:200],
            note=note,
            escalate_at=None,
        )
        _audit("alert.acknowledged", row, actor, note=note)
    return row


def group_acknowledge(alert_id: str, *, actor: str, note: str = "") -> tuple[Alert, int]:
    """Acknowledge an alert and all open ones of its rule and cause; how many."""
    row = alert_get(alert_id)
    note = reason_checked(note)
    alike = _group(row).filter(state=AlertState.OPEN)
    with transaction.atomic():
        done = alerts_acknowledge(
            list(alike.values_list("pk", flat=True)),
            actor=actor,
            reason=note,
            acknowledged_at=clock.now(),
            acknowledged_by=actor[:200],
            note=note,
            escalate_at=None,
        )
        _audit("alert.acknowledged", row, actor, note=note, count=len(done), cause=row.cause)
    row.refresh_from_db()
    return row, len(done)


def _group(row: Alert) -> "QuerySet[Alert]":
    return Alert.objects.filter(rule=row.rule, cause=row.cause, state__in=LIVE_STATES)


def alert_mute(
    alert_id: str, *, until: datetime.datetime, actor: str, note: str = "", group: bool = False
) -> tuple[Alert, int]:
    """Say nothing of it until then, also when it goes and comes back meanwhile; with `group` of all of its rule and cause.

    How many are muted.
    """
    row = alert_get(alert_id)
    note = reason_checked(note)
    now = clock.now()
    if not now < until <= now + MUTE_MAX:
        raise UsageError(
            f"an alert cannot be muted until {until:%Y-%m-%d %H:%M} UTC", hint="a time to come, within a year"
        )
    if row.state == AlertState.RESOLVED:
        raise Conflict(f"alert {row.pk} is over", hint="a rule that is not wanted: alert rule set RULE --disable")
    with transaction.atomic():
        # Told again when the time is over and it still stands.
        wanted = _group(row) if group else Alert.objects.filter(pk=row.pk)
        count = wanted.update(muted_until=until, told_at=None, note=note or row.note)
        _audit("alert.muted", row, actor, until=f"{until:%Y-%m-%dT%H:%M:%SZ}", note=note, count=count)
    row.refresh_from_db()
    return row, count


def alert_unmute(alert_id: str, *, actor: str) -> Alert:
    """Say it again from now on."""
    row = alert_get(alert_id)
    with transaction.atomic():
        Alert.objects.filter(pk=row.pk).update(muted_until=None)
        _audit("alert.unmuted", row, actor)
    row.refresh_from_db()
    return row


def _audit(event: str, row: Alert, actor: str, **data: Any) -> None:
    record(
        event,
        message=f"alert {row.pk} ({row.rule})",
        actor=actor,
        tenant=row.tenant,
        data={"alert": row.pk, "rule": row.rule, "fingerprint": row.fingerprint, **data},
    )


def next_step(row: Alert) -> str:
    """What to do about it: its own hint, or its rule's."""
    rule = rule_find(row.rule)
    return row.hint or (rule.next_step if rule else "")


def alert_output(row: Alert) -> dict[str, Any]:
    """An alert as commands and the API give it; times are datetimes."""
    return {
        "id": row.pk,
        "rule": row.rule,
        "severity": row.severity,
        "state": row.state,
        "tenant": row.tenant or None,
        "subject": row.subject,
        "message": row.message,
        "next_step": next_step(row),
        "occurrences": row.occurrences,
        "opened_at": row.created_at,
        "last_seen_at": row.last_seen_at,
        "acknowledged_at": row.acknowledged_at,
        "acknowledged_by": row.acknowledged_by or None,
        "muted_until": row.muted_until,
        "told_at": row.told_at,
        "escalate_at": row.escalate_at,
        "resolved_at": row.resolved_at,
        "note": row.note,
    }


def delivery_list(*, channel: str = "", limit: int = LIST_MAX) -> list[AlertDelivery]:
    """The delivery log, newest first."""
    rows = AlertDelivery.objects.select_related("message").order_by("-id")
    if channel:
        rows = rows.filter(channel_name__iexact=channel)
    return list(rows[: min(limit, LIST_MAX)])


def delivery_output(row: AlertDelivery) -> dict[str, Any]:
    """A delivery with each try, as commands and the API give it."""
    return {
        "id": row.pk,
        "message": row.message_id,
        "kind": row.message.kind,
        "rule": row.message.rule or None,
        "channel": row.channel_name,
        "state": row.state,
        "attempts": row.attempts,
        "due_at": row.due_at,
        "finished_at": row.finished_at,
        "log": row.log,
    }
