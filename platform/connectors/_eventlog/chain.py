"""Verify the hash chain of an event log, one segment at a time.

The rule is the owner's (docs/formats/event-log-package.md): `current_hash` is the SHA-256 of seven
fields joined by `|`. An event's `id` is not among them, so that the chain proves everything but the ids.
"""

import datetime
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal

from connectors._eventlog.segment import SegmentMalformed, SegmentName, read_events

FIELDS = (
    "id",
    "timestamp",
    "actor",
    "evento",
    "entidade",
    "entidade_id",
    "payload_hash",
    "previous_hash",
    "current_hash",
)
FINDINGS_MAX = 20
NAMES_MAX = 20
TEXT_CHARS_MAX = 500

Reason = Literal[
    "malformed_json",
    "not_an_object",
    "missing_field",
    "bad_field",
    "bad_timestamp",
    "previous_hash_broken",
    "hash_differs",
    "segment_duplicate",
    "segment_gap",
    "segment_unreadable",
    "snapshot_malformed",
    "snapshot_differs",
]

_ROW = itemgetter(*FIELDS)
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong and where. `event_id` is None where no event can be named (text that is no JSON)."""

    reason: Reason
    event_id: str | None
    file: str
    segment: int | None
    index: int | None
    detail: str

    def __str__(self) -> str:
        event = f"event {self.event_id}" if self.event_id is not None else "an event that cannot be named"
        place = self.file if self.index is None else f"{self.file} index {self.index}"
        return f"{event} in {place}: {self.detail}"

    def as_json(self) -> dict[str, Any]:
        return {
            "event_id": self.event_id,
            "file": self.file,
            "segment": self.segment,
            "index": self.index,
            "reason": self.reason,
            "detail": self.detail,
        }


@dataclass(frozen=True, slots=True)
class Mark:
    """An event by its place, as the snapshot names one. `total` counts the retained events up to it."""

    segment: int
    index: int
    event_id: str | None
    current_hash: str | None
    timestamp: str | None
    total: int


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What a verification found; an empty log is valid with None for its ids."""

    total_events: int
    total_segments: int
    first_event_id: str | None
    last: Mark | None
    first_segment: int | None
    trusted_previous_hash: str | None
    """The `previous_hash` that older, pruned segments would have proven; None where the genesis is retained."""
    unhashed_fields: tuple[str, ...]
    """Names of fields beyond the nine; no hash covers them."""
    findings: tuple[Finding, ...]
    finding_count: int
    watched: Mark | None

    @property
    def valid(self) -> bool:
        return self.finding_count == 0

    @property
    def pruned(self) -> bool:
        """Whether the beginning of the log is gone, so that the chain is proven from its first retained event only."""
        return self.trusted_previous_hash is not None or (self.first_segment or 1) > 1

    def summary(self, *, snapshot_exists: bool) -> dict[str, Any]:
        """The `eventlog_summary` of the package manifest, fields in its order."""
        return {
            "total_events": self.total_events,
            "total_segments": self.total_segments,
            "first_event_id": self.first_event_id,
            "last_event_id": self.last.event_id if self.last else None,
            "last_current_hash": self.last.current_hash if self.last else None,
            "snapshot_exists": snapshot_exists,
        }


def event_hash(event: Mapping[str, Any]) -> str:
    """Return the `current_hash` that the event's fields must have."""
    previous, hashed = event["previous_hash"] or "", FIELDS[1:7]
    return hashlib.sha256("|".join([previous, *(event[name] for name in hashed)]).encode()).hexdigest()


