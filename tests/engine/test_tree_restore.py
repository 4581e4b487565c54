"""Restores of file trees: wholly old or wholly new, nothing outside touched, typed errors."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import ObjectDamaged, TargetDenied, TargetError, TargetFull, TargetOccupied
from engine.ports import FileChange
from engine.progress import NullProgress
from engine.repository import Repository
from engine.tree_restore import restore_tree
from engine.tree_write import TreeWriter
from tests.engine.tree_samples import Saved, fingerprint, fresh_repository, hostile_tree, save, write

LABELS = [
    "tree.restore.staged",
    "tree.restore.swapped",
    "tree.restore.journalled",
    "tree.restore.old_moved:1",
    "tree.restore.old_moved:2",
    "tree.restore.new_moved:1",
    "tree.restore.new_moved:3",
    "tree.restore.entries_swapped",
]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def _sample(root: Path) -> Path:
    write(root / "a" / "one", b"1", mode=0o640)
    write(root / "a" / "two", b"22")
    write(root / "b" / "three", b"333")
    write(root / "top", b"t")
    os.symlink("top", root / "link")
    return root


def _leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".lastro-")]


@as_root
@pytest.mark.parametrize(("umask", "parent_mode"), [(0o022, 0o755), (0o077, 0o755), (0o022, 0o2775), (0, 0o2777)])
def test_mode_and_owner_whatever_shapes_new_files(
    repository: Repository, tmp_path: Path, umask: int, parent_mode: int
) -> None:
    """Goal: every mode and owner exactly, however the place bears files; a umask, a folder that gives its group."""
    root = tmp_path / "tree"
    for number, mode in enumerate((0o777, 0o666, 0o644, 0o600, 0o400, 0o000, 0o1644, 0o2755, 0o4755, 0o6777)):
        for owner in ((0, 0), (0, 4321), (1234, 0)):
            path = write(root / f"d{number}" / f"{owner[0]}-{owner[1]}", b"x" * number)
            os.chown(path, *owner)
            path.chmod(mode)
    saved, wanted = save(repository, root), fingerprint(root)
    place = tmp_path / "place"
    place.mkdir()
    os.chown(place, 0, 4321)
    place.chmod(parent_mode)
    before = os.umask(umask)
    try:
        saved.restore(place / "out")
    finally:
        os.umask(before)
    assert fingerprint(place / "out") == wanted


def test_counts_and_exact_replacement(repository: Repository, tmp_path: Path) -> None:
    """Goal: in place the folder becomes what it was, and the report says what that changed."""
    root = _sample(tmp_path / "tree")
    saved, wanted = save(repository, root), fingerprint(root)
    (root / "a" / "one").write_bytes(b"X")
    (root / "a" / "two").unlink()
    write(root / "extra" / "file", b"e")
    (root / "b" / "three").chmod(0o600)
    done = saved.restore(root, overwrite=True)
    assert done.changes == FileChange(created=1, replaced=2, removed=1, unchanged=2)
    assert fingerprint(root) == wanted
    assert saved.restore(root, overwrite=True).changes == FileChange(unchanged=5)
    assert _leftovers(tmp_path) == []


def test_occupied_target_is_refused(repository: Repository, tmp_path: Path) -> None:
    """Goal: nothing that exists is overwritten unconfirmed; a folder with a file, and a file."""
    saved = save(repository, _sample(tmp_path / "tree"))
    kept = write(tmp_path / "busy" / "mine", b"keep")
    for target in (kept.parent, kept):
        with pytest.raises(TargetOccupied) as caught:
            saved.restore(target)
        assert caught.value.hint
    assert kept.read_bytes() == b"keep"
    (tmp_path / "empty").mkdir()
    saved.restore(tmp_path / "empty")
    saved.restore(tmp_path / "new" / "deep" / "folder")
    assert fingerprint(tmp_path / "new" / "deep" / "folder") == fingerprint(tmp_path / "tree")


def test_excluded_paths_stay(repository: Repository, tmp_path: Path) -> None:
    """Goal: what is no part of the backup survives a restore in place, folders above it too; a cache and logs."""
    root = _sample(tmp_path / "tree")
    saved = save(repository, root, exclude=_leave_out)
    wanted = fingerprint(root)
    write(root / "a" / "cache" / "x" / "y", b"cached", mode=0o604)
    os.utime(root / "a" / "cache" / "x", ns=(1, 2))
    write(root / "later" / "run.log", b"log")
    os.mkfifo(root / "a" / "cache" / "pipe")
    write(root / "later" / "dropped", b"d")
    extra = {path: seen for path, seen in fingerprint(root).items() if b"cache" in path or b"run.log" in path}
    saved.restore(root, overwrite=True, exclude=_leave_out)
    got = fingerprint(root)
    assert {path: got[path] for path in extra} == extra
    assert not (root / "later" / "dropped").exists()
    # Folders have the backup's times, though linking into them changed them.
    assert {path: seen for path, seen in got.items() if path not in extra and path != b"later"} == wanted


def _leave_out(path: bytes, is_folder: bool) -> bool:
    return (is_folder and path.endswith(b"cache")) or path.endswith(b".log")


def test_excluded_path_below_what_is_now_a_file(repository: Repository, tmp_path: Path) -> None:
    """Goal: what cannot be kept is not thrown away; the backup has a file where the target has the cache's folder."""
    root = _sample(tmp_path / "tree")
    write(root / "spot", b"file")
    saved = save(repository, root)
    (root / "spot").unlink()
    write(root / "spot" / "cache" / "x", b"c")
    before = fingerprint(root)
    with pytest.raises(TargetError, match="spot is a file in the backup"):
        saved.restore(root, overwrite=True, exclude=_leave_out)
    assert fingerprint(root) == before
    assert _leftovers(tmp_path) == []


