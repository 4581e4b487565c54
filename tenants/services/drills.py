"""Drills asked for, their checks kept, and what became of them."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from django.db import IntegrityError, transaction

from audit.services import record
from core import clock
from core.errors import Conflict, NotFound, StateConflict
from core.text import counted
from engine.errors import LastroError, NameUnknown, UsageError
from operations.context import OperationContext
from operations.hook_actions import command_line
from operations.models import Operation
from operations.services import operation_enqueue
from tenants import tenant_sealing, wiring
from tenants.models import (
    Backup,
    BackupSource,
    Drill,
    DrillCheck,
    DrillState,
    Source,
    Tenant,
    Validation,
    ValidationStatus,
)
from tenants.models.backup import GOOD_STATES
from tenants.models.drill import CheckKind
from tenants.selectors import wrong_id_hint
from tenants.transitions import drill_transition

CHECKS_MAX = 200
QUESTION_CHARS_MAX = 20_000
ANSWER_CHARS_MAX = 64 << 10
TIMEOUT_SECONDS_MAX = 3600
_ERROR_CHARS_MAX = 2_000


def drill_start(
    tenant: Tenant,
    *,
    actor: str,
    backup: Backup | None = None,
    sources: Sequence[str] = (),
    reason: str = "",
    here: bool = False,
) -> tuple[Drill, Operation]:
    """Queue a drill of one backup, the tenant's newest good one unless named.

    Raises NotFound when there is none, UsageError for a backup of another tenant or a source that it does not hold.
    """
    backup = backup or _newest(tenant)
    if backup.tenant_id != tenant.pk:
        raise UsageError(f"{backup.pk} is a backup of another tenant", hint=f"backup list {tenant.slug}")
    kept = BackupSource.objects.filter(backup=backup, state=BackupSource.State.KEPT)
    held = sorted(kept.values_list("name", flat=True))
    unknown = [name for name in sources if name not in held]
    if unknown:
        raise NameUnknown(
            f"backup {backup.pk} does not hold source {unknown[0]!r}", hint=f"it holds: {', '.join(held)}"
        )
    with transaction.atomic():
        drill = Drill.objects.create(
            tenant=tenant,
            backup=backup,
            sources=[name for name in held if not sources or name in sources],
            created_by=actor,
        )
        operation = operation_enqueue(
            kind="drill", tenant=tenant.slug, params={}, subject_id=drill.pk, actor=actor, reason=reason, here=here
        )
        Drill.objects.filter(pk=drill.pk).update(operation_id=operation.pk)
        drill.operation_id = operation.pk
        record(
            "drill.requested",
            message=f"drill of {tenant.slug} with {backup.pk}",
            actor=actor,
            tenant=tenant.slug,
            data={"drill": drill.pk, "backup": backup.pk, "sources": drill.sources},
        )
    return drill, operation


def _newest(tenant: Tenant) -> Backup:
    rows = Backup.objects.filter(tenant=tenant, state__in=GOOD_STATES, damaged=False).select_related("tenant__store")
    newest = rows.exclude(trigger="safety").order_by("-number").first()
    if newest is None:
        raise NotFound(f"tenant {tenant.slug} has no good backup to rehearse with", hint=f"backup create {tenant.slug}")
    return newest


def drill_get(drill_id: str) -> Drill:
    """Find a drill. Raises NotFound."""
    try:
        return Drill.objects.select_related("tenant__store", "backup__tenant__store").get(pk=drill_id)
    except Drill.DoesNotExist:
        raise NotFound(
            f"there is no drill {drill_id[:60]!r}", hint=wrong_id_hint(drill_id, "drl_", "drill list TENANT shows them")
        ) from None


def drill_pending(tenant: Tenant) -> Drill | None:
    """A drill of the tenant that has not ended yet."""
    return Drill.objects.filter(tenant=tenant, state=DrillState.RUNNING).order_by("id").first()


def drill_list(tenant: Tenant, *, limit: int) -> list[Drill]:
    """The tenant's drills, newest first."""
    return list(Drill.objects.filter(tenant=tenant).select_related("tenant", "backup").order_by("-id")[:limit])


