"""What workers do with entries that are new or changed: open, read, hash, cut and store them.

Files are opened below their folder's descriptor, never through a symbolic link and never blocking;
anything that is no regular file is described, not opened.
"""

import base64
import errno
import hashlib
import json
import os
import stat as statmod
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol, TypeVar

from pyfastcdc import FastCDC

from engine.errors import StoreError
from engine.ports import Buffer
from engine.progress import Progress
from engine.session import Lane, Session
from engine.tree_folders import Folders
from engine.tree_format import NO_SUM, STAT, Row, encode_xattrs, exact_mtime, pack_stat
from engine.tree_small import SMALL_BYTES, Job, Turns, open_file, read_small, read_xattrs
from engine.tree_sum import (
    BLOCK_BYTES,
    EMPTY_BLOCKS_MAX,
    add_blocks,
    add_zeros,
    count_empty,
    data_extents,
    empty_blocks,
)

SPREAD_BYTES = 32 << 20
"""Files from here on are cut by one thread and stored by all workers."""
CHUNK_BYTES_MIN, CHUNK_BYTES_MEAN, CHUNK_BYTES_MAX = 256 << 10, 1 << 20, 4 << 20
READ_TRIES = 3
IDS_INLINE_MAX, EXTENTS_INLINE_MAX, XATTRS_INLINE_BYTES = 16, 8, 512
IDS_PER_LIST = (1 << 20) // 32
EXTENTS_PER_CHUNK = (1 << 20) // 16
_BUFFER_BYTES = CHUNK_BYTES_MAX + (1 << 20)
_EXTENT = struct.Struct("<QQ")
_EMPTY_SUM = hashlib.sha256().digest()

D = TypeVar("D")
T = TypeVar("T")
_local = threading.local()


class ChunkSink(Protocol):
    """Where content goes: a lane, or SpreadLane."""

    def add(self, data: Buffer) -> "bytes | Future[bytes]":
        """Store one chunk; its id, now or later."""

    def add_small(self, data: Buffer) -> bytes:
        """Store a chunk bundled with its neighbours."""

    def add_many(self, pieces: Sequence[bytes]) -> list[bytes]:
        """Store several small chunks."""


class SpreadLane:
    """Hands each chunk of a large file to the session's workers, so that one file keeps all cores busy.

    Used by the thread that submits, never by a worker: a worker would wait for its own queue.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, data: Buffer) -> Future[bytes]:
        """Blocks while the queue is full, which bounds the copies."""
        copy = bytes(data)
        return self._session.submit(lambda lane: lane.add(copy))

    def add_small(self, data: Buffer) -> bytes:
        """The file turned out to be small: it shrank since the scan."""
        return self.add(data).result()

    def add_many(self, pieces: Sequence[bytes]) -> list[bytes]:
        """The same for several."""
        return [self.add_small(piece) for piece in pieces]


class Outcome(NamedTuple):
    """What became of an entry of which the operator must read: its row, or None when it is left out."""

    path: bytes
    row: Row | None
    code: str
    detail: str


def _thread_tools() -> tuple[FastCDC, bytearray]:
    """One cutter and one buffer per thread: neither may be shared, and the buffer is costly to make."""
    if not hasattr(_local, "tools"):
        cutter = FastCDC(
            CHUNK_BYTES_MEAN, min_size=CHUNK_BYTES_MIN, max_size=CHUNK_BYTES_MAX, normalized_chunking=1, seed=0
        )
        _local.tools = (cutter, bytearray(_BUFFER_BYTES))
    return _local.tools  # type: ignore[no-any-return]


class Content(NamedTuple):
    """A file's content as stored; `length` is its logical size, holes included."""

    sum: bytes
    ids: list[bytes]
    length: int
    extents: list[tuple[int, int]] | None = None
    mostly_empty: bool = False


class ExtentSource:
    """Reads the stored stretches of a file one after another, hashing the content with its holes.

    `extents` begin on blocks. A file that became shorter meanwhile shortens `length` and `extents`.
    """

    def __init__(self, descriptor: int, extents: list[tuple[int, int]], length: int, *, as_blocks: bool) -> None:
        self._descriptor, self._as_blocks = descriptor, as_blocks
        self.extents, self.length = extents, length
        self._number = self._position = self._hashed_to = 0
        self._digest = hashlib.sha256()
        self._counted = not as_blocks and length > EMPTY_BLOCKS_MAX * BLOCK_BYTES
        self.empty = empty_blocks(extents, length)

    def read_into(self, view: memoryview) -> int:
        """Fill the view, rounded down to whole blocks; less only at the end."""
        filled, room = 0, len(view) // BLOCK_BYTES * BLOCK_BYTES
        while filled < room and self._number < len(self.extents):
            begin, length = self.extents[self._number]
            offset = max(begin, self._position)
            piece = view[filled : filled + min(room - filled, begin + length - offset)]
            got = _read_fully(self._descriptor, piece, offset)
            self._hash(piece[:got], offset)
            filled += got
            self._position = offset + got
            if got < len(piece):
                self._shorten()
            elif self._position >= begin + length:
                self._number += 1
        return filled

    def _hash(self, piece: memoryview, offset: int) -> None:
        if self._as_blocks:
            add_blocks(self._digest, piece, offset)
            return
        add_zeros(self._digest, offset - self._hashed_to)
        self._digest.update(piece)
        self._hashed_to = offset + len(piece)
        if self._counted:
            self.empty += count_empty(piece)

    def _shorten(self) -> None:
        begin, _ = self.extents[self._number]
        self.length = self._position
        kept = [(begin, self._position - begin)] if self._position > begin else []
        self.extents = self.extents[: self._number] + kept
        self._number = len(self.extents)

    def sum(self) -> bytes:
        """The sum of the whole content; called once, at the end."""
        if self._as_blocks:
            self._digest.update(self.length.to_bytes(8, "little"))
        else:
            add_zeros(self._digest, self.length - self._hashed_to)
        return self._digest.digest()


