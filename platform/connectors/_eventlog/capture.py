"""Take one consistent view of a live event log into a private folder, without a lock and without writing to it.

The chain has to be verified over every byte anyway, which costs several times more than copying these
bytes; so the whole log is staged (cloned where the file system can) and the engine walks the stage: what
is backed up is what was verified, whatever happens to the source meanwhile. Hard links would be cheaper,
but they change the source's ctime and follow in-place growth.
"""

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from connectors._eventlog.chain import ChainVerifier
from connectors._eventlog.segment import (
    BLOCK_BYTES,
    LOG_FOLDER,
    SNAPSHOT_NAME,
    SegmentName,
    segment_name,
)
from connectors._eventlog.snapshot import parse_snapshot
from connectors._eventlog.verified import FileDigest, file_blocks, read_snapshot
from engine.errors import SourceChanged, SourceDenied, SourceError, SourceUnreachable
from engine.progress import Progress

SETTLE_ATTEMPTS_MAX = 12
SETTLE_SECONDS = (0.02, 0.05, 0.1, 0.1, 0.2)
QUIET_SECONDS = 1.0
"""How long a damaged or lagging end must stand still before it is taken to be no write in progress."""
CAPTURE_ATTEMPTS_MAX = 5

Sleep = Callable[[float], None]
Identity = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Capture:
    """A staged log: `root` holds exactly the segments listed and the snapshot, if there is one."""

    root: Path
    segments: tuple[SegmentName, ...]
    pruned_while_reading: int
    quiet: bool
    """Whether the end of the log stood still while it was read, so that a snapshot behind it is odd."""
    left_out: tuple[str, ...]
    """Names in the log folder that belong to no log."""
    identities: Mapping[str, Identity] = field(repr=False)
    """Of the source's files when they were copied, by path."""


def identity(status: os.stat_result) -> Identity:
    """What tells that a file is the same and unchanged; the kernel alone sets the last one (ctime)."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def list_segments(folder: Path) -> tuple[list[SegmentName], list[str]]:
    """Return the segments of a log folder in order, and the names of what is none; nothing when it is missing."""
    segments: list[SegmentName] = []
    others: list[str] = []
    with _source_errors(folder):
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return [], []
    for name in names:
        parsed = segment_name(name)
        if parsed is None:
            others.append(name)
        else:
            segments.append(parsed)
    return sorted(segments), sorted(others)


@contextlib.contextmanager
def _source_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise SourceDenied(
            f"cannot read {path}: {error.strerror}",
            hint="give this process the right to read the log's folder and files",
        ) from error
    except NotADirectoryError as error:
        raise SourceError(f"{path} is no folder", hint="path is the data folder that holds event-log/") from error
    except OSError as error:
        raise SourceUnreachable(
            f"cannot read {path}: {error.strerror}", hint="check the disk or mount below it"
        ) from error


class NotRegular(Exception):
    """A folder, link, pipe or device where a file of the log should be."""


def open_regular(path: Path) -> int:
    """Open a plain file for reading without following a link and without blocking on a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise NotRegular(str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular(str(path))
    return descriptor


def _copy_bytes(source: int, target: int, size: int) -> None:
    """Copy up to `size` bytes in the kernel (a clone where it can), else by hand; a shrinking file ends early."""
    done = 0
    try:
        while done < size:
            moved = os.copy_file_range(source, target, min(size - done, 1 << 30))
            if moved == 0:
                break
            done += moved
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF):
            raise
    while done < size:
        block = os.pread(source, min(BLOCK_BYTES, size - done), done)
        if not block:
            return
        view = memoryview(block)
        while view:
            view = view[os.write(target, view) :]
        done += len(block)


def _stage_file(source: Path, target: Path) -> Identity:
    """Copy one file of the log as it is now; return what identified it. Retries while it changes under the copy."""
    for _ in range(CAPTURE_ATTEMPTS_MAX):
        with _source_errors(source):
            descriptor = open_regular(source)
        try:
            before = os.fstat(descriptor)
            _write_stage(descriptor, target, before)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if identity(before) == identity(after):
            break
    return identity(after)


