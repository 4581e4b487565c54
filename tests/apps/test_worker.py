"""Operations in real worker processes: kills, rivals, pauses, on both kinds of catalogue."""

import datetime
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.apps.installation import HEARTBEAT_SECONDS, Installation, alive, wait_until


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Installation:
    url = request.getfixturevalue("postgres_database") if request.param == "postgresql" else ""
    return Installation(tmp_path, database_url=url)


def _started(place: Installation, operation_id: str) -> int:
    """Wait until the work has begun and return the process that does it."""
    path = place.folder / f"{operation_id}.started"
    wait_until(lambda: path.exists() and path.read_text(), what="the work begins")
    return int(path.read_text())


def _ended(place: Installation, operation_id: str) -> str:
    final = {"succeeded", "warned", "failed", "cancelled", "lost"}
    wait_until(lambda: place.state(operation_id) in final, what="the operation ends", pause=0.2)
    return place.state(operation_id)


def test_a_killed_worker_loses_its_operation_and_the_next_run_succeeds(place: Installation) -> None:
    """Goal: kill -9 leaves an operation that is lost, a free tenant and a rerun that works; kill a real worker."""
    with place.worker():
        first = place.ask("test.work", folder=str(place.folder))
        pid = _started(place, first)
        os.kill(pid, signal.SIGKILL)
        (place.folder / "aurora.held").unlink()  # what a process holds dies with it; a file does not
        assert _ended(place, first) == "lost"
        lost = place.operation(first)
        assert lost["error"]["code"] == "operation.lost"
        assert first in lost["error"]["hint"]
        (place.folder / "go").touch()
        again = place("operation", "retry", first, "--json")
        assert (again.code, again.json["state"], again.json["attempt"]) == (0, "succeeded", 2)
    types = [entry["type"] for entry in place("audit", "list", "--json").json["data"]]
    assert types.count("operation.lost") == 1
    assert place("audit", "verify").code == 0


def test_a_whole_dead_host_is_found_by_the_next_worker(place: Installation) -> None:
    """Goal: nothing runs for ever; kill every process of a worker at once, then start another one."""
    with place.worker() as process:
        first = place.ask("test.work", folder=str(place.folder))
        _started(place, first)
        family = psutil.Process(process.pid).children(recursive=True)
        for member in [*family, psutil.Process(process.pid)]:
            member.kill()
        wait_until(lambda: not any(alive(member.pid) for member in family), what="they are dead")
    assert place.state(first) == "running"
    with place.worker():
        assert _ended(place, first) == "lost"


def test_one_tenant_one_operation_and_tenants_in_parallel(place: Installation) -> None:
    """Goal: two workers never work on one tenant, and nobody waits for a stranger; two clusters, three tenants' work."""
    with place.worker(), place.worker():
        rivals = [place.ask("test.work", folder=str(place.folder), go="go-aurora") for _ in range(3)]
        others = [place.ask("test.work", tenant=slug, folder=str(place.folder)) for slug in ("boreal", "cobre")]
        running = {_started(place, other) for other in others}
        assert len(running) == 2, "two tenants in two processes, both while aurora is being worked on"
        (place.folder / "go").touch()
        (place.folder / "go-aurora").touch()
        # The work itself fails when it finds its tenant held (an exclusive create).
        assert {_ended(place, each) for each in (*rivals, *others)} == {"succeeded"}


def test_a_running_operation_can_be_stopped(place: Installation) -> None:
    """Goal: the wish to stop reaches the work in another process; cancel it from the command line."""
    with place.worker():
        operation = place.ask("test.work", folder=str(place.folder))
        _started(place, operation)
        assert place("operation", "cancel", operation, "--reason", "enough").code == 0
        assert _ended(place, operation) == "cancelled"
    assert not (place.folder / "aurora.held").exists(), "the work cleaned up behind itself"


def test_a_worker_that_slept_too_long_records_nothing(place: Installation) -> None:
    """Goal: a lease that ran out cannot be used; stop a process for longer than its lease lives, let it go on."""
    with place.worker():
        slow = place.ask("test.work", folder=str(place.folder))
        pid = _started(place, slow)
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: place.state(slow) == "lost", what="it is given up", pause=0.2)
            (place.folder / "aurora.held").unlink()
            (place.folder / "go").touch()
            assert place("operation", "retry", slow, "--json").json["state"] == "succeeded"
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: f"operation {slow} ended as" in place.log(), what="the late one ends")
        assert place.state(slow) == "lost"
    done = place(
        "shell",
        "-v0",
        "-c",
        "from core.models import Fact; print(Fact.objects.filter(name__startswith='done').count())",
    )
    assert done.out.strip() == "1"


def test_sigterm_stops_cleanly_and_leaves_nobody(tmp_path: Path) -> None:
    """Goal: a service manager can stop it; SIGTERM to the command alone, then look for its processes."""
    place = Installation(tmp_path)
    with place.worker() as process:
        done = place.ask("test.quick")
        wait_until(lambda: place.state(done) == "succeeded", what="it works", pause=0.2)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    wait_until(lambda: not any(alive(member.pid) for member in family), what="all have gone")


def test_the_cluster_does_not_outlive_its_command(tmp_path: Path) -> None:
    """Goal: no worker without its supervisor; SIGKILL the command, then look for the others."""
    place = Installation(tmp_path)
    with place.worker() as process:
        done = place.ask("test.quick")
        wait_until(lambda: place.state(done) == "succeeded", what="it works", pause=0.2)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        wait_until(lambda: not any(alive(member.pid) for member in family), what="all have gone")


