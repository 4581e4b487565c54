"""What changed in a tree between two backups, and looking into one: exact, and reading only what is needed."""

import io
import os
import random
import shutil
from pathlib import Path

import pytest

from engine.browse import file_fetch, folder_list
from engine.errors import ObjectDamaged, UsageError
from engine.repository import Repository
from engine.tree_diff import TreeChange, tree_diff
from engine.tree_format import sort_key
from engine.tree_view import TreeView
from tests.engine.tree_samples import fingerprint, hostile_tree, save, write


def test_every_kind_of_change_and_its_aspects(repository: Repository, tmp_path: Path) -> None:
    """Goal: what was added, removed, changed, and in what; before and after at hand; one of each."""
    root = tmp_path / "tree"
    for i in range(60):
        write(root / f"d{i % 10}" / f"f{i}", b"%d" % i)
    os.symlink("here", root / "link")
    first = save(repository, root)
    assert list(tree_diff(first.view, first.view)) == []
    (root / "d1" / "f1").write_bytes(b"!")
    (root / "d2" / "f2").unlink()
    write(root / "d3" / "new", b"n")
    (root / "d4" / "f4").chmod(0o600)
    os.setxattr(root / "d5" / "f5", "user.note", b"1")
    (root / "d6" / "f6").unlink()
    (root / "d6" / "f6").mkdir()
    os.utime(root / "d7" / "f7", ns=(1, 1))
    os.utime(root / "d8", ns=(1, 1))
    (root / "link").unlink()
    os.symlink("there", root / "link")
    second = save(repository, root, parent=first)
    found = {each.path: each for each in tree_diff(first.view, second.view)}
    assert {path: (each.change, each.aspects) for path, each in found.items()} == {
        b"d1/f1": ("changed", ("content", "time")),
        b"d2/f2": ("removed", ()),
        b"d3/new": ("added", ()),
        b"d4/f4": ("changed", ("mode",)),
        b"d5/f5": ("changed", ("attributes",)),
        b"d6/f6": ("changed", ("type", "mode")),
        b"d7/f7": ("changed", ("time",)),
        b"link": ("changed", ("link", "time")),
    }
    before, after = found[b"d1/f1"].before, found[b"d1/f1"].after
    assert before is not None
    assert after is not None
    assert (b"".join(first.view.read(before)), b"".join(second.view.read(after))) == (b"1", b"!")
    assert [each.path for each in tree_diff(first.view, second.view)] == sorted(found, key=sort_key)
    assert [each.path for each in tree_diff(first.view, second.view, below=b"d1")] == [b"d1/f1"]


def test_random_changes_are_all_found(repository: Repository, tmp_path: Path, rng: random.Random) -> None:
    """Goal: the difference is that of the folders themselves, forwards, backwards and below any folder; many leaves."""
    root = tmp_path / "tree"
    for i in range(6000):
        write(root / f"d{i % 60}" / f"e{i % 7}" / f"f{i}", b"x")
    first, before = save(repository, root), fingerprint(root)
    for path in rng.sample(sorted(root.glob("*/*/*")), 30):
        if rng.random() < 0.5:
            path.write_bytes(b"changed")
        else:
            path.unlink()
    shutil.rmtree(root / "d17")
    write(root / "d18.new" / "file", b"n")
    second, after = save(repository, root, parent=first), fingerprint(root)
    wanted = {path for path in before.keys() | after.keys() if _plain(before, path) != _plain(after, path)}
    assert {each.path for each in tree_diff(first.view, second.view)} == wanted
    backwards = {each.path: each.change for each in tree_diff(second.view, first.view)}
    assert backwards.keys() == wanted
    assert backwards[b"d17"] == "added"
    for below in (b"d17", b"d18", b"d18.new", b"d2/e2", b"d59/e6", b"nowhere"):
        found = [each.path for each in tree_diff(first.view, second.view, below=below)]
        assert set(found) == {path for path in wanted if path == below or path.startswith(below + b"/")}


def _plain(seen: dict[bytes, tuple[object, ...]], path: bytes) -> tuple[object, ...] | None:
    if path not in seen:
        return None
    mode, uid, gid, mtime, content, *_ = seen[path]
    return (mode, uid, gid) if int(str(mode)) >> 12 == 4 else (mode, uid, gid, mtime, content)