def _write_stage(descriptor: int, target: Path, status: os.stat_result) -> None:
    try:
        staged = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _copy_bytes(descriptor, staged, status.st_size)
            os.fchmod(staged, stat.S_IMODE(status.st_mode))
            with contextlib.suppress(PermissionError):
                os.fchown(staged, status.st_uid, status.st_gid)
        finally:
            os.close(staged)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise SourceError(
                f"no room to stage the event log in {target.parent}: {error.strerror}",
                hint="free space there or set TMPDIR to a folder with room for the whole log",
            ) from error
        raise SourceUnreachable(f"cannot stage {target.name}: {error.strerror}") from error


@dataclass(slots=True)
class _Head:
    """The moving end of a log as staged: the newest segment and the snapshot."""

    segments: list[SegmentName]
    others: list[str]
    identities: dict[str, Identity]
    whole: bool
    quiet: bool = False


def _stage_head(source: Path, stage: Path) -> _Head:
    """Stage the snapshot first and the newest segment after it, so that the snapshot can only lag behind."""
    identities: dict[str, Identity] = {}
    with contextlib.suppress(FileNotFoundError):
        (stage / SNAPSHOT_NAME).unlink()
    with contextlib.suppress(FileNotFoundError, NotRegular):
        identities[SNAPSHOT_NAME] = _stage_file(source / SNAPSHOT_NAME, stage / SNAPSHOT_NAME)
    segments, others = list_segments(source / LOG_FOLDER)
    if not segments:
        return _Head(segments, others, identities, whole=True)
    newest = segments[-1]
    with contextlib.suppress(NotRegular):
        identities[newest.path] = _stage_file(source / newest.path, stage / newest.path)
    return _Head(segments, others, identities, whole=_is_whole(stage, newest))


def _is_whole(stage: Path, newest: SegmentName) -> bool:
    """Whether the staged end looks finished: JSON that ends where its snapshot, if any, says."""
    verifier = ChainVerifier()
    try:
        verifier.segment(newest, file_blocks(stage / newest.path))
    except FileNotFoundError:
        return True
    report = verifier.report()
    if any(finding.reason == "malformed_json" for finding in report.findings):
        return False
    content = read_snapshot(stage)
    if content is None:
        return True
    try:
        snapshot = parse_snapshot(content)
    except ValueError:
        return False
    if snapshot.place is None or report.last is None:
        return True
    return snapshot.place == (report.last.segment, report.last.index)


def _settle_head(source: Path, stage: Path, progress: Progress, sleep: Sleep) -> _Head:
    """Stage the moving end until it is whole, or stands still broken, or the attempts run out."""
    head, seen, since = None, None, 0.0
    for attempt in range(SETTLE_ATTEMPTS_MAX):
        progress.check()
        try:
            head = _stage_head(source, stage)
        except FileNotFoundError:  # The newest segment went away between listing and copying.
            head = None
        if head is not None:
            now = time.monotonic()
            if head.identities != seen:
                seen, since = head.identities, now
            head.quiet = now - since >= QUIET_SECONDS
            if head.whole or head.quiet:
                return head
        sleep(SETTLE_SECONDS[min(attempt, len(SETTLE_SECONDS) - 1)])
    if head is None:
        raise SourceChanged(f"the newest segment of {source} keeps vanishing", hint="is the log being reset?")
    return head


def _settle_listing(source: Path, head: _Head, sleep: Sleep) -> list[SegmentName]:
    """The sealed segments; a hole seen while older ones are being deleted gets time to become a clean front."""
    sealed = head.segments[:-1]
    for wait in SETTLE_SECONDS:
        numbers = [name.number for name in head.segments if name <= head.segments[-1]]
        if numbers[-1] - numbers[0] + 1 == len(numbers):
            break
        sleep(wait)
        newest = head.segments[-1]
        sealed = [name for name in list_segments(source / LOG_FOLDER)[0] if name < newest]
        head.segments[:] = [*sealed, newest]
    return sealed


