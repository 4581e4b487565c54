"""Put a verified, staged log in the place of the one at the target; other files there are not touched.

A new folder appears by one rename. In a folder that exists, the log folder is exchanged in one step; the
old snapshot is moved away before it and the new one put there after it, so that a crash never leaves a
snapshot beside a log it does not belong to. A journal in the staging folder lets the next run finish or
take back what a killed one began.
"""

import contextlib
import ctypes
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from connectors._eventlog.segment import LOG_FOLDER, SNAPSHOT_NAME
from engine.errors import TargetDenied, TargetError, TargetFull, TargetOccupied
from engine.faults import kill_point

JOURNAL_NAME = "journal.json"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
Accept = Callable[[Path, Path], None]


@contextlib.contextmanager
def target_errors(path: Path) -> Iterator[None]:
    """Turn an OSError at the target into a TargetError with a hint."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise TargetFull(f"no room in {path}: {error.strerror}", hint="free space there") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise TargetDenied(
                f"cannot write {path}: {error.strerror}", hint="give this process the right to write there"
            ) from error
        raise TargetError(f"cannot write {path}: {error.strerror}", hint="check the path and the disk") from error


class TargetFolder:
    """A data folder into which a log is restored; `label` names the staging folder inside or beside it."""

    def __init__(self, path: Path, *, label: str) -> None:
        self.path = Path(os.path.abspath(path))
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in label)
        self._name = f".lastro-{safe}"

    @property
    def stage(self) -> Path:
        """Where the log must be staged: on the target's own file system."""
        return (self.path / self._name if self._exists() else self.path.parent / self._name) / "new"

    def _exists(self) -> bool:
        return os.path.lexists(self.path)

    def prepare(self, *, overwrite: bool) -> Path:
        """Settle what a killed run left, check that the target may be written, return the empty stage.

        Raises TargetOccupied when something is there and `overwrite` was not confirmed.
        """
        with target_errors(self.path):
            if self._exists() and not self.path.is_dir():
                raise TargetOccupied(f"{self.path} is no folder", hint="name a folder that is new or empty")
            self.settle()
            if self._exists() and not overwrite and any(os.scandir(self.path)):
                raise TargetOccupied(f"{self.path} is not empty", hint="confirm the overwrite or name a new folder")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.stage.parent.mkdir(mode=0o700)
            self.stage.mkdir()
        return self.stage

    def discard(self) -> None:
        """Remove the staging folder; the target stays as it is."""
        for base in (self.path, self.path.parent):
            shutil.rmtree(base / self._name, ignore_errors=True)

    def apply(self) -> None:
        """Make the staged log the target's log. Raises TargetError; the old one is in place then."""
        self.sync()
        self.swap()
        self.discard()

    def sync(self) -> None:
        """Everything staged has reached the disk when this returns."""
        with target_errors(self.path):
            _sync_tree(self.stage)
        kill_point("eventlog.restore_staged")

    def swap(self, accept: Accept | None = None) -> None:
        """Put the staged log in the old one's place. `accept` sees the old log and snapshot afterwards; when it
        raises, they are put back.
        """
        with target_errors(self.path):
            if self._exists():
                self._exchange(self.stage, accept)
            else:
                os.rename(self.stage, self.path)
                _sync_folder(self.path.parent)

    def log_inode(self) -> int:
        """By this the staged log folder is known once it is in place."""
        return os.stat(self.stage / LOG_FOLDER).st_ino

    def _exchange(self, stage: Path, accept: Accept | None) -> None:
        base, old = stage.parent, stage.parent / "old"
        old.mkdir()
        new_log, live = stage / LOG_FOLDER, self.path / LOG_FOLDER
        _write_synced(base / JOURNAL_NAME, json.dumps({"new_log": str(self.log_inode())}).encode())
        _sync_folder(base)
        _move_if_there(self.path / SNAPSHOT_NAME, old / SNAPSHOT_NAME)
        kill_point("eventlog.restore_snapshot_away")
        try:
            old_log = _exchange_folders(new_log, live)
            if accept is not None:
                try:
                    accept(old_log, old / SNAPSHOT_NAME)
                except BaseException:
                    _exchange_back(old_log, new_log, live)
                    raise
        except BaseException:
            _move_if_there(old / SNAPSHOT_NAME, self.path / SNAPSHOT_NAME)
            _sync_folder(self.path)
            raise
        _sync_folder(self.path)
        kill_point("eventlog.restore_log_exchanged")
        _move_if_there(stage / SNAPSHOT_NAME, self.path / SNAPSHOT_NAME)
        _sync_folder(self.path)

    def has_log(self, inode: int) -> bool:
        """Whether the log in place is the one that was staged with this inode."""
        log = self.path / LOG_FOLDER
        return log.exists() and os.stat(log).st_ino == inode

    def settle(self) -> None:
        """Finish or take back what killed runs of any label began in the target; their stages are gone then."""
        for base in self._stages():
            self._finish(base)
            shutil.rmtree(base, ignore_errors=True)
        self.discard()

    def finish(self) -> None:
        """Finish or take back what killed runs began, and leave stages alone."""
        with target_errors(self.path):
            for base in self._stages():
                self._finish(base)

    def _stages(self) -> list[Path]:
        found = sorted(self.path.glob(".lastro-*")) if self.path.is_dir() else []
        return [base for base in found if (base / "new").is_dir() or (base / JOURNAL_NAME).exists()]

    def _finish(self, base: Path) -> None:
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            applied = self.has_log(int(json.loads((base / JOURNAL_NAME).read_bytes())["new_log"]))
            saved = base / ("new" if applied else "old") / SNAPSHOT_NAME
            if not (self.path / SNAPSHOT_NAME).exists():
                _move_if_there(saved, self.path / SNAPSHOT_NAME)
                _sync_folder(self.path)


@contextlib.contextmanager
def staged(target: TargetFolder, *, overwrite: bool) -> Iterator[Path]:
    """The empty stage of the target, which is gone afterwards. Raises what `prepare` raises."""
    stage = target.prepare(overwrite=overwrite)
    try:
        yield stage
    finally:
        target.discard()


def _move_if_there(source: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rename(source, target)


def _exchange_back(old: Path, new: Path, live: Path) -> None:
    """Undo `_exchange_folders`, whose answer is `old`."""
    if old == new and os.path.lexists(old):
        _exchange_folders(old, live)
        return
    os.rename(live, new)
    if os.path.lexists(old):
        os.rename(old, live)


def _exchange_folders(new: Path, live: Path) -> Path:
    """Swap two folders in one step; where the kernel or file system cannot, in two. Where the old one is now."""
    if not os.path.lexists(live):
        os.rename(new, live)
        return new
    libc = ctypes.CDLL(None, use_errno=True)
    rename = getattr(libc, "renameat2", None)
    if rename is not None:
        if rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(live), _RENAME_EXCHANGE) == 0:
            return new
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise OSError(code, os.strerror(code), str(live))
    aside = new.parent.parent / "old" / LOG_FOLDER
    os.rename(live, aside)
    try:
        os.rename(new, live)
    except OSError:
        os.rename(aside, live)
        raise
    return aside


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(Path(folder))