def test_shared_leaves_are_not_read(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: one change in many leaves reads one leaf of each side; count what is decoded."""
    root = tmp_path / "tree"
    for i in range(8000):
        write(root / f"d{i % 40}" / f"f{i}")
    first = save(repository, root)
    write(root / "d3" / "new", b"n")
    second = save(repository, root, parent=first)
    read = []
    leaf = TreeView.leaf
    monkeypatch.setattr(TreeView, "leaf", lambda view, ref: (read.append(ref.first), leaf(view, ref))[1])
    assert [each.path for each in tree_diff(first.view, second.view)] == [b"d3/new"]
    assert len(list(first.view.refs())) > 5
    assert len(read) <= 6


# ---------------------------------------------------------------- looking into one


def test_folders_are_listed_as_they_were(repository: Repository, tmp_path: Path) -> None:
    """Goal: every folder of a hostile tree lists what the disk lists; paging goes on behind any name."""
    root = hostile_tree(tmp_path / "tree")
    view = save(repository, root).view
    for folder, folders, files in os.walk(os.fsencode(root)):
        path = os.path.relpath(folder, os.fsencode(root)).removeprefix(b".").removeprefix(b"/")
        path = path if folder != os.fsencode(root) else b""
        names = [entry.path.rpartition(b"/")[2] for entry in folder_list(view, path)]
        assert names == sorted(folders + files, key=sort_key)
        for number, name in enumerate(names[:20]):
            rest = [entry.path.rpartition(b"/")[2] for entry in folder_list(view, path, after=name)]
            assert rest == names[number + 1 :]
    with pytest.raises(UsageError, match="no folder"):
        list(folder_list(view, b"a"))
    with pytest.raises(UsageError) as caught:
        list(folder_list(view, b"emtpy"))
    assert "empty" in caught.value.hint


def test_listing_reads_no_leaves_in_between(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: the top of a large tree is listed without reading what lies deep in it."""
    root = tmp_path / "tree"
    for i in range(9000):
        write(root / "deep" / f"d{i % 3}" / f"f{i}")
    write(root / "z")
    view = save(repository, root).view
    read = []
    leaf = TreeView.leaf
    monkeypatch.setattr(TreeView, "leaf", lambda view, ref: (read.append(ref.first), leaf(view, ref))[1])
    assert [entry.path for entry in folder_list(view)] == [b"deep", b"z"]
    assert len(read) <= 4 < len(list(view.refs()))


def test_one_file_is_fetched(repository: Repository, tmp_path: Path) -> None:
    """Goal: the exact bytes of one file, holes too; what is none is refused, and what is damaged is said."""
    root = hostile_tree(tmp_path / "tree")
    with (root / "hollow").open("wb") as hollow:
        hollow.seek((1 << 30) + (200 << 16) + 12345)
        hollow.write(b"end")
    saved = save(repository, root)
    for name in ("big.bin", "a", "islands", "d1/hard.bin"):
        output = io.BytesIO()
        entry = file_fetch(saved.view, name.encode(), output)
        assert output.getvalue() == (root / name).read_bytes()
        assert entry.stat.size == len(output.getvalue())
    counted = _Counted()
    file_fetch(saved.view, b"hollow", counted)
    assert counted.size == (root / "hollow").stat().st_size
    for wrong in (b"d1", b"link", b"pipe", b"nowhere/at/all"):
        with pytest.raises(UsageError):
            file_fetch(saved.view, wrong, io.BytesIO())
    with pytest.raises(UsageError) as caught:
        file_fetch(saved.view, b"big.bim", io.BytesIO())
    assert "big.bin" in caught.value.hint


def test_a_file_that_is_not_what_it_was(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: fetched content is proven; a view that gives other bytes."""
    view = save(repository, write(tmp_path / "tree" / "f", b"right").parent).view
    monkeypatch.setattr(TreeView, "read", lambda view, entry: iter([memoryview(b"wrong")]))
    with pytest.raises(ObjectDamaged, match="f is not what was backed up"):
        file_fetch(view, b"f", io.BytesIO())


class _Counted:
    size = 0

    def write(self, data: bytes | bytearray | memoryview, /) -> None:
        self.size += len(data)


def test_changes_are_values(repository: Repository, tmp_path: Path) -> None:
    """Goal: a tree that appeared whole is added path by path, folders before what they hold."""
    empty = tmp_path / "empty"
    empty.mkdir()
    nothing = save(repository, empty)
    full = save(repository, write(tmp_path / "tree" / "d" / "f", b"x").parent.parent)
    found = [each for each in tree_diff(nothing.view, full.view) if each.path]
    assert [(each.path, each.change, each.before) for each in found] == [(b"d", "added", None), (b"d/f", "added", None)]
    assert all(isinstance(each, TreeChange) and each.after is not None for each in found)
