"""File trees: what was there comes back, byte and metadata, through chains of incrementals."""

import os
import shutil
import socket
import stat
import threading
from pathlib import Path

import pytest

from engine.errors import CancelledError, SourceUnreachable, StoreError
from engine.progress import NullProgress
from engine.repository import Repository
from engine.session import Lane
from engine.tree_digest import tree_digest_of_folder
from tests.engine.tree_samples import Saved, fingerprint, grainless, hostile_tree, save, write


def _comes_back(saved: Saved, target: Path, wanted: dict[bytes, tuple[object, ...]]) -> None:
    restored = saved.restore(target)
    assert fingerprint(target) == wanted
    assert all(check.passed for check in restored.checks)
    assert tree_digest_of_folder(os.fsencode(target))["sha256"] == saved.node["sha256"]


def test_hostile_tree_comes_back(repository: Repository, tmp_path: Path) -> None:
    """Goal: bytes and metadata identical; a full backup and one on top of it of everything awkward at once."""
    root = hostile_tree(tmp_path / "tree")
    wanted = fingerprint(root)
    first = save(repository, root)
    again = save(repository, root, parent=first)
    assert first.warnings == again.warnings == []
    assert again.node["sha256"] == first.node["sha256"] == tree_digest_of_folder(os.fsencode(root))["sha256"]
    _comes_back(first, tmp_path / "out1", wanted)
    _comes_back(again, tmp_path / "out2", wanted)


def test_sparse_files_stay_sparse(repository: Repository, tmp_path: Path) -> None:
    """Goal: a hole costs nothing, neither read nor stored nor restored; a file of 40 GiB with 70 kB in it."""
    root = tmp_path / "tree"
    root.mkdir()
    with open(root / "disk.img", "wb") as handle:
        handle.seek(7 << 30)
        handle.write(b"data" * 17_500)
        handle.truncate(40 << 30)
    first = save(repository, root)
    assert first.stored_bytes < 1 << 20
    first.restore(tmp_path / "out")
    info = (tmp_path / "out" / "disk.img").stat()
    assert info.st_size == 40 << 30
    assert info.st_blocks * 512 < 1 << 20
    with open(tmp_path / "out" / "disk.img", "rb") as handle:
        handle.seek((7 << 30) - 2)
        assert handle.read(70_004) == b"\0\0" + b"data" * 17_500 + b"\0\0"
    assert tree_digest_of_folder(os.fsencode(tmp_path / "out"))["sha256"] == first.node["sha256"]


def test_only_changes_are_stored(repository: Repository, tmp_path: Path) -> None:
    """Goal: cost grows with what changed; 20,000 files unchanged, then one written, one gone, one renamed."""
    root = tmp_path / "tree"
    for i in range(20_000):
        folder = root / f"d{i // 200:03d}"
        if i % 200 == 0:
            folder.mkdir(parents=True)
        (folder / f"f{i}").write_bytes(b"%d" % i)
    first = save(repository, root)
    with grainless():
        same = save(repository, root, parent=first)
        assert same.node["root"] == first.node["root"]
        assert same.stored_bytes == 0
        write(root / "d050" / "new", b"new")
        (root / "d010" / "f2001").unlink()
        (root / "d020" / "f4001").rename(root / "d021" / "renamed")
        second = save(repository, root, parent=same)
    assert second.stored_bytes < first.stored_bytes / 4
    old = {ref.chunk for ref in first.view.refs()}
    new = [ref for ref in second.view.refs() if ref.chunk not in old]
    assert 1 <= len(new) <= 6
    assert second.node["sha256"] == tree_digest_of_folder(os.fsencode(root))["sha256"]
    assert [entry.path for entry in second.view.below(b"d050") if entry.path.endswith(b"new")] == [b"d050/new"]


def test_modules_are_top_folders(repository: Repository, tmp_path: Path) -> None:
    """Goal: each top folder can be named, counted and summed alone; compare with a digest of that folder alone."""
    root = tmp_path / "tree"
    write(root / "a" / "x", b"12345")
    write(root / "b" / "y" / "z", b"123")
    write(root / "top.txt", b"1")
    saved = save(repository, root)
    modules = {module["name"]: module for module in saved.node["modules"]}
    assert {name: (m["files"], m["bytes"]) for name, m in modules.items()} == {".": (1, 1), "a": (1, 5), "b": (1, 3)}
    write(root / "b" / "y" / "z", b"321")
    again = {m["name"]: m["sha256"] for m in save(repository, root, parent=saved).node["modules"]}
    assert again["a"] == modules["a"]["sha256"]
    assert again["b"] != modules["b"]["sha256"]


