"""Commands that wait for a worker while none is there."""

import datetime
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import load_command_class
from django_q.models import Schedule

from core import clock
from core.errors import Exit
from operations import following
from operations.models import Operation
from operations.workers import worker_alive, worker_seen_at
from tenants.models import Backup
from tests.tenants.conftest import House

Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(noun: str, *argv: object) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        program: Any = load_command_class("tenants", noun)
        code = program.run([*map(str, argv), "--json", "--no-input"], noun=noun)
        said = capsys.readouterr()
        return code, json.loads(said.out), said.err

    return command


@pytest.mark.parametrize("verb", [("backup", "create"), ("drill", "run"), ("copy", "repair")])
def test_nobody_waits_for_a_worker_that_is_not_there(
    house: House, run: Run, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, str]
) -> None:
    """Goal: a script on a host without a worker ends, and nothing happens behind its back later; ask for long work alone."""
    monkeypatch.setattr(following, "UNCLAIMED_SECONDS", 0)
    tenant = house.tenant()
    house.files(tenant)
    house.backup(tenant)
    code, answer, told = run(*verb, "aurora")
    assert (code, answer["error"]["code"]) == (Exit.BUSY, "operation.no_worker"), answer
    assert "--here" in answer["error"]["hint"] and "none has ever run" in told
    assert Operation.objects.order_by("-pk")[0].state == "cancelled"
    assert not Backup.objects.filter(state="running").exists()
    code, answer, _ = run(*verb, "aurora", "--detach")
    assert (code, answer["state"]) == (Exit.OK, "queued"), "left for later when that was said"


def test_a_worker_is_known_by_its_signs(house: House) -> None:
    """Goal: neither a silent worker nor a busy one is misjudged; move its sign of life, and have one at work."""
    assert worker_seen_at() is None and not worker_alive()
    row = Schedule.objects.create(func="operations.tasks.reap", next_run=clock.now() + datetime.timedelta(seconds=30))
    assert worker_alive()
    Schedule.objects.filter(pk=row.pk).update(next_run=clock.now() - datetime.timedelta(minutes=10))
    assert not worker_alive()
    at_work = Operation.objects.create(
        kind="backup", tenant="aurora", actor="x", state="running", heartbeat_at=clock.now(), requested_at=clock.now()
    )
    assert worker_alive()
    Operation.objects.filter(pk=at_work.pk).update(here=True)
    assert not worker_alive(), "a command with --here does nobody else's work"
