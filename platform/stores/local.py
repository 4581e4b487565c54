"""Keep objects in a folder of this host (or of a file system mounted on it).

An object is written to `.tmp/`, made durable there, and then given its name: by link(2), which fails
when the name is taken, or by rename(2), which replaces. Both are atomic, so a reader sees an object whole or not
at all; the folder is made durable before the call returns. The order is the one that ext4, xfs, btrfs
and zfs document for surviving a power cut: data, name, folder, and the folder's own name before that.

The folder is made once, by `make`, with a marker in it. Opening makes nothing: a mount point whose disk is not
there is an empty folder like any other, and what was written into it would be lost from sight on the next mount.
"""

import datetime
import errno
import os
import secrets
import stat as stat_bits
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import ClassVar, Self

from engine.adapters import setting
from engine.errors import (
    LastroError,
    ObjectExists,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnreachable,
    UsageError,
)
from engine.faults import kill_point
from engine.ports import Buffer, ObjectInfo
from stores import registry
from stores._keys import check_key, check_prefix, is_key_part

TEMP_FOLDER = ".tmp"
MARKER = ".lastro-store"
MARKER_TEXT = b'{"format": "lastro-store", "version": 1}\n'
OBJECTS_FOLDER = "r"
"""Every repository lies below it: a folder that has it is a store too, made before there were markers."""
TEMP_AGE_MAX_SECONDS = 24 * 3600
COMPARE_BYTES = 1 << 20
READ_BYTES_MAX = 1 << 30  # Linux reads at most 2 GiB - 4 KiB at once
WRITE_PARTS_MAX = 512  # IOV_MAX is 1,024 on Linux and may be less elsewhere

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
_CLASH = {errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True)
class LocalConfig:
    """Where the folder is."""

    path: str = setting(label="Folder", help="Absolute path; made when the store is added.")


