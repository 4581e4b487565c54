"""Write a backed-up log tree into a folder; only what belongs to a log ever leaves the repository."""

import contextlib
import errno
import os
import stat
from collections.abc import Collection
from pathlib import Path

from connectors._eventlog.package import is_log_path
from connectors._eventlog.segment import LOG_FOLDER
from engine.errors import DamageError, TargetError, TargetFull
from engine.progress import Progress
from engine.tree_view import Entry, TreeView

_FOLDERS = {b"", LOG_FOLDER.encode()}


def log_entries(tree: TreeView) -> dict[str, Entry]:
    """The files of a backed-up log by their paths. Raises DamageError for an entry that is no file of a log."""
    found = {}
    for entry in tree.entries():
        if entry.kind == stat.S_IFDIR and entry.path in _FOLDERS:
            continue
        found[_log_name(entry)] = entry
    return found


def _log_name(entry: Entry) -> str:
    name = entry.path.decode("utf-8", "backslashreplace")
    if entry.kind != stat.S_IFREG or not is_log_path(name):
        raise DamageError(f"the backup holds {name!r}, which is no file of an event log", hint="verify the backup")
    return name


def extract_tree(tree: TreeView, stage: Path, progress: Progress, *, only: Collection[str] | None = None) -> None:
    """Write every file of the log, or those of `only`, with its mode, time and (as root) owner into the empty folder `stage`.

    Raises DamageError for an entry that is no file of a log, TargetFull and TargetError for the folder's sake.
    """
    progress.total(bytes=tree.byte_count, items=tree.file_count)
    (stage / LOG_FOLDER).mkdir()
    folders: list[tuple[Path, Entry]] = []
    for entry in tree.entries():
        progress.check()
        path = entry.path
        if entry.kind == stat.S_IFDIR and path in _FOLDERS:
            folders.append((stage / path.decode(), entry))
            continue
        name = _log_name(entry)
        if only is not None and name not in only:
            continue
        _write_file(tree, entry, stage / name)
        progress.advance(bytes=entry.stat.size, items=1)
    for folder, entry in folders:
        _set_metadata(folder, entry, extra_mode=stat.S_IRWXU)


def _write_file(tree: TreeView, entry: Entry, target: Path) -> None:
    try:
        with open(target, "xb") as handle:
            handle.writelines(tree.read(entry))
        _set_metadata(target, entry)
        os.utime(target, ns=(entry.mtime_ns, entry.mtime_ns))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise TargetFull(f"no room for {target.name} in {target.parent}", hint="free space there") from error
        raise TargetError(f"cannot write {target}: {error.strerror}", hint="check the folder and its disk") from error


def _set_metadata(path: Path, entry: Entry, *, extra_mode: int = 0) -> None:
    with contextlib.suppress(PermissionError):
        os.chown(path, entry.stat.uid, entry.stat.gid)
    os.chmod(path, entry.stat.mode & 0o777 | extra_mode)