# ---------------------------------------------------------------- hostile and damaged backups


@pytest.mark.parametrize("name", [b"../evil", b"/etc/evil", b"a/../../evil", b"a//b", b"./x", b"..", b"a/./b"])
def test_hostile_names_are_damage(repository: Repository, tmp_path: Path, name: bytes) -> None:
    """Goal: nothing escapes the target; a tree whose leaf holds a path that would."""
    saved = save(repository, _sample(tmp_path / "tree"))
    rows = list(saved.view.rows())
    forged = [rows[0], *sorted((row._replace(path=name) for row in rows[-1:]), key=lambda row: row.path)]
    with pytest.raises(ObjectDamaged):
        _forged(repository, saved, forged).restore(tmp_path / "out" / "below")
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "out" / "evil").exists()
    assert not (tmp_path / "out" / "below").exists()


def test_names_below_a_link_are_damage(repository: Repository, tmp_path: Path) -> None:
    """Goal: a link in the backup is no way out; a tree with `link -> elsewhere` and `link/file`."""
    root = tmp_path / "tree"
    write(root / "f", b"x")
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", root / "link")
    saved = save(repository, root)
    rows = {row.path: row for row in saved.view.rows()}
    forged = [rows[b""], rows[b"link"], rows[b"f"]._replace(path=b"link/f")]
    with pytest.raises((ObjectDamaged, TargetError)):
        _forged(repository, saved, forged).restore(tmp_path / "out")
    assert os.listdir(tmp_path / "elsewhere") == []


def test_wrong_content_is_found_while_writing(repository: Repository, tmp_path: Path) -> None:
    """Goal: exact bytes or a typed error; a row whose sum is another file's."""
    root = _sample(tmp_path / "tree")
    saved, before = save(repository, root), fingerprint(root)
    rows = list(saved.view.rows())
    other = next(row for row in rows if row.path == b"a/two")
    forged = [row._replace(sum=other.sum) if row.path == b"a/one" else row for row in rows]
    with pytest.raises(ObjectDamaged, match="a/one"):
        _forged(repository, saved, forged).restore(root, overwrite=True)
    assert fingerprint(root) == before
    assert _leftovers(tmp_path) == []


def _forged(repository: Repository, saved: Saved, rows: list[object]) -> Saved:
    session = repository.sealed.session()
    writer = TreeWriter(session.meta, top_modules=True)
    writer.cutter.add_rows(rows)  # type: ignore[arg-type]
    node = {**saved.node, **writer.finish()}
    session.finish()
    return Saved(repository, node, 0, NullProgress())


