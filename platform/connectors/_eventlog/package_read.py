"""Read a portable package, trusting nothing: names, types, sizes and counts are bounded before a byte is written."""

import gzip
import hashlib
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from connectors._eventlog.package import (
    FILES_MAX,
    MANIFEST_NAME,
    PackageManifest,
    is_log_path,
    parse_manifest,
    shown_name,
)
from connectors._eventlog.segment import BLOCK_BYTES, LOG_FOLDER, SegmentName, segment_name
from connectors._eventlog.verified import FileDigest
from engine.errors import DamageError, SourceError, SourceUnreachable, SourceUnsupported
from engine.progress import Progress

MANIFEST_BYTES_MAX = 64 << 20
FILE_BYTES_MAX = 4 << 30
RATIO_MAX = 100
"""Events are mostly hex digests, which shrink about sixfold; a package that swells a hundredfold is a bomb."""
PLAIN_BYTES_FLOOR = 64 << 20
HEADER_BYTES_MAX = 1 << 20
UNKNOWN_NAMES_MAX = 20

_FOLDER = re.compile(r"backup-eventlog-[0-9]{8}-[0-9]{6}")


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

    def __init__(self, handle: gzip.GzipFile, *, total_max: int) -> None:
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
                        unknown.append(shown_name(path))
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
                f"{shown_name(member.name)} in the package is no plain file", hint="links and devices are refused"
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
            f"{shown_name(member.name)} leads out of the package", hint="it was tampered with; nothing was restored"
        )
    if len(parts) > 1 and _FOLDER.fullmatch(parts[0]):
        parts = parts[1:]
    return "/".join(parts)


def _blocks(archive: tarfile.TarFile, member: tarfile.TarInfo, ration: _Rationed) -> Iterator[bytes]:
    if member.size > FILE_BYTES_MAX:
        raise DamageError(
            f"{shown_name(member.name)} has {member.size} bytes", hint=f"at most {FILE_BYTES_MAX} are allowed"
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