class ChainVerifier:
    """Takes segments in ascending order and remembers only the chain's end, counts and the first findings."""

    def __init__(self, *, watch: tuple[int, int] | None = None) -> None:
        self._watch = watch
        self._watched: Mark | None = None
        self._total = self._segments = 0
        self._first_id: str | None = None
        self._first_segment: int | None = None
        self._last: Mark | None = None
        self._last_number: int | None = None
        self._trusted: str | None = None
        self._anchor: str | None = None
        self._state: Literal["start", "linked", "lost"] = "start"
        self._unhashed: set[str] = set()
        self._findings: list[Finding] = []
        self._finding_count = 0

    @property
    def total(self) -> int:
        """Events seen so far."""
        return self._total

    def segment(self, name: SegmentName, blocks: Iterable[bytes]) -> None:
        """Check one segment; its file is read no further than it is JSON."""
        self._segments += 1
        if self._first_segment is None:
            self._first_segment = name.number
        structure = self._structure(name)
        index = 0
        try:
            for batch in read_events(blocks):
                if structure is not None:
                    self._note(structure[0], name, 0, _id_of(batch[0]), structure[1])
                    if structure[0] == "segment_duplicate":
                        return
                    # The event behind a gap is the finding itself: trust its link, check the rest of it.
                    self._state, structure = "lost", None
                index = self._events(name, index, batch)
        except SegmentMalformed as error:
            self._note_structure(name, structure)
            after = f", after event {self._last.event_id}" if index and self._last else ""
            self._note("malformed_json", name, index, None, f"{error}{after}")
            self._state = "lost"
            return
        self._note_structure(name, structure)

    def unreadable(self, name: SegmentName, detail: str) -> None:
        """Count a segment whose bytes cannot be had."""
        self._segments += 1
        self._last_number = name.number
        self._state = "lost"
        self._note("segment_unreadable", name, None, None, detail)

    def report(self) -> ChainReport:
        return ChainReport(
            total_events=self._total,
            total_segments=self._segments,
            first_event_id=self._first_id,
            last=self._last,
            first_segment=self._first_segment,
            trusted_previous_hash=self._trusted,
            unhashed_fields=tuple(sorted(self._unhashed)),
            findings=tuple(self._findings),
            finding_count=self._finding_count,
            watched=self._watched,
        )

    def _structure(self, name: SegmentName) -> tuple[Reason, str] | None:
        last, self._last_number = self._last_number, name.number
        if last is None or name.number == last + 1:
            return None
        if name.number == last:
            return "segment_duplicate", f"segment {name.number} is there twice"
        assert name.number > last, "segments must come in ascending order"
        missing = f"{last + 1}" if name.number == last + 2 else f"{last + 1} to {name.number - 1}"
        return "segment_gap", f"gap in the segment numbers: {missing} missing before {name.number}"

    def _note_structure(self, name: SegmentName, structure: tuple[Reason, str] | None) -> None:
        """Report a gap or duplicate of a segment that has no event to name."""
        if structure is not None:
            self._note(structure[0], name, None, None, structure[1])

    def _events(self, name: SegmentName, index: int, batch: list[Any]) -> int:
        """The hot loop: everything that holds for a good event, in one pass; `_judge` explains the others."""
        sha256, is_timestamp, parse = hashlib.sha256, _TIMESTAMP.fullmatch, datetime.datetime.fromisoformat
        watch_index = self._watch[1] if self._watch is not None and self._watch[0] == name.number else -1
        first, start = self._total == 0, index
        anchor = self._anchor if self._state == "linked" else None
        for event in batch:
            try:
                identity, stamp, actor, evento, entity, entity_id, payload, previous, current = _ROW(event)
                text = "|".join((previous, stamp, actor, evento, entity, entity_id, payload))
                if (
                    previous != anchor
                    or sha256(text.encode()).hexdigest() != current
                    or len(event) != 9
                    or type(identity) is not str
                    or not identity
                    or is_timestamp(stamp) is None
                ):
                    raise ValueError
                parse(stamp)
                anchor = current
            except (KeyError, TypeError, ValueError):
                self._anchor = anchor
                anchor = self._judge(name, index, event)
            if index == watch_index:
                self._watched = _mark(name, index, event, self._total + index - start + 1)
            index += 1
        if batch:
            if first:
                self._first_id = _id_of(batch[0])
            self._total += index - start
            self._last = _mark(name, index - 1, batch[-1], self._total)
            self._anchor, self._state = anchor, "linked" if anchor is not None else "lost"
        return index

    def _judge(self, name: SegmentName, index: int, event: Any) -> str | None:
        """Say what is wrong with an event, if anything is; return what the next one must link to."""
        if not isinstance(event, dict):
            self._note("not_an_object", name, index, None, "an element of the array is no object")
            self._state = "lost"
            return None
        problem = _field_problem(event) or self._link_problem(name, event) or _hash_problem(event)
        if problem is not None:
            self._note(problem[0], name, index, _id_of(event), problem[1])
        if len(self._unhashed) < NAMES_MAX:
            self._unhashed.update(_kept(field) for field in sorted(event.keys() - set(FIELDS))[:NAMES_MAX])
        current = event.get("current_hash")
        usable = isinstance(current, str) and _HASH.fullmatch(current) is not None
        self._state = "linked" if usable else "lost"
        return current if usable else None

    def _link_problem(self, name: SegmentName, event: dict[str, Any]) -> tuple[Reason, str] | None:
        previous = event["previous_hash"]
        if self._state == "start":
            if previous is not None and name.number <= 1:
                return (
                    "previous_hash_broken",
                    "the log's first event names a predecessor, so that the genesis is missing",
                )
            self._trusted = previous
            return None
        if self._state == "lost":
            return None
        if previous != self._anchor:
            return (
                "previous_hash_broken",
                f"previous_hash {_short(previous)} is not {_short(self._anchor)} of the event before",
            )
        return None

    def _note(self, reason: Reason, name: SegmentName, index: int | None, event_id: str | None, detail: str) -> None:
        self._finding_count += 1
        if len(self._findings) < FINDINGS_MAX:
            self._findings.append(Finding(reason, event_id, name.path, name.number, index, detail))