def drill_evidence(drill: Drill) -> dict[str, Any]:
    """Checks and figures, opened with the tenant's key. Raises WrongKey once that is shredded."""
    if not drill.evidence:
        return {"sources": [], "checks": []}
    keyring = tenant_sealing.keyring_of(drill.tenant)
    return dict(tenant_sealing.document_open(keyring, f"drill:{drill.pk}", bytes(drill.evidence)))


def drill_finished(
    context: OperationContext,
    drill: Drill,
    evidence: Mapping[str, Any],
    *,
    restore_ms: int,
    restored_bytes: int,
    duration_ms: int,
) -> Drill:
    """Record how a drill ended, under the lease, with the validation record that proves it."""
    checks = [dict(each) for each in evidence["checks"]]
    failed = sum(not check["passed"] for check in checks)
    state = DrillState.FAILED if failed or not checks else DrillState.PASSED
    sealed = tenant_sealing.document_seal(tenant_sealing.keyring_of(drill.tenant), f"drill:{drill.pk}", evidence)
    with transaction.atomic():
        context.fence()
        _end(
            drill,
            state,
            evidence=sealed,
            checks_passed=len(checks) - failed,
            checks_failed=failed,
            restore_ms=restore_ms,
            restored_bytes=restored_bytes,
            duration_ms=duration_ms,
        )
        Validation.objects.create(
            tenant=drill.tenant,
            backup=drill.backup,
            drill=drill,
            status=ValidationStatus.PASSED if state == DrillState.PASSED else ValidationStatus.FAILED,
            duration_ms=duration_ms,
            checks=[{key: check[key] for key in ("source", "name", "passed")} for check in checks],
            report={"sources": drill.sources},
        )
        record(
            f"drill.{state}",
            message=f"drill {drill.pk} of {drill.tenant.slug} {state}: {len(checks) - failed} of {counted(len(checks), 'check')}",
            actor=context.operation.actor,
            tenant=drill.tenant.slug,
            level="info" if state == DrillState.PASSED else "error",
            data={"drill": drill.pk, "backup": drill.backup_id, "restore_ms": restore_ms, "failed": failed},
        )
    return drill


def drill_failed(drill: Drill, error: LastroError, *, actor: str, duration_ms: int = 0) -> None:
    """Record a drill that did not come to its end; one that has ended stays."""
    with transaction.atomic():
        try:
            _end(
                drill,
                DrillState.FAILED,
                error_code=error.code,
                error=error.message[:_ERROR_CHARS_MAX],
                error_hint=error.hint[:_ERROR_CHARS_MAX],
                duration_ms=duration_ms,
            )
        except StateConflict:
            return
        record(
            "drill.failed",
            # The code and not the words, which may name tables and rows: entries outlive a shredded tenant.
            message=f"drill {drill.pk} of {drill.tenant.slug} failed: {error.code}",
            actor=actor,
            tenant=drill.tenant.slug,
            level="error",
            data={"drill": drill.pk, "code": error.code},
        )


def _end(drill: Drill, to: DrillState, **fields: Any) -> None:
    drill_transition(drill, to=to, finished_at=clock.now(), **fields)


# ---------------------------------------------------------------- an operator's own checks