# ---------------------------------------------------------------- what must be noticed


def test_same_size_edit_with_time_put_back_is_noticed(repository: Repository, tmp_path: Path) -> None:
    """Goal: equal size and mtime do not hide a change; ctime gives it away."""
    path = write(tmp_path / "tree" / "f", b"before")
    with grainless():
        first = save(repository, tmp_path / "tree")
        info = path.stat()
        path.write_bytes(b"after!")
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        second = save(repository, tmp_path / "tree", parent=first)
    _comes_back(second, tmp_path / "out", fingerprint(tmp_path / "tree"))


def test_fresh_files_are_read_again(repository: Repository, tmp_path: Path) -> None:
    """Goal: a write within the clock's grain of the scan is never missed; forge a parent with the new record."""
    path = write(tmp_path / "tree" / "f", b"before")
    first = save(repository, tmp_path / "tree")
    path.write_bytes(b"after!")
    forged = _with_stats_of(repository, first, save(repository, tmp_path / "tree"))
    second = save(repository, tmp_path / "tree", parent=forged)
    found = second.view.find(b"f")
    assert found is not None
    assert b"".join(second.view.read(found)) == b"after!"


def test_full_reports_what_an_incremental_would_miss(repository: Repository, tmp_path: Path) -> None:
    """Goal: a full backup finds a change no stat shows (a corrupt cache); forge a parent with the new record."""
    path = write(tmp_path / "tree" / "f", b"before")
    write(tmp_path / "tree" / "g", b"other")
    first = save(repository, tmp_path / "tree")
    path.write_bytes(b"after!")
    honest = save(repository, tmp_path / "tree")
    forged = _with_stats_of(repository, first, honest)
    with grainless():
        missed = save(repository, tmp_path / "tree", parent=forged)
        assert missed.node["sha256"] == first.node["sha256"]
        full = save(repository, tmp_path / "tree", parent=forged, full=True)
    assert full.node["missed"] == 1
    assert full.codes == {"file.change_missed"}
    assert full.node["sha256"] == honest.node["sha256"]
    assert save(repository, tmp_path / "tree", parent=honest, full=True).node["missed"] == 0


def _with_stats_of(repository: Repository, content: Saved, stats: Saved) -> Saved:
    """A parent that claims the content of one backup under the stat records of another."""
    from engine.tree_write import TreeWriter

    session = repository.sealed.session()
    writer = TreeWriter(session.meta, top_modules=True)
    new = {row.path: row.stat for row in stats.view.rows()}
    writer.cutter.add_rows([row._replace(stat=new[row.path]) for row in content.view.rows()])
    node = {**stats.node, **writer.finish()}
    session.finish()
    return Saved(repository, node, 0, NullProgress())


def test_types_may_change_places(repository: Repository, tmp_path: Path) -> None:
    """Goal: a file that becomes a folder, a folder a link, a link a file; each restores as it then was."""
    root = tmp_path / "tree"
    write(root / "file", b"1")
    write(root / "folder" / "below" / "deep", b"2")
    os.symlink("file", root / "link")
    first, wanted = save(repository, root), fingerprint(root)
    (root / "file").unlink()
    write(root / "file" / "inside", b"3")
    shutil.rmtree(root / "folder")
    os.symlink("/etc", root / "folder")
    (root / "link").unlink()
    write(root / "link", b"4")
    second = save(repository, root, parent=first)
    _comes_back(second, tmp_path / "new", fingerprint(root))
    _comes_back(first, tmp_path / "old", wanted)


# ---------------------------------------------------------------- what may go wrong while reading


class Meddler(NullProgress):
    """Does something to the tree each time a file's bytes were read."""

    def __init__(self, deed: object) -> None:
        super().__init__()
        self._deed = deed

    def advance(self, *, bytes: int = 0, items: int = 0) -> None:
        if bytes:
            self._deed()  # type: ignore[operator]


@pytest.mark.parametrize("size", [1000, 3_000_000])
def test_file_that_always_changes_is_kept_and_said(repository: Repository, tmp_path: Path, size: int) -> None:
    """Goal: never blocks, is stored as read, warned, restorable, and read again next time; append at each read."""
    path = write(tmp_path / "tree" / "log", b"x" * size)

    def append() -> None:
        with open(path, "ab") as handle:
            handle.write(b"y")

    first = save(repository, tmp_path / "tree", progress=Meddler(append))
    assert first.codes == {"file.changed_while_read"}
    first.restore(tmp_path / "out")
    assert (tmp_path / "out" / "log").read_bytes().startswith(b"x" * size)
    with grainless():
        second = save(repository, tmp_path / "tree", parent=first)
    assert second.warnings == []
    _comes_back(second, tmp_path / "out2", fingerprint(tmp_path / "tree"))


