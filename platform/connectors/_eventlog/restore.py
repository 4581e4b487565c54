"""Put a log into a data folder: stage, verify against what is said of it, swap."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from connectors._eventlog.capture import list_segments
from connectors._eventlog.compare import read_live
from connectors._eventlog.segment import LOG_FOLDER
from connectors._eventlog.strangers import carry_strangers
from connectors._eventlog.target import TargetFolder, staged, target_errors
from connectors._eventlog.verified import Verified, files_digest, verify_folder
from engine.errors import DamageError
from engine.ports import Check, FileChange, RestoreReport
from engine.progress import Progress

Fill = Callable[[Path], Mapping[str, Any]]
"""Writes a log into a folder and returns the facts (see Verified.facts) that it must have."""


def put_log(target: TargetFolder, fill: Fill, *, overwrite: bool, progress: Progress) -> RestoreReport:
    """Fill a staging folder, verify it, and make it the target's log.

    Raises DamageError before anything at the target changes when the staged log is not what the facts
    say; TargetOccupied without `overwrite` where something is.
    """
    with staged(target, overwrite=overwrite) as stage:
        progress.phase("stage")
        facts = fill(stage)
        progress.phase("check staged")
        verified = verify_log(stage, progress)
        require_same(verified, facts)
        live = read_live(target.path, progress)
        carry_strangers(target.path, stage, live.strangers)
        target.sync()
        progress.phase("apply")
        progress.check()
        target.swap()
    changes = _changes(live.sums, {each.path: each.sha256 for each in verified.files})
    return RestoreReport(files=changes, checks=checks_of(facts, verified), warnings=warnings_of(facts))


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> FileChange:
    both = before.keys() & after.keys()
    unchanged = sum(before[path] == after[path] for path in both)
    return FileChange(
        created=len(after.keys() - before.keys()),
        replaced=len(both) - unchanged,
        removed=len(before.keys() - after.keys()),
        unchanged=unchanged,
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


def checks_of(facts: Mapping[str, Any], restored: Verified) -> tuple[Check, ...]:
    """A whole log beside what the backup says of it."""
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


def warnings_of(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What the operator must know of a log that was broken."""
    bad = facts.get("first_bad")
    if not bad:
        return ()
    return (
        f"the log was broken when it was backed up and is restored as it was: event {bad['event_id']} in {bad['file']}",
    )
