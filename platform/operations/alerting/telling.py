"""Who is told what: messages and their deliveries, made in one transaction with what they are about.

Alerts of one rule and one cause are one message, and a group that was told a moment ago waits for a while: nine hundred
backups that fail one after another for want of one store are two messages, not nine hundred. Nobody is told of what is
muted or acknowledged. While there is no channel everything waits; the first one hears of all that is open.
"""

import datetime
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import Q

from core import clock
from core.models import Fact
from engine.faults import kill_point
from operations.alerting.levels import Levels
from operations.alerting.rule_settings import levels_all
from operations.alerting.rules import rule_find
from operations.models import Alert, AlertDelivery, AlertMessage, AlertState, Channel, MessageKind, Severity

GROUP_WINDOW = datetime.timedelta(minutes=15)
"""So long a group that was told holds back what is added to it."""
CAUSES_MAX = 5
"""Messages about one rule at once; what has further causes goes into one more."""
ALERTS_MAX = 50_000
BATCH_ROWS = 500
LOCK_FACT = "alerts_telling"
OTHER_CAUSES = "other causes"

_RANKS = {severity: number for number, severity in enumerate(Severity.values)}
Row = dict[str, Any]


@dataclass(frozen=True)
class _Group:
    rule: str
    cause: str
    rows: list[Row]

    @property
    def severity(self) -> str:
        return max((row["severity"] for row in self.rows), key=lambda each: _RANKS[each])


def alerts_tell() -> int:
    """Make the messages that are due and their deliveries; how many messages. One teller at a time."""
    now = clock.now()
    with transaction.atomic():
        Fact.objects.get_or_create(pk=LOCK_FACT, defaults={"value": ""})
        Fact.objects.select_for_update().get(pk=LOCK_FACT)
        channels = list(Channel.objects.filter(enabled=True).order_by("step", "name"))
        if not channels:
            return 0
        levels = levels_all()
        told = _recent(now)
        count = _tell_open(channels, levels, told, now)
        count += _tell_again(channels, levels, now)
        count += _escalate(channels, levels, now)
        count += _tell_recovered(channels, told, now)
        kill_point("alert.told")
    return count


def _recent(now: datetime.datetime) -> dict[tuple[str, str, bool], str]:
    """Groups told within the window, whether of their end, with the highest severity that was told."""
    rows = AlertMessage.objects.filter(created_at__gt=now - GROUP_WINDOW).exclude(rule="")
    told: dict[tuple[str, str, bool], str] = {}
    for rule, cause, kind, severity in rows.values_list("rule", "cause", "kind", "severity"):
        key = (rule, cause, kind == MessageKind.RESOLVED)
        told[key] = max(told.get(key, severity), severity, key=lambda each: _RANKS[each])
    return told


def _unmuted(now: datetime.datetime) -> Q:
    return Q(muted_until=None) | Q(muted_until__lte=now)


def _rows(wanted: Any) -> list[Row]:
    fields = ("pk", "rule", "cause", "tenant", "severity", "step", "told_at")
    return sorted(
        wanted.values(*fields)[:ALERTS_MAX], key=lambda row: (-_RANKS[row["severity"]], row["tenant"], row["pk"])
    )


def _grouped(rows: Iterable[Row]) -> list[_Group]:
    by_cause: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_cause[row["rule"]][row["cause"]].append(row)
    groups = []
    for rule, causes in by_cause.items():
        largest = sorted(causes, key=lambda cause: -len(causes[cause]))
        kept, rest = largest[:CAUSES_MAX], largest[CAUSES_MAX:]
        groups += [_Group(rule, cause, causes[cause]) for cause in kept]
        if rest:
            groups.append(_Group(rule, OTHER_CAUSES, [row for cause in rest for row in causes[cause]]))
    return groups


def _tell_open(
    channels: Sequence[Channel],
    levels: Mapping[str, Levels],
    told: Mapping[tuple[str, str, bool], str],
    now: datetime.datetime,
) -> int:
    waiting = Alert.objects.filter(_unmuted(now), state=AlertState.OPEN, told_at=None)
    count = 0
    # From the first channels on, also what was told before: it got worse, or its mute is over.
    for group in _grouped({**row, "step": 0} for row in _rows(waiting)):
        before = told.get((group.rule, group.cause, False))
        if before is not None and _RANKS[before] >= _RANKS[group.severity]:
            continue
        count += _say(MessageKind.OPENED, group, channels, levels, now)
    return count


