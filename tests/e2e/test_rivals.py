"""Two sessions of one tenant: refused while the first lives, fenced when it was silent for too long."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.program import Program, tree

SECONDS_MAX = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Big enough that a backup of it can be caught in the act."""
    top = tmp_path / "assets"
    top.mkdir()
    for number in range(6):
        (top / f"part-{number}").write_bytes(os.urandom(12_000_000))
    return top


@contextlib.contextmanager
def _caught(program: Program, slug: str) -> Iterator["subprocess.Popen[str]"]:
    """A backup that stands still in the middle of its session, and goes on afterwards."""
    process = program.start("backup", "create", slug, "--here", "--json")
    catalogue = sqlite3.connect(f"file:{program.data}/catalogue.sqlite3?mode=ro", uri=True)
    deadline = time.monotonic() + SECONDS_MAX
    try:
        while time.monotonic() < deadline and process.poll() is None:
            if catalogue.execute("SELECT 1 FROM tenants_backup WHERE state = 'running' AND number > 0").fetchone():
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        catalogue.close()
        process.send_signal(signal.SIGCONT)


def test_a_second_backup_is_busy_and_another_tenant_is_not(tmp_path: Path, folder: Path) -> None:
    """Goal: one at a time per tenant, tenants in parallel; catch one in the act, ask for more, let it go on."""
    program = Program(tmp_path / "data", LASTRO_HEARTBEAT_SECONDS="60")
    program.tenant("aurora", assets=folder)
    program.tenant("boreal", assets=folder)
    with _caught(program, "aurora") as first:
        busy = program("backup", "create", "aurora", "--here", code=5)
        assert busy["error"]["code"] == "operation.busy"
        other = program.backup("boreal")
    out, err = first.communicate(timeout=60)
    assert (first.returncode, other["state"]) == (0, "succeeded"), out + err
    states = sorted(row["state"] for row in program("backup", "list", "aurora")["data"])
    assert states == ["failed", "succeeded"]


def test_a_session_that_was_silent_too_long_cannot_commit(tmp_path: Path, folder: Path) -> None:
    """Goal: a paused worker never commits late; let its lease end, take another backup, wake it up."""
    program = Program(tmp_path / "data", LASTRO_HEARTBEAT_SECONDS="1")
    program.tenant("aurora", assets=folder)
    with _caught(program, "aurora") as first:
        time.sleep(2.5)
        second = program.backup("aurora")
        listed = {row["number"]: row["state"] for row in program("backup", "list", "aurora")["data"]}
    first.communicate(timeout=60)
    assert first.returncode not in (0, 3)
    assert listed == {1: "failed", 2: "succeeded"}
    after = program("backup", "list", "aurora")["data"]
    assert {row["number"]: row["state"] for row in after} == listed
    assert program("backup", "verify", second["id"], "--deep", "--here")["status"] == "passed"
    program.restore(second["id"], "aurora", "--target", f"path={tmp_path}/out")
    assert tree(tmp_path / "out") == tree(folder)
    third = program.backup("aurora", "incremental")
    assert (third["parent"], third["number"]) == (second["id"], 3)
