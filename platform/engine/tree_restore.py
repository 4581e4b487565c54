"""Restore a tree: stage it beside the target, prove it, swap it in.

Until the swap the target is untouched; the swap is atomic where the file system can do it, and
journalled where not (engine.tree_swap). Paths that the source excludes are no part of a backup: what
the target has of them is carried over.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from engine.errors import TargetDenied, TargetError, TargetFull, TargetOccupied, TargetUnreachable
from engine.faults import kill_point
from engine.ports import Check, FileChange
from engine.progress import Progress
from engine.tree_carry import carry_over
from engine.tree_compare import Comparison, compare_folder
from engine.tree_format import show_path
from engine.tree_scan import Exclude, count_entries, is_staging_name
from engine.tree_stage import TreeStage
from engine.tree_swap import (
    Places,
    clear,
    exchange,
    is_mount_point,
    mounts_below,
    places,
    recover,
    swap_entries,
    sync_file_system,
)
from engine.tree_view import TreeView

_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GONE = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENOTCONN, errno.ETIMEDOUT)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class TreeRestored(NamedTuple):
    """What a restore did."""

    changes: FileChange
    checks: tuple[Check, ...]
    warnings: tuple[str, ...]


def restore_tree(
    view: TreeView,
    target: bytes,
    *,
    label: str,
    overwrite: bool,
    in_place: bool,
    exclude: Exclude | None = None,
    progress: Progress,
) -> TreeRestored:
    """Make the folder `target` what the view holds, wholly or not at all; its parent folders are made.

    First ends what a killed run left here. `exclude` says what the target keeps of its own (asked with
    paths below the target). Raises TargetOccupied when the target holds anything and `overwrite` is not
    given, TargetDenied, TargetFull, TargetUnreachable, TargetError; DamageError when what is stored is
    not what was backed up. After any of them the target is as it was.
    """
    target = os.path.realpath(target)
    with _target_errors(target):
        _prepare(target, overwrite=overwrite, in_place=in_place)
        where = _make_staging(target, label)
        try:
            return _restore(view, where, exclude, progress)
        except BaseException:
            if not os.path.lexists(where.journal):
                clear(where)
            raise


def _prepare(target: bytes, *, overwrite: bool, in_place: bool) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    recover(target)
    if not os.path.lexists(target):
        return
    if not os.path.isdir(target):
        raise TargetOccupied(f"{show_path(target)} is a file", hint="name a folder")
    if not overwrite and any(not is_staging_name(name) for name in os.listdir(target)):
        hint = "confirm that it may be replaced" if in_place else "name an empty or new folder, or confirm"
        raise TargetOccupied(f"{show_path(target)} is not empty", hint=hint)
    mounted = mounts_below(target)
    if mounted:
        raise TargetError(
            f"{show_path(mounted[0])} is mounted inside the target, which can therefore not be replaced",
            hint="unmount it first, or restore to another folder with --target path=DIR",
        )


def _make_staging(target: bytes, label: str) -> Places:
    """Beside the target where possible; inside when that is a mount point or its parent is not ours to write."""
    exists = os.path.lexists(target)
    inside = exists and is_mount_point(target)
    where = places(target, label, inside=inside)
    try:
        os.mkdir(where.staging, 0o700)
    except OSError as error:
        if inside or not exists or error.errno not in _DENIED:
            raise
        where = places(target, label, inside=True)
        os.mkdir(where.staging, 0o700)
    return where


def _restore(view: TreeView, where: Places, exclude: Exclude | None, progress: Progress) -> TreeRestored:
    staging = os.open(where.staging, _FOLDER)
    try:
        comparison = _compare(view, where.target, exclude, progress)
        progress.phase("stage")
        progress.total(bytes=view.byte_count, items=view.file_count)
        stage = TreeStage(view, staging, progress)
        stage.run()
        checks = _check(view, stage, staging)
        if comparison.excluded:
            _carry(where.target, staging, comparison.excluded)
        stage.seal_folders()
        progress.phase("swap")
        sync_file_system(staging)
    finally:
        os.close(staging)
    kill_point("tree.restore.staged")
    progress.check()
    if where.home == where.target or not exchange(where):
        swap_entries(where)
    kill_point("tree.restore.swapped")
    warnings = [f"{count} x {what} could not be restored here" for what, count in sorted(stage.not_restored.items())]
    warnings += _remove_old(where)
    for warning in warnings:
        progress.warn("tree.restored_in_part", warning)
    return TreeRestored(comparison.changes, checks, tuple(warnings))


def _compare(view: TreeView, target: bytes, exclude: Exclude | None, progress: Progress) -> Comparison:
    if not os.path.lexists(target):
        return Comparison(FileChange(created=view.entry_count - view.folder_count))
    progress.phase("compare")
    folder = os.open(target, _FOLDER)
    try:
        return compare_folder(view, folder, exclude, progress)
    finally:
        os.close(folder)


def _carry(target: bytes, staging: int, excluded: list[bytes]) -> None:
    folder = os.open(target, _FOLDER)
    try:
        carry_over(folder, staging, excluded)
    finally:
        os.close(folder)


def _check(view: TreeView, stage: TreeStage, staging: int) -> tuple[Check, ...]:
    """Compare sums and counts; raises TargetError when something is missing, for then nothing may be swapped."""
    entries = count_entries(staging)
    wanted = {"entries": view.entry_count - stage.skipped, "files": view.file_count, "bytes": view.byte_count}
    found = {"entries": entries, "files": stage.totals.files, "bytes": stage.totals.bytes}
    summed = stage.totals.sha256
    checks = (
        Check("checksum_verification", summed == view.sha256, view.sha256, summed, "each file's SHA-256, as written"),
        Check("asset_completeness", found == wanted, wanted, found, f"{stage.skipped} entries need more rights"),
    )
    failed = [check for check in checks if not check.passed]
    if failed:
        raise TargetError(f"the staged tree is not the backup's: {failed[0].name}, {failed[0].actual}")
    return checks


def _remove_old(where: Places) -> list[str]:
    try:
        if mounts_below(where.staging):
            raise OSError(errno.EBUSY, "something was mounted inside")
        clear(where)
    except OSError as error:
        return [f"the replaced files remain in {show_path(where.staging)}: {error.strerror}"]
    return []


@contextmanager
def _target_errors(target: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        shown, why = show_path(target), error.strerror or str(error)
        if error.errno in _FULL:
            raise TargetFull(f"{shown}: {why}", hint="make room and run it again; the target is as it was") from error
        if error.errno in _DENIED:
            raise TargetDenied(f"{shown}: {why}", hint="may this user write there and in its parent folder?") from error
        if error.errno in _GONE:
            raise TargetUnreachable(f"{shown}: {why}", hint="check the disk or the mount") from error
        raise TargetError(f"{shown}: {why}", hint="the target is as it was") from error
