"""Makes event logs for tests, by the rule of docs/formats/event-log-package.md and independently of our code."""

import datetime
import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Event = dict[str, Any]
START = datetime.datetime(2025, 12, 23, 10, tzinfo=datetime.UTC)


def seal(event: Event) -> Event:
    """Give the event the current_hash of its fields."""
    names = ("timestamp", "actor", "evento", "entidade", "entidade_id", "payload_hash")
    text = "|".join([event["previous_hash"] or "", *(event[name] for name in names)])
    return {**event, "current_hash": hashlib.sha256(text.encode()).hexdigest()}


def make_events(count: int, *, after: Event | None = None, first: int = 0, seed: int = 1) -> list[Event]:
    """A chain of `count` events, the genesis first unless it continues another one."""
    rng = random.Random(seed)
    previous = after["current_hash"] if after else None
    events = []
    for number in range(first, first + count):
        moment = START + datetime.timedelta(milliseconds=number * 137)
        event = seal(
            {
                "id": f"evt-{number:06x}",
                "timestamp": f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z",
                "actor": rng.choice(["Libervia", "externo", "ação-ü|x"]),
                "evento": "DECISAO_REGISTRADA",
                "entidade": "Decisao",
                "entidade_id": f"d{number}",
                "payload_hash": hashlib.sha256(str(number).encode()).hexdigest(),
                "previous_hash": previous,
            }
        )
        previous = event["current_hash"]
        events.append(event)
    return events


def encode(events: Any) -> bytes:
    return json.dumps(events, indent=2, ensure_ascii=False).encode()


def segment_path(data: Path, number: int) -> Path:
    return data / "event-log" / f"segment-{number:06d}.json"


def snapshot_of(segments: Sequence[Sequence[Event]], *, first_segment: int = 1, total: int | None = None) -> Event:
    last = segments[-1][-1]
    return {
        "version": 1,
        "last_segment": first_segment + len(segments) - 1,
        "last_index_in_segment": len(segments[-1]) - 1,
        "last_event_id": last["id"],
        "last_current_hash": last["current_hash"],
        "last_timestamp": last["timestamp"],
        "total_events": sum(len(segment) for segment in segments) if total is None else total,
    }


def write_log(data: Path, count: int, *, per_segment: int = 10, snapshot: bool = True) -> list[list[Event]]:
    """Write a whole log into the data folder; return its events by segment."""
    events = make_events(count)
    segments = [events[at : at + per_segment] for at in range(0, count, per_segment)]
    (data / "event-log").mkdir(parents=True, exist_ok=True)
    for number, segment in enumerate(segments, 1):
        segment_path(data, number).write_bytes(encode(segment))
    if snapshot and segments:
        (data / "event-log-snapshot.json").write_bytes(encode(snapshot_of(segments)))
    return segments


def log_files(data: Path) -> dict[str, bytes]:
    """Every file of a log by its path in the data folder."""
    found = {
        str(path.relative_to(data)): path.read_bytes() for path in (data / "event-log").glob("*") if path.is_file()
    }
    snapshot = data / "event-log-snapshot.json"
    return {**found, snapshot.name: snapshot.read_bytes()} if snapshot.exists() else found
