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
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import compress

from engine.errors import DamageError, ObjectDamaged
from engine.heap import share_heap
from engine.progress import Progress
from engine.tree_folders import Folders
from engine.tree_format import LeafRef, Row, Stat, Totals, leaf_parts, show_path
from engine.tree_sum import add_zeros, blocks_sum
from engine.tree_swap import sync_file_system
from engine.tree_view import LEAVES_BYTES, Entry, TreeView, split_ids

BATCH_FILES_MAX = 200
BATCH_BYTES_MAX = 2 << 20
FETCH_AHEAD = 4
"""Chunks of one large file decoded ahead of the thread that writes it."""
LARGE_BYTES = 8 << 20
LARGE_WINDOW_BYTES = 4 << 20
"""Stored bytes of one large file that are read ahead at a time."""
FLUSH_BYTES = 64 << 20
"""So much content waits for the disk when it is told to begin."""
WARNINGS_MAX = 20
_OTHER_SUM = "its content has another SHA-256 than was recorded"
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


Item = tuple[Row, Stat]


class TreeStage:
    """Writes `view` below the folder behind the descriptor `root`, which only we may enter meanwhile.

    `run` writes everything but the metadata of folders; `seal_folders` sets that, last. `take` says of each row in the
    order of the tree whether it is written: 0 no, 1 yes, more a folder whose metadata comes from elsewhere.
    """

    def __init__(self, view: TreeView, root: int, progress: Progress, *, take: bytearray | None = None) -> None:
        share_heap()
        self._view, self._root, self._progress, self._take = view, root, progress, take
        self._workers = os.cpu_count() or 2
        self._user = os.geteuid()
        self._born = Born(root)
        self._flush: Future[None] | None = None
        self._unflushed = 0
        self._first_links: dict[tuple[int, int], Row] = {}
        self._links: list[tuple[bytes, Row]] = []
        self.not_restored: Counter[str] = Counter()
        self.skipped = 0
        self.totals = Totals()

    def run(self) -> None:
        """Raises DamageError when what is stored is not what was backed up, OSError from the target."""
        jobs = ThreadPoolExecutor(self._workers, "restore")
        fetchers = ThreadPoolExecutor(self._workers, "fetch")
        flusher = ThreadPoolExecutor(1, "flush")
        pending: deque[Future[None]] = deque()
        try:
            with Folders(self._root) as folders, closing(self._batches_ahead(folders)) as batches:
                for batch in batches:
                    pending.append(jobs.submit(self._write_batch, batch, fetchers))
                    self._flush_early(flusher)
                    if len(pending) > self._workers * 3:
                        pending.popleft().result()
            while pending:
                pending.popleft().result()
            self._make_links()
            if self._flush is not None:
                self._flush.result()
        finally:
            for future in pending:
                future.cancel()
            for pool in (jobs, fetchers, flusher):
                pool.shutdown(wait=True, cancel_futures=True)

    def _batches_ahead(self, folders: Folders) -> Generator[list[Item], None, None]:
        """The batches of the whole tree, folders made as they come; what they hold may be on its way."""
        return self._view.reader.ahead(self._all_batches(folders), _ids_of)

    def _all_batches(self, folders: Folders) -> Iterator[list[Item]]:
        top_modules = bool(self._view.node["top_modules"])
        for ref, taken in self._taken():
            self._progress.check()
            if taken is not None and not any(taken):
                self.totals.add(ref)
                continue
            leaf = self._view.leaf(ref)
            rows, stats = leaf.rows(), leaf.stats()
            self.totals.add(_checked(ref, rows, stats, top_modules=top_modules))
            if taken is not None:
                rows, stats = list(compress(rows, taken)), list(compress(stats, taken))
            yield from self._batches(folders, rows, stats)

    def _taken(self, *, backwards: bool = False) -> Iterator[tuple[LeafRef, bytearray | None]]:
        """Each leaf with what `take` says of its rows; the leaves that are read because of that come ahead."""

        def ids_of(each: tuple[LeafRef, bytearray | None]) -> tuple[bytes, ...]:
            ref, taken = each
            return (ref.chunk,) if taken is None or any(taken) else ()

        return self._view.reader.ahead(self._each_taken(backwards=backwards), ids_of, window_bytes=LEAVES_BYTES)

    def _each_taken(self, *, backwards: bool) -> Iterator[tuple[LeafRef, bytearray | None]]:
        number = self._view.entry_count if backwards else 0
        for ref in self._view.refs(backwards=backwards):
            number -= ref.entries if backwards else 0
            yield ref, None if self._take is None else self._take[number : number + ref.entries]
            number += 0 if backwards else ref.entries

    def _flush_early(self, flusher: ThreadPoolExecutor) -> None:
        """Have the disk work while we do, so that the sync at the end finds little left."""
        if self._unflushed >= FLUSH_BYTES and (self._flush is None or self._flush.done()):
            if self._flush is not None:
                self._flush.result()  # The kernel reports a lost write once: it must not be lost here.
            self._unflushed = 0
            self._flush = flusher.submit(sync_file_system, self._root)

    def _batches(self, folders: Folders, rows: list[Row], stats: list[Stat]) -> Iterator[list[Item]]:
        batch: list[Item] = []
        size = 0
        for item in zip(rows, stats, strict=True):
            row, stat = item
            kind = stat.mode & 0xF000
            if kind == statmod.S_IFDIR:
                if row.path:
                    self._make_folder(folders, row.path)
                continue
            if kind == statmod.S_IFREG:
                if stat.links > 1 and self._is_link(row, stat):
                    continue
                size += stat.size
            batch.append(item)
            if size >= BATCH_BYTES_MAX or len(batch) >= BATCH_FILES_MAX:
                self._unflushed += size
                yield batch
                batch, size = [], 0
        self._unflushed += size
        if batch:
            yield batch

    def _make_folder(self, folders: Folders, path: bytes) -> None:
        try:
            folder, name = folders.of(path)
            os.mkdir(name, 0o700, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectDamaged(f"{show_path(path)} has no folder to lie in") from error

    def _is_link(self, row: Row, stat: Stat) -> bool:
        """True for a further name of a file that is written already and equals this one in all it has."""
        first = self._first_links.setdefault((stat.device, stat.inode), row)
        if first is row or (first.sum, first.stat, first.extra) != (row.sum, row.stat, row.extra):
            return False  # The first name, or the file changed between the two: then they are kept apart.
        self._links.append((row.path, first))
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

    def _write_batch(self, batch: list[Item], fetchers: ThreadPoolExecutor) -> None:
        written = 0
        contents = self._contents(batch)
        with Folders(self._root) as folders:
            for row, stat in batch:
                try:
                    folder, name = folders.of(row.path)
                    if stat.mode & 0xF000 == statmod.S_IFREG:
                        data = contents.get(row.ids) if row.extra is None else None
                        if data is not None and _is_content(data, row, stat):
                            self._write_whole(folder, name, row, stat, data)
                        else:
                            self._write_file(folder, name, Entry(row, stat), fetchers)
                        written += stat.size
                    else:
                        self._write_special(folder, name, Entry(row, stat))
                except DamageError as error:
                    raise type(error)(f"{show_path(row.path)}: {error.message}", hint=error.hint) from error
        self._progress.advance(bytes=written, items=len(batch))

    def _contents(self, batch: list[Item]) -> dict[bytes, bytes]:
        """The chunks of the files that have one and fit into memory, by their ids; and none for the empty ones."""
        wanted = [row.ids for row, stat in batch if len(row.ids) == 32 and stat.size < LARGE_BYTES]
        try:
            return {b"": b"", **self._view.reader.get_many(wanted)}
        except DamageError:
            return {}  # Each file for itself will meet it again, and name itself.

    def _write_whole(self, folder: int, name: bytes, row: Row, stat: Stat, data: bytes) -> None:
        """A file whose content is at hand and proven, as nearly all are: with the fewest calls of the system."""
        ready = self._born.with_mode(stat)
        descriptor = os.open(name, _CREATE_FLAGS, statmod.S_IMODE(stat.mode) if ready else 0o600, dir_fd=folder)
        try:
            if data:
                _write_fully(descriptor, memoryview(data), 0)
            if ready:
                os.utime(descriptor, ns=(stat.mtime_ns, stat.mtime_ns))
            else:
                self._set_metadata(descriptor, Entry(row, stat))
        finally:
            os.close(descriptor)

    def _write_file(self, folder: int, name: bytes, entry: Entry, fetchers: ThreadPoolExecutor | None) -> None:
        descriptor = os.open(name, _CREATE_FLAGS, 0o600, dir_fd=folder)
        try:
            if self._write_content(descriptor, entry, fetchers) != entry.row.sum:
                raise ObjectDamaged(_OTHER_SUM)
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
        reader = self._view.reader
        wanted = reader.ahead(
            self._view.chunk_ids(entry), lambda chunk_id: (chunk_id,), window_bytes=LARGE_WINDOW_BYTES
        )
        try:
            for chunk_id in wanted:
                ahead.append(fetchers.submit(reader.get, chunk_id))
                if len(ahead) > FETCH_AHEAD:
                    self._progress.check()
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
            wanted.close()

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
        if not self._born.with_owner(entry.stat):
            self._try("owner", lambda: os.chown(name, *self._owner(entry), dir_fd=folder, follow_symlinks=False))
        self._set_xattrs(b"/proc/self/fd/%d/%s" % (folder, name), entry)
        if kind != statmod.S_IFLNK:
            os.chmod(name, statmod.S_IMODE(mode), dir_fd=folder)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=folder, follow_symlinks=False)

    @contextmanager
    def flushing(self) -> Iterator[None]:
        """Have the disk write what was staged while the body does what needs no disk; raises what it could not write."""
        with ThreadPoolExecutor(1, "flush") as pool:
            flush = pool.submit(sync_file_system, self._root)
            yield
            flush.result()

    # ------------------------------------------------------------ metadata

    def seal_folders(self) -> None:
        """Set owners, attributes, modes and times of folders, the deepest first, the root last."""
        with Folders(self._root) as folders:
            for ref, taken in self._taken(backwards=True):
                if taken is not None and 1 not in taken:
                    continue
                leaf = self._view.leaf(ref)
                for number in reversed(leaf.folders()):
                    if taken is None or taken[number] == 1:
                        entry = Entry(leaf.row(number))
                        self._set_metadata(folders.open(entry.path), entry)
                self._progress.check()

    def _set_metadata(self, descriptor: int, entry: Entry) -> None:
        """Owner first (it clears setuid), attributes while we may write, then mode, then times."""
        if not self._born.with_owner(entry.stat):
            self._try("owner", lambda: os.fchown(descriptor, *self._owner(entry)))
        if entry.extra:
            self._set_xattrs(descriptor, entry)
        self._try("mode", lambda: os.fchmod(descriptor, statmod.S_IMODE(entry.stat.mode)))
        os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))

    def _owner(self, entry: Entry) -> tuple[int, int]:
        keep = self._user != 0 and entry.stat.uid == self._user
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


