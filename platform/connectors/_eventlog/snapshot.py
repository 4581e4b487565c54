"""Compare `event-log-snapshot.json` with the chain."""

from dataclasses import dataclass
from typing import Any, Literal

from connectors._eventlog.chain import ChainReport, Finding, Mark, Reason
from connectors._eventlog.segment import DECODER, SNAPSHOT_NAME

SNAPSHOT_BYTES_MAX = 1 << 20

State = Literal["absent", "matches", "behind", "differs", "malformed"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The fields of a snapshot file; None where it has none (an empty log)."""

    last_segment: int | None
    last_index: int | None
    last_event_id: str | None
    last_current_hash: str | None
    last_timestamp: str | None
    total_events: int | None

    @property
    def place(self) -> tuple[int, int] | None:
        """Segment and index of the last event it knows."""
        if self.last_segment is None or self.last_index is None:
            return None
        return self.last_segment, self.last_index

    def names(self, mark: Mark) -> bool:
        """Whether this is the event that the snapshot calls the last; a place or time it lacks is not compared."""
        pairs = (
            (self.last_segment, mark.segment),
            (self.last_index, mark.index),
            (self.last_timestamp, mark.timestamp),
        )
        if (self.last_event_id, self.last_current_hash) != (mark.event_id, mark.current_hash):
            return False
        return all(said is None or said == found for said, found in pairs)

    def counts(self, mark: Mark, *, pruned: bool) -> bool:
        """Whether its total fits. Behind pruned segments it may count the whole history or what is retained."""
        if self.total_events is None or self.total_events == mark.total:
            return True
        return pruned and self.total_events > mark.total


def parse_snapshot(content: bytes) -> Snapshot:
    """Read a snapshot file; ValueError when it is no JSON object or a field has the wrong type."""
    if len(content) > SNAPSHOT_BYTES_MAX:
        raise ValueError("too large")
    try:
        value = DECODER.decode(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("too deep") from error
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    for name in ("last_event_id", "last_current_hash", "total_events"):
        if name not in value:
            raise ValueError(f"{name} is missing")
    return Snapshot(
        last_segment=_number(value, "last_segment"),
        last_index=_number(value, "last_index_in_segment"),
        last_event_id=_text(value, "last_event_id"),
        last_current_hash=_text(value, "last_current_hash"),
        last_timestamp=_text(value, "last_timestamp"),
        total_events=_number(value, "total_events"),
    )


def _number(fields: dict[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is not None and type(value) is not int:
        raise ValueError(f"{name} is no whole number")
    return value


def _text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} is no text")
    return value


def judge_snapshot(content: bytes | None, report: ChainReport) -> tuple[State, Finding | None]:
    """Say how the snapshot stands to the chain; `report` must have watched the snapshot's place.

    `behind` names an event that truly is in the chain, with later ones after it: no finding by itself,
    since a log that grows writes its snapshot after its segment.
    """
    if content is None:
        return "absent", None
    try:
        snapshot = parse_snapshot(content)
    except ValueError as error:
        return "malformed", _finding("snapshot_malformed", None, f"the snapshot is damaged: {_words(error)}")
    last = report.last
    if last is None:
        if not snapshot.total_events and snapshot.last_event_id is None and snapshot.last_current_hash is None:
            return "matches", None
        return "differs", _differs(snapshot, "the log has no event")
    if snapshot.names(last):
        if snapshot.counts(last, pruned=report.pruned):
            return "matches", None
        return "differs", _differs(
            snapshot, f"the chain has {last.total} events, the snapshot says {snapshot.total_events}"
        )
    if not snapshot.total_events and snapshot.last_event_id is None:
        return "behind", None
    seen = report.watched
    if seen is not None and snapshot.names(seen) and snapshot.counts(seen, pruned=report.pruned):
        return "behind", None
    return "differs", _differs(snapshot, f"the chain ends with event {last.event_id} ({last.total} events)")


def _words(error: ValueError) -> str:
    return getattr(error, "msg", None) or (str(error) if error.__class__ is ValueError else "no UTF-8")


def _differs(snapshot: Snapshot, found: str) -> Finding:
    return _finding("snapshot_differs", snapshot.last_event_id, f"{found}, the snapshot names {snapshot.last_event_id}")


def _finding(reason: Reason, event_id: str | None, detail: str) -> Finding:
    return Finding(reason, event_id, SNAPSHOT_NAME, None, None, detail)
