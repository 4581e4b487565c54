"""Put a log into a data folder: stage, verify against what the backup says, swap, verify again."""

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from connectors._eventlog.capture import list_segments
from connectors._eventlog.segment import LOG_FOLDER, SNAPSHOT_NAME
from connectors._eventlog.target import TargetFolder, target_errors
from connectors._eventlog.verified import Verified, file_digest, files_digest, verify_folder
from engine.errors import DamageError
from engine.ports import Check, FileChange, RestoreReport
from engine.progress import Progress

Fill = Callable[[Path], Mapping[str, Any]]
"""Writes a log into a folder and returns the facts (see Verified.facts) that it must have."""


def put_log(target: TargetFolder, fill: Fill, *, overwrite: bool, progress: Progress) -> RestoreReport:
    """Fill a staging folder, verify it, make it the target's log and verify that.

    Raises DamageError before anything at the target changes when the staged log is not what the facts
    say; TargetOccupied without `overwrite` where something is.
    """
    stage = target.prepare(overwrite=overwrite)
    try:
        progress.phase("stage")
        facts = fill(stage)
        progress.phase("check staged")
        require_same(verify_log(stage, progress), facts)
        before = _digests(target.path)
        progress.phase("apply")
        progress.check()
        target.apply()
    except BaseException:
        target.discard()
        raise
    progress.phase("check")
    restored = verify_log(target.path, progress)
    return RestoreReport(
        files=_changes(before, {each.path: each.sha256 for each in restored.files}),
        checks=_checks(facts, restored),
        warnings=_warnings(facts),
    )


def verify_log(root: Path, progress: Progress) -> Verified:
    """Verify the log in a data folder."""
    with target_errors(root):
        return verify_folder(root, list_segments(root / LOG_FOLDER)[0], progress)


def require_same(verified: Verified, facts: Mapping[str, Any]) -> None:
    """Raise DamageError when a log is not the one that the facts describe."""
    if files_digest(verified.files) != facts["files_sha256"]:
        raise DamageError(
            f"the event log read back has {len(verified.files)} files whose digest differs from the backup's",
            hint="verify the backup deeply; another copy may hold it whole",
        )


def _digests(root: Path) -> dict[str, str]:
    paths = [name.path for name in list_segments(root / LOG_FOLDER)[0]] + [SNAPSHOT_NAME]
    found = {}
    for path in paths:
        full = root / path
        if os.path.lexists(full) and stat.S_ISREG(os.lstat(full).st_mode):
            found[path] = file_digest(full, path).sha256
    return found


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> FileChange:
    both = before.keys() & after.keys()
    unchanged = sum(before[path] == after[path] for path in both)
    return FileChange(
        created=len(after.keys() - before.keys()),
        replaced=len(both) - unchanged,
        removed=len(before.keys() - after.keys()),
        unchanged=unchanged,
    )


def _checks(facts: Mapping[str, Any], restored: Verified) -> tuple[Check, ...]:
    wanted = {"files": facts["file_count"], "sha256": facts["files_sha256"]}
    found = {"files": len(restored.files), "sha256": files_digest(restored.files)}
    chain = {**facts["eventlog_summary"], "chain_valid": facts["chain_valid_at_backup"]}
    chain_found = {**restored.summary, "chain_valid": restored.chain_valid}
    first = f"first finding: {restored.findings[0]}" if restored.findings else "the chain is whole"
    return (
        Check("checksum_verification", wanted == found, wanted, found, "SHA-256 of every file"),
        Check("data_integrity", chain == chain_found, chain, chain_found, first),
        Check(
            "asset_completeness", wanted["files"] == found["files"], wanted["files"], found["files"], "files of the log"
        ),
    )


def _warnings(facts: Mapping[str, Any]) -> tuple[str, ...]:
    bad = facts.get("first_bad")
    if not bad:
        return ()
    return (
        f"the log was broken when it was backed up and is restored as it was: event {bad['event_id']} in {bad['file']}",
    )
