"""Selective restores of file trees: the chosen top-level folders become what they were, the others are not touched."""

import os
from pathlib import Path

import pytest

from engine.errors import UsageError
from engine.ports import FileChange, RestoreRequest
from engine.progress import NullProgress
from engine.repository import Repository
from tests.connectors.files_samples import Folder, contents, lay
from tests.engine.tree_samples import fingerprint, fresh_repository, hostile_tree

SITE = {"shop/cart": "c", "shop/deep/list": "l", "blog/post": "p", "top": "t", "other": "o"}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return fresh_repository(tmp_path)


def test_chosen_folders_only(repository: Repository, tmp_path: Path) -> None:
    """Goal: one module becomes what it was, removals too; everything else keeps inode, time and content."""
    folder = Folder(repository, lay(tmp_path / "tree", SITE))
    view = folder.backup()
    shop = {path: seen for path, seen in fingerprint(folder.root).items() if path.startswith(b"shop")}
    lay(
        folder.root, {"shop/cart": "X", "shop/new": "n", "blog/post": "X", "blog/new": "n", "top": "X", "site/new": "n"}
    )
    (folder.root / "shop" / "deep" / "list").unlink()
    (folder.root / "other").unlink()
    before = fingerprint(folder.root)
    blog = os.stat(folder.root / "blog" / "post").st_ino
    report = folder.restore(view, mode="selective", modules=("shop",))
    assert report.files == FileChange(created=1, replaced=1, removed=1)
    after = fingerprint(folder.root)
    assert {path: seen for path, seen in after.items() if path.startswith(b"shop")} == shop
    others = {path: seen for path, seen in before.items() if not path.startswith(b"shop")}
    assert {path: seen for path, seen in after.items() if not path.startswith(b"shop")} == others
    assert os.stat(folder.root / "blog" / "post").st_ino == blog


def test_files_at_the_top_are_a_module(repository: Repository, tmp_path: Path) -> None:
    """Goal: `.` is what lies beside the folders; choose it alone, then with another."""
    folder = Folder(repository, lay(tmp_path / "tree", SITE))
    view = folder.backup()
    lay(folder.root, {"top": "X", "new": "n", "shop/cart": "X"})
    (folder.root / "other").unlink()
    assert folder.restore(view, mode="selective", modules=(".",)).files == FileChange(created=1, replaced=1, removed=1)
    found = contents(folder.root)
    assert (found["top"], found["other"], found["shop/cart"]) == ("t", "o", "X")
    assert "new" not in found
    folder.restore(view, mode="selective", modules=(".", "shop"))
    assert {name: text for name, text in contents(folder.root).items() if not name.endswith("/")} == SITE


def test_a_module_that_is_gone_comes_back_alone(repository: Repository, tmp_path: Path) -> None:
    """Goal: a lost folder comes back whatever it held, into an empty folder and into none; a hostile one."""
    hostile_tree(tmp_path / "made")
    root = tmp_path / "tree"
    root.mkdir()
    (tmp_path / "made").rename(root / "all")
    lay(root, {"blog/post": "p"})
    folder = Folder(repository, root)
    view, wanted = folder.backup(), fingerprint(root / "all")
    os.rename(root / "all", tmp_path / "away")
    folder.restore(view, mode="selective", modules=("all",))
    assert fingerprint(root / "all") == wanted
    there = folder.connector.at({"path": str(tmp_path / "there")})
    request = RestoreRequest(label="rst_1", in_place=False, mode="selective", modules=("all",), prove=True)
    there.restore(view, request, NullProgress())
    assert os.listdir(tmp_path / "there") == ["all"]
    assert fingerprint(tmp_path / "there" / "all") == wanted


def test_a_file_in_the_place_of_a_module(repository: Repository, tmp_path: Path) -> None:
    """Goal: the chosen folder replaces the file in its way and says so; a folder that was not chosen is not removed."""
    folder = Folder(repository, lay(tmp_path / "tree", {"shop/cart": "c", "note": "file"}))
    view = folder.backup()
    (folder.root / "shop" / "cart").unlink()
    (folder.root / "shop").rmdir()
    (folder.root / "note").unlink()
    lay(folder.root, {"shop": "a file now", "note/inside": "t"})
    shown = folder.preview(view, mode="selective", modules=("shop", "."))
    said = {each.path: (each.change, each.because) for each in shown.paths}
    assert said["shop"] == ("update", "a file stands where a chosen folder was")
    assert said["note"][0] == "kept"
    folder.restore(view, mode="selective", modules=("shop", "."))
    assert contents(folder.root) == {"note/": "", "note/inside": "t", "shop/": "", "shop/cart": "c"}


def test_unknown_modules_are_refused_with_advice(repository: Repository, tmp_path: Path) -> None:
    """Goal: a misspelt module is found before anything is done, and the right name is near; nothing chosen is nothing."""
    folder = Folder(repository, lay(tmp_path / "tree", SITE))
    view, before = folder.backup(), fingerprint(folder.root)
    for wish in (("shpo",), ("shop", "bolg"), ("shop/deep",), ("",)):
        with pytest.raises(UsageError) as caught:
            folder.preview(view, mode="selective", modules=wish)
        assert caught.value.hint
    with pytest.raises(UsageError, match="shpo") as caught:
        folder.restore(view, mode="selective", modules=("shpo",))
    assert "shop" in caught.value.hint
    (folder.root / "top").unlink()
    before = fingerprint(folder.root)
    assert folder.restore(view, mode="selective", modules=()).files == FileChange()
    assert fingerprint(folder.root) == before
