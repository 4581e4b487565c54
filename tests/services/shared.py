"""A server that all test processes of one run share: started by the first that asks, ended with the last of them.

A guardian process owns the server. It waits for a lock that every test process holds as long as it lives, however it
ends; then it kills the server and removes its folder. `python -m tests.services.shared FOLDER PROGRAM …` is the guardian.
"""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_SECONDS_MAX = 60.0
START_TRIES_MAX = 5
_PDEATHSIG = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>
_held: dict[str, int] = {}
"""File descriptors of the locks that keep servers alive, by folder; closed by the kernel when this process ends."""


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class SharedServer:
    """One kind of server of this run. `facts` (its ports …) are the same in every process that uses it."""

    def __init__(
        self,
        name: str,
        *,
        command: Callable[[Path, Mapping[str, Any]], Sequence[str]],
        ports: Sequence[str],
        ready: Callable[[Mapping[str, Any]], bool],
        prepare: Callable[[Path, Mapping[str, Any]], None] = lambda folder, facts: None,
    ) -> None:
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
        self.folder = Path(tempfile.gettempdir(), f"lastro-{name}-{run}")
        self._name, self._command, self._ports, self._ready, self._prepare = name, command, ports, ready, prepare

    def facts(self) -> Mapping[str, Any]:
        """Where the server answers, by the names of its ports; starts it if no process of this run has yet."""
        with _mutex(self.folder):
            self.folder.mkdir(mode=0o755, exist_ok=True)
            if str(self.folder) not in _held:
                fd = os.open(self.folder / "users", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(fd, fcntl.LOCK_SH)
                _held[str(self.folder)] = fd
            for _ in range(START_TRIES_MAX):
                facts = self._running()
                if facts is not None:
                    return facts
                self._start()
        raise RuntimeError(f"{self._name} does not start: {self.log()[-2000:]}")

    def log(self) -> str:
        """What the server has said so far, for the message of a failing test."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _running(self) -> Mapping[str, Any] | None:
        try:
            facts: Mapping[str, Any] = json.loads((self.folder / "facts.json").read_text())
        except FileNotFoundError:
            return None
        return facts if self._ready(facts) else None

    def _start(self) -> None:
        facts = {name: free_port() for name in self._ports}
        data = self.folder / "data"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        self._prepare(data, facts)
        with open(self.folder / "log", "ab") as log:
            guardian = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), str(self.folder), *self._command(data, facts)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=data, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < until and guardian.poll() is None:
            if self._ready(facts):
                (self.folder / "facts.json").write_text(json.dumps(facts))
                return
            time.sleep(0.05)
        guardian.kill()  # The server dies with it; another port may have better luck.
        guardian.wait()


def answers(port: int) -> bool:
    """Whether something takes connections on this loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _mutex(folder: Path) -> Iterator[None]:
    """One process at a time starts or ends the server of this folder."""
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def die_with_parent() -> None:
    """Run in the child before it becomes the server: it ends with this process."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)


def guard(folder: Path, command: Sequence[str]) -> int:
    """Run the server until it ends by itself or nobody holds the users' lock any more."""
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env={**os.environ, "GOMEMLIMIT": "400MiB"},
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call, and this process has no threads
    )  # fmt: skip
    with open(folder / "users") as users:
        while server.poll() is None:
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.5)
                continue
            fcntl.flock(users, fcntl.LOCK_UN)
            with _mutex(folder):
                try:  # Again, now that nobody can join.
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                server.kill()
                server.wait()
                shutil.rmtree(folder, ignore_errors=True)
                Path(f"{folder}.lock").unlink(missing_ok=True)
                return 0
    return server.returncode or 0


if __name__ == "__main__":
    raise SystemExit(guard(Path(sys.argv[1]), sys.argv[2:]))
