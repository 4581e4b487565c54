"""Ids, clock, transitions, errors, files that are written once."""

import datetime
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from core import clock, ids
from core.durable import read_or_create
from core.errors import Busy, Exit, NotFound, StateConflict, meaning, problem
from core.models import StateChange
from engine import errors as engine_errors
from operations.models import Operation, OperationState
from operations.transitions import operation_to

NOON = datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC)


def test_ids_sort_by_time_and_never_repeat() -> None:
    """Goal: ids are a total order within a process; make many from several threads and when the clock steps back."""
    made: list[list[str]] = [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda out=out: out.extend(ids.new_id("bkp") for _ in range(5_000))) for out in made
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(out == sorted(out) for out in made)
    assert len({each for out in made for each in out}) == 20_000
    assert all(ids.is_id(each, "bkp") and len(each) == 30 for each in made[0])


def test_an_id_says_its_millisecond() -> None:
    """Goal: ids made a moment apart in different processes sort by that moment; decode the first ten digits."""
    before, made, after = time.time_ns() // 1_000_000, ids.new_id("opr"), time.time_ns() // 1_000_000
    value = 0
    for digit in made.removeprefix("opr_")[:10]:
        value = value * 32 + "0123456789abcdefghjkmnpqrstvwxyz".index(digit)
    assert before <= value <= after + 1


def test_a_forked_child_makes_ids_of_its_own() -> None:
    """Goal: workers are forks and must not count on from one value; compare a child's next ids with the parent's."""
    ids.new_id("opr")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, "\n".join(ids.new_id("opr") for _ in range(100)).encode())
        os._exit(0)
    mine = {ids.new_id("opr") for _ in range(100)}
    os.close(writing)
    with os.fdopen(reading) as pipe:
        theirs = set(pipe.read().split())
    os.waitpid(child, 0)
    assert len(theirs) == 100
    assert not mine & theirs


def test_the_clock_can_be_held() -> None:
    """Goal: rules about time are tested without waiting; hold the clock and move it."""
    with clock.held(NOON) as advance:
        assert clock.now() == clock.catalogue_now() == NOON
        advance(datetime.timedelta(hours=1))
        assert clock.now() == NOON + datetime.timedelta(hours=1)
    assert abs(clock.now() - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=1)


def _operation(**fields: object) -> Operation:
    return Operation.objects.create(kind="none", actor="test", requested_at=clock.now(), **fields)


@pytest.mark.django_db
def test_a_transition_leaves_its_history() -> None:
    """Goal: every state change has one row of history; make one and read both."""
    operation = _operation()
    operation_to(operation, OperationState.RUNNING, actor="ana", reason="claimed", worker="w1")
    assert (operation.state, operation.worker) == ("running", "w1")
    change = StateChange.objects.get(subject_id=operation.pk)
    assert (change.subject_type, change.from_state, change.to_state) == ("operation", "queued", "running")
    assert (change.actor, change.reason) == ("ana", "claimed")


@pytest.mark.django_db
def test_of_two_transitions_one_wins() -> None:
    """Goal: a stale reader cannot overwrite a newer state; change a row behind an instance's back."""
    mine = _operation()
    other = Operation.objects.get(pk=mine.pk)
    operation_to(other, OperationState.CANCELLED)
    with pytest.raises(StateConflict, match="no longer queued"):
        operation_to(mine, OperationState.RUNNING, worker="late")
    mine.refresh_from_db()
    assert (mine.state, mine.worker) == ("cancelled", "")
    assert StateChange.objects.filter(subject_id=mine.pk).count() == 1


@pytest.mark.django_db
def test_a_final_state_is_final() -> None:
    """Goal: nothing leaves a final state; try every way out."""
    for final in ("succeeded", "warned", "failed", "cancelled", "lost"):
        operation = _operation(state=final)
        for to in OperationState.values:
            with pytest.raises(StateConflict, match="cannot become"):
                operation_to(operation, OperationState(to))
    assert StateChange.objects.count() == 0


@pytest.mark.django_db
def test_a_transition_can_expect_more_than_the_state() -> None:
    """Goal: the reaper loses to a heartbeat that came in between; expect a value that has changed."""
    operation = _operation(state="running", heartbeat_at=NOON)
    Operation.objects.filter(pk=operation.pk).update(heartbeat_at=NOON + datetime.timedelta(seconds=1))
    with pytest.raises(StateConflict):
        operation_to(operation, OperationState.LOST, expected={"heartbeat_at": NOON})
    operation.refresh_from_db()
    assert operation.state == "running"


def test_errors_mean_the_documented_exit_codes() -> None:
    """Goal: scripts can tell failures apart; ask for the code of one error of each sort, children included."""
    wanted = {
        engine_errors.UsageError("x"): 2,
        NotFound("x"): 4,
        engine_errors.BackupMissing("x"): 4,
        Busy("x"): 5,
        engine_errors.ChunkMissing("x"): 7,
        engine_errors.StoreUnreachable("x"): 9,
        engine_errors.StoreFull("x"): 1,
        engine_errors.CancelledError("x"): 130,
        engine_errors.TargetOccupied("x"): 6,
    }
    assert {type(error).__name__: int(meaning(error).exit) for error in wanted} == {
        type(error).__name__: code for error, code in wanted.items()
    }


def test_every_error_has_a_code_of_its_own_and_a_meaning() -> None:
    """Goal: codes are stable names; walk the whole tree of errors."""
    kinds, todo = set(), [engine_errors.LastroError]
    while todo:
        kind = todo.pop()
        kinds.add(kind)
        todo += kind.__subclasses__()
    named = [kind for kind in kinds if "code" in vars(kind)]
    assert len({kind.code for kind in named}) == len(named)
    assert all(isinstance(meaning(kind).exit, Exit) for kind in kinds)


def test_a_problem_holds_what_an_answer_needs() -> None:
    """Goal: one description of an error for rows, commands and HTTP; make one."""
    made = problem(Busy("tenant:a is taken", hint="wait", operation="opr_1"))
    assert made["code"] == "operation.busy"
    assert (made["detail"], made["hint"], made["status"], made["retryable"], made["exit"]) == (
        "tenant:a is taken", "wait", 409, True, 5,
    )  # fmt: skip


_RACE = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from core.durable import read_or_create
import os
print(read_or_create(pathlib.Path(sys.argv[2]), lambda: os.urandom(16).hex().encode()).decode())
"""


def test_of_many_that_create_a_key_one_does(tmp_path: Path) -> None:
    """Goal: processes that start together agree on one key; race real processes for one file."""
    path = tmp_path / "keys" / "some.key"
    racing = [
        subprocess.Popen([sys.executable, "-c", _RACE, "platform", str(path)], stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    said = {process.communicate()[0].strip() for process in racing}
    assert said == {path.read_text()}
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert list(path.parent.iterdir()) == [path], "a draft was left behind"


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    """Goal: an existing key stays; ask for it again with another maker."""
    path = tmp_path / "some.key"
    assert read_or_create(path, lambda: b"first") == b"first"
    assert read_or_create(path, lambda: b"second") == b"first"
