"""The portable package of an event log: one tar.gz with a manifest, and the manifest again beside it.

The format is the owner's (docs/formats/event-log-package.md).
"""

import datetime
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from connectors._eventlog.segment import BLOCK_BYTES, LOG_FOLDER, SNAPSHOT_NAME, SegmentName, segment_name
from connectors._eventlog.verified import FileDigest
from engine.errors import DamageError, SourceUnsupported, TargetFull, TargetOccupied
from engine.progress import Progress

PACKAGE_VERSION = 1
MANIFEST_NAME = "manifest.json"
FILES_MAX = 200_000

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


def sorted_files(files: Sequence[FileDigest]) -> tuple[FileDigest, ...]:
    """The manifest's order: segments by number, the snapshot last."""

    def order(entry: FileDigest) -> tuple[int, SegmentName | None]:
        name = segment_name(entry.path.rpartition("/")[2])
        return (0, name) if name is not None else (1, None)

    return tuple(sorted(files, key=order))


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
            f"{MANIFEST_NAME} lists {shown_name(str(path))}, which is no file of a log", hint="it was tampered with"
        )
    if type(size) is not int or size < 0 or not isinstance(sha256, str) or _SHA256.fullmatch(sha256) is None:
        raise DamageError(f"{MANIFEST_NAME}: size or sha256 of {path} is garbled", hint="it was tampered with")
    return FileDigest(path, size, sha256)


def shown_name(name: str) -> str:
    """A hostile name as a message may hold it."""
    return repr(name[:200])


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
