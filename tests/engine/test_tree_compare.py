"""What a restore is said to change, compared with what it changes."""

import os
from pathlib import Path

import pytest

from engine.progress import NullProgress
from engine.repository import Repository
from engine.tree_compare import TreePlan, compare_folder
from engine.tree_rules import TreeOrder
from tests.engine.tree_samples import save, write


@pytest.mark.parametrize("samples", [0, 3, 200])
def test_a_new_place_is_compared_as_any_other(repository: Repository, tmp_path: Path, samples: int) -> None:
    """Goal: the short way for a target that does not exist says and plans the same. Method: force the long way."""
    root = tmp_path / "tree"
    for name in ("a", "folder/b", "folder/deep/c", "tab\tand\nline\\", "zero"):
        write(root / name, os.urandom(1000) if name != "zero" else b"")
    os.link(root / "a", root / "linked")
    os.symlink("a", root / "symbolic")
    os.mkfifo(root / "pipe")
    os.truncate(write(root / "sparse", b"x"), 5 << 20)
    os.setxattr(root / "a", "user.note", b"n")
    view = save(repository, root).view
    found = []
    for left_out in (None, lambda path, is_folder: False):
        order = TreeOrder(samples=samples, left_out=left_out)
        plan = TreePlan.empty(view, order, os.fsencode(tmp_path))
        found.append(
            (compare_folder(view, None, order, NullProgress(), plan=plan), plan.take, plan.counts["not_taken"])
        )
        plan.close()
    assert found[0] == found[1]
    assert found[0][0].changes.created == view.entry_count - view.folder_count
