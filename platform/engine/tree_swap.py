"""Put a staged tree in place of the target: by one atomic exchange, or entry by entry under a journal.

The exchange (renameat2, RENAME_EXCHANGE) leaves the target wholly old or wholly new at any instant. Where
it cannot be had (the target is a mount point, its parent is not writable, the file system knows no
exchange), the top-level entries are moved one by one: a journal written first lets the next run finish
what a killed one began, and an error moves everything back.
"""

import base64
import ctypes
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.errors import LastroError
from engine.faults import kill_point
from engine.tree_remove import remove_tree
from engine.tree_scan import is_staging_name

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EBUSY, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class Places:
    """Where a restore works: absolute paths, all on the target's file system."""

    target: bytes
    home: bytes
    """The folder that holds staging, old entries and journal: beside the target, or the target itself."""
    label: bytes

    @property
    def staging(self) -> bytes:
        return self.home + b"/.lastro-" + self.label + b"-staging"

    @property
    def old(self) -> bytes:
        return self.home + b"/.lastro-" + self.label + b"-old-staging"

    @property
    def journal(self) -> bytes:
        return self.home + b"/.lastro-" + self.label + b"-journal"


def places(target: bytes, label: str, *, inside: bool) -> Places:
    """Names carry the label and a digest of the target, so that restores of neighbours never meet."""
    clean = re.sub(r"[^A-Za-z0-9_.-]", "_", label)[:80].encode()
    home = target if inside else os.path.dirname(target)
    return Places(target, home, clean + b"-" + _target_mark(target))


def _target_mark(target: bytes) -> bytes:
    return hashlib.sha256(target).hexdigest()[:12].encode()


# ---------------------------------------------------------------- the atomic way


def exchange(places: Places) -> bool:
    """Swap staging and target (or move staging there when there is no target). False when it cannot be had.

    Afterwards `staging` holds the old tree. Raises OSError; both are then where they were.
    """
    if not os.path.lexists(places.target):
        os.rename(places.staging, places.target)
        undo: Callable[[], object] = lambda: os.rename(places.target, places.staging)  # noqa: E731
    else:
        code = _exchange_names(places)
        if code in _NO_EXCHANGE:
            return False
        if code:
            raise OSError(code, os.strerror(code))
        undo = lambda: _exchange_names(places)  # noqa: E731
    try:
        sync_folder(places.home)
    except OSError:
        undo()
        raise
    return True


def _exchange_names(places: Places) -> int:
    """The error number, 0 for done (renameat2(2))."""
    done = _libc.renameat2(_AT_FDCWD, places.staging, _AT_FDCWD, places.target, _RENAME_EXCHANGE)
    return ctypes.get_errno() if done != 0 else 0


def sync_folder(path: bytes) -> None:
    """Make the names in a folder durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file_system(descriptor: int) -> None:
    """Everything written below has reached the disk when this returns. Raises OSError for lost writes.

    `descriptor` must be open since before the writing began, so that the kernel reports its errors here.
    """
    if _libc.syncfs(descriptor) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    os.fsync(descriptor)


# ---------------------------------------------------------------- the journalled way


def exchange_back(places: Places) -> None:
    """Undo `exchange` where there was a target. Raises OSError."""
    code = _exchange_names(places)
    if code:
        raise OSError(code, os.strerror(code))
    sync_folder(places.home)


def swap_entries(places: Places, accept: Callable[[bytes], None] | None = None) -> None:
    """Move the target's entries to `old` and the staged ones into the target, under a journal.

    `accept` looks at the folder with the old entries when all are moved; when it raises, everything is moved back.
    """
    document = {
        "format": 1,
        "target": _text(places.target),
        "label": places.label.decode(),
        "mtime_ns": os.lstat(places.staging).st_mtime_ns,
        "old_mtime_ns": os.lstat(places.target).st_mtime_ns,
        "settled": False,
        "old": [_text(name) for name in _entries(places.target)],
        "new": [_text(name) for name in _entries(places.staging)],
    }
    os.makedirs(places.old, mode=0o700, exist_ok=True)
    _write_durably(places.journal, json.dumps(document).encode())
    kill_point("tree.restore.journalled")
    try:
        _move_forward(places, document)
        if accept is not None:
            accept(places.old)
    except (OSError, LastroError):
        _move_back(places, document)
        os.unlink(places.journal)
        raise
    _settle(places, document)


def _move_forward(places: Places, document: dict[str, Any]) -> None:
    for name in map(_bytes, document["old"]):
        if not os.path.lexists(places.old + b"/" + name) and os.path.lexists(places.target + b"/" + name):
            os.rename(places.target + b"/" + name, places.old + b"/" + name)
            kill_point("tree.restore.old_moved")
    for name in map(_bytes, document["new"]):
        if os.path.lexists(places.staging + b"/" + name):
            os.rename(places.staging + b"/" + name, places.target + b"/" + name)
            kill_point("tree.restore.new_moved")


def _move_back(places: Places, document: dict[str, Any]) -> None:
    for name in map(_bytes, document["new"]):
        moved = os.path.lexists(places.target + b"/" + name) and not os.path.lexists(places.staging + b"/" + name)
        if moved and (_text(name) not in document["old"] or os.path.lexists(places.old + b"/" + name)):
            os.rename(places.target + b"/" + name, places.staging + b"/" + name)
    for name in map(_bytes, document["old"]):
        if os.path.lexists(places.old + b"/" + name):
            os.rename(places.old + b"/" + name, places.target + b"/" + name)
    os.utime(places.target, ns=(document["old_mtime_ns"],) * 2)
    sync_folder(places.target)


def _settle(places: Places, document: dict[str, Any]) -> None:
    """All entries are where they belong: give the target the root's metadata, remove what is old, end the journal."""
    copy_metadata(places.staging, places.target)
    for folder in (places.staging, places.old, places.target):
        sync_folder(folder)
    _write_durably(places.journal, json.dumps({**document, "settled": True, "old": [], "new": []}).encode())
    kill_point("tree.restore.entries_swapped")
    _end(places, document)