def _read_fully(descriptor: int, view: memoryview, offset: int) -> int:
    filled = 0
    while filled < len(view):
        got = os.preadv(descriptor, [view[filled:]], offset + filled)
        if not got:
            break
        filled += got
    return filled


def cut(source: ExtentSource) -> Iterator[memoryview]:
    """Cut a source into content-defined chunks; each is valid until the next is asked for."""
    cutter, buffer = _thread_tools()
    held, ended = 0, False
    while not ended or held:
        while not ended and held + BLOCK_BYTES <= len(buffer):
            got = source.read_into(memoryview(buffer)[held:])
            held += got
            ended = got == 0
        view, used = memoryview(buffer)[:held], 0
        for chunk in cutter.cut_buf(view):
            if not ended and chunk.offset + chunk.length == held:
                break  # It was cut by the buffer's end. Any other was by its content: the whole stream is cut there, too.
            yield chunk.data
            used = chunk.offset + chunk.length
        rest = bytes(view[used:])
        buffer[: len(rest)] = rest
        held = len(rest)


class EntryReader:
    """Reads one batch of entries below the root folder `root` into a lane; used by one thread."""

    def __init__(
        self,
        root: int,
        lane: ChunkSink,
        meta: Lane,
        progress: Progress,
        turns: Turns,
    ) -> None:
        self._root, self._lane, self._meta, self._progress, self._turns = root, lane, meta, progress, turns

    def read(self, jobs: Sequence[Job]) -> list[Row | Outcome]:
        """One outcome per job, in order; a row when there is nothing to be said about it."""
        with Folders(self._root) as folders:
            with self._turns.turn():
                small = read_small(folders, jobs, self._progress)
            pieces = [data for data, _ in small.values() if data]
            ids = iter(self._keep(self._lane.add_many, pieces))
            found: list[Row | Outcome] = []
            for number, job in enumerate(jobs):
                if number not in small:
                    found.append(self._one(folders, job))
                    continue
                data, xattrs = small[number]
                extra: dict[str, Any] = {}
                if xattrs:
                    self._keep_xattrs(extra, xattrs)
                found.append(Row(*job, hashlib.sha256(data).digest(), next(ids) if data else b"", extra or None))
        return found

    def _one(self, folders: Folders, job: Job) -> Row | Outcome:
        path, stat = job
        kind = STAT.unpack(stat)[0] & 0xF000
        try:
            if not path:
                return self._described(job, kind, self._root, b".")
            folder, name = folders.of(path)
            if kind == statmod.S_IFREG:
                return self._file(path, folder, name)
            return self._described(job, kind, folder, name)
        except OSError as error:
            return left_out(path, error)

    # ------------------------------------------------------------ what is not opened

    def _described(self, job: Job, kind: int, folder: int, name: bytes) -> Row | Outcome:
        path, stat = job
        info = os.lstat(name, dir_fd=folder)
        if info.st_mode & 0xF000 != kind:
            return Outcome(path, None, "file.vanished", "it was replaced by something else")
        extra: dict[str, Any] = exact_mtime(info)
        content_sum = NO_SUM
        if kind == statmod.S_IFLNK:
            target = os.readlink(name, dir_fd=folder)
            content_sum, stat = hashlib.sha256(target).digest(), pack_stat(info)
            extra["target"] = base64.b64encode(target).decode()
        elif kind in (statmod.S_IFCHR, statmod.S_IFBLK):
            numbers = [os.major(info.st_rdev), os.minor(info.st_rdev)]
            content_sum = hashlib.sha256(b"%d:%d" % tuple(numbers)).digest()
            extra["rdev"] = numbers
        self._keep_xattrs(extra, read_xattrs(b"/proc/self/fd/%d/%s" % (folder, name)))
        return Row(path, stat, content_sum, b"", extra or None)

    # ------------------------------------------------------------ regular files

    def _file(self, path: bytes, folder: int, name: bytes) -> Row | Outcome:
        descriptor = open_file(folder, name)
        try:
            for _ in range(READ_TRIES):
                before = os.fstat(descriptor)
                if not statmod.S_ISREG(before.st_mode):
                    return Outcome(path, None, "file.vanished", "it was replaced by something else")
                content = self._content(descriptor, before)
                after = os.fstat(descriptor)
                stable = pack_stat(before) == pack_stat(after) and content.length == after.st_size
                if stable:
                    break
                self._progress.check()
            return self._stored(path, descriptor, content, after, stable=stable)
        finally:
            os.close(descriptor)

    def _stored(
        self, path: bytes, descriptor: int, content: Content, info: os.stat_result, *, stable: bool
    ) -> Row | Outcome:
        extra: dict[str, Any] = exact_mtime(info)
        if content.mostly_empty:
            extra["sum"] = "blocks"
        if content.extents is not None:
            self._keep_extents(extra, content.extents)
        self._keep_xattrs(extra, read_xattrs(descriptor))
        ids, stat = self._keep_ids(extra, content.ids), pack_stat(info)
        if stable:
            return Row(path, stat, content.sum, ids, extra or None)
        # Size and sum fit what was read last; a ctime of 0 makes the next backup read it again.
        fields = list(STAT.unpack(stat))
        fields[4], fields[6] = content.length, 0
        row = Row(path, STAT.pack(*fields), content.sum, ids, {**extra, "unstable": True})
        return Outcome(path, row, "file.changed_while_read", f"it changed during each of {READ_TRIES} reads")

    def _content(self, descriptor: int, info: os.stat_result) -> Content:
        size = info.st_size
        if size >= SMALL_BYTES:
            return self._large(descriptor, size, sparse=info.st_blocks * 512 < size)
        if not size:
            return Content(_EMPTY_SUM, [], 0)
        data = os.pread(descriptor, size + 1, 0)
        self._progress.advance(bytes=len(data))
        return Content(
            hashlib.sha256(data).digest(), [self._keep(self._lane.add_small, data)] if data else [], len(data)
        )

    def _large(self, descriptor: int, size: int, *, sparse: bool, as_blocks: bool = False) -> Content:
        extents = data_extents(descriptor, size) if sparse else [(0, size)]
        as_blocks = as_blocks or empty_blocks(extents, size) > EMPTY_BLOCKS_MAX
        source = ExtentSource(descriptor, extents, size, as_blocks=as_blocks)
        ids: list[bytes | Future[bytes]] = []
        for chunk in cut(source):
            ids.append(self._keep(self._lane.add, chunk))
            self._progress.advance(bytes=len(chunk))
            self._progress.check()
        if not as_blocks and source.empty > EMPTY_BLOCKS_MAX:
            # Zeros that are no holes: only now known to be mostly empty. The chunks deduplicate.
            return self._large(descriptor, size, sparse=sparse, as_blocks=True)
        whole = source.extents == [(0, source.length)]
        known = [each if isinstance(each, bytes) else each.result() for each in ids]
        return Content(source.sum(), known, source.length, None if whole else source.extents, as_blocks)

    def _keep(self, add: Callable[[D], T], data: D) -> T:
        """Store a chunk; an error of the store must never be taken for one of the file."""
        try:
            return add(data)
        except OSError as error:
            raise StoreError(f"a chunk cannot be stored: {error.strerror}") from error

    # ------------------------------------------------------------ columns and extras

    def _keep_ids(self, extra: dict[str, Any], ids: list[bytes]) -> bytes:
        if len(ids) <= IDS_INLINE_MAX:
            return b"".join(ids)
        extra["lists"] = True
        groups = [ids[i : i + IDS_PER_LIST] for i in range(0, len(ids), IDS_PER_LIST)]
        return b"".join([self._keep(self._meta.add_small, b"".join(group)) for group in groups])

    def _keep_extents(self, extra: dict[str, Any], extents: list[tuple[int, int]]) -> None:
        if len(extents) <= EXTENTS_INLINE_MAX:
            extra["extents"] = [list(extent) for extent in extents]
            return
        groups = [extents[i : i + EXTENTS_PER_CHUNK] for i in range(0, len(extents), EXTENTS_PER_CHUNK)]
        packed = [b"".join([_EXTENT.pack(*extent) for extent in group]) for group in groups]
        extra["extents_chunks"] = [self._keep(self._meta.add_small, chunk).hex() for chunk in packed]

    def _keep_xattrs(self, extra: dict[str, Any], xattrs: dict[bytes, bytes]) -> None:
        if not xattrs:
            return
        encoded = encode_xattrs(xattrs)
        data = json.dumps(encoded, separators=(",", ":"), sort_keys=True).encode()
        if len(data) <= XATTRS_INLINE_BYTES:
            extra["xattrs"] = encoded
        else:
            extra["xattrs_chunk"] = self._keep(self._meta.add_small, data).hex()


def left_out(path: bytes, error: OSError) -> Outcome:
    """The outcome of an entry that could not be read."""
    gone = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    return Outcome(path, None, "file.vanished" if gone else "file.unreadable", error.strerror or str(error))
