"""A proxy in front of an S3 server that fails on purpose: what no real server does when asked to.

It passes bytes on unchanged (signatures hold, because the Host header does) and strikes at the Nth request that a fault
fits. Every request is remembered, so that a test can count them.
"""

import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

Operation = Literal["put", "create", "get", "head", "list", "delete", "delete_many", "part", "other"]
Kind = Literal[
    "500", "503", "SlowDown", "429", "403", "507", "reset", "timeout", "lost_reply",
    "truncated", "shortened", "drip", "stale_list", "truncated_list",
]  # fmt: skip
READS: frozenset[Operation] = frozenset({"get", "list"})
WRITES: frozenset[Operation] = frozenset({"put", "create", "delete", "delete_many", "part"})
_FITTING: dict[str, frozenset[Operation]] = {
    "lost_reply": WRITES,
    "507": frozenset({"put", "create", "part"}),
    "truncated": READS,
    "shortened": frozenset({"get"}),
    "drip": READS,
    "stale_list": frozenset({"list"}),
    "truncated_list": frozenset({"list"}),
}
_CODES = {
    "500": (500, "InternalError"), "503": (503, "ServiceUnavailable"), "SlowDown": (503, "SlowDown"),
    "429": (429, "TooManyRequests"), "403": (403, "AccessDenied"), "507": (507, "InsufficientStorage"),
}  # fmt: skip
HEAD_BYTES_MAX = 1 << 20
STALE_ITEMS = 2


@dataclass(frozen=True, slots=True)
class HttpFault:
    """One way to fail, `times` in a row, from the `at`-th (from 1) of the requests that it fits.

    - a status: answered without asking the server. `reset`: the connection breaks before the server is asked.
    - `timeout`: no answer for `seconds`. `lost_reply`: done, and the connection breaks instead of an answer.
    - `truncated`: half of the body, then the end. `shortened`: half of the body, and a Content-Length that says so.
    - `drip`: the body in small pieces over `seconds`.
    - `stale_list`: the newest objects are missing. `truncated_list`: half of the objects, as if that were all.
    """

    kind: Kind
    operation: Operation | None = None
    at: int = 1
    times: int = 1
    seconds: float = 1.5

    def fits(self, operation: Operation) -> bool:
        """Tell whether the fault counts this request."""
        return self.operation in (None, operation) and operation in _FITTING.get(self.kind, frozenset({operation}))


class FaultProxy(socketserver.ThreadingTCPServer):
    """Listens on a loopback port; `faults` may be changed at any time."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, target_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target_port = target_port
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[tuple[Operation, str]] = []
        self.struck = 0
        self._faults: list[HttpFault] = []
        self._passages: dict[int, int] = {}
        self._lock = threading.Lock()

    @property
    def faults(self) -> list[HttpFault]:
        return self._faults

    @faults.setter
    def faults(self, faults: list[HttpFault]) -> None:
        with self._lock:
            self._faults, self._passages, self.struck = list(faults), {}, 0

    def begin(self, operation: Operation, key: str) -> HttpFault | None:
        """Count the request and return the fault that strikes it."""
        with self._lock:
            self.requests.append((operation, key))
            for number, fault in enumerate(self._faults):
                if fault.fits(operation):
                    passage = self._passages[number] = self._passages.get(number, 0) + 1
                    if fault.at <= passage < fault.at + fault.times:
                        self.struck += 1
                        return fault
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that break are the point."""


