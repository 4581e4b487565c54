"""An operation as the command line and the API give it (API of operations)."""

from typing import Any

from core import clock
from operations.models import ACTIVE_STATES, Operation, OperationState


def operation_json(operation: Operation) -> dict[str, Any]:
    """The public fields of an operation; times are datetimes."""
    error = operation.error
    return {
        "id": operation.pk,
        "kind": operation.kind,
        "state": operation.state,
        "phase": operation.phase,
        "phases": operation.phases,
        "progress": _progress(operation),
        "heartbeat_at": operation.heartbeat_at,
        "cancellable": operation.cancellable and operation.state in (OperationState.QUEUED, OperationState.RUNNING),
        "actor": operation.actor,
        "tenant": operation.tenant,
        "subject_id": operation.subject_id,
        "reason": operation.reason,
        "attempt": operation.attempt,
        "retry_of": operation.retry_of,
        "worker": operation.worker,
        "warnings": operation.warnings,
        "requested_at": operation.requested_at,
        "started_at": operation.started_at,
        "finished_at": operation.finished_at,
        "result": operation.result,
        "error": {key: value for key, value in error.items() if key != "exit"} if error else None,
    }


def _progress(operation: Operation) -> dict[str, Any]:
    done, total = operation.bytes_done, operation.bytes_total
    if not total:
        done, total = operation.items_done, operation.items_total
    rate = _bytes_per_second(operation)
    left = operation.bytes_total - operation.bytes_done if operation.bytes_total else None
    return {
        "percent": min(100, round(100 * done / total, 1)) if total else None,
        "bytes_done": operation.bytes_done,
        "bytes_total": operation.bytes_total,
        "items_done": operation.items_done,
        "items_total": operation.items_total,
        "rate_bps": round(rate) if rate else None,
        "eta_s": round(max(0, left) / rate) if rate and left is not None else None,
    }


def _bytes_per_second(operation: Operation) -> float | None:
    if operation.state not in ACTIVE_STATES or operation.phase_started_at is None or not operation.bytes_done:
        return None
    seconds = (clock.now() - operation.phase_started_at).total_seconds()
    return operation.bytes_done / seconds if seconds > 0 else None
