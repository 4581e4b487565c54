"""The programs that are compared: ours through its command line, and the peers that are installed."""

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.measure import CommandFailed, Run, run
from tests.bench.place import remove, tree_bytes

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "LASTRO_BENCH_{}"


@functools.cache
def find(name: str) -> str | None:
    """Path of a peer: LASTRO_BENCH_<NAME>, else the one on PATH; None when it is not installed."""
    return os.environ.get(VARIABLE.format(name.upper())) or shutil.which(name)


@functools.cache
def version(program: str) -> str:
    """What a program says of its version, in short."""
    for flag in ("--version", "version"):
        done = subprocess.run([program, flag], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if found := re.search(r"v?(\d+\.\d+[\w.-]*)", done.stdout):
            return found[1]
    return "unknown version"


def plain_environment() -> dict[str, str]:
    """The environment of every measured command: nothing of this program's, Python's or the peers' settings."""
    own = ("LASTRO_", "RESTIC_", "PYTHON", "PG")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    return {**kept, "LC_ALL": "C.UTF-8", "TZ": "UTC", "NO_COLOR": "1"}


@functools.cache
def compile_code() -> None:
    """Have our modules byte-compiled, as those of an installed program are."""
    folders = [ROOT / name for name in ("platform", "tenants", "releases")]
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", *map(str, folders)],
        env=plain_environment(), stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip


class Lastro:
    """An installation with a data folder of its own, used as a script would use it."""

    name = "lastro"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.env = {**plain_environment(), "LASTRO_DATA": str(folder)}
        compile_code()
        self._call("migrate", "--verbosity", "0")

    def argv(self, *arguments: object) -> list[str]:
        """The command line of one verb."""
        return [sys.executable, "manage.py", *map(str, arguments)]

    def _call(self, *arguments: object) -> str:
        done = subprocess.run(
            self.argv(*arguments), env=self.env, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise CommandFailed(f"{' '.join(map(str, arguments))[:200]}: {done.stdout[-500:]}{done.stderr[-1500:]}")
        return done.stdout

    def tenant(self, slug: str, *, kind: str, category: str, settings: dict[str, object]) -> None:
        """Add a tenant with one source, untimed."""
        self._call("tenant", "add", slug, "--name", slug.title())
        sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        self._call("source", "add", slug, "data", "--kind", kind, "--category", category, *sets)

    def measure(self, *arguments: object) -> Run:
        """Run one verb in its own process and measure it."""
        return run(self.argv(*arguments, "--json"), env=self.env, cwd=ROOT)

    def backup(self, slug: str, *, full: bool) -> Run:
        """Take a backup."""
        return self.measure("backup", "create", slug, "--type", "full" if full else "incremental", "--here")

    def restore(self, backup: str, slug: str, target: str) -> Run:
        """Restore a backup to another place."""
        return self.measure("restore", "run", backup, "--mode", "full", "--target", target, "--confirm", slug, "--here")

    def verify(self, backup: str) -> Run:
        """Read back and authenticate every byte of a backup."""
        return self.measure("backup", "verify", backup, "--deep", "--here")

    def repository_bytes(self) -> int:
        """What lies in the store."""
        return tree_bytes(self.store)

    def discard(self) -> None:
        """Remove everything."""
        remove(self.folder)


class Restic:
    """A restic repository with its cache on the same disk."""

    name = "restic"

    def __init__(self, program: str, folder: Path, *, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.repository = folder / "repository"
        self.env = {
            **plain_environment(),
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": str(folder / "cache"),
            **(env or {}),
        }
        self.program = program
        self.measure("init")

    def measure(self, *arguments: object) -> Run:
        """Run one command and measure it."""
        return run([self.program, "--quiet", *map(str, arguments)], env=self.env)

    def repository_bytes(self) -> int:
        """What lies in the repository."""
        return tree_bytes(self.repository)

    def discard(self) -> None:
        """Remove everything."""
        remove(self.folder)


def source_state() -> str:
    """The commit that was measured, with a mark when the tree differs from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def answer_of(run_: Run) -> dict[str, Any]:
    """The JSON object of a run of ours that must have been good."""
    answer = run_.answer
    if answer.get("error"):
        raise CommandFailed(str(answer["error"]))
    return answer
