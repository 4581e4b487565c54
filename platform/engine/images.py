"""Change images: the rows that a restore changed, as they were and as they became, kept for its undo.

r/<repository>/images/<image>/<n>     segment n (six digits): a sealed, compressed piece of the stream
r/<repository>/images/<image>/head    sealed JSON, written last: without it there is no image

The stream is a list of sections (docs/formats/change-image.md). A section is a line `@` and its header as RFC 8785
JSON, followed by a line `=` and row text for each row. A segment ends with a line, about 4 MiB of them.
"""

import datetime
import hashlib
import json
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import zstandard

from engine.bounded import object_read
from engine.compression import decompress
from engine.errors import ObjectDamaged, ObjectMissing, UsageError
from engine.manifest import canonical
from engine.repository import Repository, delete_unlocked
from engine.sealed import Kind, open_object, seal_object

IMAGE_VERSION = 1
SEGMENT_BYTES = 4 << 20
SEGMENT_BYTES_MAX = 256 << 20
"""A segment holds whole batches of lines, and a single line may be as long as a row."""
HEAD_BYTES_MAX = 64 << 10
SEGMENT_STORED_MAX = SEGMENT_BYTES_MAX + (8 << 20)
"""Of a segment in the store: what cannot be compressed is a little longer than it was."""
_NAME = re.compile("[A-Za-z0-9_.-]{1,160}")
_LEVEL = 1
"""An image is kept for days, and a transaction is open while it is written."""
_AHEAD = 2
"""Segments that wait for the thread which writes them."""


def _prefix(repository: Repository, image: str) -> str:
    if not _NAME.fullmatch(image):
        raise UsageError(f"{image!r} cannot name a change image")
    return f"{repository.prefix}images/{image}/"


