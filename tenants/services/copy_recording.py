"""What a worker writes down about copies: which backups they hold, what was found in them, what was mended."""

import datetime
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from django.db import transaction

from audit.services import record
from core import clock
from engine.chunk_repair import RepairReport
from engine.copy import CopyReport
from engine.copy_prune import CopyPruneReport
from engine.errors import LastroError
from engine.fallback import FallbackNote
from engine.verify import Finding
from engine.verify_store import StoreReport
from operations.context import OperationContext
from tenants.copy_selectors import copy_primary, presences
from tenants.models import Backup, BackupCopy, BackupPresence, Copy, CopyFinding, CopyHealth, Tenant
from tenants.models.backup import GOOD_STATES

BATCH = 500
NAMED_MAX = 100
_KEY_CHARS_MAX = 300


def numbered(tenant: Tenant, numbers: Iterable[int]) -> dict[int, str]:
    """Ids of the tenant's backups by number."""
    wanted = sorted(set(numbers))
    found: dict[int, str] = {}
    for at in range(0, len(wanted), BATCH):
        rows = Backup.objects.filter(tenant=tenant, number__in=wanted[at : at + BATCH])
        found.update({number: pk for number, pk in rows.values_list("number", "pk") if number is not None})
    return found


def presence_put(
    copy: Copy,
    held: Collection[int],
    *,
    missing: Collection[int] = (),
    damaged: Collection[int] = (),
    sizes: Mapping[int, int] | None = None,
    verified: bool = False,
    complete: bool = True,
) -> None:
    """Write down which backups the copy holds, in the caller's transaction; rows that say so already stay as they are.

    With `complete` everything that is in none of the three is there no more, and its row goes.
    """
    now, sizes = clock.now(), sizes or {}
    wanted: dict[int, str] = dict.fromkeys(held, BackupPresence.PRESENT)
    wanted.update(dict.fromkeys(missing, BackupPresence.MISSING))
    wanted.update(dict.fromkeys(damaged, BackupPresence.DAMAGED))
    before = presences(copy)
    changed = {number for number, what in wanted.items() if before.get(number, ("",))[0] != what}
    ids = numbered(copy.tenant, changed)
    rows = [
        BackupCopy(
            copy=copy,
            backup_id=ids[number],
            presence=wanted[number],
            bytes=sizes.get(number, 0),
            copied_at=now if wanted[number] == BackupPresence.PRESENT else None,
        )
        for number in sorted(changed)
        if number in ids
    ]
    fields = ["presence", "bytes", "copied_at"] if sizes else ["presence"]
    BackupCopy.objects.bulk_create(
        rows, update_conflicts=True, unique_fields=["copy", "backup"], update_fields=fields, batch_size=BATCH
    )
    if complete:
        gone = [pk for number, (_, pk) in before.items() if number not in wanted]
        for at in range(0, len(gone), BATCH):
            BackupCopy.objects.filter(pk__in=gone[at : at + BATCH]).delete()
    if verified:
        BackupCopy.objects.filter(copy=copy, presence=BackupPresence.PRESENT).update(verified_at=now)


def copy_ran(context: OperationContext, copy: Copy, report: CopyReport, *, wanted: Collection[int]) -> None:
    """Record what a run brought and found."""
    missing = set(wanted) - report.held - set(report.gone)
    mended = set(report.mended)
    lost = {each.key: each for each in report.target_findings if each.key not in mended}
    health = CopyHealth.DAMAGED if lost else CopyHealth.BEHIND if missing else CopyHealth.WHOLE
    figures = {"objects_count": report.packs, "stored_bytes": report.stored_bytes}
    with transaction.atomic():
        context.fence()
        presence_put(copy, report.held, missing=missing, sizes=report.copied)
        findings_put(copy, report.target_findings, by="copy")
        findings_mended(copy, dict.fromkeys(mended, "the primary"))
        Copy.objects.filter(pk=copy.pk).update(
            health=health,
            selection=report.selection,
            run_at=clock.now(),
            ran=copy_result(report),
            error_code="",
            error="",
            error_hint="",
            **{name: value for name, value in figures.items() if value is not None},
        )
        if report.source_findings:
            findings_put(copy_primary(copy.tenant), report.source_findings, by="copy")
    for number, error in sorted(report.failed.items())[:NAMED_MAX]:
        context.warn("copy.source_damaged", f"backup number {number} could not be copied: {error}")
    for each in list(lost.values())[:NAMED_MAX]:
        context.warn("copy.damage", f"store {copy.store.name}: {each.message}")
    copy.refresh_from_db()


def copy_result(report: CopyReport) -> dict[str, Any]:
    """What `copy run` prints of a run."""
    seconds = max(report.duration_ms, 1) / 1000
    return {
        "copied": len(report.copied),
        "held": len(report.held),
        "failed": len(report.failed),
        "objects": report.objects,
        "bytes": report.bytes,
        "duration_ms": report.duration_ms,
        "bytes_per_second": round(report.bytes / seconds),
        "found": len(report.source_findings) + len(report.target_findings),
        "mended": len(report.mended),
    }


