"""Figures of operations, of the queue, of alerts and of the audit log."""

import datetime
from collections.abc import Iterator

from django.db.models import Count, Min
from prometheus_client.core import Metric

from core import clock
from core.ids import first_id
from operations.exposition import gauge, metrics_register
from operations.models import ACTIVE_STATES, LIVE_STATES, Alert, Operation, OperationState

DAY = datetime.timedelta(days=1)


@metrics_register("operations")
def operations() -> Iterator[Metric]:
    """What waits, what runs, and how the last day went."""
    now = clock.now()
    waiting = Operation.objects.filter(state=OperationState.QUEUED).aggregate(n=Count("pk"), oldest=Min("requested_at"))
    depth = gauge("lastro_queue_depth", "Operations that wait for a worker")
    depth.add_metric([], waiting["n"])
    yield depth
    age = gauge("lastro_queue_oldest_seconds", "How long the oldest of them has waited")
    oldest = waiting["oldest"]
    age.add_metric([], max(0.0, (now - oldest).total_seconds()) if oldest else 0.0)
    yield age
    running = gauge("lastro_operations_running", "Operations at work, by kind", "kind")
    for kind, count in _counted(state__in=ACTIVE_STATES):
        running.add_metric([kind], count)
    yield running
    recent = gauge(
        "lastro_operations_last_day", "Operations requested in the last 24 hours, by kind and state", "kind", "state"
    )
    since = Operation.objects.filter(pk__gte=first_id("opr", now - DAY))
    for kind, state, count in since.order_by().values_list("kind", "state").annotate(n=Count("pk")):
        recent.add_metric([kind, state], count)
    yield recent


def _counted(**which: object) -> "Iterator[tuple[str, int]]":
    rows = Operation.objects.filter(**which).order_by().values_list("kind").annotate(n=Count("pk"))
    yield from ((kind, count) for kind, count in rows)


@metrics_register("alerts")
def alerts() -> Iterator[Metric]:
    """What is wrong and not resolved."""
    live = gauge("lastro_alerts", "Alerts that are not resolved, by rule and severity", "rule", "severity")
    rows = (
        Alert.objects.filter(state__in=LIVE_STATES).order_by().values_list("rule", "severity").annotate(n=Count("pk"))
    )
    for rule, severity, count in rows:
        live.add_metric([rule, severity], count)
    yield live


@metrics_register("audit")
def audit() -> Iterator[Metric]:
    """How long the audit log is, and how far those are who receive it."""
    from audit.forwarding import forward_status
    from audit.services import head_get
    from audit.witness import witness_status

    head = head_get()
    entries = gauge("lastro_audit_entries", "Entries of the audit log since its beginning")
    entries.add_metric([], head.size if head else 0)
    yield entries
    unsigned = gauge("lastro_audit_unsigned_entries", "Entries that no signed checkpoint covers yet")
    unsigned.add_metric([], head.size - head.checkpoint_size if head else 0)
    yield unsigned
    behind = gauge("lastro_audit_behind", "Entries that a witness or a receiver has not got yet", "to")
    for each in witness_status():
        behind.add_metric([_plain(str(each["name"]))], float(str(each["behind"])))
    forward = forward_status()
    if forward is not None:
        behind.add_metric(["syslog"], float(str(forward["behind"])))
    yield behind
    verified = gauge(
        "lastro_audit_verified_timestamp_seconds", "When the whole audit log was last begun to be verified"
    )
    verified.add_metric([], _verified_at())
    yield verified
    altered = gauge("lastro_audit_altered", "1 when the newest look at the whole log has found an alteration")
    altered.add_metric([], _altered())
    yield altered


def _plain(name: str) -> str:
    """A witness without what a URL may hold besides its place."""
    return name.partition("?")[0]


def _verified_at() -> float:
    from audit.tasks import VERIFIED_FACT
    from core.models import Fact

    text = Fact.objects.filter(pk=VERIFIED_FACT).values_list("value", flat=True).first()
    return datetime.datetime.fromisoformat(text).timestamp() if text else 0.0


def _altered() -> int:
    from audit.models import Entry

    return int(Entry.objects.filter(type="audit.altered", timestamp__gte=clock.now() - 2 * DAY).exists())