def test_a_task_that_was_lost_with_its_queue_is_handed_out_again(tmp_path: Path) -> None:
    """Goal: the queue is no authority; throw its contents away, move the time of the next look, and it still runs."""
    place = Installation(tmp_path)
    operation = place.ask("test.quick")
    forget = "from django_q.models import OrmQ; OrmQ.objects.all().delete()"
    hurry = "from operations.models import Operation; Operation.objects.update(dispatch_after='2020-01-01T00:00Z')"
    assert place("shell", "-v0", "-c", f"{forget}; {hurry}").code == 0
    with place.worker():
        assert _ended(place, operation) == "succeeded"


def test_here_refuses_a_busy_tenant_and_names_the_holder(place: Installation) -> None:
    """Goal: a command that cannot run says who is in the way; start one in a worker, a second one here."""
    with place.worker():
        running = place.ask("test.work", folder=str(place.folder))
        _started(place, running)
        refused = place("work", "ask", "test.quick", "--here", "--json")
        assert refused.code == 5
        assert refused.json["error"]["code"] == "operation.busy"
        assert running in refused.json["error"]["detail"]
        (place.folder / "go").touch()
        assert _ended(place, running) == "succeeded"
        rows = place("operation", "list", "--state", "failed", "--json").json["data"]
        assert [row["error"]["code"] for row in rows] == ["operation.busy"], "the refusal is on record"


def test_ctrl_c_here_stops_the_work_and_says_so(tmp_path: Path) -> None:
    """Goal: an interrupted command ends as cancelled, cleaned up; send SIGINT to the command."""
    place = Installation(tmp_path)
    argv = place.argv("work", "ask", "test.work", "--params", f'{{"folder": "{place.folder}"}}', "--here", "--json")
    with subprocess.Popen(
        argv, env=place.environment, cwd=Path(__file__).resolve().parents[2], stdout=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: list(place.folder.glob("*.started")), what="the work begins")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert '"state": "cancelled"' in out
    assert not (place.folder / "aurora.held").exists()


def test_a_heartbeat_keeps_long_work_alive(tmp_path: Path) -> None:
    """Goal: work longer than its lease is not lost; let it run for several leases while others look for lost ones."""
    place = Installation(tmp_path)
    with place.worker():
        operation = place.ask("test.work", folder=str(place.folder))
        _started(place, operation)
        until = time.monotonic() + 5 * HEARTBEAT_SECONDS
        while time.monotonic() < until:
            assert place("operation", "reap", "--json").json == {"lost": []}
        (place.folder / "go").touch()
        assert _ended(place, operation) == "succeeded"
    shown = place.operation(operation)
    assert (shown["phase"], shown["progress"]["bytes_done"], shown["progress"]["items_done"]) == ("write", 5, 1)


@pytest.mark.parametrize("label", ["operation.claimed", "operation.worked", "operation.recorded", "operation.reaped"])
def test_a_kill_at_every_step_leaves_it_to_the_reaper(tmp_path: Path, label: str) -> None:
    """Goal: whenever the process dies the operation is lost, the tenant free and a rerun works; kill at each label."""
    place = Installation(tmp_path)
    killed_first = "operation.claimed" if label == "operation.reaped" else label
    assert place("work", "ask", "test.quick", "--here", LASTRO_KILL_AT=killed_first).code == -signal.SIGKILL
    (row,) = place("operation", "list", "--json").json["data"]
    assert row["state"] == "running", "what was not committed has not happened"
    wait_until(lambda: _is_silent(row), what="two heartbeats pass")
    if label == "operation.reaped":
        assert place("operation", "reap", LASTRO_KILL_AT=label).code == -signal.SIGKILL
        assert place.state(row["id"]) == "running"
    assert place("operation", "reap", "--json").json == {"lost": [row["id"]]}
    again = place("operation", "retry", row["id"], "--here", "--json")
    assert (again.code, again.json["state"]) == (0, "succeeded")
    assert place("audit", "verify").code == 0


def _is_silent(row: dict[str, Any]) -> bool:
    silence = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(row["heartbeat_at"])
    return silence > datetime.timedelta(seconds=2 * HEARTBEAT_SECONDS)


def test_a_kill_while_a_key_is_made_leaves_no_half_key(tmp_path: Path) -> None:
    """Goal: a key file is whole or absent; kill the first start, then start again."""
    place = Installation(tmp_path, migrate=False)
    assert place("check", LASTRO_KILL_AT="key.drafted").code == -signal.SIGKILL
    assert not list((place.data / "keys").glob("[!.]*"))
    assert place("migrate", "--skip-checks", "-v0").code == 0
    assert place("work", "ask", "test.quick", "--here").code == 0


def test_workers_killed_while_idle_do_not_deafen_the_others(tmp_path: Path) -> None:
    """Goal: a worker that dies waiting takes the queue's lock along; kill the idle ones, then ask for work."""
    place = Installation(tmp_path)
    with place.worker() as process:
        first = place.ask("test.quick")
        wait_until(lambda: place.state(first) == "succeeded", what="it works", pause=0.2)
        for member in psutil.Process(process.pid).children(recursive=True):
            if "idle" in " ".join(member.cmdline()):
                member.kill()
        assert _ended(place, place.ask("test.quick")) == "succeeded"
