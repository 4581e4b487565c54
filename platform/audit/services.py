"""Writing the audit log."""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from audit import merkle, rows
from audit.canonical import bounded, canonical, entry_fields, text_bounded
from audit.models import Entry, Head, Level
from core import clock
from core.origin import origin
from core.rootkey import root_key

HEAD_ID = "head"
ENTRY_BYTES_MAX = 16 << 10
"""What is larger keeps the names of its data alone: details belong into the operation or the manifest."""
ACTOR_CHARS_MAX = 150


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; `data` is JSON without secrets."""

    type: str
    message: str
    actor: str
    tenant: str = ""
    level: str = Level.INFO
    data: Mapping[str, Any] = field(default_factory=dict)


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

    `data` is JSON without secrets; what is too long is cut. Where it comes from is added (`core.origin`). Entries are
    numbered without a gap, so recording transactions follow one another from here to their end: record last.
    """
    return record_many([Event(type, message, actor, tenant, level, data or {})])[0]


def record_many(events: Iterable[Event]) -> list[Entry]:
    """Append several entries at the price of little more than one; as `record` otherwise."""
    # No savepoint: an entry that cannot be written takes the deed with it, and two round trips are saved.
    with transaction.atomic(savepoint=False):
        tip = rows.tip_locked()
        if tip.root_key is None:
            tip.root_key = root_key()  # The installation's very first use of it.
        now, came_from = clock.now(), bounded(origin())
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)  # What is hashed is what databases give back.
        entries = []
        for event in events:
            entry = _entry(event, tip.size)
            entry.timestamp, entry.origin = now, came_from
            leaf = merkle.leaf_hash(_content(entry))
            tip.peaks = merkle.append(tip.peaks, tip.size, leaf)
            tip.size += 1
            entry.leaf_hash, entry.root_hash = leaf.hex(), merkle.root(tip.peaks).hex()
            tip.root_hash = entry.root_hash
            entries.append(entry)
        if not entries:
            return []
        if not tip.log_id:
            tip.log_id = rows.log_id_new()
        due = tip.size - tip.checkpoint_size >= settings.LASTRO_AUDIT_CHECKPOINT_ENTRIES
        if due:
            tip.checkpoint_size = tip.size
        tip.seal = tip.root_key.seal(b"", tip_context(tip))
        rows.entries_write(entries, tip)
        if due:
            from audit.checkpoints import checkpoint_write

            checkpoint_write(tip)
    return entries


def _entry(event: Event, sequence: int) -> Entry:
    return Entry(
        sequence=sequence,
        type=event.type,
        level=str(event.level),
        message=text_bounded(event.message),
        user_id=text_bounded(event.actor, ACTOR_CHARS_MAX),
        tenant=event.tenant,
        data=bounded(event.data) if event.data else {},
    )


def _content(entry: Entry) -> bytes:
    content = canonical(entry_fields(entry))
    if len(content) > ENTRY_BYTES_MAX:
        entry.data = {"left_out": sorted(map(str, entry.data))[:100]}
        content = canonical(entry_fields(entry))
    return content


# ---------------------------------------------------------------- what the seal of the head binds


def seal_context(head: Head) -> str:
    """What the head's seal binds; it is made with an empty plaintext, for its authentication alone."""
    if not head.log_id:  # Sealed before logs had names; the next entry gives it one.
        return f"lastro/audit-head/v1/{head.size}/{head.root_hash}"
    kept = json.dumps([head.lineage, head.frontier], sort_keys=True)
    return _context(head.size, head.root_hash, head.log_id, head.first, head.checkpoint_size, _digest(kept))


def tip_context(tip: "rows.Tip") -> str:
    """The same for a head that is about to be written."""
    kept = _digest_of_texts(tip.lineage_text, tip.frontier_text)
    return _context(tip.size, tip.root_hash, tip.log_id, tip.first, tip.checkpoint_size, kept)


def _context(size: int, root_hash: str, log_id: str, first: int, checkpoint_size: int, kept: str) -> str:
    return f"lastro/audit-head/v2/{log_id}/{size}/{root_hash}/{first}/{checkpoint_size}/{kept}"


@functools.lru_cache(maxsize=4)
def _digest_of_texts(lineage: str, frontier: str) -> str:
    return _digest(json.dumps([json.loads(lineage), json.loads(frontier)], sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def head_get() -> Head | None:
    """The head as it stands; None before the first entry."""
    return Head.objects.using(connection.alias).filter(pk=HEAD_ID).first()
