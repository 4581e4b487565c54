"""An installation of its own for a test: a data folder, a catalogue, the real programs."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.services.migrated import catalogue_put

ROOT = Path(__file__).resolve().parents[2]
HEARTBEAT_SECONDS = 1
WAIT_SECONDS_MAX = 60.0
COMMAND_SECONDS_MAX = 90


@dataclass(frozen=True)
class Said:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


class Installation:
    """Runs `manage.py` on a data folder, as an operator would."""

    def __init__(self, folder: Path, *, database_url: str = "", migrate: bool = True) -> None:
        self.data = folder / "data"
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LASTRO_")}
        self.environment = {
            **kept,
            "LASTRO_DATA": str(self.data),
            "LASTRO_DATABASE_URL": database_url,
            "LASTRO_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
            "LASTRO_WORKERS": "2",
            "DJANGO_SETTINGS_MODULE": "tests.apps.worker_settings",
            "NO_COLOR": "1",
        }
        if migrate and not database_url:
            catalogue_put(self.data, self.environment)
        assert not migrate or not database_url or self("migrate", "--skip-checks", "-v0").code == 0

    def argv(self, *args: str) -> list[str]:
        return [sys.executable, str(ROOT / "manage.py"), *args]

    def __call__(self, *args: str, stdin: str = "", **variables: str) -> Said:
        done = subprocess.run(
            self.argv(*args), cwd=ROOT, env={**self.environment, **variables}, input=stdin, capture_output=True, text=True,
            timeout=COMMAND_SECONDS_MAX,
        )  # fmt: skip
        return Said(done.returncode, done.stdout, done.stderr)

    def ask(self, kind: str, *, tenant: str = "aurora", **params: str) -> str:
        """Queue an operation for the workers and return its id."""
        said = self("work", "ask", kind, "--tenant", tenant, "--params", json.dumps(params), "--detach", "--json")
        assert said.code == 0, said.err
        return str(said.json["id"])

    def operation(self, operation_id: str) -> dict[str, Any]:
        return self("operation", "show", operation_id, "--json").json

    def state(self, operation_id: str) -> str:
        return str(self.operation(operation_id)["state"])

    @contextlib.contextmanager
    def worker(self) -> Iterator["subprocess.Popen[bytes]"]:
        """Run the worker command; it is stopped as a service manager would, and nothing of it stays."""
        with open(self.folder / "worker.log", "ab") as log:
            process = subprocess.Popen(
                self.argv("worker"), cwd=ROOT, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
            if process.poll() is None:
                process.kill()
                process.wait()

    def log(self) -> str:
        path = self.data / "log" / "lastro.log"
        return path.read_text() if path.exists() else ""


def wait_until(true: Callable[[], object], *, what: str, pause: float = 0.05) -> None:
    """Wait for something that must come; how long it takes is not what is tested."""
    until = time.monotonic() + WAIT_SECONDS_MAX
    while not true():
        assert time.monotonic() < until, f"waited in vain: {what}"
        time.sleep(pause)


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
