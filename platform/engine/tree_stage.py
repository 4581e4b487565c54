"""Write a tree into an empty staging folder: content, metadata, links; every sum compared on the way.

One thread reads the listing and makes folders; worker threads write files in batches of tree order,
which is the order in which they were bundled, so that each frame is decoded once. Everything is opened
below the staging folder's descriptor, one name at a time and never through a link.
"""

import errno
import hashlib
import os
import stat as statmod
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from engine.errors import DamageError, ObjectDamaged
from engine.progress import Progress
from engine.tree_folders import Folders
from engine.tree_format import LeafRef, Row, Totals, encode_leaf, show_path
from engine.tree_sum import add_zeros, blocks_sum
from engine.tree_view import Entry, TreeView

BATCH_FILES_MAX = 200
BATCH_BYTES_MAX = 2 << 20
FETCH_AHEAD = 4
"""Chunks of one large file decoded ahead of the thread that writes it."""
LARGE_BYTES = 8 << 20
WARNINGS_MAX = 20
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class TreeStage:
    """Writes `view` below the folder behind the descriptor `root`, which only we may enter meanwhile.

    `run` writes everything but the metadata of folders; `seal_folders` sets that, last.
    """

    def __init__(self, view: TreeView, root: int, progress: Progress) -> None:
        self._view, self._root, self._progress = view, root, progress
        self._workers = os.cpu_count() or 2
        self._first_links: dict[tuple[int, int], Row] = {}
        self._links: list[tuple[bytes, Row]] = []
        self.not_restored: Counter[str] = Counter()
        self.skipped = 0
        self.totals = Totals()

    def run(self) -> None:
        """Raises DamageError when what is stored is not what was backed up, OSError from the target."""
        top_modules = bool(self._view.node["top_modules"])
        jobs = ThreadPoolExecutor(self._workers, "restore")
        fetchers = ThreadPoolExecutor(self._workers, "fetch")
        pending: deque[Future[None]] = deque()
        try:
            with Folders(self._root) as folders:
                for ref in self._view.refs():
                    self._progress.check()
                    rows = self._view.leaf(ref).rows()
                    self.totals.add(_checked(ref, rows, top_modules=top_modules))
                    for batch in self._batches(folders, rows):
                        pending.append(jobs.submit(self._write_batch, batch, fetchers))
                        if len(pending) > self._workers * 3:
                            pending.popleft().result()
            while pending:
                pending.popleft().result()
            self._make_links()
        finally:
            for future in pending:
                future.cancel()
            jobs.shutdown(wait=True, cancel_futures=True)
            fetchers.shutdown(wait=True, cancel_futures=True)

    def _batches(self, folders: Folders, rows: list[Row]) -> Iterator[list[Entry]]:
        batch: list[Entry] = []
        size = 0
        for row in rows:
            entry = Entry(row)
            if statmod.S_ISDIR(entry.stat.mode):
                if row.path:
                    self._make_folder(folders, row.path)
                continue
            if entry.is_file and entry.stat.links > 1 and self._is_link(entry):
                continue
            batch.append(entry)
            size += entry.stat.size if entry.is_file else 0
            if size >= BATCH_BYTES_MAX or len(batch) >= BATCH_FILES_MAX:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _make_folder(self, folders: Folders, path: bytes) -> None:
        try:
            folder, name = folders.of(path)
            os.mkdir(name, 0o700, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectDamaged(f"{show_path(path)} has no folder to lie in") from error

    def _is_link(self, entry: Entry) -> bool:
        """True for a further name of a file that is written already and equals this one in all it has."""
        stat = entry.stat
        first = self._first_links.setdefault((stat.device, stat.inode), entry.row)
        if first is entry.row or (first.sum, first.stat, first.extra) != (
            entry.row.sum,
            entry.row.stat,
            entry.row.extra,
        ):
            return False  # The first name, or the file changed between the two: then they are kept apart.
        self._links.append((entry.path, first))
        return True

    def _make_links(self) -> None:
        with Folders(self._root) as sources, Folders(self._root) as folders:
            for path, first in self._links:
                source, source_name = sources.of(first.path)
                folder, name = folders.of(path)
                try:
                    os.link(source_name, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                        raise
                    self._write_file(folder, name, Entry(first._replace(path=path)), None)
                    self.not_restored["hard link"] += 1

    # ------------------------------------------------------------ what workers do

    def _write_batch(self, batch: list[Entry], fetchers: ThreadPoolExecutor) -> None:
        written = 0
        with Folders(self._root) as folders:
            for entry in batch:
                try:
                    folder, name = folders.of(entry.path)
                    if entry.is_file:
                        self._write_file(folder, name, entry, fetchers)
                        written += entry.stat.size
                    else:
                        self._write_special(folder, name, entry)
                except DamageError as error:
                    raise type(error)(f"{show_path(entry.path)}: {error.message}", hint=error.hint) from error
        self._progress.advance(bytes=written, items=len(batch))

    def _write_file(self, folder: int, name: bytes, entry: Entry, fetchers: ThreadPoolExecutor | None) -> None:
        descriptor = os.open(name, _CREATE_FLAGS, 0o600, dir_fd=folder)
        try:
            if self._write_content(descriptor, entry, fetchers) != entry.row.sum:
                raise ObjectDamaged("its content has another SHA-256 than was recorded")
            self._set_metadata(descriptor, entry)
        finally:
            os.close(descriptor)

    def _write_content(self, descriptor: int, entry: Entry, fetchers: ThreadPoolExecutor | None) -> bytes:
        """The sum of what was written."""
        size, position, digest = entry.stat.size, 0, hashlib.sha256()
        as_blocks = entry.extra.get("sum") == "blocks"
        chunks = self._fetched(entry, fetchers) if fetchers and size >= LARGE_BYTES else None
        for offset, piece in self._view.pieces(entry, chunks):
            if not as_blocks:
                add_zeros(digest, offset - position)
                digest.update(piece)
            _write_fully(descriptor, piece, offset)
            position = offset + len(piece)
        if position < size:
            os.ftruncate(descriptor, size)
        if as_blocks:
            return blocks_sum(descriptor, self._view.extents(entry), size)
        add_zeros(digest, size - position)
        return digest.digest()

    def _fetched(self, entry: Entry, fetchers: ThreadPoolExecutor) -> Iterator[bytes]:
        """A large file's chunks in order, decoded ahead by other threads."""
        ahead: deque[Future[bytes]] = deque()
        try:
            for chunk_id in self._view.chunk_ids(entry):
                ahead.append(fetchers.submit(self._view.reader.get, chunk_id))
                if len(ahead) > FETCH_AHEAD:
                    self._progress.check()
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def _write_special(self, folder: int, name: bytes, entry: Entry) -> None:
        mode, kind = entry.stat.mode, entry.kind
        if kind == statmod.S_IFLNK:
            os.symlink(entry.target, name, dir_fd=folder)
        elif kind == statmod.S_IFIFO:
            os.mkfifo(name, 0o600, dir_fd=folder)
        else:
            major, minor = entry.extra["rdev"]
            try:
                os.mknod(name, kind | 0o600, os.makedev(major, minor), dir_fd=folder)
            except PermissionError:
                self.not_restored["device"] += 1
                self.skipped += 1
                return
        self._try("owner", lambda: os.chown(name, *self._owner(entry), dir_fd=folder, follow_symlinks=False))
        self._set_xattrs(b"/proc/self/fd/%d/%s" % (folder, name), entry)
        if kind != statmod.S_IFLNK:
            os.chmod(name, statmod.S_IMODE(mode), dir_fd=folder)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=folder, follow_symlinks=False)

    # ------------------------------------------------------------ metadata

    def seal_folders(self) -> None:
        """Set owners, attributes, modes and times of folders, the deepest first, the root last."""
        with Folders(self._root) as folders:
            for ref in self._view.refs(backwards=True):
                leaf = self._view.leaf(ref)
                for number in reversed(leaf.folders()):
                    entry = Entry(leaf.row(number))
                    self._set_metadata(folders.open(entry.path), entry)
                self._progress.check()

    def _set_metadata(self, descriptor: int, entry: Entry) -> None:
        """Owner first (it clears setuid), attributes while we may write, then mode, then times."""
        self._try("owner", lambda: os.fchown(descriptor, *self._owner(entry)))
        if entry.extra:
            self._set_xattrs(descriptor, entry)
        self._try("mode", lambda: os.fchmod(descriptor, statmod.S_IMODE(entry.stat.mode)))
        os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))

    def _owner(self, entry: Entry) -> tuple[int, int]:
        keep = os.geteuid() != 0 and entry.stat.uid == os.geteuid()
        return -1 if keep else entry.stat.uid, entry.stat.gid

    def _set_xattrs(self, where: int | bytes, entry: Entry) -> None:
        follow = isinstance(where, int)
        for name, value in self._view.xattrs(entry).items():
            self._try("attribute", lambda n=name, v=value: os.setxattr(where, n, v, follow_symlinks=follow))  # type: ignore[misc]

    def _try(self, what: str, change: Callable[[], None]) -> None:
        """Do what a file system or our rights may not allow; count it when they do not."""
        try:
            change()
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL, errno.ENODATA):
                raise
            self.not_restored[what] += 1


def _checked(ref: LeafRef, rows: list[Row], *, top_modules: bool) -> LeafRef:
    """The reference as it follows from the leaf's rows. Raises ObjectDamaged when the list says otherwise."""
    _, found = encode_leaf(rows, top_modules=top_modules)
    if found.parts != ref.parts or found.entries != ref.entries:
        raise ObjectDamaged(f"the leaf at {show_path(ref.first)} is not the one its list names")
    return found


def _write_fully(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
