"""Sending every entry on to a SIEM: in order, without a gap, each at least once."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from django.conf import settings

from audit.deliveries import delivery_claim, delivery_done, delivery_failed, delivery_moved
from audit.models import Delivery
from audit.reading import stored_entries
from audit.services import head_get, record
from audit.syslog import cef, messages_send, receiver_read, rfc5424
from engine.errors import LastroError
from engine.faults import kill_point

BATCH_ENTRIES = 500
RUN_SECONDS = 50
NAME = "syslog"
SYSTEM = "system:audit"


@dataclass(frozen=True, slots=True)
class Forwarded:
    """How a run went."""

    sent: int
    position: int
    behind: int
    error: str = ""


def entries_forward(*, urgent: bool = False) -> Forwarded | None:
    """Send what was not sent yet; None when nothing is to be sent to anybody, or somebody else is at it.

    The row of the receiver moves after a batch has arrived: who is killed in between sends it twice, never not at all.
    """
    head = head_get()
    if not settings.LASTRO_AUDIT_SYSLOG or head is None:
        return None
    # Another receiver begins at the beginning; so does the log of an adopted catalogue, whose entries it may lack.
    delivery = delivery_claim(f"{NAME} {settings.LASTRO_AUDIT_SYSLOG}"[:200], log_id=head.log_id, urgent=urgent)
    if delivery is None:
        return None
    begun, at = time.monotonic(), max(delivery.position, head.first)
    sent = 0
    try:
        receiver = receiver_read(settings.LASTRO_AUDIT_SYSLOG)
        form = cef if settings.LASTRO_AUDIT_SYSLOG_FORMAT == "CEF" else rfc5424
        while at < head.size and time.monotonic() - begun < RUN_SECONDS:
            until = min(at + BATCH_ENTRIES, head.size)
            messages_send(
                receiver,
                (form(fields, leaf) for fields, leaf, _ in stored_entries(at, until)),
                authorities=settings.LASTRO_AUDIT_SYSLOG_CA,
                certificate=settings.LASTRO_AUDIT_SYSLOG_CERTIFICATE,
            )
            kill_point("audit.forwarded")
            delivery_moved(delivery, until)
            sent, at = sent + until - at, until
    except LastroError as error:
        delivery_failed(delivery, error.message)
        if not delivery.failures:
            record("audit.forward_failed", message=error.message, actor=SYSTEM, level="warning")
        return Forwarded(sent, at, head.size - at, error.message)
    delivery_done(delivery)
    return Forwarded(sent, at, head.size - at)


def forward_status() -> Mapping[str, object] | None:
    """How far the receiver is; None when there is none."""
    if not settings.LASTRO_AUDIT_SYSLOG:
        return None
    head = head_get()
    row = Delivery.objects.filter(pk=f"{NAME} {settings.LASTRO_AUDIT_SYSLOG}"[:200]).first()
    row = row or Delivery(pk=NAME)
    return {
        "name": settings.LASTRO_AUDIT_SYSLOG, "position": row.position,
        "behind": max(0, (head.size if head else 0) - row.position), "sent_at": row.sent_at, "failures": row.failures,
        "next_try": row.not_before, "error": row.error or None,
    }  # fmt: skip
