"""Schedules in real processes: kills at every step, a catalogue that goes away, workers killed and added on two machines' worth."""

import contextlib
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.apps.installation import Installation, alive, wait_until

TENANTS = 8


def _set_up(place: Installation, *settings: str) -> None:
    fact = f"from core.models import Fact; Fact.objects.create(name='clock.tenants', value='{TENANTS}')"
    assert place("shell", "-v0", "-c", fact).code == 0
    chosen = [word for each in settings for word in ("--set", each)]
    added = place("schedule", "add", "nightly", "--work", "test.clock", "--cron", "0 0 1 1 *", *chosen)
    assert added.code == 0, added.err


def _runs(place: Installation) -> list[dict[str, Any]]:
    return place("schedule", "runs", "nightly", "--limit", "200", "--json").json["data"]


def _operations(place: Installation) -> Counter[str]:
    rows = place("operation", "list", "--limit", "200", "--json").json["data"]
    return Counter(row["tenant"] for row in rows)


def test_a_kill_at_every_step_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Goal: whenever the planner dies, the next tick does the rest, once; kill it at each label."""
    place = Installation(tmp_path)
    _set_up(place)
    assert place("schedule", "set", "nightly", "--cron", "*/10 * * * *").code == 0
    for label in ("schedule.planned", "schedule.expected"):
        assert place("schedule", "tick", LASTRO_KILL_AT=label).code == -signal.SIGKILL
    assert _runs(place) == [], "what was not committed has not happened"
    assert place("schedule", "tick", "--json").json["planned"] == 2 * TENANTS
    killed = place("schedule", "run", "nightly", LASTRO_KILL_AT="schedule.begun:3")
    assert killed.code == -signal.SIGKILL and _operations(place) == {}
    due = [run for run in _runs(place) if run["planned_for"] == run["due_at"]]
    assert {run["state"] for run in due} == {"expected"}
    assert place("schedule", "tick", LASTRO_KILL_AT="schedule.released").code == -signal.SIGKILL
    assert place("schedule", "tick", "--json").json["released"] == 0
    assert set(_operations(place).values()) == {1} and len(_operations(place)) == TENANTS
    assert Counter(run["state"] for run in _runs(place)) == {"running": TENANTS, "expected": 2 * TENANTS}
    assert place("audit", "verify").code == 0


def _family_killed(pid: int) -> None:
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    wait_until(lambda: not any(alive(member.pid) for member in family[1:]), what="they are dead")


@pytest.mark.postgres
def test_workers_killed_and_added_in_mid_run(tmp_path: Path, postgres_database: str) -> None:
    """Goal: a night on two machines ends well although one dies and one is added; and a failover of the catalogue before.

    Two workers in one PostgreSQL catalogue hold two tenants each; all of the first's processes are killed, a third starts.
    """
    place = Installation(tmp_path, database_url=postgres_database)
    _set_up(place, "how=failover")
    refused = place("schedule", "run", "nightly", "--json")
    assert refused.json["error"]["code"] == "catalogue.unready", refused.err
    assert {run["state"] for run in _runs(place)} == {"expected"} and _operations(place) == {}
    assert place("schedule", "set", "nightly", "--set", f"folder={place.folder}").code == 0
    started = lambda: {path.stem for path in place.folder.glob("*.started")}  # noqa: E731 - asked again and again
    with place.worker() as first, place.worker() as second:
        wait_until(lambda: len(started()) == 4, what="both work")
        mine = {int(path.read_text()) for path in place.folder.glob("*.started")}
        theirs = {member.pid for member in psutil.Process(first.pid).children(recursive=True)}
        assert 0 < len(mine & theirs) < 4, "each has a part of it"
        lost = {path.stem for path in place.folder.glob("*.started") if int(path.read_text()) in theirs}
        _family_killed(first.pid)
        for path in place.folder.glob("*.held"):
            if path.read_text() in lost:
                path.unlink()
        with place.worker():
            (place.folder / "go").touch()
            wait_until(lambda: all(run["ended_at"] for run in _runs(place)), what="every run ends", pause=0.5)
        assert second.poll() is None
    runs = _runs(place)
    assert Counter(run["state"] for run in runs) == {"ok": TENANTS}
    assert {run["attempts"] for run in runs if run["operation"] not in started()} <= {1, 2}
    assert sum(run["attempts"] - 1 for run in runs) == len(lost) == 2, "begun again in the place of what was lost"
    done = "from core.models import Fact; print(Fact.objects.filter(name__startswith='done:').count())"
    assert place("shell", "-v0", "-c", done).out.strip() == str(TENANTS), "each was done once"
