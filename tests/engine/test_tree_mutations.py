"""Random histories of a folder: every backup of the chain restores what the folder then was."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.tree_digest import tree_digest_of_folder
from tests.engine.tree_samples import fingerprint, fresh_repository, save

NAMES = [b"a", b"a.b", b"a-b", b"b", b"c\n", b"\xff", b"n" * 200, "\u00fc".encode()]
ACTIONS = ("write", "append", "delete", "mkdir", "rename", "link", "symlink", "chmod", "touch", "hole", "fifo")
ACTION = st.tuples(
    st.sampled_from(ACTIONS),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
    st.integers(0, 400_000),
)


def _apply(root: bytes, action: tuple[str, list[bytes], list[bytes], int]) -> None:
    """Do it if the tree as it is allows it."""
    kind, here, there, number = action
    path, other = os.path.join(root, *here), os.path.join(root, *there)
    deeds: dict[str, Callable[[], object]] = {
        "write": lambda: _write(path, number.to_bytes(4, "little") * (number // 4)),
        "append": lambda: _append(path, b"%d" % number),
        "delete": lambda: shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path),
        "mkdir": lambda: os.makedirs(path, exist_ok=True),
        "rename": lambda: os.rename(path, other),
        "link": lambda: os.link(path, other, follow_symlinks=False),
        "symlink": lambda: os.symlink(other, path),
        "chmod": lambda: os.chmod(path, 0o400 | number & 0o377, follow_symlinks=True),
        "touch": lambda: os.utime(path, ns=(number, number * 10**9), follow_symlinks=False),
        "hole": lambda: os.truncate(path, number * 10),
        "fifo": lambda: os.mkfifo(path),
    }
    try:
        deeds[kind]()
    except (OSError, shutil.Error):
        pass


def _write(path: bytes, data: bytes) -> None:
    if os.path.lexists(path) and not os.path.isfile(path):
        return
    with open(path, "wb") as handle:
        handle.write(data)


def _append(path: bytes, data: bytes) -> None:
    if os.path.isfile(path):
        with open(path, "ab") as handle:
            handle.write(data)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(st.lists(ACTION, max_size=25), min_size=2, max_size=4), st.integers(0, 5))
def test_every_backup_of_a_history_restores(
    steps: list[list[tuple[str, list[bytes], list[bytes], int]]], cut: int
) -> None:
    """Goal: invariant A over parent chains; random mutations with tiny leaves, each restore compared with the folder."""
    from engine import tree_backup, tree_format, tree_scan, tree_write

    # Leaves of a few entries bring every case of the cut into a small tree.
    patched = [
        (module, name, value)
        for module in (tree_format, tree_scan, tree_write)
        for name, value in (("LEAF_ANCHOR_MASK", (1 << cut) - 1), ("LEAF_ENTRIES_MAX", 4))
        if hasattr(module, name)
    ]
    patched.append((tree_backup, "CLOCK_GRAIN_NS", 20_000_000))
    before = [(module, name, getattr(module, name)) for module, name, _ in patched]
    for module, name, value in patched:
        setattr(module, name, value)
    try:
        _replay(steps)
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _replay(steps: list[list[tuple[str, list[bytes], list[bytes], int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        repository, root = fresh_repository(home), home / "tree"
        root.mkdir()
        parent, chain = None, []
        for step in steps:
            for action in step:
                _apply(os.fsencode(root), action)
            parent = save(repository, root, parent=parent)
            assert parent.warnings == []
            assert parent.node["sha256"] == tree_digest_of_folder(os.fsencode(root))["sha256"]
            chain.append((parent, fingerprint(root)))
        for number, (saved, wanted) in enumerate(chain):
            saved.restore(home / f"out{number}")
            assert fingerprint(home / f"out{number}") == wanted
        chain[0][0].restore(root, overwrite=True)
        assert fingerprint(root) == chain[0][1]
