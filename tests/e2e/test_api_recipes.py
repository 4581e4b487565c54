"""The page about the API does what it says, typed into a shell against a real server and a real worker."""

import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.program import ROOT, Program

PAGE = ROOT / "docs" / "api.md"
READY_SECONDS_MAX = 60


@pytest.fixture
def server(program: Program) -> Iterator[str]:
    """A gunicorn and a worker on the program's data; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where: Any = {"cwd": ROOT, "env": program.environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    gunicorn = [sys.executable, "-m", "gunicorn", "--pythonpath", "platform,.", "-w1", "-b", f"127.0.0.1:{port}"]
    process = subprocess.Popen([*gunicorn, "config.wsgi"], **where)
    try:
        _ready(f"http://127.0.0.1:{port}/health/live")
        with program.worker():
            yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def _ready(address: str) -> None:
    ends = time.monotonic() + READY_SECONDS_MAX
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < ends, "the server does not answer"
            time.sleep(0.2)


def test_the_recipes_work(program: Program, server: str, tmp_path: Path) -> None:
    """Goal: what is copied from the page works. Method: all of its commands in one shell, a file lost before the restore."""
    folder = tmp_path / "assets"
    folder.mkdir()
    (folder / "a").write_text("one" * 5000)
    program.tenant("acme", assets=folder)
    program("master", "add", "boss")
    token = program("token", "add", "robot", "--scope", "admin")["token"]
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = ["set -eu -o pipefail", *blocks[:4], f"rm {folder}/a", *blocks[4:]]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env={**program.environment, "TOKEN": token, "URL": server},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert not (folder / "a").exists(), "undone: as it was before the restore"
    restores = program("restore", "list", "acme")["data"]
    assert [each["state"] for each in restores] == ["succeeded", "undone"]
