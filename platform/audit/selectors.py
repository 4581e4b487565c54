"""Reading the audit log."""

import datetime
from collections.abc import Iterator
from dataclasses import dataclass

from django.db.models import QuerySet

from audit.models import Entry

LIST_MAX = 1_000
BATCH_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries; empty fields match all. `before` is a sequence number, for paging backwards."""

    tenant: str = ""
    type: str = ""
    level: str = ""
    user: str = ""
    since: datetime.datetime | None = None
    until: datetime.datetime | None = None
    text: str = ""
    before: int | None = None


def entry_list(wanted: Filter, *, limit: int) -> list[Entry]:
    """Newest first; `type` also matches what is below it (`backup` finds `backup.created`)."""
    return list(_filtered(wanted).order_by("-sequence")[: min(limit, LIST_MAX)])


def entries(wanted: Filter) -> Iterator[Entry]:
    """All of them, oldest first, streamed."""
    return _filtered(wanted).order_by("sequence").iterator(chunk_size=BATCH_ROWS)


def _filtered(wanted: Filter) -> QuerySet[Entry]:
    rows = Entry.objects.all()
    if wanted.tenant:
        rows = rows.filter(tenant=wanted.tenant)
    if wanted.type:
        rows = rows.filter(type=wanted.type) | rows.filter(type__startswith=f"{wanted.type}.")
    if wanted.level:
        rows = rows.filter(level=wanted.level)
    if wanted.user:
        rows = rows.filter(user_id=wanted.user)
    if wanted.since:
        rows = rows.filter(timestamp__gte=wanted.since)
    if wanted.until:
        rows = rows.filter(timestamp__lt=wanted.until)
    if wanted.text:
        rows = rows.filter(message__icontains=wanted.text)
    if wanted.before is not None:
        rows = rows.filter(sequence__lt=wanted.before)
    return rows
