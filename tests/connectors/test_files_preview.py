"""Previews of file trees, what binds them to their restore, and what makes them stale."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from connectors.files import FilesConnector
from engine.errors import CommitUnknown, SourceUnsupported, StalePlan, TargetError, TargetFull
from engine.ports import FileChange, RestoreRequest
from engine.progress import NullProgress
from engine.repository import Repository
from engine.tree_swap import Places, exchange
from tests.connectors.files_samples import Folder, contents, lay, leftovers
from tests.engine.tree_samples import fingerprint, fresh_repository, hostile_tree, write

SITE = {"a/one": "1", "a/two": "22", "b/three": "333", "logs/app": "start", "top": "t"}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return fresh_repository(tmp_path)


@pytest.fixture
def folder(repository: Repository, tmp_path: Path) -> Folder:
    return Folder(repository, lay(tmp_path / "tree", SITE))


def test_preview_says_what_and_writes_nothing(folder: Folder, tmp_path: Path) -> None:
    """Goal: counts, the telling paths first, sizes and times, room; and no write, not even beside the folder."""
    view = folder.backup()
    lay(folder.root, {"a/one": "changed", "extra": "e"})
    (folder.root / "a" / "two").unlink()
    (folder.root / "b" / "three").chmod(0o600)
    before, around = fingerprint(folder.root), sorted(os.listdir(tmp_path))
    shown = folder.preview(view)
    assert shown.files == FileChange(created=1, replaced=2, removed=1, unchanged=2)
    assert [(each.change, each.path) for each in shown.paths] == [
        ("delete", "extra"), ("update", "a/one"), ("update", "b/three"), ("insert", "a/two"),
    ]  # fmt: skip
    one = shown.paths[1]
    assert (one.size_before, one.size_after) == (7, 1)
    assert str(one.modified_after).endswith("+00:00")
    assert shown.paths[2].because == "mode 600, was 644"
    assert 5 * 4096 <= shown.staged_bytes <= 20 * 4096
    assert shown.warnings == ()
    assert fingerprint(folder.root) == before
    assert sorted(os.listdir(tmp_path)) == around
    assert len(folder.preview(view, samples=2).paths) == 2


def test_the_digest_is_of_the_changes_and_nothing_else(folder: Folder) -> None:
    """Goal: the same changes have one digest, another content another; what a merge leaves alone does not enter it."""
    view = folder.backup()
    (folder.root / "a" / "one").unlink()
    first = folder.preview(view, mode="merge").digest
    lay(folder.root, {"logs/app": "more", "new": "n"})
    assert folder.preview(view, mode="merge").digest == first
    whole = folder.preview(view).digest
    lay(folder.root, {"logs/app": "even more"})
    assert folder.preview(view).digest != whole
    (folder.root / "a" / "two").unlink()
    assert folder.preview(view, mode="merge").digest != first


def test_another_preview_than_what_would_be_done_is_stale(folder: Folder) -> None:
    """Goal: a plan that does not fit any more is refused before anything is staged; write after the preview."""
    view = folder.backup()
    (folder.root / "a" / "one").unlink()
    shown = folder.preview(view)
    lay(folder.root, {"top": "written since"})
    before = fingerprint(folder.root)
    request = RestoreRequest(label="rst_1", overwrite=True, digest=shown.digest)
    with pytest.raises(StalePlan) as caught, folder.connector.prepare(view, request, NullProgress()):
        pass
    assert caught.value.hint
    assert fingerprint(folder.root) == before
    assert leftovers(folder.root) == []


def test_prepared_and_left_without_commit(folder: Folder) -> None:
    """Goal: a restore that is not committed never was; leave the context, and leave it by an error."""
    view = folder.backup()
    lay(folder.root, {"a/one": "X"})
    before = fingerprint(folder.root)
    request = RestoreRequest(label="rst_1", overwrite=True, saved=folder.backup())
    with folder.connector.prepare(view, request, NullProgress()) as prepared:
        assert prepared.report.files == FileChange(replaced=1, unchanged=4)
        assert leftovers(folder.root) != []
        assert fingerprint(folder.root) == before
    assert leftovers(folder.root) == []
    assert folder.connector.settle(prepared.token) is False
    with pytest.raises(ZeroDivisionError), folder.connector.prepare(view, request, NullProgress()):
        raise ZeroDivisionError
    assert (fingerprint(folder.root), leftovers(folder.root)) == (before, [])


WRITES: dict[str, Callable[[Path], object]] = {
    "new file": lambda root: write(root / "a" / "fresh", b"f"),
    "new folder": lambda root: (root / "fresh").mkdir(),
    "appended": lambda root: (root / "top").open("a").write("more"),
    "same size and time": lambda root: _rewritten(root / "top"),
    "removed": lambda root: (root / "b" / "three").unlink(),
    "mode": lambda root: (root / "a").chmod(0o711),
    "attribute": lambda root: os.setxattr(root / "top", "user.note", b"1"),
    "replaced": lambda root: (write(root / "tmp", b"x"), (root / "tmp").rename(root / "top")),
    "renamed": lambda root: (root / "b").rename(root / "c"),
}


def _rewritten(path: Path) -> None:
    info = path.stat()
    path.write_text("T")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


@pytest.mark.parametrize("write_it", WRITES.values(), ids=WRITES)
def test_nobodys_write_is_lost(folder: Folder, write_it: Callable[[Path], object]) -> None:
    """Goal: what is written between the safety backup and the swap is refused and still there, even by the undo."""
    view = folder.backup()
    lay(folder.root, {"a/one": "X"})
    request = RestoreRequest(label="rst_1", overwrite=True, saved=folder.backup())
    with folder.connector.prepare(view, request, NullProgress()) as prepared:
        write_it(folder.root)
        before = fingerprint(folder.root)
        with pytest.raises(StalePlan, match="safety backup"):
            prepared.commit()
    assert fingerprint(folder.root) == before
    assert leftovers(folder.root) == []


@pytest.mark.parametrize("way", ["exchange", "entries"])
@pytest.mark.parametrize("write_it", WRITES.values(), ids=WRITES)
def test_a_write_in_the_moment_of_the_swap(
    folder: Folder, write_it: Callable[[Path], object], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: a write after the last look before the swap is found after it, and all goes back; both ways to swap."""
    view = folder.backup()
    lay(folder.root, {"a/one": "X"})
    request = RestoreRequest(label="rst_1", overwrite=True, saved=folder.backup())
    wrote = []

    def late(places: Places) -> bool:
        write_it(folder.root)
        wrote.append(fingerprint(folder.root))
        return way == "exchange" and exchange(places)

    monkeypatch.setattr("engine.tree_restore.exchange", late)
    with folder.connector.prepare(view, request, NullProgress()) as prepared, pytest.raises(StalePlan):
        prepared.commit()
    assert fingerprint(folder.root) == wrote[0]
    assert leftovers(folder.root) == []


