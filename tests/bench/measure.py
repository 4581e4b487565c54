"""Runs a program and counts what it took: wall time, CPU time and peak memory, children included."""

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run took. CPU is user and system time; the peak is that of its largest process."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int


def run(command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Usage:
    """Run a program to its end; a failure ends the benchmark, with what the program said."""
    with (Path(cwd or ".") / ".bench-output").open("w+b") as output:
        os.unlink(output.name)
        began = time.monotonic()
        process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            said = output.read()[-2000:].decode(errors="replace")
            raise RuntimeError(f"{' '.join(map(str, command))[:200]}: exit {process.returncode}: {said}")
    return Usage(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def tree_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def version(program: str, *arguments: str) -> str:
    """What a peer says it is; "" when it is not installed."""
    if shutil.which(program) is None:
        return ""
    done = subprocess.run([program, *(arguments or ("--version",))], capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().splitlines()[0]