def copy_failed(copy: Copy, error: LastroError, *, away: bool) -> None:
    """Record why a run ended; what the copy holds stays as it was last seen."""
    changes: dict[str, Any] = {
        "error_code": error.code,
        "error": error.message[:2_000],
        "error_hint": error.hint[:1_000],
    }
    if away:
        changes["health"] = CopyHealth.AWAY
    Copy.objects.filter(pk=copy.pk).update(**changes)


def copy_dropped(context: OperationContext, copy: Copy, report: CopyPruneReport) -> None:
    """Record what the copy's own retention has dropped."""
    with transaction.atomic():
        context.fence()
        ids = numbered(copy.tenant, report.ended)
        BackupCopy.objects.filter(copy=copy, backup__in=list(ids.values())).delete()
        Copy.objects.filter(pk=copy.pk).update(
            selection=report.selection,
            objects_count=max(0, report.packs - report.packs_dropped + report.packs_locked),
            stored_bytes=report.bytes_after,
        )
        if report.ended:
            record(
                "copy.dropped",
                message=f"{len(report.ended)} backups of {copy.tenant.slug} left the copy in {copy.store.name}",
                actor=context.operation.actor,
                tenant=copy.tenant.slug,
                data={
                    "copy": copy.pk,
                    "backups": [ids.get(number, f"#{number}") for number in report.ended[:NAMED_MAX]],
                    "bytes": report.bytes_before - report.bytes_after,
                },
            )


# ---------------------------------------------------------------- findings


def findings_put(copy: Copy, findings: Iterable[Finding], *, by: str) -> int:
    """Write down what was found, once each; how many were new."""
    rows = {
        each.key[:_KEY_CHARS_MAX]: CopyFinding(
            copy=copy, code=each.code, key=each.key[:_KEY_CHARS_MAX], message=each.message[:2_000], by=by
        )
        for each in findings
    }
    known = set(CopyFinding.objects.filter(copy=copy, mended_at=None).values_list("key", flat=True))
    new = [row for key, row in rows.items() if key not in known]
    CopyFinding.objects.bulk_create(new, batch_size=BATCH, ignore_conflicts=True)
    if new:
        record(
            "copy.damage_found",
            message=f"{len(new)} objects of {copy.tenant.slug} in store {copy.store.name} are lost or altered",
            actor="system:verification",
            tenant=copy.tenant.slug,
            level="error",
            data={"copy": copy.pk, "by": by, "objects": [row.key for row in new[:NAMED_MAX]]},
        )
    return len(new)


def findings_mended(copy: Copy, mended: Mapping[str, str]) -> int:
    """Close the findings of these keys: mended from that store."""
    count = 0
    for key, place in mended.items():
        rows = CopyFinding.objects.filter(copy=copy, key=key[:_KEY_CHARS_MAX], mended_at=None)
        count += rows.update(mended_at=clock.now(), mended_from=place[:200])
    return count


def reads_noted(tenant: Tenant, notes: Sequence[FallbackNote]) -> list[Copy]:
    """Record what had to be read from another copy: each is a finding in the store that could not give it.

    Returns the copies in which something new was found.
    """
    by_store: dict[str, list[Finding]] = {}
    hurt: list[Copy] = []
    for note in notes:
        if note.key not in ("store", "index") and note.code.startswith(("damage.", "store.object_missing")):
            key = _as_finding(tenant, note.key)
            if key is not None:
                by_store.setdefault(note.place, []).append(Finding(note.code, key, note.message))
    for copy in Copy.objects.select_related("store", "tenant").filter(tenant=tenant, store__name__in=list(by_store)):
        with transaction.atomic():
            if findings_put(copy, by_store[copy.store.name], by="read"):
                hurt.append(copy)
    return hurt


def _as_finding(tenant: Tenant, key: str) -> str | None:
    """A key as verifications name it; None for what another copy simply has not, like a later record."""
    if key.startswith("pack "):
        return key
    bare = key.removeprefix(f"r/{tenant.repository_id}/")
    folder, _, name = bare.removeprefix("plain/").partition("/")
    if folder in ("data", "meta"):
        return f"pack {name.rpartition('/')[2]}"
    return bare if folder == "manifests" else None


# ---------------------------------------------------------------- verifications


def structure_recorded(
    context: OperationContext, copy: Copy, report: StoreReport, *, expected: Collection[int]
) -> None:
    """Record a look at the structure: which backups are whole there, which are not."""
    affected, is_primary = set(report.affected), copy.is_primary
    whole = set(expected) - affected
    with transaction.atomic():
        context.fence()
        findings_put(copy, report.findings, by="verify")
        if is_primary:
            _primary_marked(copy.tenant, affected)
        else:
            missing = {number for number in affected if _is_missing(report, number)}
            presence_put(copy, whole, missing=missing, damaged=affected - missing, verified=True, complete=False)
        Copy.objects.filter(pk=copy.pk).update(
            structure_verified_at=clock.now(),
            objects_count=report.packs,
            stored_bytes=report.stored_bytes,
            health=_health(copy, report),
        )