@registry.register
class LocalStore:
    """A store in one folder; several processes may use the same folder at once."""

    kind: ClassVar[str] = "local"
    label: ClassVar[str] = "Local folder"
    Config: ClassVar[type] = LocalConfig
    remote: ClassVar[bool] = False

    def __init__(self, config: LocalConfig) -> None:
        """Open a folder that `make` has made, and clear what killed writers left more than a day ago.

        Raises UsageError for a relative path (it would mean another folder in another process), StoreUnreachable
        when the folder is not there or is no store: its disk is not mounted.
        """
        self._root = _root_of(config)
        self._temp = os.path.join(self._root, TEMP_FOLDER)
        self._durable: set[str] = set()
        with self._errors("opening"):
            self._require_present()
            self._make_folder(self._temp)
            self._clear_stale()

    @classmethod
    def make(cls, config: LocalConfig) -> Self:
        """Make the folder and its marker durable and open it; a store that exists stays as it is.

        Raises UsageError for a path that cannot be a store's, StoreError when the folder cannot be made.
        """
        root = _root_of(config)
        with _errors_of(root, "making the store"):
            _make_root(root)
            _make_marker(root)
        return cls(config)

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        path = self._path(key)
        with self._errors(f"writing {key}"), self._written(parts) as temp:
            self._make_folder(os.path.dirname(path))
            os.rename(temp, path)
            kill_point("store.local.renamed")
            _sync_folder(os.path.dirname(path))

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        path = self._path(key)
        with self._errors(f"creating {key}"), self._written(parts) as temp:
            self._make_folder(os.path.dirname(path))
            try:
                os.link(temp, path)
            except FileExistsError:
                # Our own earlier try whose reply was lost, or its twin, counts as done; but the folder may
                # not be durable yet, so the way on is the same.
                if not _same_bytes(temp, path):
                    raise ObjectExists(f"{key} exists already with other content") from None
            except OSError as error:
                if error.errno in _NO_LINKS:
                    raise StoreDenied(
                        f"the file system of {self._root} makes no hard links ({error.strerror})",
                        hint="a primary store needs them: use ext4, xfs, btrfs, zfs or NFS",
                    ) from error
                raise
            kill_point("store.local.linked")
            _sync_folder(os.path.dirname(path))

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        assert offset >= 0 and (length is None or length >= 0), "ranges are not negative"
        path = self._path(key)
        with self._errors(f"reading {key}", key=key):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                status = os.fstat(fd)
                if not stat_bits.S_ISREG(status.st_mode):
                    raise ObjectMissing(f"there is no object {key}")
                left = max(0, status.st_size - offset)
                return _read(fd, offset, left if length is None else min(length, left))
            finally:
                os.close(fd)

    def stat(self, key: str) -> ObjectInfo:
        path = self._path(key)
        with self._errors(f"looking up {key}", key=key):
            status = os.lstat(path)
        if not stat_bits.S_ISREG(status.st_mode):
            raise ObjectMissing(f"there is no object {key}")
        return _info(key, status)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects under a prefix; holds the names of one folder per level at a time."""
        check_prefix(prefix)
        folder, _, start = prefix.rpartition("/")
        with self._errors(f"listing {prefix or 'the store'}"):
            self._require_present()
            yield from self._walk(folder, start)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._errors(f"deleting {key}"):
            try:
                os.unlink(path)
            except OSError as error:
                if error.errno in _ABSENT and self._is_present():
                    return
                raise
            _sync_folder(os.path.dirname(path))

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete objects as `delete` does, their folders made durable once each, at the end."""
        paths = [self._path(key) for key in keys]
        with self._errors(f"deleting {len(keys)} objects"):
            for path in paths:
                try:
                    os.unlink(path)
                except OSError as error:
                    if error.errno not in _ABSENT or not self._is_present():
                        raise
            for folder in sorted({os.path.dirname(path) for path in paths}):
                with suppress(FileNotFoundError):
                    _sync_folder(folder)

    def close(self) -> None:
        """Nothing is held open between calls."""

    def free_bytes(self) -> int:
        """Bytes that this user may still write to the folder's file system."""
        with self._errors("looking up the free space"):
            status = os.statvfs(self._root)
        return status.f_bavail * status.f_frsize

    # ------------------------------------------------------------ inner parts

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def _is_present(self) -> bool:
        """Whether the folder is the store, not the empty place where its disk belongs."""
        return any(os.path.lexists(os.path.join(self._root, name)) for name in (MARKER, OBJECTS_FOLDER))

    def _require_present(self) -> None:
        if not self._is_present():
            os.listdir(self._root)  # One that is missing or may not be read says so itself.
            raise self._gone(f"the folder {self._root} is no store: it has no {MARKER}")

    def _gone(self, message: str) -> StoreUnreachable:
        self._durable.clear()
        return StoreUnreachable(message, hint="is its disk mounted? nothing was written")

    @contextmanager
    def _errors(self, doing: str, *, key: str | None = None) -> Iterator[None]:
        """Turn an OSError into the error tree; with `key`, absence is ObjectMissing."""
        with _errors_of(self._root, doing):
            try:
                yield
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                if not os.path.isdir(self._root):
                    what = "is no folder" if os.path.lexists(self._root) else "is gone"
                    raise self._gone(f"the folder {self._root} {what}") from error
                if not self._is_present():
                    raise self._gone(f"the folder {self._root} is no store: it has no {MARKER}") from error
                if key is not None:
                    raise ObjectMissing(f"there is no object {key}") from error
                self._durable.clear()
                raise

    @contextmanager
    def _written(self, parts: Sequence[Buffer]) -> Iterator[str]:
        """A durable temporary file with the parts; its temporary name is gone afterwards in any case."""
        temp = f"{self._temp}/{os.getpid()}-{secrets.token_hex(8)}"
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                _write(fd, parts)
                kill_point("store.local.written")
                os.fsync(fd)
            finally:
                os.close(fd)
            kill_point("store.local.synced")
            yield temp
        finally:
            # After rename it is gone already; after an error it would only take up space.
            with suppress(FileNotFoundError):
                os.unlink(temp)

    def _make_folder(self, folder: str) -> None:
        """Make a folder below the root durable, with all between.

        A folder that another writer has just made may not be durable yet, so its parent is synced once by
        every process that writes into it.
        """
        if folder in self._durable or folder == self._root:
            return
        parent = os.path.dirname(folder)
        self._make_folder(parent)
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        _sync_folder(parent)
        self._durable.add(folder)

    def _clear_stale(self) -> None:
        oldest = time.time() - TEMP_AGE_MAX_SECONDS
        with os.scandir(self._temp) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.unlink(entry.path)

    def _walk(self, folder: str, start: str) -> Iterator[ObjectInfo]:
        path = f"{self._root}/{folder}" if folder else self._root
        lead = f"{folder}/" if folder else ""
        try:
            with os.scandir(path) as entries:
                # A folder sorts as its children's keys do: by its name and the slash.
                names = sorted(
                    entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name
                    for entry in entries
                    if entry.name.startswith(start) and is_key_part(entry.name)
                )
        except OSError as error:
            # No such folder: nothing has been written there. A missing root is another matter.
            if error.errno in (errno.ENOENT, errno.ENOTDIR) and folder and self._is_present():
                return
            raise
        for name in names:
            if name.endswith("/"):
                yield from self._walk(lead + name[:-1], "")
                continue
            with suppress(FileNotFoundError):
                status = os.lstat(f"{path}/{name}")
                if stat_bits.S_ISREG(status.st_mode):
                    yield _info(lead + name, status)