class ImageWriter:
    """engine.ports.ImageSink into the repository. What was written counts after `close` only.

    `image` must be a name that was never used before, also by a killed run.
    """

    def __init__(self, repository: Repository, image: str) -> None:
        self.image = image
        self._repository, self._prefix = repository, _prefix(repository, image)
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._sha256 = hashlib.sha256()
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="image")
        self._writing: deque[Future[None]] = deque()
        self.segments = 0
        self.bytes = 0
        self.rows_written = 0

    def table(self, header: Mapping[str, Any]) -> None:
        """Begin a section."""
        self._add(b"@" + canonical(dict(header)) + b"\n")

    def rows(self, lines: Sequence[bytes]) -> None:
        """Row lines of the section begun last."""
        if lines:
            self.rows_written += len(lines)
            self._add(b"=" + b"\n=".join(lines) + b"\n")

    @property
    def is_empty(self) -> bool:
        """Nothing was written, not even a section's header: the source has no change images."""
        return not self.segments and not self._pending

    def close(self) -> None:
        """Write the rest and the head, durably."""
        self._flush()
        self._wait(0)
        self._thread.shutdown()
        head = {
            "version": IMAGE_VERSION,
            "image": self.image,
            "segments": self.segments,
            "bytes": self.bytes,
            "sha256": self._sha256.hexdigest(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(),
        }
        self._repository.store.create(
            f"{self._prefix}head", seal_object(self._repository.keyring, Kind.IMAGE, canonical(head))
        )

    def _add(self, piece: bytes) -> None:
        self._pending.append(piece)
        self._pending_bytes += len(piece)
        if self._pending_bytes >= SEGMENT_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        pieces, self._pending, self._pending_bytes = self._pending, [], 0
        self._wait(_AHEAD - 1)
        self._writing.append(self._thread.submit(self._write, pieces, self.segments))
        self.segments += 1

    def _write(self, pieces: list[bytes], number: int) -> None:
        plain = b"".join(pieces)
        self._sha256.update(plain)
        self.bytes += len(plain)
        packed = self._compressor.compress(plain)
        key = f"{self._prefix}{number:06d}"
        self._repository.store.create(key, seal_object(self._repository.keyring, Kind.IMAGE, packed))

    def _wait(self, left: int) -> None:
        """Wait until no more than `left` segments are unwritten. Raises what writing one has raised."""
        while len(self._writing) > left:
            self._writing.popleft().result()


class ImageReader:
    """engine.ports.ImageView over a stored image. Raises ObjectMissing when there is none."""

    def __init__(self, repository: Repository, image: str) -> None:
        self.image = image
        self._repository, self._prefix = repository, _prefix(repository, image)
        name = f"change image {image}"
        blob = object_read(repository.store, f"{self._prefix}head", bytes_max=HEAD_BYTES_MAX, name=name)
        try:
            head = json.loads(open_object(repository.keyring, blob, name, Kind.IMAGE)[1])
            if head["version"] != IMAGE_VERSION or head["image"] != image:
                raise ObjectDamaged(f"{name}: its head belongs to another image")
            self._segments, self.bytes, self._sha256 = int(head["segments"]), int(head["bytes"]), str(head["sha256"])
        except (ValueError, KeyError, TypeError) as error:
            raise ObjectDamaged(f"{name}: its head is not readable") from error

    def sections(self) -> Iterator[tuple[Mapping[str, Any], Iterator[list[bytes]]]]:
        """Header and row lines, section by section; what a caller leaves unread is skipped.

        Raises ObjectMissing or ObjectDamaged, at the latest after the last section: nothing may be final before.
        """
        pieces = _Pieces(self._lines())
        while (header := pieces.next_header()) is not None:
            rows = pieces.rows()
            yield header, rows
            for _ in rows:
                pass

    def _lines(self) -> Iterator[list[bytes]]:
        sha256, total = hashlib.sha256(), 0
        for number in range(self._segments):
            name = f"change image {self.image}, segment {number}"
            try:
                key = f"{self._prefix}{number:06d}"
                blob = object_read(self._repository.store, key, bytes_max=SEGMENT_STORED_MAX, name=name)
            except ObjectMissing as error:
                raise ObjectDamaged(f"{name} is gone", hint="the safety backup holds the same rows") from error
            packed = open_object(self._repository.keyring, blob, name, Kind.IMAGE)[1]
            plain = decompress(packed, bytes_max=SEGMENT_BYTES_MAX, name=name)
            sha256.update(plain)
            total += len(plain)
            yield plain[:-1].split(b"\n")
        if (sha256.hexdigest(), total) != (self._sha256, self.bytes):
            raise ObjectDamaged(f"change image {self.image} is not what was written")


class _Pieces:
    """Cuts batches of lines into sections."""

    def __init__(self, batches: Iterator[list[bytes]]) -> None:
        self._batches = batches
        self._lines: list[bytes] = []

    def _fill(self) -> bool:
        while not self._lines:
            batch = next(self._batches, None)
            if batch is None:
                return False
            self._lines = batch
        return True

    def next_header(self) -> Mapping[str, Any] | None:
        if not self._fill():
            return None
        line = self._lines[0]
        if line[:1] != b"@":
            raise ObjectDamaged("a change image has rows where a section must begin")
        self._lines = self._lines[1:]
        header: Mapping[str, Any] = json.loads(line[1:])
        return header

    def rows(self) -> Iterator[list[bytes]]:
        while self._fill():
            end = next((at for at, line in enumerate(self._lines) if line[:1] == b"@"), len(self._lines))
            batch, self._lines = self._lines[:end], self._lines[end:]
            if batch:
                yield [line[1:] for line in batch]
            if self._lines:
                return


def images_list(repository: Repository) -> Iterator[tuple[str, datetime.datetime]]:
    """Names of all images, finished or not, with the time of their newest object."""
    prefix = f"{repository.prefix}images/"
    name, newest = "", datetime.datetime.min.replace(tzinfo=datetime.UTC)
    for info in repository.store.list(prefix):
        image = info.key[len(prefix) :].partition("/")[0]
        if image != name and name:
            yield name, newest
            newest = info.modified
        name, newest = image, max(newest, info.modified)
    if name:
        yield name, newest


def image_drop(repository: Repository, image: str) -> bool:
    """Delete an image, its head first. No error when there is none.

    False when the store has locked some of it: it is listed as before, and to be dropped again.
    """
    prefix = _prefix(repository, image)
    if delete_unlocked(repository.store, [f"{prefix}head"]):
        return False
    return not delete_unlocked(repository.store, [info.key for info in repository.store.list(prefix)])
