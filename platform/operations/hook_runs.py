"""What hooks did and said. What an application says may be about its users: it is kept sealed under the tenant's key."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.db.models import Q

from audit.services import record
from core.tenancy import tenancy_get
from engine.errors import LastroError
from operations.hook_settings import hook_get
from operations.models import HookRun
from operations.selectors import operation_get

_OUTPUT = "output"


def output_put(run: HookRun, text: str) -> None:
    """Seal what the hook said by the key of the tenant it ran for; without one (a test for no tenant) nothing is kept."""
    tenancy = tenancy_get()
    if not text or tenancy is None or run.tenant not in tenancy.known([run.tenant]):
        return
    # A key that is gone is no reason to fail what the hook belongs to.
    with suppress(LastroError):
        run.sealed = tenancy.seal(run.tenant, _context(run), {_OUTPUT: text})


def output_of(run: HookRun) -> str | None:
    """What the hook said, "" for nothing; None when the key that sealed it is gone."""
    tenancy = tenancy_get()
    if not run.sealed or tenancy is None:
        return run.output
    try:
        return str(tenancy.open(run.tenant, _context(run), bytes(run.sealed))[_OUTPUT])
    except LastroError:
        return None


def _context(run: HookRun) -> str:
    return f"hook_run:{run.pk}"


@dataclass(frozen=True)
class RunSaid:
    """A run with what it said; None when the key that sealed that is gone."""

    run: HookRun
    output: str | None
    reason: str = ""
    """Why it failed, in our own words; nothing of the application's."""


def hook_runs(*, actor: str, operation: str = "", hook: str = "", limit: int) -> list[RunSaid]:
    """Runs with what they said, newest first; reading that is recorded. Raises NotFound for what there is not."""
    rows = HookRun.objects.order_by("-id").filter(
        Q(operation_id=operation) if operation else Q(), Q(hook_name__iexact=hook) if hook else Q()
    )
    found = [RunSaid(run, output_of(run)) for run in rows[:limit]]
    if not found:
        if operation:
            operation_get(operation)
        if hook:
            hook_get(hook)
    for tenant in sorted({each.run.tenant for each in found if each.output}):
        read = [each.run.pk for each in found if each.output and each.run.tenant == tenant]
        about: Mapping[str, Any] = {"runs": len(read), "newest": read[0], "operation": operation, "hook": hook}
        record("hook.output_read", message=f"what {len(read)} hooks said", actor=actor, tenant=tenant, data=about)
    return found
