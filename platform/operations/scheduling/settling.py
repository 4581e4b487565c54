"""How an expected run ends: as its operation did. Derived from the operation's row, so that it may be asked any time, twice."""

import datetime
import logging

from django.db import transaction

from audit.services import record
from core.errors import StateConflict
from engine.errors import LastroError
from operations.models import FINAL_STATES, ExpectedRun, Operation, OperationState, RunState
from operations.transitions import run_to

log = logging.getLogger(__name__)

ACTOR = "system:schedule"
ATTEMPTS_MAX = 3
"""Operations begun for one run: when its worker is lost it is begun again, so often."""
BATCH_MAX = 500

_ENDS = {
    OperationState.SUCCEEDED: RunState.OK,
    OperationState.WARNED: RunState.WARNED,
    OperationState.FAILED: RunState.FAILED,
    OperationState.CANCELLED: RunState.FAILED,
    OperationState.LOST: RunState.FAILED,
}


def run_settle(operation_id: str) -> bool:
    """Bring the run of an operation that has ended to its end; False when it has none that waits for it."""
    run = ExpectedRun.objects.filter(operation_id=operation_id, state=RunState.RUNNING).first()
    operation = Operation.objects.filter(pk=operation_id, state__in=FINAL_STATES).first() if run else None
    return bool(run and operation and _settle(run, operation))


def runs_settle(*, now: datetime.datetime) -> int:
    """Bring every run to its end whose operation has ended; how many."""
    running = list(ExpectedRun.objects.filter(state=RunState.RUNNING).order_by("released_at")[:BATCH_MAX])
    operations = Operation.objects.in_bulk([run.operation_id for run in running])
    count = 0
    for run in running:
        operation = operations.get(run.operation_id)
        if operation is None:
            count += _end(run, RunState.FAILED, now, "operation.gone", "its operation is no longer in the catalogue")
        elif operation.is_final:
            count += _settle(run, operation)
    return count


def _settle(run: ExpectedRun, operation: Operation) -> bool:
    state = OperationState(operation.state)
    if state == OperationState.LOST and run.attempts < ATTEMPTS_MAX and _again(run, operation):
        return False
    code = str((operation.error or {}).get("code", "")) if state != OperationState.SUCCEEDED else ""
    note = {OperationState.LOST: "its worker was lost", OperationState.CANCELLED: "it was cancelled"}.get(state, "")
    assert operation.finished_at is not None
    return _end(run, _ENDS[state], operation.finished_at, code, note)


def _end(run: ExpectedRun, to: RunState, at: datetime.datetime, code: str, note: str) -> bool:
    try:
        run_to(run, to, actor=ACTOR, reason=note or code, ended_at=at, error_code=code[:100], note=note)
    except StateConflict:
        return False  # Somebody else has seen the operation's end, too.
    return True


def _again(run: ExpectedRun, lost: Operation) -> bool:
    """Begin again what a lost worker left, in the place of the lost operation; False when that is refused."""
    from operations.services import operation_retry

    try:
        with transaction.atomic():
            again = operation_retry(lost.pk, actor=ACTOR, reason=f"its worker was lost: {lost.pk}")
            rows = ExpectedRun.objects.filter(pk=run.pk, state=RunState.RUNNING, operation_id=lost.pk)
            if not rows.update(operation_id=again.pk, attempts=run.attempts + 1):
                transaction.set_rollback(True)  # Another planner was faster.
    except LastroError as error:
        log.warning("run %s could not be begun again: %s", run.pk, error)
        record(
            "schedule.not_again",
            message=f"{run.schedule_name} was not begun again after its worker was lost: {error.code}",
            actor=ACTOR,
            tenant=run.tenant,
            level="error",
            data={"run": run.pk, "operation": lost.pk, "error": error.code},
        )
        return False
    return True
