"""Restore a tree: decide, stage beside the target, prove it, swap it in.

Until the swap the target is untouched; the swap is atomic where the file system can do it, and
journalled where not (engine.tree_swap). What is decided to stay is carried into the new tree by hard links, so
that a merge of a few files into a million costs no copy and is as atomic as a full restore.
"""

import base64
import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from engine.errors import (
    CommitUnknown,
    StalePlan,
    TargetDenied,
    TargetError,
    TargetFull,
    TargetOccupied,
    TargetUnreachable,
)
from engine.faults import kill_point
from engine.plans import Preview
from engine.ports import Check, FileChange
from engine.progress import Progress
from engine.tree_carry import carry_over, seal_carried
from engine.tree_compare import TreePlan, compare_folder, open_folder
from engine.tree_digest import tree_digest_of_folder
from engine.tree_format import show_path
from engine.tree_prove import prove_taken
from engine.tree_room import room_at
from engine.tree_rules import TreeOrder
from engine.tree_scan import Exclude, count_entries, is_staging_name
from engine.tree_stage import TreeStage
from engine.tree_stale import SavedState
from engine.tree_swap import (
    Places,
    clear,
    exchange,
    exchange_back,
    finish_swap,
    is_mount_point,
    journals,
    mounts_below,
    places,
    recover,
    swap_entries,
    sync_file_system,
)
from engine.tree_tally import Comparison
from engine.tree_view import TreeView

_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GONE = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENOTCONN, errno.ETIMEDOUT)


class TreeRestored(NamedTuple):
    """What a restore did."""

    changes: FileChange
    checks: tuple[Check, ...]
    warnings: tuple[str, ...]
    digest: str = ""


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
    """Make the folder `target` what the view holds, wholly or not at all; see `prepared_tree`."""
    order = TreeOrder(left_out=exclude)
    with prepared_tree(
        view, target, label=label, overwrite=overwrite, in_place=in_place, order=order, progress=progress
    ) as prepared:
        prepared.commit()
        return prepared.done


def preview_tree(
    view: TreeView, target: bytes, *, in_place: bool, overwrite: bool, order: TreeOrder, progress: Progress
) -> Preview:
    """What `prepared_tree` and its commit would do. Writes nothing; raises what they would raise before they change anything."""
    target = os.path.realpath(target)
    with _target_errors(target):
        _require_folder(target)
        _require_no_mounts(target)
        comparison = _compare(view, target, order, progress)
        room = room_at(target)
        warnings = list(_warnings(comparison))
        if not overwrite and not in_place and _holds_anything(target):
            warnings.append(f"{show_path(target)} is not empty: to replace what is there must be confirmed")
        if journals(target):
            warnings.append(
                f"a restore of {show_path(target)} was interrupted: it will be finished first, which may change this plan"
            )
    lack = room.lack(comparison)
    if lack:
        warnings.append(lack)
    return Preview(
        digest=comparison.digest,
        files=comparison.changes,
        paths=comparison.paths,
        warnings=tuple(warnings),
        staged_bytes=comparison.staged_bytes,
        facts={"target": show_path(target), "free_bytes": room.bytes, "withheld": comparison.withheld},
    )


@contextmanager
def prepared_tree(
    view: TreeView,
    target: bytes,
    *,
    label: str,
    overwrite: bool,
    in_place: bool,
    order: TreeOrder,
    progress: Progress,
    prove: bool = False,
) -> Iterator["PreparedTree"]:
    """Stage what the order makes of the folder `target`, durably; its `commit` swaps it in. Parent folders are made.

    First ends what a killed run left here. Raises StalePlan when the order's digest is another than that of the
    changes found now, TargetOccupied when the target holds anything and `overwrite` is not given, TargetDenied,
    TargetFull, TargetUnreachable, TargetError; DamageError when what is stored is not what was backed up. After any
    of them the target is as it was. Leaving the context without a commit leaves nothing behind.
    """
    target = os.path.realpath(target)
    with _target_errors(target):
        _make_ready(target, overwrite=overwrite, in_place=in_place)
        where = _make_staging(target, label)
    prepared = None
    try:
        with _target_errors(target):
            prepared = PreparedTree(view, where, order, progress)
            prepared.stage(prove=prove)
        yield prepared
    finally:
        if prepared is not None:
            prepared.close()
        if not os.path.lexists(where.journal) and not (prepared and prepared.keeps_old):
            with _target_errors(target):
                clear(where)