def test_what_cannot_be_put_back_is_kept(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: when even the way back fails, the operator is told so, and the old tree lies where it is said to lie."""
    view = folder.backup()
    lay(folder.root, {"a/one": "X"})
    request = RestoreRequest(label="rst_1", overwrite=True, saved=folder.backup())

    def late(places: Places) -> bool:
        lay(folder.root, {"top": "late"})
        return exchange(places)

    def broken(places: Places) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("engine.tree_restore.exchange", late)
    monkeypatch.setattr("engine.tree_restore.exchange_back", broken)
    with folder.connector.prepare(view, request, NullProgress()) as prepared:
        with pytest.raises(CommitUnknown) as caught:
            prepared.commit()
        assert folder.connector.settle(prepared.token) is True
    (stage,) = leftovers(folder.root)
    assert stage in caught.value.hint
    assert (folder.root.parent / stage / "top").read_text() == "late"


def test_what_stays_may_be_written_to_all_the_time(folder: Folder) -> None:
    """Goal: a merge never waits for a log: what is written to a file that stays is in the new tree, too."""
    view = folder.backup()
    (folder.root / "a" / "one").unlink()
    request = RestoreRequest(label="rst_1", overwrite=True, mode="merge", saved=folder.backup())
    with (folder.root / "logs" / "app").open("a") as log:
        with folder.connector.prepare(view, request, NullProgress()) as prepared:
            log.write(" one")
            log.flush()
            prepared.commit()
        log.write(" two")
    assert contents(folder.root)["logs/app"] == "start one two"
    assert contents(folder.root)["a/one"] == "1"


def test_a_log_that_never_rests_is_named(folder: Folder) -> None:
    """Goal: the operator learns which file to stop or to leave out; and with the pattern it works."""
    view = folder.backup()
    (folder.root / "a" / "one").unlink()
    with (folder.root / "logs" / "app").open("a") as log:
        request = RestoreRequest(label="rst_1", overwrite=True, saved=folder.backup())
        with folder.connector.prepare(view, request, NullProgress()) as prepared:
            log.write("x")
            log.flush()
            with pytest.raises(StalePlan, match="logs/app") as caught:
                prepared.commit()
        assert "exclude" in caught.value.hint
        folder.use("/logs")
        report = folder.restore(view)
        log.write("y")
    assert contents(folder.root) == {**SITE, "logs/app": "startxy", "a/": "", "b/": "", "logs/": ""}
    assert "2 paths of the backup are left out" in report.warnings[0]


def test_left_out_today_is_never_lost(repository: Repository, tmp_path: Path) -> None:
    """Goal: undo is exact although patterns changed: what no safety backup holds is not touched, nor below it."""
    folder = Folder(repository, lay(tmp_path / "tree", SITE))
    view = folder.backup()
    folder.use("/logs\n*.tmp")
    lay(folder.root, {"logs/app": "mine", "logs/new": "n", "a/x.tmp": "t", "a/one": "X"})
    before, saved = fingerprint(folder.root), folder.backup()
    folder.restore(view)
    found = contents(folder.root)
    assert (found["logs/app"], found["logs/new"], found["a/x.tmp"], found["a/one"]) == ("mine", "n", "t", "1")
    folder.restore(saved)
    assert fingerprint(folder.root) == before


def test_kept_below_what_is_a_file_in_the_backup(folder: Folder) -> None:
    """Goal: refused in the preview already, with the way out; an excluded path below a file of the backup."""
    (folder.root / "spot").write_text("file")
    view = folder.backup()
    (folder.root / "spot").unlink()
    lay(folder.root, {"spot/x.log": "log"})
    folder.use("*.log")
    with pytest.raises(TargetError, match="spot is a file in the backup") as caught:
        folder.preview(view)
    assert caught.value.hint


def test_another_target_and_what_is_there(folder: Folder, tmp_path: Path) -> None:
    """Goal: a restore elsewhere says what it meets; nothing, an empty folder, a folder with something."""
    view, there = folder.backup(), tmp_path / "there"
    aimed = folder.connector.at({"path": str(there)})

    def shown(connector: FilesConnector) -> tuple[FileChange | None, tuple[str, ...]]:
        preview = connector.preview(view, RestoreRequest(label="r", in_place=False), NullProgress())
        return preview.files, preview.warnings

    assert shown(aimed) == (FileChange(created=5), ())
    assert not there.exists()
    lay(there, {"top": "other", "mine": "m"})
    changes, warnings = shown(aimed)
    assert changes == FileChange(created=4, replaced=1, removed=1)
    assert "is not empty" in warnings[0]


@as_root
def test_room_is_asked_before_anything_is_written(repository: Repository, tmp_path: Path) -> None:
    """Goal: a restore that cannot fit says so in its preview and refuses before it begins; a small tmpfs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "lastro-test", disk]).returncode:
        pytest.skip("may not mount here")
    try:
        folder = Folder(repository, lay(disk / "site", {"f": "x"}))
        (folder.root / "big").write_bytes(os.urandom(2_000_000))
        view = folder.backup()
        (folder.root / "big").unlink()
        (folder.root / "other").write_bytes(os.urandom(2_000_000))
        shown = folder.preview(view)
        assert "bytes free" in shown.warnings[0]
        with pytest.raises(TargetFull, match="staging"):
            folder.restore(view)
        assert sorted(contents_names(folder.root)) == ["f", "other"]
        assert leftovers(folder.root) == []
        assert "bytes free" not in str(folder.preview(view, mode="selective", modules=()).warnings)
    finally:
        subprocess.run(["umount", disk], check=True)