# ---------------------------------------------------------------- targets that refuse


@as_root
def test_full_disk_leaves_the_target(repository: Repository, tmp_path: Path) -> None:
    """Goal: ENOSPC is TargetFull and the original intact; a small tmpfs."""
    saved = save(repository, write(tmp_path / "tree" / "big", os.urandom(6_000_000)).parent)
    with _mounted(tmp_path / "disk", "size=4m"):
        kept = write(tmp_path / "disk" / "site" / "mine", b"keep")
        with pytest.raises(TargetFull):
            saved.restore(kept.parent, overwrite=True)
        assert kept.read_bytes() == b"keep"
        assert _leftovers(tmp_path / "disk") == []


@as_root
def test_mount_point_is_restored_entry_by_entry(repository: Repository, tmp_path: Path) -> None:
    """Goal: a volume can be restored in place, its own metadata too; the target is a mounted tmpfs."""
    root = hostile_tree(tmp_path / "tree")
    os.chmod(root, 0o2750)
    saved = save(repository, root)
    with _mounted(tmp_path / "volume", "size=64m"):
        write(tmp_path / "volume" / "old" / "x", b"old")
        write(tmp_path / "volume" / "a", b"other")
        saved.restore(tmp_path / "volume", overwrite=True)
        got, wanted = fingerprint(tmp_path / "volume"), fingerprint(root)
        assert {p: v[:3] for p, v in got.items()} == {p: v[:3] for p, v in wanted.items()}
        assert got == wanted
        assert _leftovers(tmp_path / "volume") == []


@as_root
def test_mount_below_the_target_is_refused(repository: Repository, tmp_path: Path) -> None:
    """Goal: another file system's content is never removed; a tmpfs mounted inside the target."""
    root = _sample(tmp_path / "tree")
    saved = save(repository, root, one_file_system=True)
    with _mounted(root / "b", "size=1m"):
        kept = write(root / "b" / "precious", b"p")
        with pytest.raises(TargetError, match="mounted inside"):
            saved.restore(root, overwrite=True)
        assert kept.read_bytes() == b"p"


@as_root
def test_without_rights_the_target_stays(repository: Repository, tmp_path: Path) -> None:
    """Goal: TargetDenied, nothing changed; an unprivileged process restores into a folder of root's."""
    saved = save(repository, _sample(tmp_path / "tree"))
    (tmp_path / "closed").mkdir(mode=0o755)
    with pytest.raises(TargetDenied):
        _as_nobody(lambda: saved.restore(tmp_path / "closed" / "new"))
    assert os.listdir(tmp_path / "closed") == []


@as_root
def test_unprivileged_round_trip(tmp_path: Path) -> None:
    """Goal: a plain user backs up and restores own files, read-only folders and files too, in place as well."""
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o011)

    def round_trip() -> None:
        root = home / "tree"
        write(root / "closed" / "f", b"1", mode=0o400)
        write(root / "sealed" / "g", b"2", mode=0o000)
        (root / "closed").chmod(0o500)
        repository = fresh_repository(home)
        saved = save(repository, root)
        assert saved.codes == {"file.unreadable"}
        assert saved.node["left_out"] == {"file.unreadable": 1}
        (root / "sealed" / "g").chmod(0o400)
        again = save(repository, root, parent=saved)
        wanted = fingerprint(root)
        again.restore(home / "out")
        assert fingerprint(home / "out") == wanted
        (root / "closed").chmod(0o700)
        (root / "closed" / "f").unlink()
        (root / "closed").chmod(0o500)
        again.restore(root, overwrite=True)
        assert fingerprint(root) == wanted
        assert _leftovers(home) == []

    _as_nobody(round_trip)


def _as_nobody(deed: object) -> None:
    """Run it in a forked child without rights; raise here what it raised there."""
    import pickle

    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        failure: BaseException | None = None
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            deed()  # type: ignore[operator]
        except BaseException as error:
            failure = error
        try:
            data = pickle.dumps(failure)
        except Exception:
            data = pickle.dumps(AssertionError(repr(failure)))
        os.write(send, data)
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    failure = pickle.loads(data)
    if failure is not None:
        raise failure


