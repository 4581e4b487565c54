"""A copy moves packs while it still looks through backups, and leaves no thread and no promise when that ends early."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.ports import Buffer
from engine.repository import Repository
from engine.selections import selection_read
from stores.local import LocalConfig, LocalStore
from tests.engine.copy_places import Places

WAIT_SECONDS = 60.0


class Watched(LocalStore):
    """A real store that tells of its first pack."""

    def __init__(self, config: LocalConfig) -> None:
        super().__init__(config)
        self.packs = threading.Event()

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        super().put(key, parts)
        if "/data/" in key or "/meta/" in key:
            self.packs.set()


class Stopped(Exception):
    """The operator wishes to stop."""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # Order is the question here, not durability.
    places = Places(tmp_path)
    for name in ("f0", "f1", "f2"):
        places.change(name)
        places.backup()
    return places


def _target(places: Places) -> Watched:
    LocalStore.make(LocalConfig(path=str(places.folder / "copy")))
    return Watched(LocalConfig(path=str(places.folder / "copy")))


def test_packs_move_while_backups_are_looked_through(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a pack of the newest backup arrives before the next one is read, which waits for it here."""
    target, seen = _target(places), list[bool]()
    read = Repository.manifest

    def manifest(self: Repository, number: int) -> object:
        if number == 2 and not seen:
            seen.append(target.packs.wait(WAIT_SECONDS))
        return read(self, number)

    monkeypatch.setattr(Repository, "manifest", manifest)
    report = places.copy(store=target)
    assert seen == [True] and set(report.copied) == {1, 2, 3} and not report.failed


def test_who_stops_meanwhile_leaves_nothing_running(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: stopped among the backups, packs may have arrived, but no thread goes on, nothing is promised, and the next run ends it."""
    target, calls = _target(places), list[int]()
    read = Repository.manifest

    def manifest(self: Repository, number: int) -> object:
        calls.append(number)
        if number == 2:
            target.packs.wait(WAIT_SECONDS)
            raise Stopped
        return read(self, number)

    with monkeypatch.context() as patched:
        patched.setattr(Repository, "manifest", manifest)
        with pytest.raises(Stopped):
            places.copy(store=target)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("copy")]
    copy = places.repository("copy", target)
    assert not list(target.list("r/r/manifests/")) and not list(target.list("r/r/index/"))
    assert not selection_read(copy).kept
    report = places.copy(store=target)
    assert set(report.copied) == {1, 2, 3} and not report.failed