def test_file_that_shrinks_while_read(repository: Repository, tmp_path: Path) -> None:
    """Goal: a truncation under the read neither crashes nor pads; truncate a large file at its first chunk, once."""
    path = write(tmp_path / "tree" / "big", os.urandom(12_000_000))
    done: list[int] = []

    def shrink() -> None:
        if not done:
            done.append(1)
            os.truncate(path, 9_000_000)

    saved = save(repository, tmp_path / "tree", progress=Meddler(shrink))
    assert saved.warnings == []
    _comes_back(saved, tmp_path / "out", fingerprint(tmp_path / "tree"))


def test_vanishing_files_are_left_out(repository: Repository, tmp_path: Path) -> None:
    """Goal: what disappears between scan and read is warned about and left out, and the digest stays right."""
    root = tmp_path / "tree"
    for i in range(3000):
        write(root / f"f{i}", b"%d" % i)

    gone = threading.Event()

    class Remover(NullProgress):
        def check(self) -> None:
            if not gone.is_set():  # After the names were listed and the first leaf was scanned, before any is read.
                gone.set()
                for i in range(1, 3000, 2):
                    (root / f"f{i}").unlink()

    saved = save(repository, root, progress=Remover())
    assert saved.codes == {"file.vanished"}
    assert saved.node["left_out"] == {"file.vanished": 1500}
    kept = {entry.path for entry in saved.view.entries() if entry.is_file}
    (tmp_path / "copy").mkdir()
    saved.restore(tmp_path / "copy")
    assert kept == {os.fsencode(name) for name in os.listdir(tmp_path / "copy")}
    assert tree_digest_of_folder(os.fsencode(tmp_path / "copy"))["sha256"] == saved.node["sha256"]


def test_link_swapped_in_is_not_followed(repository: Repository, tmp_path: Path) -> None:
    """Goal: nothing outside the source is read; swap a scanned folder for a link to elsewhere before it is read."""
    root = tmp_path / "tree"
    write(tmp_path / "secret" / "f", b"secret")
    write(root / "d" / "f", b"ours")

    class Swapper(NullProgress):
        def check(self) -> None:
            if (root / "d").is_dir() and not (root / "d").is_symlink():
                shutil.rmtree(root / "d")
                os.symlink(tmp_path / "secret", root / "d")

    saved = save(repository, root, progress=Swapper())
    assert saved.codes == {"file.vanished"}
    assert [entry.path for entry in saved.view.entries() if entry.is_file] == []


def test_specials_are_never_opened(repository: Repository, tmp_path: Path) -> None:
    """Goal: a FIFO without writer and a listening socket do not block; the socket is counted, not kept."""
    root = tmp_path / "tree"
    root.mkdir()
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(root / "sock"))
        saved = save(repository, root)
    assert saved.node["sockets"] == 1
    saved.restore(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["pipe"]
    assert stat.S_ISFIFO((tmp_path / "out" / "pipe").stat().st_mode)


def test_missing_root_is_an_error(repository: Repository, tmp_path: Path) -> None:
    """Goal: an unmounted disk never looks like an empty tree."""
    with pytest.raises(SourceUnreachable):
        save(repository, tmp_path / "nowhere")


def test_worker_errors_reach_the_caller(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: no backup of a part; let the data lane fail."""
    write(tmp_path / "tree" / "f", b"x")

    def fail(lane: Lane, data: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Lane, "add_many", fail)
    with pytest.raises(StoreError, match="No space"):
        save(repository, tmp_path / "tree")


def test_cancelling_stops_at_once(repository: Repository, tmp_path: Path) -> None:
    """Goal: a cancel reaches workers in the middle of a large file."""
    write(tmp_path / "tree" / "big", os.urandom(30_000_000))
    seen = threading.Event()

    class Cancel(NullProgress):
        def advance(self, *, bytes: int = 0, items: int = 0) -> None:
            seen.set()

        def check(self) -> None:
            if seen.is_set():
                raise CancelledError("stop")

    with pytest.raises(CancelledError):
        save(repository, tmp_path / "tree", progress=Cancel())