@contextmanager
def fault_proxy(target_port: int) -> Iterator[FaultProxy]:
    """A proxy for the block, without faults at first."""
    with FaultProxy(target_port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


# ---------------------------------------------------------------- inner parts


@dataclass
class _Message:
    """A request or an answer: its head with the empty line, its body."""

    head: bytes
    body: bytes

    @property
    def start(self) -> str:
        return self.head.split(b"\r\n", 1)[0].decode("latin-1")

    def header(self, name: str) -> str:
        found = re.search(rb"(?im)^" + name.encode() + rb":[ \t]*(.*?)\r$", self.head)
        return found[1].decode("latin-1") if found else ""

    def with_body(self, body: bytes) -> "_Message":
        head = re.sub(rb"(?im)^content-length:.*?\r$", b"Content-Length: %d\r" % len(body), self.head)
        return _Message(head, body)


class _Broken(Exception):
    """The other end went away."""


class _Handler(socketserver.BaseRequestHandler):
    server: FaultProxy

    def handle(self) -> None:
        upstream: socket.socket | None = None
        client: socket.socket = self.request
        with suppress(_Broken, OSError):
            while True:
                request = _read(client, continues=True)
                fault = self.server.begin(*_operation(request))
                if fault is not None and fault.kind == "timeout":
                    time.sleep(fault.seconds)
                    return
                if fault is not None and fault.kind == "reset":
                    _reset(client)
                    return
                if fault is not None and fault.kind in _CODES:
                    client.sendall(_refusal(*_CODES[fault.kind], bodiless=request.start.startswith("HEAD ")))
                    continue
                if upstream is None:
                    upstream = socket.create_connection(("127.0.0.1", self.server.target_port), timeout=60)
                upstream.sendall(request.head + request.body)
                answer = _read(upstream, bodiless=request.start.startswith("HEAD "))
                if not self._answer(client, answer, fault):
                    return
        if upstream is not None:
            upstream.close()

    def _answer(self, client: socket.socket, answer: _Message, fault: HttpFault | None) -> bool:
        """Send the answer, or what the fault makes of it; False when the connection ends with it."""
        kind = fault.kind if fault is not None else ""
        if kind == "lost_reply":
            _reset(client)
            return False
        if kind == "truncated":
            client.sendall(answer.head + answer.body[: len(answer.body) // 2])
            return False
        if kind == "drip" and fault is not None:
            client.sendall(answer.head)
            size = max(1, len(answer.body) // 10)
            for at in range(0, len(answer.body), size):
                time.sleep(fault.seconds / 10)
                client.sendall(answer.body[at : at + size])
            return True
        if kind == "shortened":
            answer = answer.with_body(answer.body[: len(answer.body) // 2])
        if kind in ("stale_list", "truncated_list"):
            answer = answer.with_body(_lying(answer.body, stale=kind == "stale_list"))
        client.sendall(answer.head + answer.body)
        return True


def _operation(request: _Message) -> tuple[Operation, str]:
    method, target, _ = request.start.split(" ", 2)
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    key = unquote(parts.path).partition("/")[2].partition("/")[2]
    if method == "GET" and not key:
        return ("list" if "list-type" in query else "other"), query.get("prefix", [""])[0]
    if method == "POST":
        return ("delete_many" if "delete" in query else "other"), key
    if method == "PUT" and "partNumber" in query:
        return "part", key
    if method == "PUT" and key and not query:
        return ("create" if request.header("If-None-Match") else "put"), key
    plain: dict[str, Operation] = {"GET": "get", "HEAD": "head", "DELETE": "delete"}
    return plain.get(method, "other"), key


def _read(connection: socket.socket, *, bodiless: bool = False, continues: bool = False) -> _Message:
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connection.recv(65536)
        if not piece or len(head) > HEAD_BYTES_MAX:
            raise _Broken
        head += piece
    head, _, body = head.partition(b"\r\n\r\n")
    message = _Message(head + b"\r\n\r\n", body)
    if message.start.startswith("HTTP/1.1 100"):
        return _read(connection, bodiless=bodiless)
    if bodiless or " 204 " in message.start or " 304 " in message.start:
        return message
    if message.header("Transfer-Encoding").lower() == "chunked":
        return _unchunked(connection, message)
    if continues and message.header("Expect"):
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        message.head = re.sub(rb"(?im)^expect:.*?\r\n", b"", message.head)
    wanted = int(message.header("Content-Length") or 0)
    pieces, have = [body], len(body)
    while have < wanted:
        piece = connection.recv(min(1 << 20, wanted - have))
        if not piece:
            raise _Broken
        pieces.append(piece)
        have += len(piece)
    message.body = b"".join(pieces)
    return message


def _unchunked(connection: socket.socket, message: _Message) -> _Message:
    """An answer in chunks as one with a length."""
    raw, body = message.body, b""
    while True:
        while b"\r\n" not in raw:
            raw += connection.recv(65536) or _raise_broken()
        line, _, rest = raw.partition(b"\r\n")
        size = int(line.split(b";")[0], 16)
        while len(rest) < size + 2:
            rest += connection.recv(65536) or _raise_broken()
        body, raw = body + rest[:size], rest[size + 2 :]
        if size == 0:
            head = re.sub(rb"(?im)^transfer-encoding:.*?\r\n", b"", message.head)
            return _Message(head[:-2] + b"Content-Length: %d\r\n\r\n" % len(body), body)


def _raise_broken() -> bytes:
    raise _Broken


def _refusal(status: int, code: str, *, bodiless: bool) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
    head = f"HTTP/1.1 {status} Injected\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + (b"" if bodiless else body)


def _lying(body: bytes, *, stale: bool) -> bytes:
    """The listing without its newest objects, or without its second half, otherwise well-formed."""
    items = re.findall(rb"<Contents>.*?</Contents>", body, re.DOTALL)
    if stale:
        modified = [re.search(rb"<LastModified>(.*?)</LastModified>", item) for item in items]
        order = sorted(range(len(items)), key=lambda n: modified[n][1] if modified[n] else b"")  # type: ignore[index]
        left_out = set(order[-STALE_ITEMS:])
    else:
        left_out = set(range(len(items) // 2, len(items)))
    for number in left_out:
        body = body.replace(items[number], b"", 1)
    return re.sub(rb"<KeyCount>\d+<", b"<KeyCount>%d<" % (len(items) - len(left_out)), body)


def _reset(connection: socket.socket) -> None:
    """End the connection with a reset instead of a farewell."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
