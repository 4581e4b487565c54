"""Trees to back up, what they hold, and one call per backup and restore of a tree, over a real repository."""

import os
import random
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.keys import Keyring, RootKey
from engine.ports import TreePart
from engine.progress import NullProgress
from engine.repository import Repository
from engine.tree_backup import backup_tree
from engine.tree_restore import TreeRestored, restore_tree
from engine.tree_scan import Exclude
from engine.tree_view import TreeView
from stores.local import LocalConfig, LocalStore

Fingerprint = dict[bytes, tuple[Any, ...]]


def fresh_repository(folder: Path) -> Repository:
    """An empty repository in a real local store below the folder."""
    root = RootKey.generate()
    (folder / "root.key").write_text(root.to_text())
    keyring = Keyring.create(root, tenant_id="ten_test", repository_id="rep_test")
    store = LocalStore.make(LocalConfig(path=str(folder / "store")))
    return Repository.create(
        store, repository_id="rep_test", tenant_id="ten_test", keyring=keyring, root=root, cache=folder / "cache"
    )


class Saved:
    """One backup of one tree."""

    def __init__(self, repository: Repository, node: dict[str, Any], stored_bytes: int, progress: NullProgress) -> None:
        self.node, self.stored_bytes, self.warnings = node, stored_bytes, progress.warnings
        self.reader = repository.sealed.reader()
        self.view = TreeView(self.reader, node)

    @property
    def codes(self) -> set[str]:
        return {code for code, _ in self.warnings}

    def restore(
        self, target: Path, *, overwrite: bool = False, exclude: Exclude | None = None, label: str = "rst_1"
    ) -> TreeRestored:
        return restore_tree(
            self.view, os.fsencode(target), label=label, overwrite=overwrite, in_place=overwrite, exclude=exclude,
            progress=NullProgress(),
        )  # fmt: skip


def save(
    repository: Repository,
    root: Path | bytes,
    *,
    parent: Saved | None = None,
    full: bool = False,
    progress: NullProgress | None = None,
    **options: Any,
) -> Saved:
    """Back the folder up in a session of its own."""
    progress = progress or NullProgress()
    domain = repository.sealed
    session = domain.session()
    try:
        node = backup_tree(
            session,
            TreePart("files", os.fsencode(root), **options),
            parent=parent.node if parent else None,
            reader=domain.reader(),
            full=full,
            progress=progress,
        )
        session.finish()
    except BaseException:
        session.abort()
        raise
    return Saved(repository, node, session.stored_bytes, progress)


@contextmanager
def grainless() -> Iterator[None]:
    """Trust equal stat records at once, as if the tree had rested longer than the clock's grain."""
    from engine import tree_backup

    before = tree_backup.CLOCK_GRAIN_NS
    tree_backup.CLOCK_GRAIN_NS = -(10**18)
    try:
        yield
    finally:
        tree_backup.CLOCK_GRAIN_NS = before


def fingerprint(root: Path | bytes) -> Fingerprint:
    """Everything a restore must bring back, by path: type, mode, owner, times, links, content, attributes."""
    top = os.fsencode(root)
    found: Fingerprint = {}
    groups: dict[tuple[int, int], bytes] = {}
    for folder, folders, files in os.walk(top):
        for name in [b"."] * (folder == top) + folders + files:
            path = os.path.normpath(os.path.join(folder, name))
            relative = os.path.relpath(path, top)
            info = os.lstat(path)
            if stat.S_ISSOCK(info.st_mode):
                continue
            found[relative] = (
                info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns,
                _content(path, info), info.st_rdev, _xattrs(path),
                groups.setdefault((info.st_dev, info.st_ino), relative) if stat.S_ISREG(info.st_mode) else b"",
            )  # fmt: skip
    return found


def _content(path: bytes, info: os.stat_result) -> bytes:
    if stat.S_ISLNK(info.st_mode):
        return os.readlink(path)
    if stat.S_ISREG(info.st_mode):
        with open(path, "rb") as handle:
            return handle.read()
    return b""


def _xattrs(path: bytes) -> Mapping[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def write(path: Path, data: bytes = b"", *, mode: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if mode is not None:
        path.chmod(mode)
    return path


def hostile_tree(root: Path, *, seed: int = 1) -> Path:
    """Everything that has ever broken a backup program, as far as this user may make it."""
    rng = random.Random(seed)
    root.mkdir()
    for i in range(60):
        write(root / f"d{i % 7}" / f"f{i}.txt", rng.randbytes(rng.choice([0, 1, 100, 5000, 70000])))
    write(root / "big.bin", rng.randbytes(5_000_000))
    write(root / "middle.bin", rng.randbytes(300_000))
    write(root / "new\nline", b"x")
    write(root / ("ü" * 100), b"y")
    write(root / ("n" * 255), b"z")
    write(root / "-rf", b"dash")
    write(root / " lead", b"")
    write(root / "back\\slash", b"b")
    write(root / "a", b"1")
    write(root / "a.b" / "c", b"2")
    write(root / "a-b" / "c", b"3")
    (root / "empty").mkdir()
    with open(os.fsencode(root) + b"/bad\xff\xfename", "wb") as handle:
        handle.write(b"raw")
    os.mkdir(os.fsencode(root) + b"/\xff")
    with open(os.fsencode(root) + b"/\xff/\xfe", "wb") as handle:
        handle.write(b"below")
    _links_and_specials(root)
    _sparse(root, rng)
    _metadata(root)
    return root


def _links_and_specials(root: Path) -> None:
    os.link(root / "big.bin", root / "d1" / "hard.bin")
    os.link(root / "a", root / "z-hard")
    os.symlink("../../../etc/passwd", root / "link")
    os.symlink("nowhere", root / "dangling")
    os.symlink(b"\xff\n", os.fsencode(root / "badlink"))
    os.symlink("d1", root / "folder-link")
    os.mkfifo(root / "pipe", 0o640)
    if os.geteuid() == 0:
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))


def _sparse(root: Path, rng: random.Random) -> None:
    with open(root / "sparse", "wb") as handle:
        handle.truncate(50_000_000)
    with open(root / "islands", "wb") as handle:
        for begin in range(0, 40 << 20, 2 << 20):
            handle.seek(begin + 12345)
            handle.write(rng.randbytes(70_000))
        handle.truncate((40 << 20) + 777)


def _metadata(root: Path) -> None:
    os.setxattr(root / "a.b" / "c", "user.note", b"\0\xffvalue")
    os.setxattr(root / "empty", "user.big", b"v" * 3000)
    if os.geteuid() == 0:
        os.chown(root / "d2", 1234, 4321)
        os.chown(root / "a.b" / "c", 4321, 1234)
        os.lchown(root / "dangling", 77, 88)
        os.chmod(root / "a.b" / "c", 0o6755)
    os.chmod(root / "d1" / "f1.txt", 0o400)
    os.chmod(root / "d3", 0o1777)
    os.utime(root / "d4", ns=(1, 1_000_000_007))
    os.utime(root / "-rf", ns=(0, -1_500_000_000))
    os.utime(root / "link", ns=(5, 123_456_789), follow_symlinks=False)
    os.chmod(root, 0o751)