def _short(value: Any) -> str:
    return f"{_kept(value[:12])}…" if isinstance(value, str) else "null"


def _id_of(event: Any) -> str | None:
    """The id as text that can be kept and shown: hostile ones are cut and cleaned."""
    identity = event.get("id") if isinstance(event, dict) else None
    return _kept(identity) if isinstance(identity, str) else None


def _kept(text: str) -> str:
    if len(text) > TEXT_CHARS_MAX:
        text = f"{text[:TEXT_CHARS_MAX]}…"
    return text.encode("utf-8", "replace").decode("utf-8")


def _mark(name: SegmentName, index: int, event: Any, total: int) -> Mark:
    fields = event if isinstance(event, dict) else {}
    current, stamp = fields.get("current_hash"), fields.get("timestamp")
    return Mark(
        segment=name.number,
        index=index,
        event_id=_id_of(event),
        current_hash=_kept(current) if isinstance(current, str) else None,
        timestamp=_kept(stamp) if isinstance(stamp, str) else None,
        total=total,
    )


def _field_problem(event: dict[str, Any]) -> tuple[Reason, str] | None:
    for field in FIELDS:
        if field not in event:
            return "missing_field", f"field {field} is missing"
    for field in FIELDS:
        value = event[field]
        if field == "previous_hash" and value is None:
            continue
        if not isinstance(value, str) or (field == "id" and not value):
            return "bad_field", f"field {field} is no text"
        try:
            value.encode()
        except UnicodeEncodeError:
            return "bad_field", f"field {field} is no text that UTF-8 can hold"
        if field.endswith("_hash") and field != "payload_hash" and _HASH.fullmatch(value) is None:
            return "bad_field", f"field {field} is no SHA-256 in lower-case hex"
    if not _is_instant(event["timestamp"]):
        return "bad_timestamp", "timestamp is no ISO 8601 instant with milliseconds and Z"
    return None


def _is_instant(stamp: str) -> bool:
    if _TIMESTAMP.fullmatch(stamp) is None:
        return False
    try:
        datetime.datetime.fromisoformat(stamp)
    except ValueError:
        return False
    return True


def _hash_problem(event: dict[str, Any]) -> tuple[Reason, str] | None:
    expected = event_hash(event)
    if event["current_hash"] == expected:
        return None
    return (
        "hash_differs",
        f"current_hash {_short(event['current_hash'])} is not {_short(expected)} that its fields give",
    )