class Born:
    """What files below a folder are born with: their owner, and the mode bits that creation lets through.

    Seen of a file made for it. A umask, an inherited access list, the set-group bit of the folder, a file system
    that maps owners: whatever shapes it shapes all that is made below, so that a file of the right owner and mode
    needs no further call.
    """

    def __init__(self, root: int) -> None:
        name = b"lastro-born"
        descriptor = os.open(name, _CREATE_FLAGS, 0o777, dir_fd=root)
        try:
            found = os.fstat(descriptor)
        finally:
            os.close(descriptor)
            os.unlink(name, dir_fd=root)
        self._owner = found.st_uid, found.st_gid
        self._lost = ~(statmod.S_IMODE(found.st_mode) & 0o777)

    def with_owner(self, stat: Stat) -> bool:
        """True when a new entry belongs to this one's owner and group at once."""
        return (stat.uid, stat.gid) == self._owner

    def with_mode(self, stat: Stat) -> bool:
        """True when a file made with this mode has it, and the owner too. We must be able to write into it."""
        mode = statmod.S_IMODE(stat.mode)
        return not mode & self._lost and bool(mode & statmod.S_IWUSR) and (stat.uid, stat.gid) == self._owner


def _checked(ref: LeafRef, rows: list[Row], stats: list[Stat], *, top_modules: bool) -> LeafRef:
    """The reference as it follows from the leaf's rows. Raises ObjectDamaged when the list says otherwise."""
    modes, sizes = [stat.mode for stat in stats], [stat.size for stat in stats]
    parts = leaf_parts(rows, modes, sizes, top_modules=top_modules)
    if parts != ref.parts or len(rows) != ref.entries:
        raise ObjectDamaged(f"the leaf at {show_path(ref.first)} is not the one its list names")
    return replace(ref, files=sum(part.files for part in parts), size=sum(part.size for part in parts))


def _ids_of(batch: list[Item]) -> Iterator[bytes]:
    """The chunks that will be wanted for a batch; a large file asks for its own as it goes."""
    for row, stat in batch:
        if row.ids and stat.size < LARGE_BYTES and not (row.extra and "lists" in row.extra):
            yield from split_ids(row.ids)


def _is_content(data: bytes, row: Row, stat: Stat) -> bool:
    return len(data) == stat.size and hashlib.sha256(data).digest() == row.sum


def _write_fully(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
