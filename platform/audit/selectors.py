"""Reading the audit log: pages that cost little whatever is asked, and streams of all of it."""

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from django.db import connection
from django.db.models import Q
from django.db.models.functions import Coalesce

from audit.models import Entry, Level
from audit.services import head_get
from core.errors import NotFound

LIST_MAX = 1_000
BATCH_ROWS = 2_000
SCAN_ROWS = 20_000
"""Entries that one page looks at, at the most; what it has not found among them it goes on looking for when asked again."""
SCAN_ROWS_TEXT = 5_000
"""The same where texts are compared, for which whole rows must be read."""
TYPES_MAX = 500
_COMPARED = {f"plain_{name}": Coalesce(name, name) for name in ("type", "user_id", "level", "timestamp")}
"""Columns as no index has them. Without knowing the figures a planner takes a second filter's index for the better one
and reads half the table; what leads is for us to say."""


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


@dataclass(frozen=True, slots=True)
class Page:
    """Entries, newest first; `before` goes on behind them, None at the log's end. A page may be empty and not the last."""

    rows: list[Entry] = field(default_factory=list)
    before: int | None = None


def entry_page(wanted: Filter, *, limit: int) -> Page:
    """One page; `type` also matches what is below it (`backup` finds `backup.created`).

    The most telling filter leads along its index; of what it leads to, SCAN_ROWS entries are looked at.
    """
    first = _first()
    limit = min(limit, LIST_MAX)
    types = _types_below(wanted.type) if wanted.type else None
    if types is not None and not types:
        return Page()
    leads = _leads(wanted, types)
    if wanted.since or wanted.until:
        wanted, first = _bounded_by_time(wanted, first)
    rest = _rest(wanted, types)
    found, floor = list[Entry](), first
    at = (SCAN_ROWS_TEXT if wanted.text else SCAN_ROWS) // len(leads)
    for lead in leads:
        stream, low = Entry.objects.filter(lead).order_by("-sequence"), first
        if wanted.before is not None:
            stream = stream.filter(sequence__lt=wanted.before)
        if rest:
            beyond = stream.filter(sequence__gte=first).values_list("sequence", flat=True)[at : at + 1]
            low = max((sequence + 1 for sequence in beyond), default=first)
            stream = stream.alias(**_COMPARED).filter(rest)
        floor = max(floor, low)
        found += stream.filter(sequence__gte=low)[: limit + 1]
    rows = sorted((row for row in found if row.sequence >= floor), key=lambda row: -row.sequence)
    if len(rows) > limit:
        return Page(rows[:limit], rows[limit - 1].sequence)
    return Page(rows, floor if floor > first else None)


def entry_list(wanted: Filter, *, limit: int) -> list[Entry]:
    """So many entries, newest first, however far back they lie."""
    rows: list[Entry] = []
    limit = min(limit, LIST_MAX)
    while len(rows) < limit:
        page = entry_page(wanted, limit=limit - len(rows))
        rows += page.rows
        if page.before is None:
            break
        wanted = replace(wanted, before=page.before)
    return rows


def entry_get(name: str) -> Entry:
    """An entry by its id or its sequence number. Raises NotFound."""
    if name.isascii() and name.isdigit() and len(name) < 19:
        found = Entry.objects.filter(sequence=int(name)).first()
    else:
        found = Entry.objects.filter(pk=name[:40]).first()
    if found is None or found.sequence < _first():
        raise NotFound(f"there is no entry {name[:60]!r} in the audit log", hint="audit list shows their numbers")
    return found


def entries(wanted: Filter) -> Iterator[Entry]:
    """All of them, oldest first, streamed in pages: no cursor stays open, and memory stays bounded."""
    types = _types_below(wanted.type) if wanted.type else None
    lead, rest = _equalities(wanted)[:1], _rest(wanted, types)
    if types is not None:
        rest &= Q(plain_type__in=types)
    every = Entry.objects.alias(**_COMPARED).filter(rest, *lead).order_by("sequence")
    if wanted.before is not None:
        every = every.filter(sequence__lt=wanted.before)
    at, head = _first(), head_get()
    end = head.size if head else 0
    if _equalities(wanted):
        while page := list(every.filter(sequence__gte=at, sequence__lt=end)[:BATCH_ROWS]):
            yield from page
            at = page[-1].sequence + 1
        return
    for begin in range(at, end, BATCH_ROWS):
        yield from every.filter(sequence__gte=begin, sequence__lt=min(begin + BATCH_ROWS, end))


# ---------------------------------------------------------------- how a page is found


def _leads(wanted: Filter, types: list[str] | None) -> list[Q]:
    """Along which index to go: one stream, or one for each of a few types."""
    equal = _equalities(wanted)
    if equal:
        return equal[:1]
    return [Q(type=each) for each in types] if types is not None else [Q()]


def _equalities(wanted: Filter) -> list[Q]:
    found = []
    if wanted.tenant:
        found.append(Q(tenant=wanted.tenant))
    if wanted.user:
        found.append(Q(user_id=wanted.user))
    if wanted.level and wanted.level != Level.INFO:
        found.append(Q(level=wanted.level))
    return found


def _rest(wanted: Filter, types: list[str] | None) -> Q:
    """What is asked for besides what leads, in columns that no index has (`_COMPARED`)."""
    rest = Q()
    if wanted.tenant and wanted.user:
        rest &= Q(plain_user_id=wanted.user)
    if wanted.level and (wanted.level == Level.INFO or wanted.tenant or wanted.user):
        rest &= Q(plain_level=wanted.level)
    if types is not None and _equalities(wanted):
        rest &= Q(plain_type__in=types)
    if wanted.since:
        rest &= Q(plain_timestamp__gte=wanted.since)
    if wanted.until:
        rest &= Q(plain_timestamp__lt=wanted.until)
    if wanted.text:
        rest &= Q(message__icontains=wanted.text)
    return rest


def _bounded_by_time(wanted: Filter, first: int) -> tuple[Filter, int]:
    """Where in the log the times lie: along the index of times, SCAN_ROWS to either side.

    Clocks of several hosts differ, so neighbours in time need not be neighbours in the log; what is found is compared
    all the same. Entries that a wrong clock has put further off than that are found without times only.
    """
    by_time = Entry.objects.order_by("timestamp", "sequence").values_list("sequence", flat=True)
    if wanted.until:
        nearest = by_time.filter(timestamp__lt=wanted.until).reverse()[:SCAN_ROWS]
        before = max(nearest, default=-1) + 1
        wanted = replace(wanted, before=before if wanted.before is None else min(before, wanted.before))
    if wanted.since:
        first = max(first, min(by_time.filter(timestamp__gte=wanted.since)[:SCAN_ROWS], default=1 << 62))
    return wanted, first


def _types_below(wanted: str) -> list[str]:
    """The type itself and those below it, of those that occur: found by leaps along the index, not by reading it."""
    statement = (
        "WITH RECURSIVE each(type) AS (SELECT min(type) FROM audit_entry UNION ALL "
        "SELECT (SELECT min(type) FROM audit_entry WHERE type > each.type) FROM each WHERE each.type IS NOT NULL) "
        "SELECT type FROM each WHERE type IS NOT NULL LIMIT %s"
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, [TYPES_MAX])
        found: list[Any] = [row[0] for row in cursor.fetchall()]
    return [each for each in found if each == wanted or each.startswith(f"{wanted}.")]


def _first() -> int:
    head = head_get()
    return head.first if head else 0
