"""The demo: equal at its end, repeatable, removable, and serving."""

import contextlib
import http.cookiejar
import re
import signal
import socket
import sqlite3
import time
import urllib.parse
import urllib.request
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.e2e.program import Program, stop


def test_the_demo_ends_equal_twice_and_leaves_nothing(program: Program) -> None:
    """Goal: the demo proves what it says and cleans up; run it twice beside a tenant of one's own, remove it."""
    program("tenant", "add", "mine", "--name", "Mine")
    program("overview", "rebuild")  # So that no change waits to be counted.
    before = _rows(program)
    for _ in range(2):
        said = program("demo", "--no-serve")
        assert said["equal"] is True
        assert said["differences"] == []
        assert all({"name", "duration_ms"} <= step.keys() for step in said["steps"])
        damage = next(step for step in said["steps"] if step["name"].startswith("damage"))
        assert damage["rows_deleted"] > 1_000
        assert damage["files_lost"] > 10
        assert damage["differences"] > 1_000
    assert [row["slug"] for row in program("tenant", "list")["data"]] == ["aurora", "boreal", "cobre", "mine"]
    program("demo", "remove")
    program("overview", "rebuild")
    assert _rows(program) == before
    assert not (program.data / "demo").exists()
    assert len(list((program.data / "store" / "r").iterdir())) == 1
    assert program("demo", "remove")["removed"]["tenants"] == 0
    program("audit", "verify")


def _rows(program: Program) -> dict[str, int]:
    """How many rows each table has, but for the audit log, which keeps everything, and who this installation is."""
    with sqlite3.connect(f"file:{program.data}/catalogue.sqlite3?mode=ro", uri=True) as catalogue:
        tables = [name for (name,) in catalogue.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        counts = {name: catalogue.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables}
    lasting = ("audit_", "sqlite_", "django_", "tenants_installation")
    return {name: count for name, count in counts.items() if not name.startswith(lasting)}


def test_the_demo_does_not_touch_a_tenant_of_that_name(program: Program) -> None:
    """Goal: somebody's own aurora is safe; add one, run the demo, remove the demo."""
    program("tenant", "add", "aurora", "--name", "My own")
    refused = program("demo", "--no-serve", code=1)
    assert "aurora" in refused["error"]["detail"]
    program("demo", "remove")
    assert [row["name"] for row in program("tenant", "list")["data"]] == ["My own"]


@pytest.mark.postgres
def test_the_demo_takes_a_postgresql_in_when_one_is_named(program: Program, postgres_database: str) -> None:
    """Goal: shared tables are part of the demo where there is a server; run it, look, remove it."""
    said = program("demo", "--no-serve", LASTRO_DEMO_DSN=postgres_database)
    assert said["equal"] is True
    damage = next(step for step in said["steps"] if step["name"].startswith("damage"))
    assert damage["shared_rows"] > 100
    program("demo", "remove", LASTRO_DEMO_DSN=postgres_database)
    with psycopg.connect(postgres_database) as connection:
        assert connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'lastro_demo'").fetchone() is None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_demo_serves_page_and_worker_until_it_is_stopped(program: Program, tmp_path: Path) -> None:
    """Goal: the first five minutes work; start it, log in with the password it printed, use the worker, stop it."""
    port = _free_port()
    process = program.start("demo", "--port", port, PYTHONUNBUFFERED="1")
    try:
        assert process.stdout is not None
        for line in process.stdout:
            found = re.search(r"http://127\.0\.0\.1:(\d+)/ +name: (\S+) +password \(shown once\): (\S+)", line)
            if found:
                break
        else:
            pytest.fail(f"no address was printed: {process.stderr.read() if process.stderr else ''}")
        page = _log_in(f"http://127.0.0.1:{port}", found[2], found[3])
        assert all(word in page for word in ("aurora", "boreal", "cobre", "succeeded"))
        assert not re.search(r"(?:src|href)=[\"'](?:https?:)?//", page)
        asked = program("backup", "create", "aurora", "--type", "incremental", "--wait")
        assert asked["state"] == "succeeded"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert '"level"' not in process.stderr.read(), "the worker's log would bury the address and the password"
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    finally:
        stop(process)


def test_nothing_of_a_killed_demo_stays(program: Program) -> None:
    """Goal: SIGKILL leaves no page and no worker behind; kill the serving demo, wait for all it had started."""
    port = _free_port()
    process = program.start("demo", "--port", port, PYTHONUNBUFFERED="1")
    started: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        assert any("password (shown once)" in line for line in process.stdout)
        deadline = time.monotonic() + 60
        while len(started) < 6 and time.monotonic() < deadline:  # Page and worker have started theirs.
            started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 6
        process.kill()
        _, left = psutil.wait_procs(started, timeout=60)
        assert left == []
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    finally:
        stop(process)
        for each in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def _log_in(address: str, name: str, password: str) -> str:
    jar = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    with opener.open(f"{address}/", timeout=20) as answer:
        form = answer.read().decode()
        assert "login" in answer.url
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', form)
    assert token
    fields = {"username": name, "password": password, "csrfmiddlewaretoken": token[1], "next": "/"}
    with opener.open(f"{address}/login/", data=urllib.parse.urlencode(fields).encode(), timeout=20) as answer:
        return str(answer.read().decode())