class PreparedTree:
    """A staged tree; see engine.ports.PreparedRestore. A merge or selection that changes nothing stages nothing."""

    def __init__(self, view: TreeView, where: Places, order: TreeOrder, progress: Progress) -> None:
        self._view, self._where, self._order, self._progress = view, where, order, progress
        self._plan: TreePlan | None = None
        self._nothing = False
        self.keeps_old = False
        """What was there lies in the stage and nowhere else, because it could not be put back."""
        self.done = TreeRestored(FileChange(), (), ())
        self.token: Mapping[str, Any] = {"nothing": True}

    def close(self) -> None:
        if self._plan is not None:
            self._plan.close()

    # ------------------------------------------------------------ preparing

    def stage(self, *, prove: bool) -> None:
        """Everything up to the swap."""
        view, order, where = self._view, self._order, self._where
        plan = self._plan = TreePlan.empty(view, order, where.staging)
        comparison = _compare(view, where.target, order, self._progress, plan=plan)
        if order.digest and comparison.digest != order.digest:
            raise StalePlan(
                f"{show_path(where.target)} has changed since the preview: other files would be changed now",
                hint="preview it again",
            )
        if order.mode != "full" and not comparison.differs and os.path.lexists(where.target):
            self._nothing = True
            check = Check("data_integrity", True, comparison.digest, comparison.digest, "there is nothing to do")
            self.done = TreeRestored(comparison.changes, (check,), tuple(_warnings(comparison)), comparison.digest)
            return
        lack = room_at(where.home).lack(comparison)
        if lack:
            raise TargetFull(lack, hint="make room and run it again; the target is as it was")
        self._progress.phase("stage")
        self._progress.total(bytes=comparison.staged_bytes, items=comparison.staged_entries)
        staging = open_folder(where.staging)
        try:
            checks, warnings = self._fill(staging, plan, comparison, prove=prove)
            self._progress.phase("sync")
            sync_file_system(staging)
            self.token = _token(where, staging)
        finally:
            os.close(staging)
        warnings = (*_warnings(comparison), *warnings)
        self.done = TreeRestored(comparison.changes, checks, warnings, comparison.digest)
        kill_point("tree.restore.staged")

    def _fill(
        self, staging: int, plan: TreePlan, comparison: Comparison, *, prove: bool
    ) -> tuple[tuple[Check, ...], tuple[str, ...]]:
        view, progress = self._view, self._progress
        stage = TreeStage(view, staging, progress, take=plan.take if plan.counts["not_taken"] else None)
        stage.run()
        with stage.flushing():
            checks = _check(view, stage, staging, plan)
            self._finish_folders(staging, stage, plan)
        if prove:
            progress.phase("prove")
            checks += (self._prove(staging, plan, comparison),)
        what = tuple(
            f"{count} x {what} could not be restored here" for what, count in sorted(stage.not_restored.items())
        )
        return checks, what

    def _finish_folders(self, staging: int, stage: TreeStage, plan: TreePlan) -> None:
        live = open_folder(self._where.target) if os.path.lexists(self._where.target) else None
        try:
            if live is not None:
                self._progress.phase("carry")
                carry_over(live, staging, plan, self._progress)
            stage.seal_folders()
            if live is not None:
                seal_carried(live, staging, plan)
        finally:
            if live is not None:
                os.close(live)

    def _prove(self, staging: int, plan: TreePlan, comparison: Comparison) -> Check:
        order, wanted = self._order, self._view.sha256
        if order.mode != "full" or comparison.withheld:
            return prove_taken(self._view, staging, plan.take, self._progress)

        def apart(path: bytes, is_folder: bool) -> bool:
            return any(each is not None and each(path, is_folder) for each in (order.left_out, order.unseen))

        found = tree_digest_of_folder(self._where.staging, apart)["sha256"]
        return Check("data_integrity", found == wanted, wanted, found, "read back from the target's disk")

    # ------------------------------------------------------------ committing

    def commit(self) -> None:
        """Swap it in. Raises StalePlan when the target is not what `saved` holds, TargetError; it is as before then."""
        where = self._where
        if self._nothing:
            return
        with _target_errors(where.target):
            self._progress.phase("swap")
            self._progress.check()
            self._require_saved(where.target)
            if where.home == where.target or not self._exchange():
                swap_entries(where, lambda old: self._require_saved(old, root=False))
            kill_point("tree.restore.swapped")
            left = _remove_old(where)
        for warning in (*self.done.warnings, *left):
            self._progress.warn("tree.restored_in_part", warning)
        self.done = self.done._replace(warnings=(*self.done.warnings, *left))

    def _exchange(self) -> bool:
        where = self._where
        replaces = os.path.lexists(where.target)
        if not exchange(where):
            return False
        kill_point("tree.restore.exchanged")
        if not replaces:
            return True
        try:
            self._require_saved(where.staging, root=False)
        except BaseException as error:
            try:
                exchange_back(where)
            except OSError as failure:
                self.keeps_old = True
                raise CommitUnknown(
                    f"{show_path(where.target)} is the new tree, and cannot be changed back: {failure.strerror}",
                    hint=f"what was there lies in {show_path(_kept(where.staging))}",
                ) from error
            raise
        return True

    def _require_saved(self, folder: bytes, *, root: bool = True) -> None:
        """Nothing may be swapped away that the safety backup does not hold."""
        saved, plan = self._order.saved, self._plan
        if saved is None or plan is None:
            return
        if not os.path.lexists(folder):
            raise StalePlan(f"{show_path(folder)} is gone", hint="preview it again")
        state = SavedState(saved, left_out=self._order.left_out, stays=plan.stays)
        descriptor = open_folder(folder)
        try:
            state.require(descriptor, self._progress, root=root)
        finally:
            os.close(descriptor)


