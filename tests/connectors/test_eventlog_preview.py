"""Previews of event logs and two-phase restores: counts of events, stale plans, nobody's event lost, exact undo."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.errors import SourceUnsupported, StalePlan, UsageError
from engine.plans import Preview
from engine.ports import FileChange, RestoreReport, RestoreRequest
from engine.progress import NullProgress
from engine.repository import Repository
from tests.connectors.eventlog_samples import encode, log_files, make_events, segment_path, snapshot_of, write_log
from tests.connectors.test_eventlog import View, back_up, connector, repository

__all__ = ["repository"]


def wish(**given: Any) -> RestoreRequest:
    return RestoreRequest(**{"label": "opr_1", "overwrite": True, **given})


def preview(view: View, data: Path, **given: Any) -> Preview:
    return connector(data).preview(view, wish(**given), NullProgress())  # type: ignore[arg-type]


def restored(repository: Repository, view: View, data: Path, **given: Any) -> RestoreReport:
    """Preview, safety backup, prepare, commit; what was shown must be what is done."""
    shown = preview(view, data, **given)
    request = replace(wish(**given), digest=shown.digest, saved=back_up(repository, data))  # type: ignore[arg-type]
    with connector(data).prepare(view, request, NullProgress()) as prepared:  # type: ignore[arg-type]
        assert connector(data).settle(prepared.token) is ("nothing" in prepared.token)
        prepared.commit()
    assert connector(data).settle(prepared.token) is True
    assert (prepared.report.digest, prepared.report.files) == (shown.digest, shown.files)
    assert all(check.passed for check in prepared.report.checks), prepared.report.checks
    assert not list(data.glob(".lastro*"))
    return prepared.report


def grow(data: Path, segments: list[list[Any]], count: int) -> list[list[Any]]:
    """Append events to the newest segment, as the application would."""
    total = sum(map(len, segments))
    newest = [*segments[-1], *make_events(count, after=segments[-1][-1], first=total)]
    segment_path(data, len(segments)).write_bytes(encode(newest))
    grown = [*segments[:-1], newest]
    (data / "event-log-snapshot.json").write_bytes(encode(snapshot_of(grown)))
    return grown


def test_preview_counts_events_and_writes_nothing(tmp_path: Path, repository: Repository) -> None:
    """Goal: how many events a full restore drops, and which is the last then; a log that grew since."""
    data = tmp_path / "data"
    segments = write_log(data, 35)
    view = back_up(repository, data)
    grow(data, segments, 7)
    before = log_files(data)
    shown = preview(view, data)
    assert shown.files == FileChange(replaced=2, unchanged=3)
    assert [(each.change, each.path) for each in shown.paths] == [
        ("update", "event-log-snapshot.json"), ("update", "event-log/segment-000004.json"),
    ]  # fmt: skip
    facts = shown.facts
    assert (facts["events_removed"], facts["events_added"]) == (7, 0)
    assert (facts["last_event_id_before"], facts["last_event_id"]) == ("evt-000029", "evt-000022")
    assert (facts["segments_before"], facts["segments"], facts["first_event_id"]) == (4, 4, "evt-000000")
    assert shown.staged_bytes > 4 * 4096
    assert log_files(data) == before
    assert sorted(path.name for path in data.iterdir()) == ["event-log", "event-log-snapshot.json"]


def test_selected_or_not(tmp_path: Path, repository: Repository) -> None:
    """Goal: the log is one module: chosen it is restored in full, else it is left alone; another name is refused."""
    data = tmp_path / "data"
    segments = write_log(data, 12)
    view, before = back_up(repository, data), log_files(data)
    grow(data, segments, 3)
    grown = log_files(data)
    assert restored(repository, view, data, mode="selective").files == FileChange(unchanged=1, kept=2)
    assert log_files(data) == grown
    restored(repository, view, data, mode="selective", modules=("event-log",))
    assert log_files(data) == before
    with pytest.raises(UsageError, match="event-lag"):
        preview(view, data, mode="selective", modules=("event-lag",))


def test_undo_is_exact(tmp_path: Path, repository: Repository) -> None:
    """Goal: a restore of the safety backup gives back every byte, and what is no part of the log was never away."""
    data = tmp_path / "data"
    segments = write_log(data, 30)
    view = back_up(repository, data)
    grow(data, segments, 25)
    (data / "event-log" / "notes").mkdir()
    (data / "event-log" / "notes" / "mine.txt").write_text("m")
    os.unlink(segment_path(data, 1))
    before, saved = log_files(data), back_up(repository, data)
    restored(repository, view, data)
    assert log_files(data) != before
    restored(repository, saved, data)
    assert log_files(data) == before
    assert (data / "event-log" / "notes" / "mine.txt").read_text() == "m"


def test_a_preview_that_does_not_fit_any_more_is_stale(tmp_path: Path, repository: Repository) -> None:
    """Goal: the plan binds; the log grows between preview and restore."""
    data = tmp_path / "data"
    segments = write_log(data, 12)
    view = back_up(repository, data)
    shown = preview(view, data)
    grow(data, segments, 1)
    before = log_files(data)
    request = wish(digest=shown.digest)
    with pytest.raises(StalePlan), connector(data).prepare(view, request, NullProgress()):  # type: ignore[arg-type]
        pass
    assert log_files(data) == before
    assert not list(data.glob(".lastro*"))


WRITES = ("grown", "new segment", "removed", "stranger", "snapshot")


def _write(data: Path, what: str) -> None:
    if what == "grown":
        segment_path(data, 2).write_bytes(segment_path(data, 2).read_bytes() + b"\n")
    elif what == "new segment":
        segment_path(data, 3).write_bytes(b"[]")
    elif what == "removed":
        segment_path(data, 1).unlink()
    elif what == "stranger":
        (data / "event-log" / "other").write_text("o")
    else:
        (data / "event-log-snapshot.json").write_bytes(b"{}")


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("what", WRITES)
def test_nobodys_event_is_lost(
    tmp_path: Path, repository: Repository, what: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: what is written while a restore is prepared, or in the moment of the swap, stays and refuses it."""
    data = tmp_path / "data"
    segments = write_log(data, 12)
    view = back_up(repository, data)
    grow(data, segments, 3)
    request = replace(wish(), saved=back_up(repository, data))  # type: ignore[arg-type]
    seen: list[dict[str, bytes]] = []

    def write(*_: object) -> None:
        _write(data, what)
        seen.append(log_files(data))

    if late:
        monkeypatch.setattr("connectors._eventlog.prepared.PreparedLog._require_saved", write)
    with connector(data).prepare(view, request, NullProgress()) as prepared:  # type: ignore[arg-type]
        if not late:
            write()
        with pytest.raises(StalePlan):
            prepared.commit()
    assert log_files(data) == seen[0]
    assert not list(data.glob(".lastro*"))


