"""Merges of file trees: nothing newer is lost, nothing deleted comes back against the policy, undo is exact."""

import os
import shutil
import socket
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.plans import POLICIES
from engine.ports import FileChange
from engine.repository import Repository
from tests.conftest import scale
from tests.connectors.files_samples import Folder, contents, lay
from tests.engine.tree_samples import fingerprint, fresh_repository, write

HISTORIES = 100


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return fresh_repository(tmp_path)


def _empty(root: Path) -> None:
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def test_only_missing_touches_nothing_that_exists(repository: Repository, tmp_path: Path) -> None:
    """Goal: lost files come back and no inode, time or mode of what exists changes; links and folders too."""
    folder = Folder(repository, lay(tmp_path / "tree", {"a/one": "1", "a/two": "2", "b/deep/three": "3", "top": "t"}))
    view = folder.backup()
    (folder.root / "a" / "one").unlink()
    shutil.rmtree(folder.root / "b")
    lay(folder.root, {"a/two": "newer", "a/mine": "m", "link": "-> top"})
    (folder.root / "a").chmod(0o711)
    os.utime(folder.root / "a", ns=(1, 2))
    before, inodes = fingerprint(folder.root), _inodes(folder.root)
    report = folder.restore(view, mode="merge")
    assert report.files == FileChange(created=2, unchanged=1, kept=3)
    after = fingerprint(folder.root)
    assert {path: after[path] for path in before} == before
    assert {path: inode for path, inode in _inodes(folder.root).items() if path in inodes} == inodes
    assert contents(folder.root)["b/deep/three"] == "3"
    assert folder.restore(view, mode="merge").files == FileChange(unchanged=3, kept=3)


def _inodes(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): os.lstat(path).st_ino for path in root.rglob("*") if not path.is_dir()}


def test_newest_wins_by_time(repository: Repository, tmp_path: Path) -> None:
    """Goal: of two contents the later one stays, the tenant's when they are equal; set the times."""
    folder = Folder(repository, lay(tmp_path / "tree", {"older": "b", "newer": "b", "same": "b", "touched": "b"}))
    for name in ("older", "newer", "same"):
        os.utime(folder.root / name, (1000, 1000))
    view = folder.backup()
    for name, moment in (("older", 900), ("newer", 1100), ("same", 1000)):
        (folder.root / name).write_text("t")
        os.utime(folder.root / name, (moment, moment))
    os.utime(folder.root / "touched", (1, 1))
    report = folder.restore(view, mode="merge", policies={".": "newest_wins"})
    assert contents(folder.root) == {"older": "b", "newer": "t", "same": "t", "touched": "b"}
    assert report.files == FileChange(replaced=1, unchanged=1, kept=2)
    assert os.stat(folder.root / "touched").st_mtime == 1


def test_policies_are_by_module(repository: Repository, tmp_path: Path) -> None:
    """Goal: each top-level folder follows its own policy, and one that is not named only gets what it lacks."""
    folder = Folder(repository, lay(tmp_path / "tree", {"a/f": "b", "b/f": "b", "f": "b", "a/g": "b"}))
    view = folder.backup()
    lay(folder.root, {"a/f": "t", "b/f": "t", "f": "t", "a/only": "t"})
    (folder.root / "a" / "g").unlink()
    folder.restore(view, mode="merge", policies={"a": "take_backup"})
    assert contents(folder.root) == {
        "a/": "", "b/": "", "a/f": "b", "a/g": "b", "a/only": "t", "b/f": "t", "f": "t",
    }  # fmt: skip


