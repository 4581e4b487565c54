"""The portable package of an event log: one tar.gz with a manifest, and the manifest again beside it.

The format is the owner's (docs/formats/event-log-package.md). Reading trusts nothing: sizes, counts,
names and types are bounded before a byte is written, and every file is compared with the manifest.
"""

import datetime
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from connectors._eventlog.segment import BLOCK_BYTES, LOG_FOLDER, SNAPSHOT_NAME, SegmentName, segment_name
from connectors._eventlog.verified import FileDigest
from engine.errors import DamageError, SourceError, SourceUnreachable, SourceUnsupported, TargetFull, TargetOccupied
from engine.progress import Progress

PACKAGE_VERSION = 1
MANIFEST_NAME = "manifest.json"
MANIFEST_BYTES_MAX = 64 << 20
FILES_MAX = 200_000
FILE_BYTES_MAX = 4 << 30
RATIO_MAX = 100
"""Events are mostly hex digests, which shrink about sixfold; a package that swells a hundredfold is a bomb."""
PLAIN_BYTES_FLOOR = 64 << 20
HEADER_BYTES_MAX = 1 << 20
UNKNOWN_NAMES_MAX = 20

_FOLDER = re.compile(r"backup-eventlog-[0-9]{8}-[0-9]{6}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PackageManifest:
    """The package's manifest; `as_json` has the owner's fields in the owner's order."""

    created_at: datetime.datetime
    source_dir: str
    files: tuple[FileDigest, ...]
    summary: Mapping[str, Any]
    chain_valid: bool

    def as_json(self) -> dict[str, Any]:
        return {
            "version": PACKAGE_VERSION,
            "created_at": instant(self.created_at),
            "source_dir": self.source_dir,
            "files": [{"path": each.path, "size": each.size, "sha256": each.sha256} for each in self.files],
            "eventlog_summary": dict(self.summary),
            "chain_valid_at_backup": self.chain_valid,
        }

    def encode(self) -> bytes:
        """JSON as the owner's tool writes it: two spaces, UTF-8, no newline at the end."""
        return json.dumps(self.as_json(), indent=2, ensure_ascii=False).encode("utf-8", "replace")

    @property
    def stem(self) -> str:
        return f"backup-eventlog-{self.created_at.astimezone(datetime.UTC):%Y%m%d-%H%M%S}"


def instant(moment: datetime.datetime) -> str:
    """RFC 3339 in UTC with milliseconds and Z."""
    moment = moment.astimezone(datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def is_log_path(path: str) -> bool:
    """Whether a path inside a package is the snapshot or a segment."""
    folder, _, name = path.rpartition("/")
    return path == SNAPSHOT_NAME or (folder == LOG_FOLDER and segment_name(name) is not None)


# ---------------------------------------------------------------- writing


def write_package(root: Path, manifest: PackageManifest, folder: Path, progress: Progress) -> list[str]:
    """Write `backup-eventlog-….tar.gz` and `….manifest.json` into folder; return their names.

    `root` holds the files that the manifest lists; each is hashed again on its way. Raises TargetOccupied
    when the package is there already, DamageError when a file is no longer what the manifest says.
    """
    packed, beside = folder / f"{manifest.stem}.tar.gz", folder / f"{manifest.stem}.manifest.json"
    for path in (packed, beside):
        if path.exists():
            raise TargetOccupied(f"{path} exists already", hint="export into an empty folder")
    partial = folder / f".{manifest.stem}.tar.gz.part"
    try:
        with open(partial, "wb") as raw:
            _write_tar(raw, root, manifest, progress)
            raw.flush()
            os.fsync(raw.fileno())
        os.rename(partial, packed)
        beside.write_bytes(manifest.encode())
    except OSError as error:
        raise TargetFull(
            f"cannot write {packed.name}: {error.strerror}", hint="free space or choose another folder"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return [packed.name, beside.name]


def _write_tar(raw: IO[bytes], root: Path, manifest: PackageManifest, progress: Progress) -> None:
    seconds = int(manifest.created_at.timestamp())
    # The name in the gzip header is left out and the times are the backup's: equal logs give equal packages.
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=seconds) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT, bufsize=BLOCK_BYTES) as archive,
    ):
        content = manifest.encode()
        archive.addfile(_member(MANIFEST_NAME, len(content), seconds), io.BytesIO(content))
        for entry in manifest.files:
            progress.check()
            with open(root / entry.path, "rb") as handle:
                source = _HashingFile(handle)
                archive.addfile(_member(entry.path, entry.size, seconds), source)
                if handle.read(1) or source.digest.hexdigest() != entry.sha256:
                    raise DamageError(f"{entry.path} is not what its manifest says", hint="verify the backup")
            progress.advance(bytes=entry.size, items=1)


