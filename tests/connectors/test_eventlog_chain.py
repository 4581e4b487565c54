"""The chain of an event log: every kind of break is found at its place, and nothing whole is called broken."""

import datetime
import hashlib
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors._eventlog.capture import list_segments
from connectors._eventlog.chain import FIELDS, ChainReport, ChainVerifier
from connectors._eventlog.segment import EVENT_CHARS_MAX, SegmentMalformed, read_events, segment_name
from connectors._eventlog.verified import Verified, verify_folder
from engine.progress import NullProgress
from tests.connectors.eventlog_samples import Event, encode, make_events, seal, segment_path, snapshot_of, write_log

REAL = Path(__file__).parent.parent / "data" / "eventlog"


def verify(data: Path) -> Verified:
    return verify_folder(data, list_segments(data / "event-log")[0], NullProgress())


def verify_bytes(*contents: bytes, first: int = 1, block: int = 1 << 20) -> ChainReport:
    verifier = ChainVerifier()
    for number, content in enumerate(contents, first):
        name = segment_name(f"segment-{number:06d}.json")
        assert name is not None
        verifier.segment(name, (content[at : at + block] for at in range(0, len(content), block)))
    return verifier.report()


def first_bad(report: ChainReport) -> tuple[str | None, str, int | None, str]:
    finding = report.findings[0]
    return finding.event_id, finding.file.removeprefix("event-log/"), finding.index, finding.reason


def test_real_log_gives_the_summary_of_its_owners_manifest() -> None:
    """Goal: agree with the owner's tool. Method: compare with the manifest that it wrote."""
    reference = json.loads((REAL / "reference.manifest.json").read_bytes())
    verified = verify(REAL)
    assert verified.summary == reference["eventlog_summary"]
    assert list(verified.summary) == list(reference["eventlog_summary"])
    listed = [{"path": each.path, "size": each.size, "sha256": each.sha256} for each in verified.files]
    assert listed == reference["files"]
    assert verified.chain_valid is reference["chain_valid_at_backup"]
    assert verified.snapshot_state == "matches"


@pytest.mark.parametrize("make", ["no folder", "empty folder", "empty array"])
def test_empty_log_is_valid_with_null_ids(tmp_path: Path, make: str) -> None:
    """Goal: an empty log is whole. Method: the three ways in which it can be empty."""
    if make != "no folder":
        (tmp_path / "event-log").mkdir()
    if make == "empty array":
        segment_path(tmp_path, 1).write_bytes(b"[]")
    verified = verify(tmp_path)
    assert verified.chain_valid
    assert verified.summary == {
        "total_events": 0,
        "total_segments": int(make == "empty array"),
        "first_event_id": None,
        "last_event_id": None,
        "last_current_hash": None,
        "snapshot_exists": False,
    }


def _changed(events: list[Event], index: int, **fields: Any) -> list[Event]:
    return [*events[:index], {**events[index], **fields}, *events[index + 1 :]]


def _without(events: list[Event], index: int, field: str) -> list[Event]:
    return [*events[:index], {k: v for k, v in events[index].items() if k != field}, *events[index + 1 :]]