def check_add(
    source: Source,
    name: str,
    *,
    kind: str,
    ask: str,
    expected: str = "",
    timeout_seconds: int = 60,
    actor: str,
    tried: bool = True,
) -> tuple[DrillCheck, str | None]:
    """Keep a check, and say what the live source answers to its question now; None when that is not known.

    Of tables that tenants share, the question is only compiled; commands and with `tried` false nothing is tried. Raises
    UsageError for one that cannot be right or asked, SourceError, TargetError, Conflict for a name that is taken.
    """
    if not name or len(name) > 60 or not name.isprintable():
        raise UsageError(f"{name[:80]!r} cannot be the name of a check", hint="1 to 60 printable characters")
    if not 1 <= timeout_seconds <= TIMEOUT_SECONDS_MAX:
        raise UsageError(f"a time limit is 1 to {TIMEOUT_SECONDS_MAX} seconds")
    if kind == CheckKind.COMMAND:
        command_line(ask)
    elif not ask.strip() or len(ask) > QUESTION_CHARS_MAX or "\0" in ask:
        raise UsageError(
            "the question is empty or too long", hint='one SELECT, for example "SELECT count(*) > 0 FROM users"'
        )
    elif "sql" not in _asks(source):
        raise UsageError(f"source {source.name} ({source.kind}) answers no SQL", hint="use --command NAME")
    if len(expected) > ANSWER_CHARS_MAX:
        raise UsageError("the expected answer is longer than 64 KiB", hint="ask for a count or a digest")
    if DrillCheck.objects.filter(source=source).count() >= CHECKS_MAX:
        raise UsageError(f"source {source.name} has {CHECKS_MAX} checks already")
    answer = _tried(source, ask, timeout_seconds) if tried and kind == CheckKind.SQL else None
    try:
        with transaction.atomic():
            row = DrillCheck.objects.create(
                source=source,
                name=name,
                kind=CheckKind(kind),
                ask=ask,
                expected=expected,
                timeout_seconds=timeout_seconds,
            )
            record(
                "drill.check_added",
                message=f"check {name} of source {source.name}",
                actor=actor,
                tenant=source.tenant.slug,
                # Not the question itself: it may name what is in the data, and what stands here can never be cleared.
                data={
                    "source": source.name,
                    "check": name,
                    "kind": kind,
                    "ask_sha256": hashlib.sha256(ask.encode()).hexdigest(),
                },
            )
    except IntegrityError:
        raise Conflict(f"source {source.name} has a check {name!r} already", hint="remove it first") from None
    return row, answer


def _tried(source: Source, ask: str, seconds: int) -> str | None:
    try:
        answer = wiring.connector_open(source).question_try(ask, seconds=seconds)
    except LastroError as error:
        hint = f"{error.hint}; " if error.hint else ""
        error.hint = f"{hint}nothing was saved; --no-try saves it untried"
        raise
    return answer.strip() if answer is not None else None


def _asks(source: Source) -> tuple[str, ...]:
    return ("sql", "command") if source.kind in ("postgresql", "sqlite") else ("command",)


def check_remove(source: Source, name: str, *, actor: str) -> None:
    """Remove a check. Raises NotFound."""
    row = DrillCheck.objects.filter(source=source, name__iexact=name).first()
    if row is None:
        raise NotFound(f"source {source.name} has no check {name[:60]!r}", hint="drill checks TENANT shows them")
    with transaction.atomic():
        record(
            "drill.check_removed", message=f"check {row.name} of {source.name}", actor=actor, tenant=source.tenant.slug
        )
        row.delete()


def checks_of(tenant: Tenant) -> list[DrillCheck]:
    """Every check of the tenant's sources."""
    return list(
        DrillCheck.objects.filter(source__tenant=tenant).select_related("source").order_by("source__name", "name")
    )


def drills_uncleared(tenant: Tenant, *, but: Drill) -> list[Drill]:
    """Earlier drills that may have left something behind."""
    return list(Drill.objects.filter(tenant=tenant, cleared=False).exclude(pk=but.pk).order_by("id"))


def sources_of(drill: Drill) -> list[Source]:
    """The drill's sources that still exist, in order. Raises NotFound when one is gone."""
    found = {source.name: source for source in Source.objects.filter(tenant=drill.tenant, name__in=drill.sources)}
    gone = [name for name in drill.sources if name not in found]
    if gone:
        raise NotFound(
            f"source {gone[0]} was removed", hint=f"leave it out: --source {' --source '.join(found) or 'NAME'}"
        )
    return [found[name] for name in drill.sources]


def scratch_name(drill: Drill, number: int) -> str:
    """The name of a throw-away target: known from the drill alone, so that it can be cleared later."""
    return f"lastro_{drill.pk}_{number}"


def scratch_clear(drill: Drill) -> None:
    """Remove all throw-away targets of a drill; repeating it is safe. Raises TargetError."""
    present = {source.name: source for source in Source.every.filter(tenant=drill.tenant, name__in=drill.sources)}
    for number, name in enumerate(drill.sources):
        if name in present:
            wiring.connector_open(present[name]).scratch_drop(scratch_name(drill, number), wiring.scratch_site())
    Drill.objects.filter(pk=drill.pk).update(cleared=True)
