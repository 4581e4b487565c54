"""Serving the page and running a worker as children, stopped together."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import tenants
from core.errors import Conflict

HOST = "127.0.0.1"
PORTS = range(8000, 8020)
STOP_SECONDS_MAX = 30
POLL_SECONDS = 0.2
_PDEATHSIG = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>


class Stopped(Exception):
    """SIGTERM came."""


def port_choose(wanted: int | None) -> int:
    """The wanted port, or the first free one of `PORTS`. Raises Conflict when there is none."""
    for port in (wanted,) if wanted else PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise Conflict(f"port {wanted or f'{PORTS[0]} to {PORTS[-1]}'} is taken", hint="choose one: --port N")


def serve(port: int, *, ready: Callable[[], None]) -> int:
    """Run page and worker until Ctrl-C, SIGTERM, or one of them ends; the exit code."""
    environment = _environment()
    commands = (
        [
            sys.executable,
            "-m",
            "gunicorn",
            "config.wsgi",
            "--bind",
            f"{HOST}:{port}",
            "--threads",
            "4",
            "--log-level",
            "warning",
        ],
        [sys.executable, os.path.abspath(sys.argv[0]), "worker", "--quiet"],
    )
    before = signal.signal(signal.SIGTERM, _stop)
    children: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:  # One by one, so that those started are stopped when the next cannot be.
            child = subprocess.Popen(
                command,
                env=environment,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                preexec_fn=_bound_to(os.getpid()),  # noqa: PLW1509 - one prctl call, nothing that could deadlock
            )
            children.append(child)
        _wait_for_port(port, children[0])
        ready()
        while all(child.poll() is None for child in children):
            time.sleep(POLL_SECONDS)
        return 1
    except (KeyboardInterrupt, Stopped):
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
        _stop_all(children)


def _bound_to(parent: int) -> Callable[[], None]:
    """What a child does first: ask the kernel for SIGTERM as soon as this process is gone, SIGKILL included."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux; found before the fork, which must not load anything.

    def bind() -> None:
        if prctl is not None:
            prctl(_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # It went before it could be asked for.
                os._exit(1)

    return bind


def _environment() -> dict[str, str]:
    root = Path(tenants.__file__).resolve().parent.parent
    paths = [str(root / "platform"), str(root), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


def _wait_for_port(port: int, child: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + STOP_SECONDS_MAX
    while time.monotonic() < end and child.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(POLL_SECONDS)


def _stop_all(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ask each to stop, wait, and kill what does not."""
    for child in children:
        if child.poll() is None:
            child.terminate()
    for child in children:
        try:
            child.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
