"""The statements behind an append: few, because every change of the catalogue waits for them.

The row of the head is what serialises. Django's ORM would take five statements and a millisecond of processor time for
one entry; this takes two (three on SQLite, which has no round trips).
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import connection

from audit import merkle
from audit.models import Entry, Head
from core.rootkey import FORMER_FACT, ROOT_KEY_FACT, root_key

if TYPE_CHECKING:
    from engine.keys import RootKey

STATEMENT_ROWS_MAX = 200

_HEAD = (
    "SELECT size, root_hash, peaks, log_id, lineage, first, frontier, checkpoint_size FROM audit_head WHERE id = 'head'"
)
_FACTS = f"SELECT name, value FROM core_fact WHERE name IN ('{ROOT_KEY_FACT}', '{FORMER_FACT}')"  # noqa: S608 - constants
_COLUMNS = (
    "id", "created_at", "sequence", "timestamp", "type", "level", "message", "user_id", "tenant", "data", "origin",
    "leaf_hash", "root_hash",
)  # fmt: skip
_INSERT = f"INSERT INTO audit_entry ({', '.join(_COLUMNS)}) VALUES "  # noqa: S608 - constants
_UPDATE = "UPDATE audit_head SET size = %s, root_hash = %s, peaks = %s, log_id = %s, checkpoint_size = %s, seal = %s WHERE id = 'head'"


@dataclass(slots=True)
class Tip:
    """The head under lock, and the root key that seals it."""

    size: int
    root_hash: str
    peaks: list[bytes]
    log_id: str
    lineage_text: str
    first: int
    frontier_text: str
    checkpoint_size: int
    root_key: "RootKey | None"
    seal: bytes = b""


def tip_locked() -> Tip:
    """Lock the head and read it, making it where there is none."""
    found, facts = _read()
    if found is None:
        # The first entry of all. Of two that race the second waits at the key and then finds the row.
        Head.objects.bulk_create([Head(id="head", root_hash=merkle.EMPTY_ROOT.hex(), seal=b"")], ignore_conflicts=True)
        found, facts = _read()
        assert found is not None
    size, root_hash, peaks, log_id, lineage, first, frontier, checkpoint_size = found
    known = facts.get(ROOT_KEY_FACT, "")
    key = root_key.named(known, facts.get(FORMER_FACT, "")) if known else None
    return Tip(
        size, root_hash, [bytes.fromhex(peak) for peak in _json(peaks)], log_id, _text(lineage), first, _text(frontier),
        checkpoint_size, key,
    )  # fmt: skip


def _read() -> tuple[Any, dict[str, str]]:
    """Head and root key's ids. The ids are read after the lock is held, or a rotation in between would be missed."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # One round trip; each statement of it sees what was committed when its turn came.
            cursor.execute(f"{_HEAD} FOR UPDATE; {_FACTS}")
            head = cursor.fetchone()
            cursor.nextset()
        else:
            cursor.execute(_HEAD)
            head = cursor.fetchone()
            cursor.execute(_FACTS)
        return head, dict(cursor.fetchall())


def entries_write(entries: Sequence[Entry], tip: Tip) -> None:
    """Insert the entries and move the head."""
    head: list[Any] = [
        tip.size,
        tip.root_hash,
        json.dumps([peak.hex() for peak in tip.peaks]),
        tip.log_id,
        tip.checkpoint_size,
    ]
    *batches, last = [entries[at : at + STATEMENT_ROWS_MAX] for at in range(0, len(entries), STATEMENT_ROWS_MAX)]
    with connection.cursor() as cursor:
        for batch in batches:
            cursor.execute(*_inserting(batch))
        statement, values = _inserting(last)
        if connection.vendor == "postgresql":
            cursor.execute(f"WITH written AS ({statement}) {_UPDATE}", [*values, *head, tip.seal])
        else:
            cursor.execute(statement, values)
            cursor.execute(_UPDATE, [*head, tip.seal])
        assert cursor.rowcount == 1, "the head was locked"


def _inserting(entries: Sequence[Entry]) -> tuple[str, list[Any]]:
    values: list[Any] = []
    adapt = connection.ops.adapt_datetimefield_value
    for entry in entries:
        values += (
            entry.pk, adapt(entry.created_at), entry.sequence, adapt(entry.timestamp), entry.type, entry.level,
            entry.message, entry.user_id, entry.tenant, json.dumps(entry.data), json.dumps(entry.origin),
            entry.leaf_hash, entry.root_hash,
        )  # fmt: skip
        entry._state.adding, entry._state.db = False, connection.alias
    row = "(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
    if connection.vendor == "postgresql":
        row = "(%s, %s::timestamptz, %s, %s::timestamptz, %s, %s, %s, %s, %s, %s::jsonb, %s::jsonb, %s, %s)"
    return _INSERT + ", ".join([row] * len(entries)), values


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _json(value: Any) -> list[str]:
    found: list[str] = json.loads(value) if isinstance(value, str) else value
    return found


def log_id_new() -> str:
    """A name for a log that has none yet."""
    return secrets.token_hex(8)