EVENTS = make_events(30)
BROKEN: dict[str, tuple[list[Any], tuple[str | None, int, str]]] = {
    "content changed": (_changed(EVENTS, 17, entidade_id="d17X"), ("evt-000011", 7, "hash_differs")),
    "hash changed": (_changed(EVENTS, 17, current_hash="0" * 64), ("evt-000011", 7, "hash_differs")),
    "link changed": (_changed(EVENTS, 17, previous_hash="0" * 64), ("evt-000011", 7, "previous_hash_broken")),
    "link removed": (_changed(EVENTS, 17, previous_hash=None), ("evt-000011", 7, "previous_hash_broken")),
    "resealed in mid-chain": (
        [*EVENTS[:17], seal({**EVENTS[17], "actor": "x"}), *EVENTS[18:]],
        ("evt-000012", 8, "previous_hash_broken"),
    ),
    "event removed": ([*EVENTS[:17], *EVENTS[18:]], ("evt-000012", 7, "previous_hash_broken")),
    "event twice": ([*EVENTS[:18], *EVENTS[17:]], ("evt-000011", 8, "previous_hash_broken")),
    "events swapped": (
        [*EVENTS[:17], EVENTS[18], EVENTS[17], *EVENTS[19:]],
        ("evt-000012", 7, "previous_hash_broken"),
    ),
    "field missing": (_without(EVENTS, 17, "payload_hash"), ("evt-000011", 7, "missing_field")),
    "link missing": (_without(EVENTS, 17, "previous_hash"), ("evt-000011", 7, "missing_field")),
    "id missing": (_without(EVENTS, 17, "id"), (None, 7, "missing_field")),
    "id empty": (_changed(EVENTS, 17, id=""), ("", 7, "bad_field")),
    "id a number": (_changed(EVENTS, 17, id=17), (None, 7, "bad_field")),
    "actor null": (_changed(EVENTS, 17, actor=None), ("evt-000011", 7, "bad_field")),
    "actor a list": (_changed(EVENTS, 17, actor=["x"]), ("evt-000011", 7, "bad_field")),
    "hash in capitals": (
        _changed(EVENTS, 17, current_hash=EVENTS[17]["current_hash"].upper()),
        ("evt-000011", 7, "bad_field"),
    ),
    "timestamp without milliseconds": (
        [*EVENTS[:17], seal({**EVENTS[17], "timestamp": "2025-12-23T10:00:00Z"}), *EVENTS[18:]],
        ("evt-000011", 7, "bad_timestamp"),
    ),
    "timestamp of no day": (
        [*EVENTS[:17], seal({**EVENTS[17], "timestamp": "2025-02-30T10:00:00.000Z"}), *EVENTS[18:]],
        ("evt-000011", 7, "bad_timestamp"),
    ),
    "no object": ([*EVENTS[:17], "evt", *EVENTS[18:]], (None, 7, "not_an_object")),
}


@pytest.mark.parametrize("what", BROKEN)
def test_every_kind_of_break_is_found_at_its_event(what: str) -> None:
    """Goal: the first bad id with its place. Method: one break in the second of three segments."""
    events, (event_id, index, reason) = BROKEN[what]
    report = verify_bytes(encode(events[:10]), encode(events[10:20]), encode(events[20:]))
    assert not report.valid
    assert first_bad(report) == (event_id, "segment-000002.json", index, reason)
    assert report.total_events == len(events)


@pytest.mark.parametrize(
    ("content", "events_before"),
    [
        (b"", 0),
        (b"{}", 0),
        (b"null", 0),
        (b"[", 0),
        (encode(EVENTS[:5])[:-1], 5),
        (encode(EVENTS[:5])[:-40], 4),
        (encode(EVENTS[:5]) + b"x", 5),
        (encode(EVENTS[:5])[:-1] + b",]", 5),
        (b"\xef\xbb\xbf" + encode(EVENTS[:5]), 0),
        (encode(EVENTS[:5]).replace(b"evt-000003", b"evt-00000\xff"), 3),
        (encode(EVENTS[:5]).replace(b"evt-000003", b"evt-00000\n"), 3),
        (encode(EVENTS[:5]).replace(b'"actor"', b'"id"', 1), 0),
        (encode(EVENTS[:5]).decode().encode("utf-16"), 0),
        (bytes(5000), 0),
        (b"[" * 5_000, 0),
        (b"[NaN]", 0),
        (b"[" + b"1" * 10_000 + b"]", 0),
    ],
)
@pytest.mark.parametrize("block", [1 << 20, 7])
def test_text_that_is_no_json_is_found_behind_the_events_before_it(
    content: bytes, events_before: int, block: int
) -> None:
    """Goal: damaged text ends a segment, not the verification. Method: many damages, read in large and tiny blocks."""
    report = verify_bytes(content, encode(EVENTS[5:]), block=block)
    assert first_bad(report)[1:] == ("segment-000001.json", events_before, "malformed_json")
    assert report.finding_count == 1
    assert report.total_events == events_before + len(EVENTS) - 5


