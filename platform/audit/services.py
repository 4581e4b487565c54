"""Writing the audit log."""

import datetime
from collections.abc import Mapping
from typing import Any

from django.db import transaction

from audit import merkle
from audit.canonical import entry_bytes
from audit.models import Entry, Head, Level
from core import clock
from core.rootkey import root_key

HEAD_ID = "head"
ENTRY_BYTES_MAX = 16 << 10
"""More than this is a mistake of the caller: details belong into the operation or the manifest."""


def record(
    type: str,
    *,
    message: str,
    actor: str,
    tenant: str = "",
    level: str = Level.INFO,
    data: Mapping[str, Any] | None = None,
) -> Entry:
    """Append an entry inside the caller's transaction: the deed and its entry commit together or not at all.

    `data` is JSON without secrets, integers within 2^53 (RFC 8785). Entries are numbered without a gap, so
    recording transactions follow one another from here to their end: record last.
    """
    with transaction.atomic():
        head = _locked_head()
        entry = Entry(
            sequence=head.size,
            timestamp=_whole_milliseconds(clock.now()),
            type=type,
            level=level,
            message=message,
            user_id=actor,
            tenant=tenant,
            data=dict(data or {}),
        )
        content = entry_bytes(entry)
        assert len(content) <= ENTRY_BYTES_MAX, f"audit entry {type} is too large"
        leaf = merkle.leaf_hash(content)
        peaks = merkle.append([bytes.fromhex(peak) for peak in head.peaks], head.size, leaf)
        entry.leaf_hash, entry.root_hash = leaf.hex(), merkle.root(peaks).hex()
        entry.save(force_insert=True)
        head.size, head.root_hash, head.peaks = head.size + 1, entry.root_hash, [peak.hex() for peak in peaks]
        head.seal = root_key().seal(b"", seal_context(head))
        head.save(force_update=True)
    return entry


def seal_context(head: Head) -> str:
    """What the head's seal binds; it is made with an empty plaintext, for its authentication alone."""
    return f"lastro/audit-head/v1/{head.size}/{head.root_hash}"


def _locked_head() -> Head:
    head = Head.objects.select_for_update().filter(pk=HEAD_ID).first()
    if head is not None:
        return head
    # The first entry of all. Of two that race the second waits at the key and then finds the row.
    Head.objects.bulk_create([Head(id=HEAD_ID, root_hash=merkle.EMPTY_ROOT.hex(), seal=b"")], ignore_conflicts=True)
    return Head.objects.select_for_update().get(pk=HEAD_ID)


def _whole_milliseconds(at: datetime.datetime) -> datetime.datetime:
    # What is hashed must be what the database and the exports give back.
    return at.replace(microsecond=at.microsecond // 1000 * 1000)
