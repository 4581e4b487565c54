"""SFTP version 3 over one SSH channel, with many requests in flight (draft-ietf-secsh-filexfer-02; OpenSSH's PROTOCOL).

Written out here because the SDK's own client hides which extensions a server has, knows neither fsync nor hard links,
folds most status codes into one, and waits for an answer after each step.
"""

import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from engine.ports import Buffer

VERSION = 3
OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT = 3, 4, 5, 6, 7, 8
OPENDIR, READDIR, REMOVE, MKDIR, REALPATH = 11, 12, 13, 14, 16
EXTENDED = 200
_INIT, _VERSION, _STATUS, _HANDLE, _DATA, _NAME, _ATTRS, _EXTENDED_REPLY = 1, 2, 101, 102, 103, 104, 105, 201

OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE = 0, 1, 2, 3, 4
FOR_READING, FOR_CREATING = 0x01, 0x02 | 0x08 | 0x20
"""SSH_FXF_READ; SSH_FXF_WRITE, CREAT and EXCL."""
_HAS_SIZE, _HAS_OWNER, _HAS_MODE, _HAS_TIMES, _HAS_EXTENDED = 0x1, 0x2, 0x4, 0x8, 0x80000000

HARDLINK, POSIX_RENAME = b"hardlink@openssh.com", b"posix-rename@openssh.com"
FSYNC, STATVFS = b"fsync@openssh.com", b"statvfs@openssh.com"

BLOCK_BYTES = 31 << 10  # With its header it fits the 32 KiB that one SSH packet carries.
IN_FLIGHT_MAX = 128  # of such blocks: 4 MiB, which fill 200 MB/s at a round trip of 20 ms
ANSWERS_MAX = 2 * IN_FLIGHT_MAX
REPLY_BYTES_MAX = 256 << 10  # What OpenSSH sends at the most.
_RECEIVE_BYTES = 1 << 17


Pace = Callable[[int], None]
"""Called with the number of bytes before they are sent and after they were received; may wait, and may raise."""


class Status(Exception):
    """The server refused a request; every other answer that was due has been read, so the channel stays usable."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text or 'no reason given'} (status {code})")
        self.code = code


class ProtocolError(Exception):
    """What came is not SFTP, or not an answer to what was asked."""


class Channel(Protocol):
    """What is needed of paramiko's Channel."""

    def sendall(self, s: bytes, /) -> None: ...

    def recv(self, nbytes: int, /) -> bytes: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Attributes:
    """What the server says of a file; absent values are 0."""

    size: int
    mode: int
    modified: int


