"""A Redis on loopback for one test, which can be stopped and started again on its port."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.services import cached_programs

START_SECONDS_MAX = 20.0


@dataclass
class RedisServer:
    """One server with its folder; nothing of it is kept on disk."""

    program: Path
    environment: dict[str, str]
    folder: Path
    port: int
    _process: "subprocess.Popen[bytes] | None" = field(default=None)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        plain = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self.folder))
        self._process = subprocess.Popen(
            [str(self.program), "--port", str(self.port), *plain],
            env={**os.environ, **self.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + START_SECONDS_MAX
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert time.monotonic() < until, "Redis does not start"
            time.sleep(0.05)

    def stop(self) -> None:
        """Kill it; what it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def redis_serving(folder: Path) -> Iterator[RedisServer | None]:
    """A running server for the block; None where there is no program (`make services` fetches it)."""
    found = cached_programs.redis()
    if found is None:
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    server = RedisServer(*found, folder, port)
    server.start()
    try:
        yield server
    finally:
        server.stop()
