"""The words of a message, made when it is sent: what a shredded tenant's alerts said is said no more.

Everything that came from outside is one line of bounded length without control characters (evaluating.one_line); each
channel escapes it for its own mark-up. No message holds a secret: alerts are made of what the catalogue shows anyway.
"""

from dataclasses import dataclass, field
from typing import Any

from django.conf import settings

from core.text import counted
from operations.alerting.alerts import next_step
from operations.alerting.evaluating import one_line
from operations.alerting.rules import rule_find
from operations.models import Alert, AlertMessage, MessageKind

SUBJECT_CHARS_MAX = 150
NAMED_MAX = 5
_TOLD = {
    MessageKind.OPENED: "",
    MessageKind.REMINDER: "still open: ",
    MessageKind.ESCALATED: "nobody has acknowledged: ",
    MessageKind.RESOLVED: "over: ",
}


@dataclass(frozen=True)
class Item:
    """One alert in a message."""

    where: str
    message: str
    next_step: str
    alert: str


@dataclass(frozen=True)
class Words:
    """What is said, in plain text; `data` is the same for programs."""

    kind: str
    severity: str
    subject: str
    lead: str
    items: tuple[Item, ...]
    more: int
    footer: tuple[str, ...]
    link: str
    data: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """All of it as lines."""
        lines = [self.lead, ""]
        for item in self.items:
            lines.append(f"* {item.where}: {item.message}" if item.where else f"* {item.message}")
            if item.next_step:
                lines.append(f"  What to do: {item.next_step}")
        if self.more:
            lines.append(f"* and {self.more:,} more")
        return "\n".join([*lines, "", *self.footer, *([self.link] if self.link else [])]).strip() + "\n"


def words_of(message: AlertMessage) -> Words:
    """Put a message into words."""
    if message.kind == MessageKind.TEST:
        return _test(message)
    if message.kind in (MessageKind.NOTICE, MessageKind.REPORT):
        return _content(message)
    return _alerts(message)


def _link(path: str) -> str:
    return f"{settings.LASTRO_PUBLIC_URL}{path}" if settings.LASTRO_PUBLIC_URL else ""


def _alerts(message: AlertMessage) -> Words:
    rows = Alert.objects.in_bulk(message.alerts)
    found = [rows[pk] for pk in message.alerts if pk in rows]
    rule = rule_find(message.rule)
    title = rule.title if rule else message.rule
    steps = [next_step(row) for row in found]
    same_step = len(set(steps)) == 1 and len(steps) > 1
    items = tuple(
        Item(_where(row), row.message, "" if same_step else step, row.pk)
        for row, step in zip(found[:NAMED_MAX], steps, strict=False)
    )
    told = _TOLD[MessageKind(message.kind)]
    head = f"{message.severity.upper()}: {told}" if message.kind != MessageKind.RESOLVED else "OVER: "
    if message.count == 1 and found:
        what = f"{_where(found[0])}: {found[0].message}" if _where(found[0]) else found[0].message
    else:
        what = f"{title}: {message.count:,} at once{f' ({message.cause})' if message.cause else ''}"
    footer = []
    if same_step and message.kind != MessageKind.RESOLVED:
        footer.append(f"What to do: {steps[0]}")
    if message.kind != MessageKind.RESOLVED and found:
        footer.append(f"All of them: lastro alert list --rule {message.rule}")
        group = " --group" if message.count > 1 else ""
        footer.append(f"Somebody is at it: lastro alert ack {found[0].pk}{group}")
    return Words(
        kind=message.kind,
        severity=message.severity,
        subject=one_line(f"{head}{what}", SUBJECT_CHARS_MAX),
        lead=one_line(f"{head}{what}", 700),
        items=items if message.count > 1 else _only(items),
        more=max(0, message.count - len(items)),
        footer=tuple(footer),
        link=_link(f"/?tenant={found[0].tenant}" if len(found) == 1 and found[0].tenant else "/"),
        data=_data(message, found),
    )


def _only(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """A single alert is in the lead already: what remains is what to do."""
    return tuple(Item("", f"What to do: {item.next_step}", "", item.alert) for item in items if item.next_step)


def _where(row: Alert) -> str:
    return one_line(row.subject or row.tenant, 200)


def _data(message: AlertMessage, found: list[Alert]) -> dict[str, Any]:
    return {
        "rule": message.rule,
        "severity": message.severity,
        "cause": message.cause,
        "count": message.count,
        "alerts": [
            {
                "id": row.pk,
                "tenant": row.tenant or None,
                "subject": row.subject,
                "severity": row.severity,
                "state": row.state,
                "message": row.message,
                "next_step": next_step(row),
                "opened_at": row.created_at.isoformat().replace("+00:00", "Z"),
                "occurrences": row.occurrences,
            }
            for row in found
        ],
    }


def _test(message: AlertMessage) -> Words:
    said = "This is a test: this channel works."
    return Words(
        message.kind, message.severity, "Lastro: test of a channel", said, (), 0, (), _link("/"), {"test": True}
    )


def _content(message: AlertMessage) -> Words:
    content = message.content
    lines = [str(line) for line in content.get("lines", ())]
    items = tuple(Item("", one_line(line, 700), "", "") for line in lines)
    return Words(
        kind=message.kind,
        severity=message.severity,
        subject=one_line(str(content.get("subject", "")), SUBJECT_CHARS_MAX),
        lead=one_line(str(content.get("lead", "")), 700),
        items=items,
        more=int(content.get("more", 0)),
        footer=tuple(str(each) for each in content.get("footer", ())),
        link=_link("/"),
        data=dict(content.get("data", {})),
        report=content if message.kind == MessageKind.REPORT else None,
    )


def counted_tenants(count: int) -> str:
    """`1 tenant`, `12 tenants`."""
    return counted(count, "tenant")
