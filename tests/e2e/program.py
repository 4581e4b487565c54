"""The program as an operator has it: `manage.py` in processes of their own, with a data folder of each test's own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.services.migrated import catalogue_put

ROOT = Path(__file__).resolve().parents[2]
COMMAND_SECONDS_MAX = 120
HEARTBEAT_SECONDS = 1


@dataclass(frozen=True)
class Said:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        answer = json.loads(self.out)
        assert isinstance(answer, dict)
        return answer


class Program:
    """Runs commands; every one of them is asked for JSON, and all that was said is kept in `said`."""

    def __init__(self, data: Path, **variables: str) -> None:
        self.data = data
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LASTRO_")}
        self.environment = {
            **kept,
            "LASTRO_DATA": str(data),
            "LASTRO_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
            "LASTRO_WORKERS": "2",
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "NO_COLOR": "1",
            **variables,
        }
        self.said: list[Said] = []
        if "LASTRO_DATABASE_URL" in variables:
            migrated = self.raw("migrate", "-v0", "--skip-checks")
            assert migrated.code == 0, migrated.err
        else:
            catalogue_put(data, self.environment)

    def let_go(self) -> None:
        """Have what a killed process held let go: after two heartbeats without a word it counts as lost."""
        time.sleep(2.2 * HEARTBEAT_SECONDS)
        self("operation", "reap")

    def argv(self, *args: object) -> list[str]:
        return [sys.executable, str(ROOT / "manage.py"), *map(str, args)]

    def raw(self, *args: object, **variables: str) -> Said:
        done = subprocess.run(
            self.argv(*args),
            cwd=ROOT,
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
        )
        said = Said(done.returncode, done.stdout, done.stderr)
        self.said.append(said)
        return said

    def __call__(self, *args: object, code: int = 0, **variables: str) -> dict[str, Any]:
        """Run a command, check its exit code, return its one JSON object."""
        said = self.raw(*args, "--json", **variables)
        assert said.code == code, f"{args}: exit {said.code}\n{said.out[-600:]}\n{said.err[-600:]}"
        return said.json

    def start(self, *args: object, **variables: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.argv(*args),
            cwd=ROOT,
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def tenant(self, slug: str, **folders: Path) -> None:
        self("tenant", "add", slug, "--name", slug.title())
        for name, folder in folders.items():
            self("source", "add", slug, name, "--kind", "files", "--category", "assets", "--set", f"path={folder}")

    def backup(self, slug: str, kind: str = "full", *more: object, code: int = 0) -> dict[str, Any]:
        return self("backup", "create", slug, "--type", kind, "--here", *more, code=code)

    def restore(self, backup: str, slug: str, *more: object, code: int = 0) -> dict[str, Any]:
        return self("restore", "run", backup, "--confirm", slug, "--here", *more, code=code)

    @contextlib.contextmanager
    def worker(self) -> Iterator["subprocess.Popen[bytes]"]:
        """Run the worker; it is stopped as a service manager would, and nothing of it stays."""
        with open(self.data.parent / "worker.log", "ab") as log:
            process = subprocess.Popen(
                self.argv("worker"), cwd=ROOT, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield process
        finally:
            stop(process)


def stop(process: "subprocess.Popen[Any]") -> None:
    """SIGTERM, patience, SIGKILL."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
    if process.poll() is None:
        process.kill()
        process.wait()


def tree(top: Path) -> dict[str, tuple[int, bytes]]:
    """Every path below a folder with its mode and bytes."""
    return {
        str(path.relative_to(top)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(top.rglob("*"))
    }