def test_more_modules_than_are_listed(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: folders beyond the manifest's list follow the policy of `/others`, and can be chosen by it or by name."""
    monkeypatch.setattr("engine.tree_format.MODULES_MAX", 2)
    folder = Folder(repository, lay(tmp_path / "tree", {f"{name}/f": "b" for name in "abcd"}))
    view = folder.backup()
    lay(folder.root, {f"{name}/f": "t" for name in "abcd"})
    folder.restore(view, mode="merge", policies={"/others": "take_backup"})
    assert [contents(folder.root)[f"{name}/f"] for name in "abcd"] == ["t", "b", "b", "b"]
    lay(folder.root, {f"{name}/f": "t" for name in "abcd"})
    folder.restore(view, mode="selective", modules=("c",))
    assert [contents(folder.root)[f"{name}/f"] for name in "abcd"] == ["t", "t", "b", "t"]
    folder.restore(view, mode="selective", modules=("/others", "a"))
    assert [contents(folder.root)[f"{name}/f"] for name in "abcd"] == ["b", "b", "b", "b"]


def test_three_ways(repository: Repository, tmp_path: Path) -> None:
    """Goal: what one side changed is that side's, both sides' changes are conflicts by policy and listed."""
    names = ("same", "mine", "its", "both", "gone_here", "gone_there", "gone_changed", "changed_gone")
    folder = Folder(repository, lay(tmp_path / "tree", dict.fromkeys(names, "base")))
    base = folder.backup()
    lay(folder.root, {"its": "backup", "both": "backup", "gone_changed": "backup", "new_there": "backup"})
    (folder.root / "gone_there").unlink()
    (folder.root / "changed_gone").unlink()
    view = folder.backup()
    _empty(folder.root)
    lay(folder.root, dict.fromkeys(names, "base"))
    lay(folder.root, {"mine": "tenant", "both": "tenant", "changed_gone": "tenant", "new_here": "tenant"})
    (folder.root / "gone_here").unlink()
    (folder.root / "gone_changed").unlink()
    wish: dict[str, Any] = {"mode": "merge", "base": base}
    shown = folder.preview(view, **wish)
    assert [(each.change, each.path) for each in shown.paths][:3] == [
        ("conflict", "both"), ("conflict", "changed_gone"), ("conflict", "gone_changed"),
    ]  # fmt: skip
    assert shown.files == FileChange(created=2, replaced=1, removed=1, unchanged=1, kept=5, conflicts=3)
    folder.restore(view, **wish)
    assert contents(folder.root) == {
        "same": "base", "mine": "tenant", "its": "backup", "both": "tenant", "gone_changed": "backup",
        "changed_gone": "tenant", "new_there": "backup", "new_here": "tenant",
    }  # fmt: skip


def test_a_file_where_the_other_has_a_folder(repository: Repository, tmp_path: Path) -> None:
    """Goal: a type change loses nothing of the tenant's and is explained; both ways, under every policy."""
    folder = Folder(repository, lay(tmp_path / "tree", {"x": "file", "y/deep/f": "b"}))
    view = folder.backup()
    for policy in POLICIES:
        _empty(folder.root)
        lay(folder.root, {"x/inside": "t", "y": "file"})
        policies = {"x": policy, "y": policy}
        shown = folder.preview(view, mode="merge", policies=policies)
        said = {each.path: each.because for each in shown.paths}
        assert "it is a folder now" in said["x"]
        folder.restore(view, mode="merge", policies=policies)
        found = contents(folder.root)
        assert found["x/inside"] == "t"
        if policy == "take_backup":
            assert found["y/deep/f"] == "b"
            assert "a folder takes a file's place" in said["y"]
        else:
            assert found["y"] == "file"
            assert said["y/deep/f"] == "y is a file now"


def test_sockets_and_excluded_paths_stay(repository: Repository, tmp_path: Path) -> None:
    """Goal: what no backup holds outlives a merge, as the very same things; a socket, a cache."""
    folder = Folder(repository, lay(tmp_path / "tree", {"a/f": "b", "cache/x": "c"}), exclude="/cache")
    view = folder.backup()
    (folder.root / "a" / "f").unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder.root / "a" / "app.sock"))
        listening.listen()
        folder.restore(view, mode="merge")
        assert contents(folder.root) == {"a/": "", "a/f": "b", "cache/": "", "cache/x": "c"}
        with socket.socket(socket.AF_UNIX) as calling:
            calling.connect(str(folder.root / "a" / "app.sock"))


def test_hard_links_on_both_sides(repository: Repository, tmp_path: Path) -> None:
    """Goal: names of one file stay names of one file, whichever side they come from."""
    folder = Folder(repository, lay(tmp_path / "tree", {"back/1": "b"}))
    os.link(folder.root / "back" / "1", folder.root / "back" / "2")
    view = folder.backup()
    shutil.rmtree(folder.root / "back")
    lay(folder.root, {"mine/1": "t"})
    os.link(folder.root / "mine" / "1", folder.root / "mine" / "2")
    folder.restore(view, mode="merge")
    for name in ("back", "mine"):
        assert os.path.samefile(folder.root / name / "1", folder.root / name / "2")
        assert os.stat(folder.root / name / "1").st_nlink == 2


# ---------------------------------------------------------------- histories against a model


class Node(NamedTuple):
    kind: str
    text: str
    mode: int
    time: int


Tree = dict[str, Node]
NAMES = ("a", "b", "a/a", "a/b", "b/a", "a/a/a", "a/a/b", "a/b/a")
nodes = st.builds(
    Node,
    st.sampled_from(["file", "file", "folder", "folder", "link"]),
    st.sampled_from(["", "x", "y"]),
    st.sampled_from([0o700, 0o750]),
    st.integers(1, 3),
)


@st.composite
def _trees(draw: st.DrawFn) -> Tree:
    return _whole(draw(st.dictionaries(st.sampled_from(NAMES), nodes)))


@st.composite
def _changed(draw: st.DrawFn, tree: Tree) -> Tree:
    changes = draw(st.dictionaries(st.sampled_from(NAMES), st.none() | nodes, max_size=4))
    wild = {name: node for name, node in {**tree, **changes}.items() if node is not None}
    return _whole(wild)


