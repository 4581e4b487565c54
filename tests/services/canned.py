"""A server that gives the answers it was told to: for what no emulator answers."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; a body longer or shorter than `length` is a lie on purpose."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None


class CannedServer(ThreadingHTTPServer):
    """Gives `answers` in turn, the last one for ever; `requests` holds what was asked: (method, target)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.answers: list[Answer] = [Answer()]
        self.requests: list[tuple[str, str]] = []

    def give(self, *answers: Answer) -> None:
        """What is answered from now on."""
        self.answers, self.requests = list(answers), []

    def next(self, method: str, target: str) -> Answer:
        """Count a request and return its answer."""
        self.requests.append((method, target))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: CannedServer

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self.server.next(self.command, self.path)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        length = len(answer.body) if answer.length is None else answer.length
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else answer.body)
        self.close_connection = length != len(answer.body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _answer  # noqa: N815 - the names that http.server looks for

    def log_message(self, format: str, *args: object) -> None:
        """Tests say what they saw."""


@contextmanager
def canned() -> Iterator[CannedServer]:
    """A server for the block."""
    with CannedServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
