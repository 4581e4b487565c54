"""A log restored in two phases: staged and verified beside the live one, then put in its place."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from connectors._eventlog.capture import Identity, list_segments
from connectors._eventlog.compare import LogPlan, identities
from connectors._eventlog.extract import extract_tree, log_entries
from connectors._eventlog.restore import checks_of, require_same, verify_log, warnings_of
from connectors._eventlog.segment import LOG_FOLDER, SNAPSHOT_NAME
from connectors._eventlog.strangers import carry_strangers
from connectors._eventlog.target import TargetFolder
from connectors._eventlog.verified import Verified
from engine.errors import DamageError, StalePlan
from engine.ports import Check, ImageSink, RestoreReport
from engine.progress import Progress
from engine.tree_view import TreeView

STALE_HINT = "stop what writes to the log, and preview it again"


class PreparedLog:
    """A staged log; see engine.ports.PreparedRestore."""

    def __init__(self, target: TargetFolder, plan: LogPlan, saved: TreeView | None, progress: Progress) -> None:
        self._target, self._plan, self._progress = target, plan, progress
        self._saved = {path: entry.row.sum.hex() for path, entry in log_entries(saved).items()} if saved else None
        self.report = RestoreReport()
        self.token: Mapping[str, Any] = {"nothing": True}

    def stage(self, tree: TreeView, facts: Mapping[str, Any], stage: Path) -> None:
        """Write what comes from the backup, link what stays, verify all of it."""
        plan, progress = self._plan, self._progress
        progress.phase("stage")
        extract_tree(tree, stage, progress, only=plan.take)
        self._link(stage)
        progress.phase("check staged")
        staged = verify_log(stage, progress)
        if plan.whole:
            require_same(staged, facts)
            checks = checks_of(facts, staged)
            plan.warnings += warnings_of(facts)
        else:
            checks = _merged_checks(plan, staged)
        carry_strangers(plan.live.root, stage, plan.live.strangers)
        self._target.sync()
        self.token = {"path": str(self._target.path), "log": self._target.log_inode()}
        self.report = RestoreReport(
            files=plan.changes(), checks=checks, warnings=tuple(plan.warnings), digest=plan.digest()
        )

    def nothing(self) -> None:
        """There is nothing to do."""
        plan = self._plan
        check = Check("data_integrity", True, plan.digest(), plan.digest(), "there is nothing to do")
        self.report = RestoreReport(
            files=plan.changes(), checks=(check,), warnings=tuple(plan.warnings), digest=plan.digest()
        )

    def _link(self, stage: Path) -> None:
        """The very same files, so that what is written to them meanwhile is in the new log, too."""
        root = self._plan.live.root
        for path in sorted(self._plan.keep):
            try:
                os.link(root / path, stage / path, follow_symlinks=False)
            except FileNotFoundError as error:
                raise StalePlan(f"{path} was to stay and is gone", hint=STALE_HINT) from error
        if self._plan.keep:
            shutil.copystat(root / LOG_FOLDER, stage / LOG_FOLDER)
            info = os.stat(root / LOG_FOLDER)
            os.chown(stage / LOG_FOLDER, info.st_uid, info.st_gid)

    def image(self, sink: ImageSink) -> None:
        """Writes nothing: the safety backup serves."""

    def commit(self) -> None:
        """Swap it in. Raises StalePlan when the live log is not what was planned with, or not what was saved."""
        if "nothing" in self.token:
            return
        self._progress.phase("swap")
        self._progress.check()
        root = self._plan.live.root
        self._require_same(root / LOG_FOLDER, root / SNAPSHOT_NAME, moved=False)
        self._require_saved()
        self._target.swap(lambda log, snapshot: self._require_same(log, snapshot, moved=True))
        self._target.discard()

    def _require_saved(self) -> None:
        if self._saved is None:
            return
        plan, sums = self._plan, self._plan.live.sums
        for path in sorted(sums.keys() | self._saved.keys()):
            stays = path in plan.keep and path in self._saved
            if not stays and sums.get(path) != self._saved.get(path):
                raise StalePlan(f"{path} was written to after the safety backup", hint=STALE_HINT)

    def _require_same(self, log: Path, snapshot: Path, *, moved: bool) -> None:
        """What is swapped away must be what the plan has read; what stays may have grown in its place."""
        plan = self._plan
        before, now = plan.live.identities, identities(log, snapshot)
        for path in sorted(before.keys() | now.keys()):
            was, found = before.get(path), now.get(path)
            if was is None or found is None:
                what = "is new" if was is None else "is gone"
                raise StalePlan(f"{path} {what} since the log was compared", hint=STALE_HINT)
            if not _same(was, found, stays=path in plan.keep, renamed=moved and path == SNAPSHOT_NAME):
                raise StalePlan(f"{path} was written to since the log was compared", hint=STALE_HINT)
        if set(list_segments(log)[1]) - set(plan.live.strangers):
            raise StalePlan(f"{LOG_FOLDER} has got other files since the log was compared", hint=STALE_HINT)


def _same(was: Identity, now: Identity, *, stays: bool, renamed: bool) -> bool:
    """A file that stays was linked, and the snapshot renamed, which sets the last of the fields (ctime)."""
    if stays:
        return was[:2] == now[:2]
    return was[:4] == now[:4] if renamed else was == now


def _merged_checks(plan: LogPlan, staged: Verified) -> tuple[Check, ...]:
    """The staged log is what was decided: each file of the backup by its sum, the chain as it was judged."""
    found = {each.path: each.sha256 for each in staged.files}
    wanted = {path: plan.entries[path].row.sum.hex() for path in plan.take}
    good = sum(found.get(path) == digest for path, digest in wanted.items())
    if good != len(wanted):
        raise DamageError("the event log read back is not the backup's", hint="verify the backup deeply")
    files = len(plan.take | plan.keep)
    summary = staged.summary
    grown = summary["total_events"] >= plan.result["total_events"]
    first = f"first finding: {staged.findings[0]}" if staged.findings else "the chain is whole"
    return (
        Check("checksum_verification", True, len(wanted), good, "SHA-256 of every file that came back"),
        Check("data_integrity", grown, plan.result, summary, first),
        Check("asset_completeness", len(found) == files, files, len(found), "files of the log"),
    )