def _member(path: str, size: int, seconds: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.size, member.mtime, member.mode = size, seconds, 0o644
    return member


class _HashingFile(io.RawIOBase):
    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._handle.read(size)
        self.digest.update(block)
        return block


# ---------------------------------------------------------------- reading


@dataclass(slots=True)
class PackageRead:
    """An extracted package whose files equal its manifest."""

    manifest: PackageManifest
    segments: list[SegmentName]
    unknown: list[str] = field(default_factory=list)
    """Names that were kept out, the first few."""


class _Rationed:
    """A stream that gives out no more than what was granted.

    tarfile reads extended headers of any declared length into memory; rationing what it may take
    between two files bounds that with its public interface only.
    """

    def __init__(self, handle: IO[bytes], *, total_max: int) -> None:
        self._handle = handle
        self._left_total = total_max
        self._left = 0

    def grant(self, count: int) -> None:
        self._left = count

    def read(self, size: int) -> bytes:
        block = self._handle.read(min(size, BLOCK_BYTES))
        self._left -= len(block)
        self._left_total -= len(block)
        if self._left_total < 0:
            raise DamageError("the package swells beyond reason", hint=f"more than {RATIO_MAX} times its packed size")
        if self._left < 0:
            raise DamageError("the package has oversized tar headers", hint="it was not written by an event-log tool")
        return block


def read_package(path: Path, stage: Path, progress: Progress) -> PackageRead:
    """Extract a package into the empty private folder `stage` and compare every file with the manifest.

    Raises SourceUnreachable, SourceUnsupported (no package, a newer version) and DamageError, which names the
    file: an escape, a link or device, a name twice, a size or SHA-256 that differs, a file missing.
    """
    try:
        handle = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise SourceUnreachable(
            f"cannot read {path}: {error.strerror}", hint="name a backup-eventlog-….tar.gz"
        ) from error
    with handle:
        if handle.read(2) != b"\x1f\x8b":
            raise SourceUnsupported(
                f"{path.name} is no event-log package", hint="it must be a tar.gz with a manifest.json"
            )
        handle.seek(0)
        plain_max = max(PLAIN_BYTES_FLOOR, RATIO_MAX * os.fstat(handle.fileno()).st_size)
        found, unknown, inner = _extract(handle, stage, plain_max, path.name, progress)
    manifest = parse_manifest(_agree(inner, _read_beside(path), path.name))
    _compare(manifest, found, stage, unknown)
    segments = sorted(name for each in manifest.files if (name := segment_name(each.path.rpartition("/")[2])))
    return PackageRead(manifest, segments, unknown[:UNKNOWN_NAMES_MAX])


def _extract(
    handle: IO[bytes], stage: Path, plain_max: int, name: str, progress: Progress
) -> tuple[dict[str, FileDigest], list[str], bytes | None]:
    found: dict[str, FileDigest] = {}
    unknown: list[str] = []
    inner: bytes | None = None
    (stage / LOG_FOLDER).mkdir(exist_ok=True)
    try:
        with gzip.GzipFile(fileobj=handle, mode="rb") as plain:
            ration = _Rationed(plain, total_max=plain_max)
            ration.grant(HEADER_BYTES_MAX)
            with tarfile.open(fileobj=ration, mode="r|", bufsize=64 << 10) as archive:  # type: ignore[call-overload]
                for place, member in enumerate(_files(archive, ration)):
                    progress.check()
                    if place >= FILES_MAX:
                        raise DamageError(
                            f"{name} holds more than {FILES_MAX} files", hint="it is no event-log package"
                        )
                    path = _safe_path(member)
                    blocks = _blocks(archive, member, ration)
                    if path == MANIFEST_NAME and inner is None:
                        inner = _small(blocks, member)
                    elif path in found or path == MANIFEST_NAME:
                        raise DamageError(f"{name} holds {path} twice", hint="it was tampered with")
                    elif is_log_path(path):
                        found[path] = _write(blocks, stage / path, path, progress)
                    else:
                        unknown.append(_shown(path))
                        for _ in blocks:
                            pass
            ration.grant(HEADER_BYTES_MAX)
            while ration.read(BLOCK_BYTES):  # The gzip checksum is compared at the very end only.
                pass
    except (
        tarfile.TarError,
        zlib.error,
        EOFError,
        gzip.BadGzipFile,
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:
        raise DamageError(f"{name} is damaged: {error}", hint="fetch or export it again") from error
    return found, unknown, inner


def _files(archive: tarfile.TarFile, ration: _Rationed) -> Iterator[tarfile.TarInfo]:
    """Members that are plain files; folders are passed over, everything else is refused."""
    for _ in range(2 * FILES_MAX):
        member = archive.next()
        if member is None:
            return
        archive.members = []  # type: ignore[attr-defined]  # Else every header of the archive stays in memory.
        if member.isdir():
            _safe_path(member)
        elif not member.isreg() or member.issparse():
            raise DamageError(
                f"{_shown(member.name)} in the package is no plain file", hint="links and devices are refused"
            )
        else:
            yield member
        ration.grant(HEADER_BYTES_MAX)
    raise DamageError("the package holds too many entries", hint="it is no event-log package")


def _safe_path(member: tarfile.TarInfo) -> str:
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    escapes = member.name.startswith("/") or ".." in parts or "\\" in member.name or "\0" in member.name
    if escapes:
        raise DamageError(
            f"{_shown(member.name)} leads out of the package", hint="it was tampered with; nothing was restored"
        )
    if len(parts) > 1 and _FOLDER.fullmatch(parts[0]):
        parts = parts[1:]
    return "/".join(parts)


def _blocks(archive: tarfile.TarFile, member: tarfile.TarInfo, ration: _Rationed) -> Iterator[bytes]:
    if member.size > FILE_BYTES_MAX:
        raise DamageError(
            f"{_shown(member.name)} has {member.size} bytes", hint=f"at most {FILE_BYTES_MAX} are allowed"
        )
    handle = archive.extractfile(member)
    assert handle is not None, "plain files only"
    while True:
        ration.grant(HEADER_BYTES_MAX + BLOCK_BYTES)
        block = handle.read(BLOCK_BYTES)
        if not block:
            return
        yield block


def _small(blocks: Iterator[bytes], member: tarfile.TarInfo) -> bytes:
    if member.size > MANIFEST_BYTES_MAX:
        raise DamageError(f"{MANIFEST_NAME} has {member.size} bytes", hint=f"at most {MANIFEST_BYTES_MAX} are allowed")
    return b"".join(blocks)


def _write(blocks: Iterator[bytes], target: Path, path: str, progress: Progress) -> FileDigest:
    digest, size = hashlib.sha256(), 0
    try:
        with open(target, "xb") as handle:
            for block in blocks:
                digest.update(block)
                size += len(block)
                handle.write(block)
    except OSError as error:
        raise SourceError(
            f"no room to unpack {path}: {error.strerror}", hint="free space or set TMPDIR to a folder with room"
        ) from error
    progress.advance(bytes=size, items=1)
    return FileDigest(path, size, digest.hexdigest())


def _shown(name: str) -> str:
    return repr(name[:200])


def _read_beside(path: Path) -> bytes | None:
    if not path.name.endswith(".tar.gz"):
        return None
    try:
        with open(path.with_name(path.name.removesuffix(".tar.gz") + ".manifest.json"), "rb") as handle:
            return handle.read(MANIFEST_BYTES_MAX)
    except OSError:
        return None


def _agree(inner: bytes | None, beside: bytes | None, name: str) -> Any:
    """The manifest of the package, or the one beside it; both must say the same when both are there."""
    if inner is None and beside is None:
        raise SourceUnsupported(f"{name} has no {MANIFEST_NAME}", hint="it is no event-log package")
    values = [_decode(content) for content in (inner, beside) if content is not None]
    if len(values) == 2 and values[0] != values[1]:
        raise DamageError(f"the manifest in {name} and the one beside it differ", hint="move the wrong one away")
    return values[0]


def _decode(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{MANIFEST_NAME} is no JSON", hint="fetch or export the package again") from error


def parse_manifest(value: Any) -> PackageManifest:
    """Check a manifest's fields. Raises SourceUnsupported for a newer version, DamageError for anything odd."""
    try:
        if value["version"] != PACKAGE_VERSION:
            raise SourceUnsupported(
                f"the package has version {value['version']!r}", hint=f"version {PACKAGE_VERSION} is known"
            )
        created_at = datetime.datetime.fromisoformat(value["created_at"])
        files = tuple(_listed(entry) for entry in value["files"][: FILES_MAX + 1])
        summary, valid = value["eventlog_summary"], value["chain_valid_at_backup"]
        source_dir = value["source_dir"]
        fits = isinstance(summary, dict) and isinstance(valid, bool) and isinstance(source_dir, str)
    except (KeyError, TypeError, ValueError) as error:
        raise DamageError(f"{MANIFEST_NAME} misses or garbles {error}", hint="it is no event-log package") from error
    if not fits or created_at.tzinfo is None or len(files) > FILES_MAX:
        raise DamageError(f"{MANIFEST_NAME} has a field of the wrong type", hint="it is no event-log package")
    if len({each.path for each in files}) != len(files):
        raise DamageError(f"{MANIFEST_NAME} lists a file twice", hint="it was tampered with")
    return PackageManifest(created_at, source_dir, files, summary, valid)


def _listed(entry: Any) -> FileDigest:
    path, size, sha256 = entry["path"], entry["size"], entry["sha256"]
    if not isinstance(path, str) or not is_log_path(path):
        raise DamageError(
            f"{MANIFEST_NAME} lists {_shown(str(path))}, which is no file of a log", hint="it was tampered with"
        )
    if type(size) is not int or size < 0 or not isinstance(sha256, str) or _SHA256.fullmatch(sha256) is None:
        raise DamageError(f"{MANIFEST_NAME}: size or sha256 of {path} is garbled", hint="it was tampered with")
    return FileDigest(path, size, sha256)


def _compare(manifest: PackageManifest, found: Mapping[str, FileDigest], stage: Path, unknown: list[str]) -> None:
    listed = {each.path: each for each in manifest.files}
    for path, said in listed.items():
        have = found.get(path)
        if have is None:
            raise DamageError(f"{path} is missing from the package", hint="fetch or export it again")
        if have != said:
            what = "size" if have.size != said.size else "SHA-256"
            raise DamageError(
                f"the {what} of {path} differs from the manifest", hint="fetch or export the package again"
            )
    for path in sorted(found.keys() - listed.keys()):
        (stage / path).unlink()
        unknown.append(path)


def sorted_files(files: Sequence[FileDigest]) -> tuple[FileDigest, ...]:
    """The manifest's order: segments by number, the snapshot last."""

    def order(entry: FileDigest) -> tuple[int, SegmentName | None]:
        name = segment_name(entry.path.rpartition("/")[2])
        return (0, name) if name is not None else (1, None)

    return tuple(sorted(files, key=order))
