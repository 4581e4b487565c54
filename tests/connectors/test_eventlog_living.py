"""Event logs that live: a writer appends, rotates and prunes while they are read."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors._eventlog import capture as module
from connectors._eventlog.capture import capture
from engine.progress import NullProgress
from engine.repository import Repository
from tests.connectors.eventlog_samples import encode, log_files, make_events, segment_path, snapshot_of, write_log
from tests.connectors.test_eventlog import back_up, repository, restore

__all__ = ["repository"]  # A fixture.


class Writer:
    """Appends, rotates and prunes like the owner's application, without any lock; tearing its writes apart."""

    def __init__(self, data: Path, *, prune: bool, in_place: bool, seed: int) -> None:
        self.data, self.prune, self.in_place = data, prune, in_place
        self.rng = random.Random(seed)
        (data / "event-log").mkdir(parents=True)
        self.last: dict[str, Any] | None = None
        self.count, self.number, self.oldest = 0, 1, 1
        self.newest: list[dict[str, Any]] = []
        self.stop = threading.Event()
        self.append(5)

    def append(self, count: int) -> None:
        events = make_events(count, after=self.last, first=self.count)
        self.count, self.last = self.count + count, events[-1]
        self.newest += events
        self.put(segment_path(self.data, self.number), encode(self.newest))
        snapshot = snapshot_of([self.newest], first_segment=self.number, total=self.count)
        self.put(self.data / "event-log-snapshot.json", encode(snapshot))
        if len(self.newest) >= 20:
            self.number, self.newest = self.number + 1, []
        if self.prune and self.number - self.oldest > 8:
            for number in range(self.oldest, self.number - 4):
                segment_path(self.data, number).unlink()
            self.oldest = self.number - 4

    def put(self, path: Path, content: bytes) -> None:
        if not self.in_place:
            path.with_suffix(".tmp").write_bytes(content)
            path.with_suffix(".tmp").rename(path)
            return
        with open(path, "wb", buffering=0) as handle:
            cut = self.rng.randrange(len(content))
            handle.write(content[:cut])
            handle.write(content[cut:])

    def run(self) -> None:
        while not self.stop.is_set():
            self.append(self.rng.randrange(1, 8))
            self.stop.wait(0.003)


@pytest.fixture(params=["rename", "rename and prune", "in place", "in place and prune"])
def writer(request: pytest.FixtureRequest, tmp_path: Path, seed: int) -> Iterator[Writer]:
    made = Writer(tmp_path / "data", prune="prune" in request.param, in_place="place" in request.param, seed=seed)
    for _ in range(20):
        made.append(5)
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made
    made.stop.set()
    thread.join()


def test_a_log_that_grows_rotates_and_is_pruned_is_read_whole(
    writer: Writer, repository: Repository, tmp_path: Path
) -> None:
    """Goal: a consistent view without a lock. Method: back up again and again while a writer works; no false alarm."""
    previous, view = 0, None
    for turn in range(12):
        progress = NullProgress()
        view = back_up(repository, writer.data, progress, view)
        assert progress.warnings == [], view.facts["findings"]
        assert view.facts["chain_valid_at_backup"]
        restore(view, tmp_path / f"out{turn}")
        last = int(view.facts["eventlog_summary"]["last_event_id"].removeprefix("evt-"), 16)
        assert last >= previous
        previous = last


def test_segments_pruned_in_the_middle_of_the_copy_are_left_out_from_the_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: vanishing old segments are no gap. Method: delete the first four when the third is about to be copied."""
    data, stage = tmp_path / "data", tmp_path / "stage"
    write_log(data, 80)
    stage.mkdir()
    plain = module._stage_file

    def staging(source: Path, target: Path) -> Any:
        if source.name == "segment-000003.json":
            for number in (1, 2, 3, 4):
                segment_path(data, number).unlink(missing_ok=True)
        return plain(source, target)

    monkeypatch.setattr(module, "_stage_file", staging)
    captured = capture(data, stage, NullProgress(), sleep=lambda _: None)
    assert [name.number for name in captured.segments] == [5, 6, 7, 8]
    assert captured.pruned_while_reading == 4
    assert sorted(log_files(stage)) == sorted(log_files(data))


def test_a_segment_lost_from_the_middle_is_a_gap(tmp_path: Path, repository: Repository) -> None:
    """Goal: pruning does not excuse a hole. Method: remove one segment in the middle."""
    data = tmp_path / "data"
    write_log(data, 50)
    segment_path(data, 3).unlink()
    progress = NullProgress()
    view = back_up(repository, data, progress)
    assert [code for code, _ in progress.warnings] == ["eventlog.chain_broken"]
    assert view.facts["first_bad"]["reason"] == "segment_gap"