@dataclass(frozen=True, slots=True)
class Space:
    """A file system's free room, for this user."""

    bytes_free: int
    files_free: int


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: a status, or what was asked for."""

    kind: int
    body: bytes

    @property
    def status(self) -> Status | None:
        """The refusal; None when there is none."""
        if self.kind != _STATUS:
            return None
        code, length = struct.unpack_from(">II", self.body + bytes(8))
        return None if code == OK else Status(code, self.body[8 : 8 + min(length, 200)].decode(errors="replace"))

    def done(self) -> None:
        """Raise Status unless the request succeeded."""
        if (status := self.status) is not None:
            raise status

    def data(self, kind: int) -> bytes:
        """The body of an answer of that kind; raises Status or ProtocolError."""
        self.done()
        if self.kind != kind:
            raise ProtocolError(f"an answer of kind {self.kind} came where {kind} was due")
        return self.body

    def handle(self) -> bytes:
        return _take_string(self.data(_HANDLE), 0)[0]

    def read(self) -> bytes:
        return _take_string(self.data(_DATA), 0)[0]

    def attributes(self) -> Attributes:
        return _take_attributes(self.data(_ATTRS), 0)[0]

    def names(self) -> list[tuple[bytes, Attributes]]:
        body = self.data(_NAME)
        (count,), at, found = struct.unpack_from(">I", body), 4, []
        for _ in range(count):
            name, at = _take_string(body, at)
            _, at = _take_string(body, at)  # the line that `ls -l` would print
            attributes, at = _take_attributes(body, at)
            found.append((name, attributes))
        return found

    def space(self) -> Space:
        _, unit, _, _, available, _, _, files, _, _, _ = struct.unpack_from(">11Q", self.data(_EXTENDED_REPLY))
        return Space(bytes_free=unit * available, files_free=files)


class Wire:
    """One SFTP session; for one thread at a time."""

    def __init__(self, channel: Channel) -> None:
        """Greet the server. Raises ProtocolError when something else than SFTP answers."""
        self.channel = channel
        self._received = bytearray()
        self._answers: dict[int, Reply] = {}
        self._ignored: set[int] = set()
        self._number = 0
        self._due = 0
        self.broken = False
        """An answer is missing for good: the session is of no use any more."""
        channel.sendall(struct.pack(">IBI", 5, _INIT, VERSION))
        kind, body = self._packet()
        if kind != _VERSION or len(body) < 4:
            raise ProtocolError("the server does not greet as an SFTP server")
        self.extensions: Mapping[bytes, bytes] = dict(_pairs(body[4:]))

    def close(self) -> None:
        self.broken = True
        with suppress(OSError, EOFError):  # A connection that is lost cannot be told of it.
            self.channel.close()

    def send(self, request: bytes) -> int:
        """Send a request made by `request` and the like; `answer` waits for its answer by the number."""
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        try:
            self.channel.sendall(struct.pack(">IBI", len(request) + 4, request[0], number) + request[1:])
        except BaseException:
            self.broken = True
            raise
        self._due += 1
        return number

    @property
    def usable(self) -> bool:
        """Whether the next user of the session begins with a clean slate: no answer is missing or due."""
        return not self.broken and self._due == 0

    def answer(self, number: int) -> Reply:
        """Wait for one answer; others that come first are kept."""
        while number not in self._answers:
            kind, body = self._packet()
            came = int.from_bytes(body[:4], "big")
            if came in self._ignored:
                self._ignored.discard(came)
                continue
            if len(body) < 4 or len(self._answers) > ANSWERS_MAX:
                self.broken = True
                raise ProtocolError("the server answers what was not asked")
            self._answers[came] = Reply(kind, body[4:])
        self._due -= 1
        return self._answers.pop(number)

    def ask(self, *requests: bytes) -> list[Reply]:
        """Send requests at once and wait for all answers, refusals among them."""
        numbers = [self.send(each) for each in requests]
        return [self.answer(number) for number in numbers]

    def tell(self, *requests: bytes) -> None:
        """Send requests whose answers nobody needs (closing, clearing up); quietly nothing on a broken wire."""
        if not self.broken:
            self._ignored.update([self.send(each) for each in requests])
            self._due -= len(requests)

    def write(
        self, handle: bytes, parts: Sequence[Buffer], *, then: Sequence[bytes], pace: Pace | None = None
    ) -> Status | None:
        """Write the parts from the file's beginning, and send what is to come behind them without waiting.

        Returns the first refusal of either; after one of a write no more bytes are sent.
        """
        pending: deque[int] = deque()
        refused: Status | None = None
        offset = 0
        for block, size in _blocks(parts):
            if pace is not None:
                pace(size)
            pending.append(self.send(request(WRITE, handle, struct.pack(">QI", offset, size), *block)))
            offset += size
            if len(pending) >= IN_FLIGHT_MAX:
                refused = self.answer(pending.popleft()).status
                if refused is not None:
                    break
        pending.extend(self.send(each) for each in then)
        for number in pending:
            status = self.answer(number).status
            refused = refused or status
        return refused

    def read(self, handle: bytes, offset: int, length: int, *, pace: Pace | None = None) -> bytes:
        """Read up to `length` bytes; shorter only when the file ends there."""
        ends = offset + length
        waiting: deque[tuple[int, int, int]] = deque()
        pieces: list[bytes] = []
        refused: Status | None = None
        ended, at = False, offset
        while waiting or (at < ends and not ended):
            while at < ends and not ended and len(waiting) < IN_FLIGHT_MAX:
                size = min(BLOCK_BYTES, ends - at)
                waiting.append((self.send(_read_request(handle, at, size)), at, size))
                at += size
            number, begins, size = waiting.popleft()
            answer = self.answer(number)
            if ended:
                continue
            refused = answer.status
            piece = b"" if refused else answer.read()
            pieces.append(piece)
            if pace is not None:
                pace(len(piece))
            if refused or not piece:
                ended = True
            elif len(piece) < size:
                waiting.appendleft(self._again(handle, begins + len(piece), size - len(piece)))
        if refused is not None and refused.code != EOF:
            raise refused
        return b"".join(pieces)

    # ------------------------------------------------------------ inner parts

    def _again(self, handle: bytes, offset: int, size: int) -> tuple[int, int, int]:
        """Ask for what an answer was short of."""
        return self.send(_read_request(handle, offset, size)), offset, size

    def _packet(self) -> tuple[int, bytes]:
        length = int.from_bytes(self._exactly(4), "big")
        if not 1 <= length <= REPLY_BYTES_MAX:
            self.broken = True
            raise ProtocolError(f"an answer of {length} bytes cannot be SFTP: does the login print something?")
        packet = self._exactly(length)
        return packet[0], packet[1:]

    def _exactly(self, count: int) -> bytes:
        received = self._received
        while len(received) < count:
            try:
                came = self.channel.recv(_RECEIVE_BYTES)
            except BaseException:
                self.broken = True
                raise
            if not came:
                self.broken = True
                raise EOFError("the server closed the channel")
            received += came
        taken = bytes(received[:count])
        del received[:count]
        return taken


# ---------------------------------------------------------------- requests


def request(kind: int, *fields: bytes | Buffer) -> bytes:
    """A request as `Wire.ask` takes it. The first field is a path, a handle or an extension's name; the others are raw."""
    first, *others = fields
    return b"".join((bytes((kind,)), string(first), *others))