def tree_settled(token: Mapping[str, Any]) -> bool | None:
    """Whether the commit of this token took effect; ends what a kill interrupted, and clears the old tree it left."""
    if token.get("nothing"):
        return True
    target = base64.b64decode(token["target"])
    with _target_errors(target):
        finish_swap(target)
        outcome = _took_effect(target, token)
        if outcome:
            recover(target)
        return outcome


def _kept(staging: bytes) -> bytes:
    """Give the stage a name that no later run takes for its own to clear; its place, the old one if that fails too."""
    kept = staging.removesuffix(b"-staging") + b"-kept"
    try:
        os.rename(staging, kept)
    except OSError:
        return staging
    return kept


def _took_effect(target: bytes, token: Mapping[str, Any]) -> bool | None:
    if not os.path.lexists(target):
        return False
    if os.lstat(target).st_ino == token["root"]:
        return True
    if token["mark"] is None:
        return None
    return _inode(target, base64.b64decode(token["mark"])) == int(token["inode"])


def _token(where: Places, staging: int) -> dict[str, Any]:
    """By the root's inode a swap is told afterwards; by an entry's, or its absence, where the root stays the same."""
    target = where.target if os.path.lexists(where.target) else b""
    new = {os.fsencode(name) for name in os.listdir(staging)}
    names = sorted(new | {os.fsencode(name) for name in (os.listdir(target) if target else ())} - {b""})
    marks = ((name, _inode(where.staging, name)) for name in names if not is_staging_name(name))
    name, inode = next((mark for mark in marks if not target or mark[1] != _inode(target, mark[0])), (None, 0))
    return {
        "target": base64.b64encode(where.target).decode(),
        "root": os.fstat(staging).st_ino,
        "mark": None if name is None else base64.b64encode(name).decode(),
        "inode": inode,
    }


def _inode(folder: bytes, name: bytes) -> int:
    path = folder + b"/" + name
    return os.lstat(path).st_ino if os.path.lexists(path) else 0


# ---------------------------------------------------------------- before anything is written


def _require_folder(target: bytes) -> None:
    if os.path.lexists(target) and not os.path.isdir(target):
        raise TargetOccupied(f"{show_path(target)} is a file", hint="name a folder")


def _require_no_mounts(target: bytes) -> None:
    mounted = mounts_below(target)
    if mounted:
        raise TargetError(
            f"{show_path(mounted[0])} is mounted inside the target, which can therefore not be replaced",
            hint="unmount it first, or restore to another folder with --target path=DIR",
        )


def _holds_anything(target: bytes) -> bool:
    return os.path.lexists(target) and any(not is_staging_name(name) for name in os.listdir(target))


def _make_ready(target: bytes, *, overwrite: bool, in_place: bool) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    recover(target)
    _require_folder(target)
    if not overwrite and _holds_anything(target):
        hint = "confirm that it may be replaced" if in_place else "name an empty or new folder, or confirm"
        raise TargetOccupied(f"{show_path(target)} is not empty", hint=hint)
    _require_no_mounts(target)


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


def _compare(
    view: TreeView, target: bytes, order: TreeOrder, progress: Progress, *, plan: TreePlan | None = None
) -> Comparison:
    progress.phase("compare")
    folder = open_folder(target) if os.path.lexists(target) else None
    try:
        return compare_folder(view, folder, order, progress, plan=plan)
    finally:
        if folder is not None:
            os.close(folder)


def _warnings(comparison: Comparison) -> Iterator[str]:
    if comparison.withheld:
        yield (
            f"{comparison.withheld} paths of the backup are left out of backups today and stay as they are; "
            "a restore to another folder brings them"
        )


# ---------------------------------------------------------------- after staging


def _check(view: TreeView, stage: TreeStage, staging: int, plan: TreePlan) -> tuple[Check, ...]:
    """Compare sums and counts; raises TargetError when something is missing, for then nothing may be swapped."""
    taken = len(plan.take) - plan.take.count(0)
    wanted = {"entries": taken - stage.skipped, "files": view.file_count, "bytes": view.byte_count}
    found = {"entries": count_entries(staging), "files": stage.totals.files, "bytes": stage.totals.bytes}
    summed = stage.totals.sha256
    checks = (
        Check("checksum_verification", summed == view.sha256, view.sha256, summed, "each file's SHA-256, as written"),
        Check("asset_completeness", found == wanted, wanted, found, f"{stage.skipped} entries need more rights"),
    )
    failed = [check for check in checks if not check.passed]
    if failed:
        raise TargetError(f"the staged tree is not the backup's: {failed[0].name}, {failed[0].actual}")
    return checks


def _remove_old(where: Places) -> tuple[str, ...]:
    try:
        if mounts_below(where.staging):
            raise OSError(errno.EBUSY, "something was mounted inside")
        clear(where)
    except OSError as error:
        return (f"the replaced files remain in {show_path(where.staging)}: {error.strerror}",)
    return ()


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


__all__ = ["PreparedTree", "TreeRestored", "prepared_tree", "preview_tree", "restore_tree", "tree_settled"]