def test_an_endless_event_is_refused_without_being_held() -> None:
    """Goal: bounded memory. Method: an unfinished string of 64 times the bound."""

    def blocks() -> Iterator[bytes]:
        yield b'[{"id": "'
        for _ in range(64 * EVENT_CHARS_MAX >> 20):
            yield b"x" * (1 << 20)

    tracemalloc.start()
    with pytest.raises(SegmentMalformed):
        list(read_events(blocks()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * EVENT_CHARS_MAX


def test_memory_does_not_grow_with_the_log() -> None:
    """Goal: bounded memory. Method: peak of verifying large segments, each made when it is asked for."""
    verifier, previous = ChainVerifier(), None
    peaks = []
    for number in range(1, 7):
        events = make_events(2000, after=previous, first=2000 * number)
        previous, content = events[-1], encode(events)
        name = segment_name(f"segment-{number:06d}.json")
        assert name is not None
        tracemalloc.start()
        verifier.segment(name, [content])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert verifier.report().total_events == 12_000
    assert peaks[-1] < 1.2 * peaks[0]


def test_pruned_front_is_trusted_and_said() -> None:
    """Goal: pruning is no break. Method: the same log without its first segment, then with its first event cut off."""
    segments = [encode(EVENTS[:10]), encode(EVENTS[10:20]), encode(EVENTS[20:])]
    pruned = verify_bytes(*segments[1:], first=2)
    assert (pruned.valid, pruned.pruned, pruned.first_segment) == (True, True, 2)
    assert pruned.trusted_previous_hash == EVENTS[9]["current_hash"]
    cut = verify_bytes(encode(EVENTS[1:10]), *segments[1:])
    assert first_bad(cut) == ("evt-000001", "segment-000001.json", 0, "previous_hash_broken")


def test_gap_and_duplicate_of_segments_are_found(tmp_path: Path) -> None:
    """Goal: segment numbers count. Method: a segment in the middle removed, another one there under two names."""
    write_log(tmp_path, 50)
    segment_path(tmp_path, 3).rename(tmp_path / "aside")
    gap = verify(tmp_path).report
    assert first_bad(gap) == ("evt-00001e", "segment-000004.json", 0, "segment_gap")
    assert (gap.finding_count, gap.total_events) == (1, 40)
    (tmp_path / "aside").rename(segment_path(tmp_path, 3))
    (tmp_path / "event-log" / "segment-0002.json").write_bytes(segment_path(tmp_path, 2).read_bytes())
    double = verify(tmp_path).report
    assert first_bad(double) == ("evt-00000a", "segment-0002.json", 0, "segment_duplicate")
    assert (double.finding_count, double.total_events) == (1, 50)


def test_what_is_no_plain_file_is_a_finding_and_never_waited_for(tmp_path: Path) -> None:
    """Goal: hostile files. Method: a pipe and a link in place of segments."""
    import os

    write_log(tmp_path, 30)
    segment_path(tmp_path, 2).unlink()
    os.mkfifo(segment_path(tmp_path, 2))
    verified = verify(tmp_path)
    assert first_bad(verified.report) == (None, "segment-000002.json", None, "segment_unreadable")
    assert len(verified.files) == 3


def test_fields_beyond_the_nine_are_named_but_no_break() -> None:
    """Goal: a newer owner's log is not called broken. Method: an extra field in one event."""
    report = verify_bytes(encode(_changed(EVENTS, 17, trace="t")))
    assert report.valid
    assert report.unhashed_fields == ("trace",)


def test_many_findings_are_counted_and_few_are_kept() -> None:
    """Goal: bounded memory on a ruined log. Method: every event changed."""
    report = verify_bytes(encode([{**event, "actor": "x"} for event in EVENTS]))
    assert report.finding_count == 30
    assert len(report.findings) == 20


def test_ids_that_no_manifest_can_hold_are_cut_and_cleaned() -> None:
    """Goal: hostile ids reach reports safely. Method: a lone surrogate and a huge id in broken events."""
    events = [{**EVENTS[0], "id": "\ud800x", "actor": "x"}, {**EVENTS[1], "id": "y" * 100_000}]
    content = json.dumps(events).encode()
    report = verify_bytes(content)
    assert report.findings[0].event_id == "?x"
    assert report.last is not None
    assert report.last.event_id is not None
    assert len(report.last.event_id) < 1000
    json.dumps([each.as_json() for each in report.findings]).encode()


# ---------------------------------------------------------------- any byte


SMALL = encode(make_events(3))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(place=st.integers(0, len(SMALL) - 1), byte=st.integers(0, 255))
def test_any_changed_byte_is_found_or_changes_no_hashed_field(place: int, byte: int) -> None:
    """Goal: the chain proves every hashed field. Method: change one byte; a log still valid parses to the same fields.

    An event's id is not hashed by the owner's rule; the white space between tokens means nothing.
    """
    changed = SMALL[:place] + bytes([byte]) + SMALL[place + 1 :]
    report = verify_bytes(changed)
    if report.valid:
        assert _hashed(changed) == _hashed(SMALL)


def _hashed(content: bytes) -> list[tuple[Any, ...]]:
    return [tuple(event[field] for field in FIELDS[1:]) for event in json.loads(content)]


@settings(max_examples=60, deadline=None)
@given(length=st.integers(0, len(SMALL) - 1))
def test_any_truncation_is_found(length: int) -> None:
    """Goal: a torn segment never passes. Method: cut the text anywhere."""
    assert not verify_bytes(SMALL[:length]).valid


json_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.tuples(json_text, json_text, json_text), min_size=1, max_size=6), ascii_only=st.booleans())
def test_any_text_verifies_by_the_rule(texts: list[tuple[str, str, str]], ascii_only: bool) -> None:
    """Goal: no false alarm whatever the fields hold. Method: chains over arbitrary text, escaped or not."""
    previous, events = None, []
    for number, (actor, evento, entity) in enumerate(texts):
        moment = datetime.datetime(2026, 1, 1, 0, 0, number, tzinfo=datetime.UTC)
        event = seal(
            {
                "id": f"e{number}",
                "timestamp": f"{moment:%Y-%m-%dT%H:%M:%S}.000Z",
                "actor": actor,
                "evento": evento,
                "entidade": entity,
                "entidade_id": "",
                "payload_hash": hashlib.sha256(actor.encode()).hexdigest(),
                "previous_hash": previous,
            }
        )
        previous = event["current_hash"]
        events.append(event)
    assert verify_bytes(json.dumps(events, ensure_ascii=ascii_only).encode(), block=13).valid