class _mounted:  # noqa: N801 - reads as a verb where it is used.
    def __init__(self, folder: Path, options: str) -> None:
        self._folder, self._options = folder, options

    def __enter__(self) -> None:
        self._folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", self._options, "lastro-test", self._folder])
        if done.returncode:
            pytest.skip("may not mount here")

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", self._folder], check=True)


# ---------------------------------------------------------------- kills


@pytest.fixture(scope="module")
def killable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[bytes, tuple[object, ...]]]]:
    """A repository with one backup of a hostile tree, for children to restore from."""
    home = tmp_path_factory.mktemp("kills")
    root = hostile_tree(home / "tree")
    saved = save(fresh_repository(home), root)
    (home / "node.json").write_text(json.dumps(saved.node))
    yield home, fingerprint(root)
    shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize("way", ["exchange", "entries"])
@pytest.mark.parametrize("label", LABELS)
def test_killed_restores_are_whole(
    killable: tuple[Path, dict[bytes, tuple[object, ...]]], tmp_path: Path, label: str, way: str
) -> None:
    """Goal: wholly old or wholly new at any kill, and a rerun completes; SIGKILL at every label, both ways to swap."""
    home, new = killable
    target = tmp_path / "site"
    write(target / "old" / "file", b"old")
    write(target / "a", b"also in the backup")
    old = fingerprint(target)
    killed = _restore_in_child(home, target, way, label)
    reached = way == "entries" or label.split(":", maxsplit=1)[0] in ("tree.restore.staged", "tree.restore.swapped")
    assert (killed.returncode == -9) is reached, killed.stderr
    found = fingerprint(target)
    mixed = label.split(":", maxsplit=1)[0] in (
        "tree.restore.journalled", "tree.restore.old_moved", "tree.restore.new_moved", "tree.restore.entries_swapped",
    )  # fmt: skip
    assert found in (old, new) or (way == "entries" and mixed)
    again = _restore_in_child(home, target, way, "none")
    assert again.returncode == 0, again.stderr
    assert fingerprint(target) == new
    assert _leftovers(tmp_path) == _leftovers(target) == []


CHILD = """
import json, os, sys
from engine import tree_swap
from engine.keys import Keyring, RootKey
from engine.progress import NullProgress
from engine.repository import Repository
from engine.tree_restore import restore_tree
from engine.tree_view import TreeView
from stores.local import LocalConfig, LocalStore
from pathlib import Path
home, target, way = Path(sys.argv[1]), os.fsencode(sys.argv[2]), sys.argv[3]
if way == "entries":
    import engine.tree_restore
    engine.tree_restore.exchange = lambda places: False
root = RootKey.from_text((home / "root.key").read_text())
store = LocalStore.make(LocalConfig(path=str(home / "store")))
keyring = Keyring.from_bytes(store.get("r/rep_test/keyring"), root)
repository = Repository.open(store, repository_id="rep_test", keyring=keyring, cache=home / "cache")
view = TreeView(repository.sealed.reader(), json.loads((home / "node.json").read_text()))
restore_tree(view, target, label="rst_kill", overwrite=True, in_place=True, progress=NullProgress())
"""


def _restore_in_child(home: Path, target: Path, way: str, label: str) -> subprocess.CompletedProcess[str]:
    platform = Path(__file__).resolve().parents[2] / "platform"
    environment = {**os.environ, "PYTHONPATH": str(platform), "LASTRO_KILL_AT": label}
    return subprocess.run(
        [sys.executable, "-c", CHILD, home, target, way], env=environment, capture_output=True, text=True, timeout=120
    )


def test_modes_are_closed_while_staging(repository: Repository, tmp_path: Path) -> None:
    """Goal: nobody else reads a tenant's files out of the staging folder; look at its mode while it fills."""
    saved = save(repository, _sample(tmp_path / "tree"))
    modes: list[int] = []

    class Watch(NullProgress):
        def advance(self, *, bytes: int = 0, items: int = 0) -> None:
            modes.extend(stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in _leftovers(tmp_path))

    restore_tree(
        saved.view, os.fsencode(tmp_path / "out"), label="rst", overwrite=False, in_place=False, progress=Watch()
    )
    assert set(modes) == {0o700}
