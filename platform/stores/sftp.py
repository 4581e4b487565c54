"""Keep objects in a folder of a server that is reached by SFTP.

An object is written to `.tmp/`, made durable there by fsync@openssh.com, and then given its name: by hardlink@openssh.com,
which is link(2) on the server and fails when the name is taken, or by posix-rename@openssh.com, which is rename(2) and
replaces. Then its folder is made durable. SFTP's own rename will not do for a create: OpenSSH makes it a link and a removal
too, but falls back to looking first and renaming then where there are no links, and other servers do only that, so that
two writers could both win. A server without these extensions is refused.

As with the local store, the folder is made once, with a marker in it, and opening makes nothing: an empty folder where a
disk belongs on the server is not taken for an empty store. Requests are sent without waiting for each answer, so that a
small object costs four round trips, whatever its number of requests, and a large one the time of its bytes.
"""

import secrets
import stat as stat_bits
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Self

from engine.errors import (
    ObjectExists,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnreachable,
)
from engine.faults import kill_point
from engine.ports import Buffer, ObjectInfo
from stores import registry
from stores._keys import check_key, check_prefix
from stores._sdk import sdk_of
from stores._sftp import wire as sftp
from stores._sftp.config import SftpConfig
from stores._sftp.folders import Entry, info_of, is_folder, name_of, open_folder, parent_of, read_folders
from stores._sftp.sessions import Sessions
from stores._sftp.wire import Pace, Reply, Status, Wire, extended, request

TEMP_FOLDER = b".tmp"
MARKER = b".lastro-store"
MARKER_TEXT = b'{"format": "lastro-store", "version": 1}\n'
OBJECTS_FOLDER = b"r"
TEMP_AGE_MAX_SECONDS = 24 * 3600
FOLDERS_AT_ONCE = 16
"""Subfolders that a listing reads in the same round trips; their names are in memory together."""
REMOVALS_AT_ONCE = 128
FREE_BYTES_MIN = 1 << 20
"""A file system with less is full: the last blocks may be the superuser's."""


