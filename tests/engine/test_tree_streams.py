"""Passing by whole leaves decides what path by path would be decided."""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.errors import StalePlan
from engine.progress import NullProgress
from engine.repository import Repository
from engine.tree_compare import Comparison, TreePlan, compare_folder, open_folder
from engine.tree_cursor import same_leaf
from engine.tree_rules import TreeOrder
from engine.tree_stale import SavedState
from engine.tree_view import TreeView
from tests.engine.tree_samples import grainless, save, write


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of many leaves, for these are small here."""
    for module in ("tree_format", "tree_scan"):
        monkeypatch.setattr(f"engine.{module}.LEAF_ANCHOR_MASK", 0x1F)
    for i in range(800):
        write(tmp_path / "tree" / f"d{i % 30}" / f"e{i % 7}" / f"f{i}", b"%d" % i)
    os.link(tmp_path / "tree" / "d1" / "e1" / "f1", tmp_path / "tree" / "linked")
    return tmp_path / "tree"


def _change(root: Path, rng: random.Random, count: int) -> None:
    for path in rng.sample(sorted(path for path in root.glob("d1*/*/*") if path.is_file()), count):
        chance = rng.random()
        if chance < 0.3:
            path.write_bytes(b"changed")
        elif chance < 0.6:
            path.unlink()
        else:
            write(path.parent / (path.name + ".new"), b"new")
    shutil.rmtree(root / "d17" / "e3", ignore_errors=True)


def _decided(view: TreeView, root: Path, order: TreeOrder) -> tuple[Comparison, Any]:
    plan = TreePlan.empty(view, order, os.fsencode(root.parent))
    folder = open_folder(os.fsencode(root))
    try:
        found = compare_folder(view, folder, order, NullProgress(), plan=plan)
        return found, (plan.take, plan.stays, list(plan.links), list(plan.folders), list(plan.apart), plan.counts)
    finally:
        os.close(folder)
        plan.close()


def _left_out(path: bytes, is_folder: bool) -> bool:
    return path.startswith(b"d2/e2") or path.endswith(b"9.new")


def test_whole_leaves_are_decided_as_each_path(
    repository: Repository, root: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: counts, digest, samples and plan are the same for every mode, with a base and a safety backup; most leaves alike."""
    with grainless():
        base = save(repository, root)
        _change(root, rng, 9)
        backup = save(repository, root, parent=base)
        _change(root, rng, 9)
        saved = save(repository, root, parent=backup)
        orders = [
            TreeOrder(mode=mode, base=one, saved=other, modules=("d1", "d17"), left_out=left_out)  # type: ignore[arg-type]
            for mode, one in (("full", None), ("selective", None), ("merge", None), ("merge", base.view))
            for other in (None, saved.view)
            for left_out in (None, _left_out)
        ]
        passed: list[bytes] = []

        def counted(view: TreeView, span: Any) -> Any:
            ref = same_leaf(view, span)
            passed.extend([] if ref is None else [ref.first])
            return ref

        monkeypatch.setattr("engine.tree_streams.same_leaf", counted)
        quick = [_decided(backup.view, root, order) for order in orders]
        assert len(passed) > len(orders)
        monkeypatch.setattr("engine.tree_streams.same_leaf", lambda view, span: None)
        slow = [_decided(backup.view, root, order) for order in orders]
        assert quick == slow


def test_a_folder_is_known_again_leaf_by_leaf(repository: Repository, root: Path, rng: random.Random) -> None:
    """Goal: a folder that is what was saved is so without its leaves, and any change to it is found among them."""
    with grainless():
        saved = save(repository, root)
        state = SavedState(saved.view, left_out=None, stays=bytearray(saved.view.entry_count))
        folder = open_folder(os.fsencode(root))
        try:
            state.require(folder, NullProgress())
            victims = sorted(path for path in root.glob("*/*/*"))
            for deed in (
                lambda path: path.write_bytes(b"other"),
                lambda path: path.unlink(),
                lambda path: write(path.parent / (path.name + "~"), b"n"),
                lambda path: write(path.parent / "0", b"n"),
            ):
                victim = victims.pop(rng.randrange(len(victims)))
                before = victim.read_bytes()
                deed(victim)
                with pytest.raises(StalePlan, match=victim.parent.name):
                    state.require(folder, NullProgress())
                for made in (victim.parent / (victim.name + "~"), victim.parent / "0"):
                    made.unlink(missing_ok=True)
                again = not victim.exists() or victim.read_bytes() != before
                if again:
                    victim.unlink(missing_ok=True)
                    write(victim, before)
                    saved = save(repository, root, parent=saved)
                    state = SavedState(saved.view, left_out=None, stays=bytearray(saved.view.entry_count))
                state.require(folder, NullProgress())
        finally:
            os.close(folder)