def _tell_again(channels: Sequence[Channel], levels: Mapping[str, Levels], now: datetime.datetime) -> int:
    """What stays open is said again after a day: a message can be overlooked."""
    old = Q()
    for code in levels:
        rule = rule_find(code)
        if rule is not None and rule.repeat_hours:
            old |= Q(rule=code, told_at__lte=now - datetime.timedelta(hours=rule.repeat_hours))
    if not old:
        return 0
    wanted = Alert.objects.filter(old, _unmuted(now), state=AlertState.OPEN)
    rows = [{**row, "step": 0} for row in _rows(wanted)]  # From the first channels on.
    return sum(_say(MessageKind.REMINDER, group, channels, levels, now) for group in _grouped(rows))


def _escalate(channels: Sequence[Channel], levels: Mapping[str, Levels], now: datetime.datetime) -> int:
    due = Alert.objects.filter(_unmuted(now), state=AlertState.OPEN, escalate_at__lte=now)
    return sum(_say(MessageKind.ESCALATED, group, channels, levels, now) for group in _grouped(_rows(due)))


def _tell_recovered(
    channels: Sequence[Channel], told: Mapping[tuple[str, str, bool], str], now: datetime.datetime
) -> int:
    """Whoever was told that it began is told that it is over."""
    count = 0
    for group in _grouped(_rows(Alert.objects.filter(recovery_due=True))):
        if (group.rule, group.cause, True) in told:
            continue
        audience = {
            channel.pk: [row for row in group.rows if _hears(channel, row) and channel.step <= row["step"]]
            for channel in channels
        }
        count += _messages(MessageKind.RESOLVED, group, channels, audience, now)
        for ids in _batches([row["pk"] for row in group.rows]):
            Alert.objects.filter(pk__in=ids).update(recovery_due=False)
    return count


def _hears(channel: Channel, row: Row) -> bool:
    return channel.tenant in ("", row["tenant"]) and _RANKS[channel.severity] <= _RANKS[row["severity"]]


def _say(
    kind: MessageKind,
    group: _Group,
    channels: Sequence[Channel],
    levels: Mapping[str, Levels],
    now: datetime.datetime,
) -> int:
    """Tell each alert of a group to the channels of the next step that hear of it, and write that down."""
    audience: dict[str, list[Row]] = defaultdict(list)
    told: dict[tuple[int, int], list[str]] = defaultdict(list)
    hearing: dict[tuple[str, str, int], list[Channel]] = {}
    rule, own = rule_find(group.rule), levels.get(group.rule)
    for row in group.rows:
        key = (row["tenant"], row["severity"], row["step"])
        if key not in hearing:
            later = [each for each in channels if each.step > row["step"] and _hears(each, row)]
            hearing[key] = [each for each in later if each.step == later[0].step]
        for channel in hearing[key]:
            audience[channel.pk].append(row)
        minutes = own.escalate_minutes(rule.escalate_minutes, row["tenant"]) if own and rule else 0
        step = hearing[key][0].step if hearing[key] else row["step"]
        told[step, minutes if hearing[key] else 0].append(row["pk"])
    for (step, minutes), all_ids in told.items():
        escalate_at = now + datetime.timedelta(minutes=minutes) if minutes else None
        for ids in _batches(all_ids):
            wanted = Alert.objects.filter(pk__in=ids, state=AlertState.OPEN)
            wanted.update(told_at=now, step=step, escalate_at=escalate_at)
    return _messages(kind, group, channels, audience, now)


def _messages(
    kind: MessageKind,
    group: _Group,
    channels: Sequence[Channel],
    audience: Mapping[str, list[Row]],
    now: datetime.datetime,
) -> int:
    """One message for all channels that hear of the same alerts."""
    alike: dict[tuple[str, ...], list[Channel]] = defaultdict(list)
    for channel in channels:
        if rows := audience.get(channel.pk):
            alike[tuple(row["pk"] for row in rows)].append(channel)
    for ids, hearing in alike.items():
        rows = audience[hearing[0].pk]
        message = AlertMessage(
            kind=kind,
            rule=group.rule,
            cause=group.cause,
            severity=rows[0]["severity"],  # The worst ones stand first.
            alerts=list(ids[: AlertMessage.ALERTS_MAX]),
            count=len(ids),
            created_at=now,
        )
        message_queue(message, hearing, now=now)
    return len(alike)


def message_queue(message: AlertMessage, channels: Iterable[Channel], *, now: datetime.datetime) -> list[AlertDelivery]:
    """Save a message with a delivery for each channel, in the caller's transaction."""
    message.save(force_insert=True)
    rows = [
        AlertDelivery(message=message, channel=channel, channel_name=channel.name, due_at=now) for channel in channels
    ]
    return AlertDelivery.objects.bulk_create(rows)


def _batches(items: list[Any]) -> Iterable[list[Any]]:
    return (items[at : at + BATCH_ROWS] for at in range(0, len(items), BATCH_ROWS))