@registry.register
class SftpStore:
    """A store in one folder of an SSH server; several processes and machines may use the same folder at once."""

    kind: ClassVar[str] = "sftp"
    label: ClassVar[str] = "SFTP (OpenSSH)"
    Config: ClassVar[type] = SftpConfig

    def __init__(self, config: SftpConfig) -> None:
        """Open without asking the server anything: the first request connects, and so is tried again where others are.

        It looks whether the folder is one that `make` has made (StoreUnreachable otherwise), and clears what killed
        writers left there more than a day ago. Raises UsageError for a private key that cannot be read.
        """
        with sdk_of(self.kind, package="paramiko"):
            import paramiko  # noqa: F401 - so that what is missing is said once, here
        self.pace: Pace | None = None
        self._config = config
        self._sessions = Sessions(config)
        self._opening = threading.Lock()
        self._is_open = False
        self._root = b""
        self._durable: set[bytes] = set()

    @classmethod
    def make(cls, config: SftpConfig) -> Self:
        """Make the folder and its marker durable and open it; a store that exists stays as it is.

        Raises UsageError for a host key that is not set (the message shows it), StoreDenied for another one or for
        refused credentials, StoreError when the folder cannot be made or the server cannot decide between writers.
        """
        store = cls(config)
        try:
            with store._wire("making the store", make=True):
                return store
        except BaseException:
            store.close()
            raise

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        check_key(key)
        with self._wire(f"writing {key}") as wire, self._written(wire, parts) as temp:
            path = self._path(key)
            self._make_folder(wire, parent_of(path))
            named, folder = wire.ask(extended(sftp.POSIX_RENAME, temp, path), open_folder(parent_of(path)))
            if named.status is not None and is_folder(wire, path):
                self._close(wire, folder)
                raise StoreError(f"{key} on the server is a folder", hint="no key may be the folder of another")
            self._sync(wire, folder, after=named)
            kill_point("store.sftp.renamed")

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        check_key(key)
        with self._wire(f"creating {key}") as wire, self._written(wire, parts) as temp:
            path = self._path(key)
            self._make_folder(wire, parent_of(path))
            named, folder = wire.ask(extended(sftp.HARDLINK, temp, path), open_folder(parent_of(path)))
            if named.status is not None and self._is_taken(wire, path):
                # Our own earlier try whose reply was lost, or its twin, counts as done; but the folder may not be
                # durable yet, so the way on is the same.
                if not self._holds(wire, path, parts):
                    self._close(wire, folder)
                    raise ObjectExists(f"{key} exists already with other content")
                (named,) = wire.ask(request(sftp.LSTAT, path))
            self._sync(wire, folder, after=named)
            kill_point("store.sftp.linked")

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        assert offset >= 0 and (length is None or length >= 0), "ranges are not negative"
        check_key(key)
        with self._wire(f"reading {key}", key=key) as wire:
            return self._read(wire, key, self._path(key), offset, length)

    def stat(self, key: str) -> ObjectInfo:
        check_key(key)
        with self._wire(f"looking up {key}", key=key) as wire:
            (answer,) = wire.ask(request(sftp.LSTAT, self._path(key)))
            attributes = answer.attributes()
        if not stat_bits.S_ISREG(attributes.mode):
            raise ObjectMissing(f"there is no object {key}")
        return info_of(key, attributes)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects under a prefix; holds the names of up to 16 folders per level at a time."""
        check_prefix(prefix)
        folder, _, start = prefix.rpartition("/")
        with self._wire("listing") as wire:
            self._require_present(wire)
            (entries,) = self._folders(wire, [folder])
        yield from self._walk(folder, [each for each in entries if each[0].startswith(start)])

    def delete(self, key: str) -> None:
        self.delete_many([key])

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete objects as `delete` does, many in one round trip, their folders made durable once each, at the end."""
        for key in keys:
            check_key(key)
        with self._wire(f"deleting {keys[0] if len(keys) == 1 else f'{len(keys)} objects'}") as wire:
            paths = [self._path(key) for key in keys]
            folders = sorted({parent_of(path) for path in paths})
            for at in range(0, len(paths), REMOVALS_AT_ONCE):
                some = paths[at : at + REMOVALS_AT_ONCE]
                answers = wire.ask(*(request(sftp.REMOVE, path) for path in some))
                for path, answer in zip(some, answers, strict=True):
                    self._check_removed(wire, path, answer)
            for at in range(0, len(folders), FOLDERS_AT_ONCE):
                self._sync_all(wire, folders[at : at + FOLDERS_AT_ONCE])

    def close(self) -> None:
        self._sessions.close()

    def free_bytes(self) -> int:
        """Bytes that this user may still write to the folder's file system."""
        with self._wire("looking up the free space") as wire:
            return wire.ask(extended(sftp.STATVFS, self._root))[0].space().bytes_free

    # ------------------------------------------------------------ writing

    @contextmanager
    def _written(self, wire: Wire, parts: Sequence[Buffer]) -> Iterator[bytes]:
        """A durable temporary file with the parts; its temporary name is gone afterwards in any case."""
        temp = b"%s/%s/%s" % (self._root, TEMP_FOLDER, secrets.token_hex(12).encode())
        handle = wire.ask(sftp.open_file(temp, sftp.FOR_CREATING, mode=0o600))[0].handle()
        try:
            ends = [extended(sftp.FSYNC, handle), request(sftp.CLOSE, handle)]
            refused = wire.write(handle, parts, then=ends, pace=self.pace)
            if refused is not None:  # Asked now: the removal makes room again.
                raise self._mapped(wire, refused, f"writing to {self._config.place}: {refused}", None) from refused
            kill_point("store.sftp.written")
            yield temp
        finally:
            # After a rename it is gone already; after an error it would only take up space.
            wire.tell(request(sftp.REMOVE, temp))

    def _make_folder(self, wire: Wire, folder: bytes) -> None:
        """Make a folder below the root durable, with all between, once by every process that writes into it."""
        if folder in self._durable or folder == self._root:
            return
        parent = parent_of(folder)
        self._make_folder(wire, parent)
        made, there, above = wire.ask(
            sftp.make_folder(folder, mode=0o700), request(sftp.LSTAT, folder), open_folder(parent)
        )
        if there.status is None and not stat_bits.S_ISDIR(there.attributes().mode):
            self._close(wire, above)
            raise StoreError(
                f"{folder.decode()} on the server is no folder", hint="no key may be the folder of another"
            )
        self._sync(wire, above, after=there if there.status is None else made)
        self._durable.add(folder)

    def _sync(self, wire: Wire, folder: Reply, *, after: Reply) -> None:
        """Make a folder that was opened durable; raises what was refused before, in order."""
        if after.status is not None:
            self._close(wire, folder)
            raise after.status
        handle = folder.handle()
        (synced,) = wire.ask(extended(sftp.FSYNC, handle))
        self._close(wire, folder)
        synced.done()

    def _sync_all(self, wire: Wire, folders: Sequence[bytes]) -> None:
        """Make folders durable, in the same round trips; one that is not there holds nothing that could come back."""
        opened = wire.ask(*map(open_folder, folders))
        handles = [answer.handle() for answer in opened if answer.status is None]
        synced = wire.ask(*(extended(sftp.FSYNC, handle) for handle in handles))
        wire.tell(*(request(sftp.CLOSE, handle) for handle in handles))
        for answer in synced:
            answer.done()

    def _close(self, wire: Wire, opened: Reply) -> None:
        if opened.status is None:
            wire.tell(request(sftp.CLOSE, opened.handle()))

    def _is_taken(self, wire: Wire, path: bytes) -> bool:
        return wire.ask(request(sftp.LSTAT, path))[0].status is None

    def _holds(self, wire: Wire, path: bytes, parts: Sequence[Buffer]) -> bool:
        key = path[len(self._root) + 1 :].decode()
        size = sum(memoryview(part).nbytes for part in parts)
        try:
            return self._read(wire, key, path, 0, size + 1) == b"".join(parts)
        except ObjectMissing:
            raise StoreError(f"{key} on the server is no file", hint="no key may be the folder of another") from None

    def _check_removed(self, wire: Wire, path: bytes, answer: Reply) -> None:
        refused = answer.status
        if refused is None or (refused.code == sftp.NO_SUCH_FILE and self._is_present(wire)):
            return
        if refused.code == sftp.FAILURE and is_folder(wire, path):  # A folder is no object.
            return
        raise refused

    # ------------------------------------------------------------ reading

    def _read(self, wire: Wire, key: str, path: bytes, offset: int, length: int | None) -> bytes:
        looked_at, opened = wire.send(request(sftp.LSTAT, path)), wire.send(sftp.open_file(path, sftp.FOR_READING))
        looked = wire.answer(looked_at)
        if looked.status is None and not stat_bits.S_ISREG(looked.attributes().mode):
            wire.close()  # Opening a pipe waits for a writer that never comes.
            raise ObjectMissing(f"there is no object {key}")
        handle = wire.answer(opened).handle()
        try:
            size = looked.attributes().size if looked.status is None else 0
            measured = wire.send(request(sftp.FSTAT, handle))
            data = wire.read(handle, offset, _wanted(size, offset, length), pace=self.pace)
            really = wire.answer(measured).attributes().size
            if really != size:  # It was replaced between the look and the opening.
                data = wire.read(handle, offset, _wanted(really, offset, length))
            return data
        finally:
            wire.tell(request(sftp.CLOSE, handle))

    def _walk(self, folder: str, entries: Sequence[Entry]) -> Iterator[ObjectInfo]:
        """The objects among the entries of a folder and below, in order; several subfolders are read at once."""
        lead = f"{folder}/" if folder else ""
        at = 0
        while at < len(entries):
            name, attributes = entries[at]
            if not name.endswith("/"):
                yield info_of(lead + name, attributes)
                at += 1
                continue
            below = [lead + each[:-1] for each, _ in entries[at : at + FOLDERS_AT_ONCE] if each.endswith("/")]
            with self._wire(f"listing {lead}") as wire:
                found = dict(zip(below, self._folders(wire, below), strict=True))
            for each, attributes in entries[at : at + FOLDERS_AT_ONCE]:
                if each.endswith("/"):
                    yield from self._walk(lead + each[:-1], found.pop(lead + each[:-1]))
                else:
                    yield info_of(lead + each, attributes)
            at += FOLDERS_AT_ONCE

    def _folders(self, wire: Wire, folders: Sequence[str]) -> Sequence[Sequence[Entry]]:
        """The sorted entries of several folders, in the same round trips; none for one that is not there."""
        paths = [self._root + (f"/{folder}".encode() if folder else b"") for folder in folders]
        opened = wire.ask(*(request(sftp.OPENDIR, path) for path in paths))
        handles = {number: answer.handle() for number, answer in enumerate(opened) if answer.status is None}
        try:
            for path, answer in zip(paths, opened, strict=True):
                if answer.status is not None:
                    self._check_absent(wire, path, answer.status)
            found = read_folders(wire, handles)
        finally:
            wire.tell(*(request(sftp.CLOSE, handle) for handle in handles.values()))
        return [sorted(found.get(number, ()), key=name_of) for number in range(len(folders))]

    def _check_absent(self, wire: Wire, path: bytes, refused: Status) -> None:
        """Pass when nothing was ever written into the folder; a missing root is another matter."""
        no_folder = refused.code == sftp.NO_SUCH_FILE or (refused.code == sftp.FAILURE and not is_folder(wire, path))
        if path == self._root or not no_folder or not self._is_present(wire):
            raise refused

    # ------------------------------------------------------------ the place

    def _open(self, wire: Wire, *, make: bool) -> None:
        with self._opening:
            if self._is_open:
                return
            self._root = self._resolved(wire)
            if make and not self._is_present(wire):
                self._make_root(wire)
            self._require_present(wire)
            self._make_folder(wire, self._root + b"/" + TEMP_FOLDER)
            self._clear_stale(wire)
            self._is_open = True

    def _path(self, key: str) -> bytes:
        return self._root + b"/" + key.encode()

    def _resolved(self, wire: Wire) -> bytes:
        """The folder's path from the server's root, whatever the login's folder is."""
        ((path, _),) = wire.ask(request(sftp.REALPATH, b"."))[0].names()
        folder = self._config.folder.encode()
        return b"/" + (folder if folder.startswith(b"/") else path + b"/" + folder).strip(b"/")

    def _is_present(self, wire: Wire) -> bool:
        """Whether the folder is the store, not the empty place where its disk belongs."""
        answers = wire.ask(*(request(sftp.LSTAT, b"%s/%s" % (self._root, name)) for name in (MARKER, OBJECTS_FOLDER)))
        return any(answer.status is None for answer in answers)

    def _require_present(self, wire: Wire) -> None:
        if not self._is_present(wire):
            wire.tell(request(sftp.CLOSE, wire.ask(request(sftp.OPENDIR, self._root))[0].handle()))
            raise self._gone(
                f"the folder {self._root.decode()} on {self._config.host} is no store: no {MARKER.decode()}"
            )

    def _gone(self, message: str) -> StoreUnreachable:
        self._durable.clear()
        return StoreUnreachable(message, hint="is its disk mounted? nothing was written")

    def _make_root(self, wire: Wire) -> None:
        """Make the store's folder and the missing ones above it, and the marker in it, each durable."""
        parents = self._root.split(b"/")
        missing = [b"/".join(parents[:end]) for end in range(2, len(parents) + 1)]
        while missing and is_folder(wire, missing[0]):
            del missing[0]
        for folder in missing:
            made, above = wire.ask(sftp.make_folder(folder, mode=0o700), open_folder(parent_of(folder)))
            self._sync(wire, above, after=made)
        self._make_folder(wire, self._root + b"/" + TEMP_FOLDER)
        with self._written(wire, [MARKER_TEXT]) as temp:
            path = self._root + b"/" + MARKER
            named, root = wire.ask(extended(sftp.HARDLINK, temp, path), open_folder(self._root))
            if named.status is not None and not self._is_taken(wire, path):
                self._close(wire, root)
                raise StoreDenied(
                    f"the file system of {self._root.decode()} on {self._config.host} makes no hard links ({named.status})",
                    hint="a store needs them: use ext4, xfs, btrfs or zfs on the server",
                )
            self._sync(wire, root, after=wire.ask(request(sftp.LSTAT, path))[0])

    def _clear_stale(self, wire: Wire) -> None:
        oldest = time.time() - TEMP_AGE_MAX_SECONDS
        temp = self._root + b"/" + TEMP_FOLDER
        handle = wire.ask(request(sftp.OPENDIR, temp))[0].handle()
        try:
            left = read_folders(wire, {0: handle})[0]
        finally:
            wire.tell(request(sftp.CLOSE, handle))
        stale = [name for name, attributes in left if attributes.modified < oldest]
        wire.ask(*(request(sftp.REMOVE, b"%s/%s" % (temp, name.encode())) for name in stale[:REMOVALS_AT_ONCE]))

    # ------------------------------------------------------------ refusals

    @contextmanager
    def _wire(self, doing: str, *, key: str | None = None, make: bool = False) -> Iterator[Wire]:
        """A session for the block, its refusals turned into the error tree; with `key`, absence is ObjectMissing."""
        with self._sessions.wire() as wire:
            try:
                if not self._is_open:
                    self._open(wire, make=make)
                yield wire
            except Status as refused:
                raise self._mapped(wire, refused, f"{doing} in {self._config.place}: {refused}", key) from refused

    def _mapped(self, wire: Wire, refused: Status, said: str, key: str | None) -> StoreError:
        if refused.code == sftp.PERMISSION_DENIED:
            return StoreDenied(said, hint=f"user {self._config.user} needs to read and write the folder on the server")
        if refused.code == sftp.NO_SUCH_FILE:
            if not self._is_present(wire):
                return self._gone(f"the folder {self._root.decode()} on {self._config.host} is gone or no store")
            if key is not None:
                return ObjectMissing(f"there is no object {key}")
            self._durable.clear()
            return StoreUnreachable(said, hint="a folder of the store was removed meanwhile; run it again")
        if refused.code == sftp.FAILURE and key is None:
            return self._failed(wire, said)
        return StoreUnreachable(said, hint="look at the server's disk and its log, then run it again")

    def _failed(self, wire: Wire, said: str) -> StoreError:
        """SFTP has one word for a full disk, a used-up quota and a broken disk; the free space tells the first."""
        (answer,) = wire.ask(extended(sftp.STATVFS, self._root))
        if answer.status is None:
            space = answer.space()
            if space.bytes_free < FREE_BYTES_MIN or space.files_free == 0:
                return StoreFull(
                    f"{said}; its disk is full", hint="free space there, or move the store to a larger disk"
                )
        return StoreFull(
            f"{said}; the server says no more, and its disk has room",
            hint="most likely a used-up quota or a limit on the size of files there; else look at its system log",
        )


def _wanted(size: int, offset: int, length: int | None) -> int:
    left = max(0, size - offset)
    return left if length is None else min(length, left)
