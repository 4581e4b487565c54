"""Merges of event logs: what was lost comes back, the newer tail stays, two histories are never joined."""

import os
import random
import shutil
from pathlib import Path

import pytest

from connectors._eventlog.capture import list_segments
from connectors._eventlog.verified import verify_folder
from engine.errors import TargetError
from engine.plans import POLICIES
from engine.ports import FileChange
from engine.progress import NullProgress
from engine.repository import Repository
from tests.conftest import Rounds
from tests.connectors.eventlog_samples import encode, log_files, make_events, segment_path, snapshot_of, write_log
from tests.connectors.test_eventlog import back_up, repository
from tests.connectors.test_eventlog_preview import grow, preview, restored

__all__ = ["repository"]


def test_equal_logs_have_nothing_to_do(tmp_path: Path, repository: Repository) -> None:
    """Goal: the very same log, and one that only grew, are left alone to the inode."""
    data = tmp_path / "data"
    segments = write_log(data, 25)
    view = back_up(repository, data)
    for added in (0, 8):
        segments = grow(data, segments, added) if added else segments
        before, inode = log_files(data), os.stat(data / "event-log").st_ino
        report = restored(repository, view, data, mode="merge")
        assert report.files is not None
        assert (report.files.created, report.files.replaced, report.files.removed) == (0, 0, 0)
        assert (log_files(data), os.stat(data / "event-log").st_ino) == (before, inode)


def test_a_lost_tail_comes_back(tmp_path: Path, repository: Repository) -> None:
    """Goal: the live log is a prefix of the backup's: cut within a segment, segments gone, all gone."""
    data = tmp_path / "data"
    segments = write_log(data, 45)
    view, whole = back_up(repository, data), log_files(data)
    shown = None
    for cut in ("within", "segments", "all"):
        if cut == "within":
            segment_path(data, 5).write_bytes(encode(segments[4][:2]))
            (data / "event-log-snapshot.json").write_bytes(encode(snapshot_of([*segments[:4], segments[4][:2]])))
        elif cut == "segments":
            for number in (4, 5):
                segment_path(data, number).unlink()
            (data / "event-log-snapshot.json").unlink()
        else:
            shutil.rmtree(data / "event-log")
        shown = preview(view, data, mode="merge")
        assert shown.facts["events_removed"] == 0
        assert shown.facts["events_added"] == {"within": 3, "segments": 15, "all": 45}[cut]
        restored(repository, view, data, mode="merge")
        assert log_files(data) == whole


def test_older_segments_come_back_and_the_newer_tail_stays(tmp_path: Path, repository: Repository) -> None:
    """Goal: pruned by mistake, written on since: both halves are one chain afterwards, and the tail's file is the same."""
    data = tmp_path / "data"
    segments = write_log(data, 45)
    view = back_up(repository, data)
    segments = grow(data, segments, 30)
    for number in (1, 2):
        segment_path(data, number).unlink()
    tail = os.stat(segment_path(data, 5)).st_ino
    report = restored(repository, view, data, mode="merge")
    assert report.files == FileChange(created=2, unchanged=2, kept=2)
    verified = verify_folder(data, list_segments(data / "event-log")[0], NullProgress())
    assert verified.chain_valid
    assert verified.summary["total_events"] == 75
    assert os.stat(segment_path(data, 5)).st_ino == tail
    assert verified.snapshot_state == "matches"


def test_a_damaged_segment_is_mended(tmp_path: Path, repository: Repository) -> None:
    """Goal: a torn segment whose events the backup has whole comes back; the tail behind it stays."""
    data = tmp_path / "data"
    segments = write_log(data, 35)
    view = back_up(repository, data)
    grow(data, segments, 5)
    path = segment_path(data, 2)
    path.write_bytes(path.read_bytes()[:700])
    report = restored(repository, view, data, mode="merge")
    assert report.files == FileChange(replaced=1, unchanged=2, kept=2)
    assert verify_folder(data, list_segments(data / "event-log")[0], NullProgress()).chain_valid


@pytest.mark.parametrize("policy", POLICIES)
def test_forked_histories_are_refused(tmp_path: Path, repository: Repository, policy: str) -> None:
    """Goal: the first event that differs is named, under every policy but the one that replaces the whole log."""
    data = tmp_path / "data"
    segments = write_log(data, 35)
    view, theirs = back_up(repository, data), log_files(data)
    forked = [*segments[3][:2], *make_events(6, after=segments[3][1], first=500)]
    segment_path(data, 4).write_bytes(encode(forked))
    (data / "event-log-snapshot.json").write_bytes(encode(snapshot_of([*segments[:3], forked])))
    before = log_files(data)
    policies = {"event-log": policy}
    if policy == "take_backup":
        shown = preview(view, data, mode="merge", policies=policies)
        assert "replaces the whole log" in shown.warnings[0]
        assert (shown.facts["events_removed"], shown.facts["events_added"]) == (6, 3)
        restored(repository, view, data, mode="merge", policies=policies)
        assert log_files(data) == theirs
        again = preview(view, data, mode="merge", policies=policies)
        assert (again.warnings, again.files) == ((), FileChange(unchanged=len(theirs)))
        return
    with pytest.raises(TargetError, match=r"two histories.*evt-0001f4") as caught:
        preview(view, data, mode="merge", policies=policies)
    assert "take_backup" in caught.value.hint
    with pytest.raises(TargetError, match="two histories"):
        restored(repository, view, data, mode="merge", policies=policies)
    assert log_files(data) == before


def test_segments_that_do_not_link_up_are_refused(tmp_path: Path, repository: Repository) -> None:
    """Goal: no segment is alike, yet the chain tells that they never belonged together; a log begun anew."""
    data = tmp_path / "data"
    write_log(data, 20)
    view = back_up(repository, data)
    shutil.rmtree(data / "event-log")
    (data / "event-log").mkdir()
    other = make_events(10, after=make_events(40, seed=9)[-1], first=700)
    segment_path(data, 3).write_bytes(encode(other))
    (data / "event-log-snapshot.json").write_bytes(encode(snapshot_of([other], first_segment=3)))
    before = log_files(data)
    with pytest.raises(TargetError, match=r"two histories.*evt-0002bc"):
        preview(view, data, mode="merge")
    assert log_files(data) == before


def test_random_losses_are_made_good(
    tmp_path: Path, repository: Repository, rng: random.Random, rounds: Rounds
) -> None:
    """Goal: whatever segments are lost or cut and however the log grew, the merge is the whole history."""
    for number in rounds(12):
        data = tmp_path / str(number)
        segments = write_log(data, rng.randrange(1, 60))
        view = back_up(repository, data)
        if rng.random() < 0.5:
            segments = grow(data, segments, rng.randrange(1, 9))
        whole = log_files(data)
        last = len(segments)
        for lost in range(1, last):
            if rng.random() < 0.4:
                segment_path(data, lost).unlink()
            elif rng.random() < 0.3:
                segment_path(data, lost).write_bytes(segment_path(data, lost).read_bytes()[: rng.randrange(900)])
        undo = log_files(data)
        saved = back_up(repository, data)
        restored(repository, view, data, mode="merge")
        assert log_files(data) == whole
        restored(repository, saved, data)
        assert log_files(data) == undo