def _whole(wild: Tree) -> Tree:
    """What of the nodes can lie on a disk: below a file there is nothing, above everything there are folders."""
    tree: Tree = {}
    for name in sorted(wild):
        above = [name[:at] for at, letter in enumerate(name) if letter == "/"]
        if any(each in tree and tree[each].kind != "folder" for each in above):
            continue
        for each in above:
            tree.setdefault(each, Node("folder", "", 0o700, 1))
        node = wild[name]
        tree[name] = node._replace(text="" if node.kind == "folder" else node.text)
    return tree


@st.composite
def _histories(draw: st.DrawFn) -> tuple[Tree, Tree, Tree]:
    base = draw(_trees())
    return base, draw(_changed(base)), draw(_changed(base))


def _put(root: Path, tree: Tree) -> None:
    _empty(root)
    for name, node in sorted(tree.items()):
        path = root / name
        if node.kind == "folder":
            path.mkdir()
        elif node.kind == "file":
            write(path, node.text.encode())
        else:
            path.symlink_to(node.text or "nowhere")
    for name, node in sorted(tree.items(), reverse=True):
        if node.kind != "link":
            (root / name).chmod(node.mode)
        os.utime(root / name, (node.time, node.time), follow_symlinks=False)


def _read(root: Path) -> Tree:
    found: Tree = {}
    for path in root.rglob("*"):
        info = path.lstat()
        kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "file"
        text = (
            os.readlink(path).replace("nowhere", "") if kind == "link" else "" if kind == "folder" else path.read_text()
        )
        found[str(path.relative_to(root))] = Node(kind, text, info.st_mode & 0o777, int(info.st_mtime))
    return found


def _same(one: Node | None, other: Node | None) -> bool:
    return _gist(one) == _gist(other)


def _gist(node: Node | None) -> tuple[Any, ...] | None:
    return None if node is None else (node.kind, node.text, 0 if node.kind == "link" else node.mode)


def _side(base: Node | None, mine: Node | None, its: Node | None, policy: str, *, three: bool) -> str:
    """Whose node a path gets, were it alone: `mine` the tenant's, `its` the backup's."""
    if _same(mine, its):
        return "mine"
    if three:
        if _same(its, base):
            return "mine"
        if _same(mine, base):
            return "its"
    if mine is None:
        return "its"
    if its is None:
        return "its" if three and policy == "take_backup" else "mine"
    if policy == "only_missing" or (mine.kind == "folder" and its.kind != "folder"):
        return "mine"
    if policy == "take_backup":
        return "its"
    return "its" if its.kind != "folder" and its.time > mine.time else "mine"


def _model(base: Tree, mine: Tree, its: Tree, policy: str, *, three: bool) -> Tree:
    """The merge, by repairing what each path would get alone until it is a tree."""
    given = {"mine": mine, "its": its}
    sides = {
        name: _side(base.get(name), mine.get(name), its.get(name), policy, three=three) for name in {*base, *mine, *its}
    }
    while True:
        tree = {name: given[side][name] for name, side in sides.items() if name in given[side]}
        wrong = next((name for name in sorted(tree) if _parent(name) and not _folder(tree, _parent(name))), None)
        if wrong is None:
            return tree
        above = [wrong[:at] for at, letter in enumerate(wrong) if letter == "/"]
        blocking = next((name for name in above if name in tree and not _folder(tree, name)), None)
        if sides[wrong] == "mine":
            sides[blocking or _parent(wrong)] = "mine"
        elif blocking:
            sides[wrong] = "mine"  # The tenant has a file above, and so nothing here: it stays away.
        else:
            sides[_parent(wrong)] = "its"


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _folder(tree: Tree, name: str) -> bool:
    return name in tree and tree[name].kind == "folder"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    home = tmp_path_factory.mktemp("histories")
    (home / "tree").mkdir()
    return Folder(fresh_repository(home), home / "tree")


@settings(max_examples=HISTORIES * scale())
@given(history=_histories(), policy=st.sampled_from(POLICIES), three=st.booleans())
def test_histories_merge_as_the_model_says(
    bench: Folder, history: tuple[Tree, Tree, Tree], policy: str, three: bool
) -> None:
    """Goal: two sides change, then merge: every path by the policy; preview is what is done; undo is exact."""
    base, its, mine = history
    _put(bench.root, base)
    first = bench.backup()
    _put(bench.root, its)
    view = bench.backup()
    _put(bench.root, mine)
    before, saved = fingerprint(bench.root), bench.backup()
    policies = dict.fromkeys([".", "a", "b"], policy)
    bench.restore(view, mode="merge", policies=policies, base=first if three else None)
    wanted, found = _model(base if three else {}, mine, its, policy, three=three), _read(bench.root)
    assert {name: _gist(node) for name, node in found.items()} == {name: _gist(node) for name, node in wanted.items()}
    bench.restore(saved)
    assert fingerprint(bench.root) == before
