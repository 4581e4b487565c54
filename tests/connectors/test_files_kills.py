"""Restores of file trees that are killed: wholly old or wholly new, told apart by the token, ended by the next run."""

import json
import os
import signal
import traceback
from pathlib import Path
from typing import Any

import pytest

from engine import faults
from engine.ports import RestoreRequest, SourceView
from engine.progress import NullProgress
from engine.repository import Repository
from engine.tree_swap import Places
from tests.connectors.files_samples import Folder, lay, leftovers
from tests.engine.tree_samples import fingerprint, fresh_repository

TREE = {"a/one": "1", "a/two": "22", "b/three": "333", "top": "t", "zed/f": "z"}
MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "selective": {"mode": "selective", "modules": ("a", ".")},
    "merge": {"mode": "merge", "policies": {"a": "take_backup"}},
}
BEFORE = ("tree.restore.staged",)
AFTER = ("tree.restore.exchanged", "tree.restore.swapped")
BETWEEN = (
    "tree.restore.journalled", "tree.restore.old_moved", "tree.restore.old_moved:3", "tree.restore.new_moved",
    "tree.restore.new_moved:2", "tree.restore.entries_swapped",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    repository: Repository = fresh_repository(tmp_path)
    return Folder(repository, lay(tmp_path / "site", TREE))


def _killed(folder: Folder, view: SourceView, request: RestoreRequest, label: str, *, way: str) -> None:
    """Prepare and commit in a child that dies at the label; its token is in a file by then."""
    child = os.fork()
    if child == 0:
        try:
            name, _, nth = label.partition(":")
            if way == "entries":
                from engine import tree_restore

                tree_restore.exchange = _never  # type: ignore[attr-defined]
            faults._wanted, faults._nth, faults._passages = name, nth, 0
            with folder.connector.prepare(view, request, NullProgress()) as prepared:
                (folder.root.parent / "token").write_text(json.dumps(prepared.token))
                prepared.commit()
        except BaseException:
            traceback.print_exc()
        os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def _never(places: Places) -> bool:
    return False


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("way", "label"), [("exchange", label) for label in (*BEFORE, *AFTER)] + [("entries", label) for label in BETWEEN]
)
def test_killed_at_every_label(folder: Folder, mode: str, way: str, label: str) -> None:
    """Goal: old or new, never a mixture once the journal is followed; and the token says which."""
    view = folder.backup()
    lay(folder.root, {"a/one": "X", "a/mine": "m", "new": "n", "zed/f": "Z"})
    (folder.root / "b" / "three").unlink()
    (folder.root / "top").unlink()
    old = fingerprint(folder.root)
    request = RestoreRequest(label="rst_1", overwrite=True, saved=folder.backup(), **MODES[mode])
    _killed(folder, view, request, label, way=way)
    if way == "exchange":
        assert (fingerprint(folder.root) == old) is (label in BEFORE)
    token = folder.root.parent / "token"
    if token.exists():
        assert folder.connector.settle(json.loads(token.read_text())) is True
        assert fingerprint(folder.root) != old
    after = fingerprint(folder.root)
    again = RestoreRequest(label="rst_2", overwrite=True, saved=folder.backup(), **MODES[mode])
    folder.connector.restore(view, again, NullProgress())
    if token.exists():
        assert fingerprint(folder.root) == after
    assert leftovers(folder.root) == []
    assert (folder.root / "a" / "one").read_text() == "1"
    assert (folder.root / "zed" / "f").read_text() == ("z" if mode == "full" else "Z")
