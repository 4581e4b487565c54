"""The copies of all tenants, a bounded number at a time, each under an operation, a lease and a record of its own."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

from django.db import connection

from core.errors import Busy
from engine.errors import CancelledError, LastroError
from operations.context import OperationContext
from operations.models import Operation, OperationState
from operations.services import operation_cancel, operation_run
from tenants.models import Copy
from tenants.services.copies import copies_page, copy_run_start, copy_verify_start

FAILED_NAMED_MAX = 100
_FIRST_WARNED = 20


def all_run(context: OperationContext, *, what: str, at_once: int) -> Mapping[str, Any]:
    """Work through every copy (with a verification the primaries too); one that fails stops no other."""
    counts: Counter[str] = Counter()
    failed: list[dict[str, str]] = []
    waiting = iter(copies_page(primaries=what != "run"))
    running: dict[Future[Operation | None], tuple[Copy, Operation]] = {}
    with ThreadPoolExecutor(at_once, thread_name_prefix="copies") as pool:
        try:
            while True:
                for copy in islice(waiting, at_once - len(running)):
                    operation = _begin(context, copy, what)
                    running[pool.submit(_work, operation.pk)] = (copy, operation)
                if not running:
                    break
                done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                context.check()
                for future in done:
                    copy, operation = running.pop(future)
                    _count(context, copy, future.result(), counts, failed)
        except BaseException:
            _stop(running.values())
            raise
    return {"counts": dict(counts), "failed": failed}


def _begin(context: OperationContext, copy: Copy, what: str) -> Operation:
    actor, reason = context.operation.actor, f"copies of all tenants ({context.operation.pk})"
    if what == "run":
        return copy_run_start(copy, actor=actor, reason=reason, here=True)
    return copy_verify_start(copy, mode=what, actor=actor, reason=reason, here=True)


def _work(operation_id: str) -> Operation | None:
    """Run one in this thread; None when somebody else works on that copy just now."""
    try:
        return operation_run(operation_id, here=True)
    except Busy:
        return None
    finally:
        connection.close()


def _count(
    context: OperationContext,
    copy: Copy,
    ended: Operation | None,
    counts: Counter[str],
    failed: list[dict[str, str]],
) -> None:
    context.advance(items=1)
    if ended is None:
        counts["busy"] += 1
        return
    counts[ended.state] += 1
    if ended.state in (OperationState.SUCCEEDED, OperationState.WARNED):
        return
    told = (ended.error or {}).get("detail", ended.state)
    if len(failed) < FAILED_NAMED_MAX:
        failed.append({"tenant": copy.tenant.slug, "store": copy.store.name, "operation": ended.pk, "error": told})
    if len(failed) <= _FIRST_WARNED:
        context.warn("copies.failed", f"{copy.tenant.slug} in {copy.store.name}: {told} ({ended.pk})")


def _stop(running: Any) -> None:
    """Ask those under way to stop; each records its own end."""
    for _, operation in running:
        try:
            operation_cancel(operation.pk, actor="system:copies", reason="the run over all tenants was stopped")
        except (LastroError, CancelledError):
            continue