def _is_missing(report: StoreReport, number: int) -> bool:
    return any(each.key == f"manifests/{number:010d}" and "missing" in each.code for each in report.findings)


def _health(copy: Copy, report: StoreReport) -> str:
    if report.findings:
        return CopyHealth.DAMAGED
    if copy.health in (CopyHealth.DAMAGED, CopyHealth.AWAY):
        lacks = BackupCopy.objects.filter(copy=copy).exclude(presence=BackupPresence.PRESENT).exists()
        return CopyHealth.BEHIND if lacks else CopyHealth.WHOLE
    if copy.is_primary and copy.health == CopyHealth.NEW:
        return CopyHealth.WHOLE
    return copy.health


def _primary_marked(tenant: Tenant, affected: Collection[int]) -> None:
    ids = list(numbered(tenant, affected).values())
    for at in range(0, len(ids), BATCH):
        Backup.objects.filter(pk__in=ids[at : at + BATCH]).update(damaged=True)


def sample_recorded(
    context: OperationContext,
    copy: Copy,
    report: StoreReport,
    *,
    cursor: int,
    until: datetime.datetime,
    turned: bool,
    deep: bool,
) -> None:
    """Record a share of bytes that was read, and what was wrong with them."""
    changes: dict[str, Any] = {"sample_cursor": cursor, "sampled_at": until}
    if turned:
        changes["sample_turn_at"] = until
    if deep:
        changes["deep_verified_at"] = until
    if report.findings:
        changes["health"] = CopyHealth.DAMAGED
    with transaction.atomic():
        context.fence()
        findings_put(copy, report.findings, by="verify")
        Copy.objects.filter(pk=copy.pk).update(**changes)


def repair_recorded(
    context: OperationContext,
    copy: Copy,
    report: RepairReport,
    structure: StoreReport,
    *,
    expected: Collection[int],
    hurt: Mapping[int, str],
) -> tuple[list[str], list[str]]:
    """Record what was mended of the backups that were `hurt`; ids of the backups that are whole again, and of those that are not."""
    affected, is_primary = set(structure.affected), copy.is_primary
    with transaction.atomic():
        context.fence()
        findings_mended(copy, report.mended)
        again = _whole_again(copy, hurt, set(expected) - affected, is_primary=is_primary)
        left_hurt = sorted(numbered(copy.tenant, affected).values())
        if is_primary:
            _primary_marked(copy.tenant, affected)
        left = CopyFinding.objects.filter(copy=copy, mended_at=None).exists()
        if not structure.findings and not report.lost:
            left = False
            findings = CopyFinding.objects.filter(copy=copy, mended_at=None)
            findings.update(mended_at=clock.now(), mended_from="no backup needs it")
        Copy.objects.filter(pk=copy.pk).update(
            health=CopyHealth.DAMAGED if left or affected else CopyHealth.WHOLE, structure_verified_at=clock.now()
        )
        record(
            "copy.repaired",
            message=f"{len(report.mended)} objects of {copy.tenant.slug} in store {copy.store.name} were mended, "
            f"{len(report.lost)} are lost; {len(again)} backups are whole again",
            actor=context.operation.actor,
            tenant=copy.tenant.slug,
            level="warning",
            data={
                "copy": copy.pk,
                "mended": dict(list(report.mended.items())[:NAMED_MAX]),
                "lost": dict(list(report.lost.items())[:NAMED_MAX]),
                "whole_again": again[:NAMED_MAX],
                "damaged": left_hurt[:NAMED_MAX],
            },
        )
    return again, left_hurt


def hurt_backups(copy: Copy) -> dict[int, str]:
    """Backups that are known not to be whole in this store, by number, before a repair begins."""
    if copy.is_primary:
        rows = Backup.objects.filter(tenant=copy.tenant, damaged=True, state__in=GOOD_STATES)
        return {number: pk for number, pk in rows.values_list("number", "pk") if number is not None}
    hurt = BackupCopy.objects.filter(copy=copy).exclude(presence=BackupPresence.PRESENT)
    return {n: pk for n, pk in hurt.values_list("backup__number", "backup_id") if n is not None}


def _whole_again(copy: Copy, hurt: Mapping[int, str], whole: Collection[int], *, is_primary: bool) -> list[str]:
    good = set(whole)
    again = sorted(pk for number, pk in hurt.items() if number in good)
    if is_primary:
        for at in range(0, len(again), BATCH):
            Backup.objects.filter(pk__in=again[at : at + BATCH]).update(damaged=False)
    else:
        presence_put(copy, good, verified=True, complete=False)
    return again