def string(text: Buffer) -> bytes:
    return struct.pack(">I", len(text)) + text


def open_file(path: bytes, how: int, *, mode: int = 0) -> bytes:
    attributes = struct.pack(">II", _HAS_MODE, mode) if mode else bytes(4)
    return request(OPEN, path, struct.pack(">I", how), attributes)


def make_folder(path: bytes, *, mode: int) -> bytes:
    return request(MKDIR, path, struct.pack(">II", _HAS_MODE, mode))


def extended(name: bytes, *texts: bytes) -> bytes:
    return request(EXTENDED, name, *map(string, texts))


def _read_request(handle: bytes, offset: int, size: int) -> bytes:
    return request(READ, handle, struct.pack(">QI", offset, size))


def _blocks(parts: Sequence[Buffer]) -> Iterator[tuple[list[Buffer], int]]:
    """Cut and gather the parts into blocks of BLOCK_BYTES, each with its length before it, and its size."""
    block: list[Buffer] = []
    room = BLOCK_BYTES
    for part in parts:
        view = memoryview(part).cast("B")
        while len(view):
            block.append(view[:room])
            view, room = view[room:], room - len(block[-1])
            if room == 0:
                yield block, BLOCK_BYTES
                block, room = [], BLOCK_BYTES
    if block:
        yield block, BLOCK_BYTES - room


# ---------------------------------------------------------------- answers


def _take_string(body: bytes, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from(">I", body, at)
    end = at + 4 + length
    if end > len(body):
        raise ProtocolError("an answer is shorter than it says")
    return body[at + 4 : end], end


def _pairs(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(body):
        name, at = _take_string(body, at)
        data, at = _take_string(body, at)
        yield name, data


def _take_attributes(body: bytes, at: int) -> tuple[Attributes, int]:
    (flags,), at = struct.unpack_from(">I", body, at), at + 4
    size = mode = modified = 0
    if flags & _HAS_SIZE:
        (size,), at = struct.unpack_from(">Q", body, at), at + 8
    if flags & _HAS_OWNER:
        at += 8
    if flags & _HAS_MODE:
        (mode,), at = struct.unpack_from(">I", body, at), at + 4
    if flags & _HAS_TIMES:
        (_, modified), at = struct.unpack_from(">II", body, at), at + 8
    if flags & _HAS_EXTENDED:
        (count,), at = struct.unpack_from(">I", body, at), at + 4
        for _ in range(count):
            _, at = _take_string(body, at)
            _, at = _take_string(body, at)
    return Attributes(size, mode, modified), at