def test_written_to_after_the_safety_backup(tmp_path: Path, repository: Repository) -> None:
    """Goal: an undo would lose what the safety backup does not hold; so nothing is done."""
    data = tmp_path / "data"
    segments = write_log(data, 12)
    view, saved = back_up(repository, data), back_up(repository, data)
    grow(data, segments, 3)
    before = log_files(data)
    request = replace(wish(), saved=saved)  # type: ignore[arg-type]
    ready = connector(data).prepare(view, request, NullProgress())  # type: ignore[arg-type]
    with ready as prepared, pytest.raises(StalePlan, match="safety backup"):
        prepared.commit()
    assert log_files(data) == before


def test_left_without_commit(tmp_path: Path, repository: Repository) -> None:
    """Goal: nothing was done; and an undo from images does not exist."""
    data = tmp_path / "data"
    write_log(data, 12)
    view = back_up(repository, data)
    shutil.rmtree(data / "event-log")
    before = log_files(data) if (data / "event-log").exists() else sorted(os.listdir(data))
    with connector(data).prepare(view, wish(), NullProgress()) as prepared:  # type: ignore[arg-type]
        assert prepared.report.files == FileChange(created=2, unchanged=1)
    assert sorted(os.listdir(data)) == before
    assert connector(data).settle(prepared.token) is False
    with pytest.raises(SourceUnsupported):
        connector(data).prepare_undo(None, wish(), NullProgress())  # type: ignore[arg-type]
    with pytest.raises(SourceUnsupported):
        connector(data).preview_undo(None, wish(), NullProgress())  # type: ignore[arg-type]