def _stage_sealed(
    source: Path, stage: Path, head: _Head, progress: Progress, sleep: Sleep
) -> tuple[list[SegmentName], int]:
    """Stage all but the newest, oldest first; return what is kept and how many were pruned meanwhile."""
    sealed = _settle_listing(source, head, sleep)
    vanished = []
    for name in sealed:
        progress.check()
        try:
            head.identities[name.path] = _stage_file(source / name.path, stage / name.path)
        except NotRegular:
            continue
        except FileNotFoundError:
            vanished.append(name)
    if not vanished:
        return sealed, 0
    cut = _pruned_up_to(source, vanished, sleep)
    for name in sealed:
        if name.number <= cut:
            (stage / name.path).unlink(missing_ok=True)
    kept = [name for name in sealed if name.number > cut and name not in vanished]
    return kept, sum(name.number <= cut for name in sealed)


def _pruned_up_to(source: Path, vanished: list[SegmentName], sleep: Sleep) -> int:
    """The highest vanished number with nothing older left: pruning. Others are gaps and stay findings."""
    cut = -1
    for wait in (*SETTLE_SECONDS, None):
        present = list_segments(source / LOG_FOLDER)[0]
        lowest = present[0].number if present else vanished[-1].number + 1
        cut = max((name.number for name in vanished if name.number < lowest), default=-1)
        if cut == vanished[-1].number or wait is None:
            break
        sleep(wait)
    return cut


def _like(source: Path, target: Path) -> None:
    """Give a staged folder the mode and owner of the real one."""
    with contextlib.suppress(FileNotFoundError), _source_errors(source):
        status = os.stat(source)
        os.chmod(target, stat.S_IMODE(status.st_mode) | 0o700)
        with contextlib.suppress(PermissionError):
            os.chown(target, status.st_uid, status.st_gid)


def capture(source: Path, stage: Path, progress: Progress, *, sleep: Sleep = time.sleep) -> Capture:
    """Stage the log under `source` into the empty folder `stage`.

    Raises SourceDenied, SourceUnreachable, SourceChanged.
    """
    (stage / LOG_FOLDER).mkdir()
    _like(source / LOG_FOLDER, stage / LOG_FOLDER)
    _like(source, stage)
    head = _settle_head(source, stage, progress, sleep)
    kept, pruned = _stage_sealed(source, stage, head, progress, sleep) if head.segments else ([], 0)
    segments = (*kept, *head.segments[-1:])
    # What was the newest in an earlier attempt may have been pruned since.
    for name in set(os.listdir(stage / LOG_FOLDER)) - {each.name for each in segments}:
        (stage / LOG_FOLDER / name).unlink()
    return Capture(
        root=stage,
        segments=segments,
        pruned_while_reading=pruned,
        quiet=head.quiet,
        left_out=tuple(head.others),
        identities=head.identities,
    )


def changed_sealed(captured: Capture, source: Path, files: Sequence[FileDigest]) -> list[str]:
    """Paths of sealed segments whose content in the source is no longer what was captured; gone ones are not."""
    known = {entry.path: entry for entry in files}
    changed = []
    for path in (name.path for name in captured.segments[:-1] if name.path in known):
        try:
            descriptor = open_regular(source / path)
        except (OSError, NotRegular):
            continue
        with open(descriptor, "rb", buffering=0) as handle:
            if identity(os.fstat(descriptor)) == captured.identities.get(path):
                continue
            digest = hashlib.sha256()
            while block := handle.read(BLOCK_BYTES):
                digest.update(block)
        if digest.hexdigest() != known[path].sha256:
            changed.append(path)
    return changed