def contents_names(root: Path) -> list[str]:
    return [path.name for path in root.iterdir()]


def test_undo_is_exact_for_everything(repository: Repository, tmp_path: Path) -> None:
    """Goal: a full restore of the safety backup gives back all that a restore changed; a hostile tree, every mode."""
    folder = Folder(repository, hostile_tree(tmp_path / "tree"))
    view = folder.backup()
    shutil.rmtree(folder.root / "d1")
    (folder.root / "big.bin").write_bytes(b"mine")
    os.setxattr(folder.root / "middle.bin", "user.mine", b"1")
    lay(folder.root, {"d2": "-> nowhere"} if not (folder.root / "d2").exists() else {"mine": "m"})
    before, saved = fingerprint(folder.root), folder.backup()
    for wish in (
        {}, {"mode": "selective", "modules": ("d1", ".")}, {"mode": "merge"},
        {"mode": "merge", "policies": {".": "take_backup"}},
    ):  # fmt: skip
        folder.restore(view, **wish)
        assert fingerprint(folder.root) != before
        folder.restore(saved)
        assert fingerprint(folder.root) == before


def test_file_trees_have_no_images(folder: Folder) -> None:
    """Goal: an undo from images is refused with what to do instead."""
    request = RestoreRequest(label="rst_1")
    with pytest.raises(SourceUnsupported) as caught:
        folder.connector.prepare_undo(None, request, NullProgress())  # type: ignore[arg-type]
    assert "safety backup" in caught.value.hint
    with pytest.raises(SourceUnsupported):
        folder.connector.preview_undo(None, request, NullProgress())  # type: ignore[arg-type]