def _end(places: Places, document: dict[str, Any]) -> None:
    clear(places)
    os.unlink(places.journal)
    sync_folder(places.home)
    times = (document["mtime_ns"], document["mtime_ns"])
    os.utime(places.target, ns=times)  # Moving entries and removing our own names has changed it.


def recover(target: bytes) -> bool:
    """Finish what a killed run of any label began at this target, and clear what it staged; True when there was something.

    Called before every restore. What belongs to other targets is left alone.
    """
    found = finish_swap(target)
    for home in (os.path.dirname(target), target):
        for name in _ours(home, b"-staging"):
            if b"-" + _target_mark(target) + b"-" in name:
                _remove(home, name)
    return found


def finish_swap(target: bytes) -> bool:
    """Move on by the journal of a killed run, if there is one."""
    found = False
    for home in (os.path.dirname(target), target):
        for name in _ours(home, b"-journal"):
            with open(home + b"/" + name, "rb") as handle:
                document = json.loads(handle.read())
            if _bytes(document["target"]) != target:
                continue
            again = Places(target, home, document["label"].encode())
            if document["settled"]:
                _end(again, document)
            else:
                os.makedirs(again.old, mode=0o700, exist_ok=True)
                _move_forward(again, document)
                _settle(again, document)
            found = True
    return found


def journals(target: bytes) -> bool:
    """Whether a killed run left a swap unfinished that may be this target's."""
    return any(_ours(home, b"-" + _target_mark(target) + b"-journal") for home in (os.path.dirname(target), target))


def clear(places: Places) -> None:
    """Remove staging and old entries."""
    for path in (places.staging, places.old):
        _remove(places.home, os.path.basename(path))


def _remove(home: bytes, name: bytes) -> None:
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(descriptor, name)
    finally:
        os.close(descriptor)


def copy_metadata(source: bytes, target: bytes) -> None:
    """Owner, attributes, mode and times of one folder onto another, as far as we may."""
    info = os.lstat(source)
    steps: list[Callable[[], None]] = [lambda: os.chown(target, info.st_uid, info.st_gid)]
    steps += [
        lambda name=name: os.setxattr(target, name, os.getxattr(source, name))  # type: ignore[misc]
        for name in _xattr_names(source)
    ]
    steps += [lambda: os.chmod(target, info.st_mode & 0o7777)]
    for step in steps:
        try:
            step()
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.utime(target, ns=(info.st_mtime_ns, info.st_mtime_ns))


def _xattr_names(path: bytes) -> list[str]:
    try:
        return os.listxattr(path)
    except OSError:
        return []


def _ours(folder: bytes, end: bytes) -> list[bytes]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in names if is_staging_name(name) and name.endswith(end)]


def _entries(folder: bytes) -> list[bytes]:
    return sorted(name for name in os.listdir(folder) if not is_staging_name(name))


def _write_durably(path: bytes, data: bytes) -> None:
    draft = path.removesuffix(b"-journal") + b"-draft-staging"
    with open(draft, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    os.rename(draft, path)
    sync_folder(os.path.dirname(path))


def _text(name: bytes) -> str:
    return base64.b64encode(name).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


# ---------------------------------------------------------------- mounts


def mounts_below(target: bytes) -> list[bytes]:
    """Mount points strictly below the target, bind mounts too (proc_pid_mountinfo(5), field 5)."""
    try:
        with open("/proc/self/mountinfo", "rb") as handle:
            points = [line.split(b" ")[4] for line in handle]
    except OSError:
        return []
    unescaped = [re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), point) for point in points]
    return [point for point in unescaped if point.startswith(target.rstrip(b"/") + b"/")]


def is_mount_point(target: bytes) -> bool:
    """True when something is mounted exactly there, a bind mount too."""
    parent = os.path.dirname(target)
    if os.lstat(target).st_dev != os.lstat(parent).st_dev:
        return True
    return target in mounts_below(parent)