# ---------------------------------------------------------------- the snapshot


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, "matches"),
        ({"last_event_id": "evt-other"}, "differs"),
        ({"last_current_hash": "0" * 64}, "differs"),
        ({"total_events": 31}, "differs"),
        ({"total_events": "30"}, "malformed"),
        ({"last_index_in_segment": 8}, "differs"),
        ({"last_timestamp": "2025-12-23T10:00:00.000Z"}, "differs"),
    ],
)
def test_snapshot_is_compared_with_the_chain(tmp_path: Path, change: dict[str, Any], state: str) -> None:
    """Goal: the snapshot's claims are checked. Method: change one of them."""
    segments = write_log(tmp_path, 30)
    (tmp_path / "event-log-snapshot.json").write_bytes(encode({**snapshot_of(segments), **change}))
    verified = verify(tmp_path)
    assert verified.snapshot_state == state
    assert verified.chain_valid is (state == "matches")
    assert verified.report.valid


def test_lost_tail_is_found_by_the_snapshot_alone(tmp_path: Path) -> None:
    """Goal: a cut-off end is no valid log. Method: remove the newest events, then the whole log."""
    segments = write_log(tmp_path, 30)
    segment_path(tmp_path, 3).write_bytes(encode(segments[2][:7]))
    verified = verify(tmp_path)
    assert verified.report.valid
    assert verified.snapshot_state == "differs"
    assert verified.findings[0].event_id == segments[2][-1]["id"]
    for number in (1, 2, 3):
        segment_path(tmp_path, number).unlink()
    assert verify(tmp_path).snapshot_state == "differs"


def test_snapshot_behind_is_told_from_one_that_contradicts(tmp_path: Path) -> None:
    """Goal: a lagging snapshot is no break. Method: one that names an earlier event, truly and falsely."""
    segments = write_log(tmp_path, 30)
    older = snapshot_of([segments[0], segments[1][:4]])
    (tmp_path / "event-log-snapshot.json").write_bytes(encode(older))
    assert (verify(tmp_path).snapshot_state, verify(tmp_path).chain_valid) == ("behind", True)
    (tmp_path / "event-log-snapshot.json").write_bytes(encode({**older, "total_events": 15}))
    assert verify(tmp_path).snapshot_state == "differs"


def test_snapshot_of_a_pruned_log_may_count_the_whole_history(tmp_path: Path) -> None:
    """Goal: no false alarm behind pruning. Method: totals of all events, of the retained ones, of fewer."""
    segments = write_log(tmp_path, 30)
    segment_path(tmp_path, 1).unlink()
    for total, state in ((30, "matches"), (20, "matches"), (19, "differs")):
        (tmp_path / "event-log-snapshot.json").write_bytes(encode(snapshot_of(segments, total=total)))
        assert verify(tmp_path).snapshot_state == state


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"{}", b"\xff", b"[" * 50_000, b" " * (2 << 20)])
def test_damaged_snapshot_is_a_finding(tmp_path: Path, content: bytes) -> None:
    """Goal: a corrupt snapshot is kept and said. Method: bytes that are none."""
    write_log(tmp_path, 30)
    (tmp_path / "event-log-snapshot.json").write_bytes(content)
    verified = verify(tmp_path)
    assert verified.snapshot_state == "malformed"
    assert not verified.chain_valid
    assert verified.files[-1].sha256 == hashlib.sha256(content).hexdigest()
