"""Measures whole commands: wall time, processor time, peak memory and bytes read of a process and all it starts.

Wall and processor time come from the kernel when the command is reaped (wait4 counts its reaped children, too).
Peak memory is sampled: the kernel's own ru_maxrss keeps the high-water mark of the process that forked, so a
small command would be charged with the size of this one. VmHWM starts anew with every program and is itself a
high-water mark, so a sample only misses what grows in the last interval.
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.05
COMMAND_SECONDS_MAX = 1800.0
STDERR_SHOWN = 2000


class CommandFailed(Exception):
    """A measured command ended with an error, so its figures mean nothing."""


@dataclass(frozen=True)
class Run:
    """What one command cost."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    sum_bytes: int
    read_bytes: int
    durable_seconds: float
    """Wall time until everything written is on disk, too."""
    output: str

    @property
    def answer(self) -> dict[str, Any]:
        """The JSON object that the command printed."""
        found: dict[str, Any] = json.loads(self.output)
        return found


def run(argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path | None = None) -> Run:
    """Run a command to its end and measure it.

    Dirty pages are written out first, untimed, so that no command pays for the one before it. Output goes to files, so
    that this process does not take part. Raises CommandFailed with the end of its standard error.
    """
    os.sync()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        begun = time.monotonic()
        process = subprocess.Popen(
            [str(part) for part in argv], env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL,
            stdout=output, stderr=errors, start_new_session=True,
        )  # fmt: skip
        sampler = _Sampler(process.pid)
        try:
            sampler.start()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            wall = time.monotonic() - begun
            read = _read_bytes(process.pid)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            sampler.stop()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        os.sync()
        durable = time.monotonic() - begun
        output.seek(0)
        said = output.read().decode(errors="replace")
        if process.returncode:
            errors.seek(0)
            why = (errors.read().decode(errors="replace") or said)[-STDERR_SHOWN:]
            raise CommandFailed(f"{' '.join(map(str, argv))[:300]}: exit {process.returncode}: {why}")
    peak, together = sampler.peak_bytes or usage.ru_maxrss * 1024, sampler.sum_bytes or usage.ru_maxrss * 1024
    return Run(wall, usage.ru_utime + usage.ru_stime, peak, together, read, durable, said)


def pipeline(command: str, *, env: Mapping[str, str], cwd: Path | None = None) -> Run:
    """Measure a shell pipeline as one command; any part that fails fails it."""
    return run(["bash", "-c", f"set -euo pipefail; {command}"], env=env, cwd=cwd)


def _read_bytes(pid: int) -> int:
    """Bytes that the ended process and its reaped children took in by read calls (sockets do not count)."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            if line.startswith("rchar:"):
                return int(line.split()[1])
    return 0


class _Sampler(threading.Thread):
    """Watches the memory of a process and its descendants until stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self.sum_bytes = 0
        self._pid = pid
        self._ended = threading.Event()

    def run(self) -> None:
        until = time.monotonic() + COMMAND_SECONDS_MAX
        while not self._ended.is_set():
            self._sample()
            if time.monotonic() > until:
                os.killpg(self._pid, signal.SIGKILL)
            self._ended.wait(SAMPLE_SECONDS)

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def _sample(self) -> None:
        together = 0
        for pid in _family(self._pid):
            peak, now = _memory(pid)
            self.peak_bytes = max(self.peak_bytes, peak)
            together += now
        self.sum_bytes = max(self.sum_bytes, together)


def _family(pid: int) -> list[int]:
    """The process and its living descendants."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{parent}/task"):
                with contextlib.suppress(OSError):
                    found += map(int, Path(f"/proc/{parent}/task/{thread}/children").read_text().split())
    return found


def _memory(pid: int) -> tuple[int, int]:
    """High-water mark and present resident size in bytes; zeros when the process is gone."""
    peak = now = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peak = int(line.split()[1]) * 1024
            elif line.startswith("VmRSS:"):
                now = int(line.split()[1]) * 1024
    return peak, now
