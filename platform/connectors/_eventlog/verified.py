"""Verify a staged log: chain, snapshot and the digest of every file, in one pass over its bytes."""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from connectors._eventlog.chain import ChainReport, ChainVerifier, Finding
from connectors._eventlog.segment import BLOCK_BYTES, SNAPSHOT_NAME, SegmentName
from connectors._eventlog.snapshot import SNAPSHOT_BYTES_MAX, State, judge_snapshot, parse_snapshot
from engine.progress import Progress


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A file of the log as the package manifest lists it."""

    path: str
    size: int
    sha256: str


def files_digest(files: Sequence[FileDigest]) -> str:
    """One SHA-256 (hex) over all files: `path NUL size NUL sha256 LF` each, sorted by path."""
    lines = sorted(f"{each.path}\0{each.size}\0{each.sha256}\n" for each in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Verified:
    """A log in a folder and what verifying it found."""

    root: Path
    report: ChainReport
    files: tuple[FileDigest, ...]
    snapshot_state: State
    snapshot_finding: Finding | None
    counts: Mapping[str, int]
    """Events by segment path, as far as each is readable."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        own = self.report.findings
        return (*own, self.snapshot_finding) if self.snapshot_finding is not None else own

    @property
    def chain_valid(self) -> bool:
        """Whether the chain holds and the snapshot, if there is one, does not contradict it."""
        return self.report.valid and self.snapshot_finding is None

    @property
    def summary(self) -> dict[str, Any]:
        return self.report.summary(snapshot_exists=self.snapshot_state != "absent")

    def facts(self) -> dict[str, Any]:
        """What the backup's manifest keeps about the log."""
        findings = self.findings
        return {
            "eventlog_summary": self.summary,
            "chain_valid_at_backup": self.chain_valid,
            "first_bad": findings[0].as_json() if findings else None,
            "findings": [each.as_json() for each in findings],
            "finding_count": self.report.finding_count + (self.snapshot_finding is not None),
            "snapshot_state": self.snapshot_state,
            "first_segment": self.report.first_segment,
            "trusted_previous_hash": self.report.trusted_previous_hash,
            "unhashed_fields": list(self.report.unhashed_fields),
            "file_count": len(self.files),
            "files_sha256": files_digest(self.files),
        }


def file_blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a staged file, a block at a time."""
    with open(path, "rb", buffering=0) as handle:
        while block := handle.read(BLOCK_BYTES):
            yield block


def _hashing(blocks: Iterator[bytes], digest: "hashlib._Hash") -> Iterator[bytes]:
    for block in blocks:
        digest.update(block)
        yield block


def file_digest(path: Path, name: str) -> FileDigest:
    """Hash a staged file."""
    digest, size = hashlib.sha256(), 0
    for block in file_blocks(path):
        digest.update(block)
        size += len(block)
    return FileDigest(name, size, digest.hexdigest())


def verify_folder(root: Path, segments: Sequence[SegmentName], progress: Progress) -> Verified:
    """Verify the chain and the snapshot in a folder; every file is hashed in the same pass."""
    snapshot = read_snapshot(root)
    verifier = ChainVerifier(watch=_watch(snapshot))
    files, counts = [], {}
    for name in segments:
        progress.check()
        path = root / name.path
        if not _is_plain(path):
            verifier.unreadable(name, "it is no plain file and was left out")
            continue
        digest, before = hashlib.sha256(), verifier.total
        blocks = _hashing(file_blocks(path), digest)
        verifier.segment(name, blocks)
        counts[name.path] = verifier.total - before
        for _ in blocks:  # A malformed segment is not read to its end by the verifier, but kept to its end.
            pass
        size = path.stat().st_size
        files.append(FileDigest(name.path, size, digest.hexdigest()))
        progress.advance(bytes=size, items=1)
    if snapshot is not None:
        files.append(file_digest(root / SNAPSHOT_NAME, SNAPSHOT_NAME))
    report = verifier.report()
    return Verified(root, report, tuple(files), *judge_snapshot(snapshot, report), counts)


def _is_plain(path: Path) -> bool:
    """Never follow a link and never wait for a pipe."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def read_snapshot(root: Path) -> bytes | None:
    """The staged snapshot's bytes, None without one; never more than a snapshot can sensibly have."""
    if not _is_plain(root / SNAPSHOT_NAME):
        return None
    with open(root / SNAPSHOT_NAME, "rb") as handle:
        return handle.read(SNAPSHOT_BYTES_MAX + 1)


def _watch(snapshot: bytes | None) -> tuple[int, int] | None:
    try:
        return parse_snapshot(snapshot).place if snapshot is not None else None
    except ValueError:
        return None
