"""Copying a repository: only what is missing, whole at any moment, exact at the end."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engine import faults
from engine.copy import CopyReport
from engine.copy_prune import CopyPruneReport, copy_prune
from engine.erasures import ErasureLedger, erase
from engine.errors import LastroError, SessionFenced, StoreDenied, StoreFull, WrongKey
from engine.keys import Keyring
from engine.progress import NullProgress
from engine.prune import prune
from engine.repository import Repository
from engine.selections import selection_read
from stores._faulty import Fault, FaultyStore
from tests.engine.copy_places import Places
from tests.engine.gates import Gate
from tests.engine.memory_source import content

POINTS = (
    "copy.config_stored", "copy.pack_stored", "copy.pack_stored:3", "copy.indexed", "copy.before_manifests",
    "copy.manifest_stored", "copy.manifest_stored:2", "copy.selection_stored", "index.stored",
)  # fmt: skip
PRUNE_POINTS = (
    "copy.selection_stored", "copy.prune_promised", "copy.prune_ended", "index.generation_claimed", "index.stored",
    "index.superseded_deleted", "copy.prune_index_rewritten", "copy.prune_pack_deleted",
)  # fmt: skip


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # Order is the question here, not durability.
    places = Places(tmp_path)
    for names in (("f0", "f1"), ("f1",), ("f2",)):
        places.change(*names)
        places.backup()
    return places


def _prune_copy(places: Places, drop: set[int], *, dry_run: bool = False, store: Any = None) -> CopyPruneReport:
    target = places.repository("copy", store)
    report = copy_prune(
        target, drop=drop, copy="copy", selection=places.serials["copy"], dry_run=dry_run, progress=NullProgress()
    )
    places.serials["copy"] = report.selection
    return report


def _held_is_exact(places: Places) -> None:
    """What the copy promises it gives back, whatever happened to it."""
    repository = places.repository("copy")
    for number in selection_read(repository).kept:
        assert content(repository, repository.manifest(number)) == places.expected[number]


def test_a_copy_holds_the_same_bytes_and_only_new_ones_are_moved(places: Places) -> None:
    """Goal: nothing is encrypted or moved twice; copy, copy again, back up, copy, compare packs by name."""
    first = places.copy()
    assert set(first.copied) == {1, 2, 3}
    assert places.packs("copy") == places.packs("primary")
    places.check("copy")
    again = places.copy()
    assert (again.copied, again.packs_moved, again.held) == ({}, 0, frozenset({1, 2, 3}))
    before = places.packs("primary")
    places.change("f3")
    places.backup()
    third = places.copy(look=False)
    assert set(third.copied) == {4}
    assert third.packs_moved == len(places.packs("primary") - before)
    places.lose("primary")
    places.check("copy")


def test_plain_backups_ledger_and_records_come_along(places: Places) -> None:
    """Goal: nothing that a reader needs is left behind; copy plain backups, erasures, forget and void records."""
    places.backup(encrypt=False)
    primary = places.repository()
    erase(primary, [("main", "rows", b"5")])
    primary.void(5, "its session ended")
    places.head = 5
    report = places.copy(wanted={1, 3, 4}, read_back=True)
    assert report.held == {1, 3, 4}
    copy = places.repository("copy")
    assert copy.manifest(5).kind == "void"
    assert ErasureLedger.load(copy).number == 1
    prune(primary, forget={1: "x"}, head=5, dry_run=False, progress=NullProgress())
    places.copy(wanted={2, 3, 4})
    assert copy.forgotten(1)
    assert selection_read(copy).kept == {1, 2, 3, 4}, "what the source has ended stays until the copy is pruned"
    places.expected[1].pop("table rows", None)
    assert content(copy, copy.manifest(4))["document notes"] == b"ddl"


def test_a_place_of_another_repository_is_refused(places: Places, tmp_path: Path) -> None:
    """Goal: a copy never mixes with what lies there; open a place whose config has another key."""
    places.copy()
    other = Keyring.create(places.root, tenant_id="t", repository_id="r")
    with pytest.raises(WrongKey):
        Repository.open(places.store("copy"), repository_id="r", keyring=other)


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_labelled_point(places: Places, point: str) -> None:
    """Goal: a kill anywhere leaves a valid copy; kill a child there, read what is promised, run it again to the end."""
    if point == "index.stored":
        places.copy(wanted={1})
    assert _killed_at(point, places.copy) == -signal.SIGKILL
    with suppress(LastroError):
        _held_is_exact(places)
    report = places.copy()
    assert report.held == {1, 2, 3}
    assert places.packs("copy") == places.packs("primary")
    places.check("copy")


@pytest.mark.parametrize("point", PRUNE_POINTS)
def test_a_prune_of_the_copy_killed_at_a_labelled_point(places: Places, point: str) -> None:
    """Goal: what stays is exact at any moment and the next run drops the rest; kill a child there."""
    places.copy()
    assert _killed_at(point, lambda: _prune_copy(places, {1, 2})) == -signal.SIGKILL
    places.check("copy", {3})
    _held_is_exact(places)
    _prune_copy(places, {1, 2})
    places.check("copy", {3})
    assert _prune_copy(places, {1, 2}).packs_dropped == 0
    assert places.packs("copy") == places.repository("copy").sealed.index.pack_names()


def _killed_at(point: str, run: Any) -> int:
    """The exit code of a child process that runs this with the kill point set."""
    child = os.fork()
    if child == 0:
        faults._wanted, _, faults._nth = point.partition(":")
        with suppress(BaseException):
            run()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("side", ["source", "target"])
def test_the_store_dies_at_every_operation(places: Places, side: str) -> None:
    """Goal: a run that ends anywhere costs nothing that is promised; let each store die at each operation in turn."""
    for at in range(1, 500, 1 if side == "target" else 3):
        faulty = FaultyStore(places.store("copy" if side == "target" else "primary"), [Fault("dead", at=at)])
        try:
            if side == "target":
                places.copy(store=faulty, workers=2)
            else:
                places.copy(source=places.repository(store=faulty), workers=2)
        except LastroError:
            _held_is_exact(places)
            places.copy()
            places.check("copy")
            places.lose("copy")
            places.serials.clear()
            continue
        assert not faulty.dead
        return
    raise AssertionError("it never ended by itself")


@pytest.mark.parametrize(("kind", "error"), [("full", StoreFull), ("denied", StoreDenied)])
def test_a_store_that_refuses_says_so_and_keeps_what_it_has(places: Places, kind: Any, error: Any) -> None:
    """Goal: a full store is an error, not a broken copy; refuse the writes from the third on, then make room."""
    faulty = FaultyStore(places.store("copy"), [Fault(kind, at=4, times=999, operations=frozenset({"put", "create"}))])
    with pytest.raises(error):
        places.copy(store=faulty)
    _held_is_exact(places)
    assert places.copy().held == {1, 2, 3}
    places.check("copy")


@pytest.mark.parametrize("kind", ["truncated_list", "stale_list", "lost_reply", "torn", "truncated_get", "flipped_get"])
def test_a_store_that_lies_breaks_nothing(places: Places, kind: Any, rounds: Any) -> None:
    """Goal: the copy is exact or the run fails; lie at each operation in turn, then run it honestly."""
    for at in range(1, 14):
        faulty = FaultyStore(places.store("copy"), [Fault(kind, at=at, prefix="r/r/data" if kind == "torn" else "")])
        with suppress(LastroError):
            places.copy(store=faulty, workers=2, read_back=kind == "torn")
        places.copy(wanted={1, 2, 3}, read_back=True)
        places.check("copy")
        places.lose("copy")
        places.serials.clear()


def test_a_prune_of_the_source_at_every_operation(places: Places) -> None:
    """Goal: a pack that a prune swept is looked for again; prune the primary, which repacks, at each operation of a run."""
    for number in range(5):
        places.change(f"g{number}")
    places.backup()
    for at in range(1, 200):
        places.lose("copy") if at > 1 else None
        places.serials.clear()
        fresh = _snapshot(places)
        gate = Gate(fresh.store("primary"), at, lambda fresh=fresh: _prune_primary(fresh, {1, 3}))
        report = fresh.copy(source=fresh.repository(store=gate), wanted={1, 2, 3, 4})
        assert not report.failed, report.failed
        assert {2, 4} <= report.held
        fresh.check("copy", {2, 4})
        _held_is_exact(fresh)
        if gate.count < at:
            return
    raise AssertionError("it never ended by itself")


def _snapshot(places: Places) -> Places:
    """The same places, their primary as it was the first time."""
    import shutil

    kept = places.folder / "kept"
    if not kept.exists():
        shutil.copytree(places.folder / "primary", kept)
    shutil.rmtree(places.folder / "primary")
    shutil.copytree(kept, places.folder / "primary")
    return places


def _prune_primary(places: Places, ending: set[int]) -> None:
    prune(
        places.repository(), forget=dict.fromkeys(ending, "x"), head=places.head, dry_run=False, progress=NullProgress()
    )


def test_a_backup_during_a_copy(places: Places) -> None:
    """Goal: copies hold up nobody; take a backup at operations of a run, then copy it too."""
    for at in (2, 8, 15):
        gate = Gate(places.store("primary"), at, places.backup)
        wanted = set(places.expected)
        report = places.copy(source=places.repository(store=gate), wanted=wanted)
        assert report.held >= wanted
        assert not report.failed
    places.copy()
    places.check("copy")


def test_a_run_and_a_prune_of_the_same_copy_in_every_order(places: Places) -> None:
    """Goal: of two writers that both think to hold the lease none breaks a promise; prune the copy at each operation."""
    places.copy(wanted={1, 2})
    kept = _keep(places)
    for at in range(1, 200):
        kept(places)

        def overtake() -> None:
            _prune_copy(places, {1})

        gate = Gate(places.store("copy"), at, overtake)
        with suppress(LastroError):
            places.copy(store=gate, wanted={1, 2, 3})
        _held_is_exact(places)
        assert places.copy(wanted={1, 2, 3}).held == {1, 2, 3}
        places.check("copy")
        if gate.count < at:
            return


def test_two_runs_of_one_copy(places: Places) -> None:
    """Goal: a run that lost its lease and its successor end in one whole copy; let one overtake the other anywhere."""
    places.copy(wanted={1})
    kept = _keep(places)
    for at in range(1, 200):
        kept(places)
        gate = Gate(places.store("copy"), at, lambda: places.copy(wanted={2, 3}))
        before = places.serials["copy"]
        with suppress(SessionFenced):
            places.copy(store=gate, wanted={1, 2})
        places.serials["copy"] = max(before, selection_read(places.repository("copy")).serial)
        _held_is_exact(places)
        assert places.copy().held == {1, 2, 3}
        places.check("copy")
        if gate.count < at:
            return


def _keep(places: Places) -> Any:
    import shutil

    serial = places.serials["copy"]
    shutil.copytree(places.folder / "copy", places.folder / "copy-kept")

    def back(places: Places) -> None:
        shutil.rmtree(places.folder / "copy")
        shutil.copytree(places.folder / "copy-kept", places.folder / "copy")
        places.serials["copy"] = serial

    return back


def test_a_copy_keeps_longer_or_shorter_than_the_primary(places: Places) -> None:
    """Goal: retention of its own; the primary ends two and repacks, the copy keeps them, then drops them by whole packs."""
    places.copy()
    _prune_primary(places, {1, 2})
    places.change("f4")
    places.backup()
    report = places.copy(wanted={3, 4})
    assert report.held == {1, 2, 3, 4}
    places.check("copy")
    dry = _prune_copy(places, {1, 2}, dry_run=True)
    assert dry.packs_dropped > 0
    places.check("copy")
    done = _prune_copy(places, {1, 2})
    assert (done.ended, done.packs_dropped) == ((1, 2), dry.packs_dropped)
    assert done.bytes_after < done.bytes_before
    places.check("copy", {3, 4})
    assert places.repository("copy").numbers() == [3, 4]


def test_what_was_deleted_by_hand_is_missing_and_comes_back(places: Places) -> None:
    """Goal: a look tells what is there; delete a manifest, packs, everything, and run the copy each time."""
    places.copy()
    (places.folder / "copy/r/r/manifests/0000000002").unlink()
    report = places.copy()
    assert [each.key for each in report.target_findings] == ["manifests/0000000002"]
    gone = [path for path in (places.folder / "copy/r/r/data").rglob("*") if path.is_file()]
    for path in gone:
        path.unlink()
    report = places.copy()
    assert {each.key for each in report.target_findings} == {f"pack {path.name}" for path in gone}
    assert set(report.mended) == {f"pack {path.name}" for path in gone}
    places.check("copy")
    places.lose("copy")
    report: CopyReport = places.copy()
    assert report.held == {1, 2, 3}
    places.check("copy")


def test_a_copy_that_was_rolled_back_is_seen(places: Places) -> None:
    """Goal: an older promise does not pass for the newest one; put the first selection back in its place, run the copy."""
    places.copy(wanted={1})
    folder = places.folder / "copy/r/r/selections"
    (first,) = folder.iterdir()
    kept = first.read_bytes()
    places.copy()
    for path in folder.iterdir():
        path.unlink()
    first.write_bytes(kept)
    report = places.copy()
    assert [each.key for each in report.target_findings] == ["selection"]
    assert (report.held, report.selection) == ({1, 2, 3}, 3)
    assert selection_read(places.repository("copy")).kept == {1, 2, 3}
    (folder / "0000000003").write_bytes(kept)
    assert places.copy().held == {1, 2, 3}, "a record in the place of another one is altered"


def test_damage_in_the_source_costs_what_it_hits(places: Places) -> None:
    """Goal: other backups are copied all the same; flip a byte in a pack that only the newest backup needs."""
    before = places.packs("primary")
    places.change("f7")
    places.backup()
    for path in (places.folder / "primary/r/r/data").rglob("*"):
        if path.is_file() and path.name not in before:
            blob = bytearray(path.read_bytes())
            blob[len(blob) // 2] ^= 1
            path.write_bytes(blob)
    report = places.copy()
    assert set(report.failed) == {4}
    assert report.held == {1, 2, 3}
    assert any(each.key.startswith("pack ") for each in report.source_findings)
    places.check("copy", {1, 2, 3})