def _root_of(config: LocalConfig) -> str:
    if not os.path.isabs(config.path) or "\0" in config.path:
        raise UsageError(f"{config.path!r} is not an absolute path", hint="give the folder from the root: path=/…")
    return os.path.normpath(config.path)


@contextmanager
def _errors_of(root: str, doing: str) -> Iterator[None]:
    """Turn an OSError about the folder `root` into the error tree."""
    try:
        yield
    except LastroError:
        raise
    except OSError as error:
        raise _mapped(error, f"{doing} in {root}: {error.strerror or error}") from error


def _mapped(error: OSError, said: str) -> StoreError:
    if error.errno in _CLASH:
        return StoreError(said, hint="no key may be the folder of another, and links are not followed")
    if error.errno in _FULL:
        return StoreFull(said, hint="free space there, raise the quota, or move the store to a larger disk")
    if error.errno in _DENIED:
        return StoreDenied(said, hint="the user that runs Lastro needs to read and write the folder")
    return StoreUnreachable(said, hint="look at the disk and the system log, then run it again")


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    modified = datetime.datetime.fromtimestamp(status.st_mtime, datetime.UTC)
    return ObjectInfo(key=key, size=status.st_size, modified=modified)


def _make_root(root: str) -> None:
    """Make the store's folder and the missing ones above it, each durable in its parent."""
    missing = []
    while not os.path.isdir(root):
        missing.append(root)
        root = os.path.dirname(root)
    for folder in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        _sync_folder(os.path.dirname(folder))


def _make_marker(root: str) -> None:
    """Write the marker whole; one that a killed `make` left empty says as much."""
    with suppress(FileExistsError):
        fd = os.open(f"{root}/{MARKER}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, [MARKER_TEXT])
            os.fsync(fd)
        finally:
            os.close(fd)
    _sync_folder(root)


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(fd: int, parts: Sequence[Buffer]) -> None:
    """Write all parts, however few bytes each call takes."""
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    at = 0
    while at < len(views):
        written = os.writev(fd, views[at : at + WRITE_PARTS_MAX])
        while written:
            size = len(views[at])
            if written < size:
                views[at] = views[at][written:]
                break
            written -= size
            at += 1


def _read(fd: int, offset: int, length: int) -> bytes:
    """Read exactly `length` bytes unless the file has become shorter."""
    first = os.pread(fd, min(length, READ_BYTES_MAX), offset)
    if len(first) == length:
        return first
    pieces, have = [first], len(first)
    while pieces[-1] and have < length:
        pieces.append(os.pread(fd, min(length - have, READ_BYTES_MAX), offset + have))
        have += len(pieces[-1])
    return b"".join(pieces)


def _same_bytes(one: str, other: str) -> bool:
    with open(one, "rb", buffering=0) as left, open(other, "rb", buffering=0) as right:
        if os.fstat(left.fileno()).st_size != os.fstat(right.fileno()).st_size:
            return False
        while True:
            a, b = left.read(COMPARE_BYTES), right.read(COMPARE_BYTES)
            if a != b:
                return False
            if not a:
                return True
