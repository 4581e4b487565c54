"""`operation list|show|cancel|retry|run|forget|reap`."""

from core.cli import Answer, Call, NounCommand, Verb, argument, count
from core.errors import Conflict
from operations.following import operation_complain, operation_exit, operation_follow
from operations.history import history_forget
from operations.models import OperationState
from operations.presentation import operation_json
from operations.running import operation_run
from operations.selectors import LIST_MAX, operation_get, operation_list
from operations.services import operation_cancel, operation_retry, operations_reap

_ID = argument("operation", help="id of the operation (opr_…)")
_DONE = (OperationState.SUCCEEDED, OperationState.WARNED)
_REASON = argument("--reason", default="", help="why, for the record")


def list_(call: Call) -> Answer:
    options = call.options
    rows = operation_list(
        tenant=options.tenant, states=options.state or (), kind=options.kind, before=options.before, limit=options.limit
    )
    return Answer(
        {"data": [operation_json(row) for row in rows]},
        text=[
            f"{row.pk}  {row.state:<10} {row.kind:<18} {row.tenant:<20} {row.requested_at:%Y-%m-%d %H:%M:%S}"
            for row in rows
        ]
        or ["none"],
    )


def show(call: Call) -> dict:
    return operation_json(operation_get(call.options.operation))


def cancel(call: Call) -> dict:
    return operation_json(operation_cancel(call.options.operation, actor=call.actor, reason=call.options.reason))


def retry(call: Call) -> Answer:
    options = call.options
    operation = operation_retry(options.operation, actor=call.actor, reason=options.reason, here=options.here)
    operation = operation_follow(call, operation)
    operation_complain(call, operation)
    return Answer(operation_json(operation), exit=operation_exit(operation))


def run(call: Call) -> Answer:
    operation = operation_get(call.options.operation)
    if operation.is_final:
        hint = "" if operation.state in _DONE else f"do it again: operation retry {operation.pk}"
        raise Conflict(f"operation {operation.pk} is {operation.state}: only a queued one can be run", hint=hint)
    operation = operation_run(operation.pk, here=True)
    operation_complain(call, operation)
    return Answer(operation_json(operation), exit=operation_exit(operation))


def forget(call: Call) -> Answer:
    dry_run = call.options.dry_run
    gone = history_forget(actor=call.actor, dry_run=dry_run)
    lines = [f"{count} {noun}{' would go' if dry_run else ' are gone'}" for noun, count in gone.items() if count]
    return Answer({"dry_run": dry_run, "rows": gone}, lines or ["nothing is past its term"])


def reap(call: Call) -> dict:
    return {"lost": operations_reap()}


class Command(NounCommand):
    help = "Look at long work, stop it, do it again."
    verbs = (
        Verb(
            "list",
            list_,
            "newest first",
            (
                argument("tenant", nargs="?", default="", help="only this tenant's"),
                argument("--state", action="append", choices=OperationState.values),
                argument("--kind", default=""),
                argument("--before", default="", metavar="ID", help="go on after this id"),
                argument("--limit", type=count(LIST_MAX), default=50, help=f"at most {LIST_MAX}"),
            ),
        ),
        Verb("show", show, "one operation with progress and result", (_ID,)),
        Verb("cancel", cancel, "drop a queued operation, or ask a running one to stop", (_ID, _REASON)),
        Verb("retry", retry, "do again what was lost, failed or cancelled", (_ID, _REASON), long=True),
        Verb("run", run, "run a queued operation in this process", (_ID,)),
        Verb(
            "forget",
            forget,
            "drop from the catalogue what is past LASTRO_HISTORY_DAYS or LASTRO_EVIDENCE_DAYS; a worker does it daily",
            (argument("--dry-run", action="store_true", help="only say how much that is"),),
        ),
        Verb("reap", reap, "find operations whose worker is gone"),
    )
