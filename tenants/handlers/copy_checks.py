"""The operation `copy_verify`: what lies in one store of a tenant is read again."""

import datetime
import time
from collections.abc import Mapping
from typing import Any

from core import clock
from engine.errors import LastroError, ManifestDamaged, StoreError
from engine.repository import Repository
from engine.selections import selection_read
from engine.verify import Finding
from engine.verify_store import CIRCLE, Share, StoreReport, share_due, store_verify_bytes, store_verify_structure
from operations.context import OperationContext
from operations.handlers import register
from operations.models import Operation
from tenants import wiring
from tenants.copy_opening import copy_on, read_measured
from tenants.copy_selectors import copies_readable, copy_of
from tenants.models import Backup, BackupCopy, BackupPresence, Copy
from tenants.models.backup import GOOD_STATES
from tenants.services.copies import repair_queue
from tenants.services.copy_recording import (
    copy_failed,
    numbered,
    sample_recorded,
    structure_recorded,
)

LOCAL_PERIOD = datetime.timedelta(days=7)
PAID_PERIOD = datetime.timedelta(days=30)
FINDINGS_MAX = 1_000


def _verify_resource(operation: Operation) -> str:
    return f"verify:{operation.tenant}:{operation.params['store']}"


def sample_period(copy: Copy) -> datetime.timedelta:
    """Within which time every object of the store is to be read: longer where reading is paid for."""
    paid = copy.store.paid
    if paid is None:
        paid = bool(getattr(wiring.store_kind(copy.store.kind), "remote", True)) and copy.store.kind != "sftp"
    return PAID_PERIOD if paid else LOCAL_PERIOD


@register("copy_verify", resource=_verify_resource, phases=("structure", "affected", "read"))
def verify(context: OperationContext) -> Mapping[str, Any]:
    """Look through the repository in one store; what is wrong with it is the result, not an error of the operation."""
    copy = copy_of(context.operation.subject_id)
    mode = str(context.params["mode"])
    try:
        with wiring.store_open(copy.store) as store:
            repository = copy_on(copy, store)
            reports = [_structure(context, copy, repository)] if mode in ("structure", "deep") else []
            reports += [_bytes(context, copy, repository, deep=mode == "deep")] if mode in ("sample", "deep") else []
    except LastroError as error:
        copy_failed(copy, error, away=isinstance(error, StoreError) and error.retryable)
        raise
    findings = {each.key: each for report in reports for each in report.findings}
    affected = sorted(numbered(copy.tenant, {n for report in reports for n in report.affected}).values())
    repair = repair_queue(copy) if findings and context.params.get("repair") and _can_mend(copy) else None
    copy.refresh_from_db()
    return {
        "tenant": copy.tenant.slug,
        "store": copy.store.name,
        "mode": mode,
        "status": "failed" if findings else "passed",
        "health": copy.health,
        "objects": sum(report.objects for report in reports),
        "bytes": sum(report.bytes for report in reports),
        "packs": max((report.packs for report in reports), default=0),
        "findings": [_said(each) for each in list(findings.values())[:FINDINGS_MAX]],
        "findings_total": len(findings),
        "affected": affected[:FINDINGS_MAX],
        "repair": repair,
    }


def _can_mend(copy: Copy) -> bool:
    """Whether there is another store to mend from; an index is mended from its own packs."""
    return not copy.is_primary or bool(copies_readable(copy.tenant))


def expected_in(copy: Copy, repository: Repository) -> tuple[dict[int, str], list[Finding]]:
    """Numbers of the backups that this store must hold, with the digests of their manifests."""
    rows = Backup.objects.filter(tenant=copy.tenant, number__isnull=False).exclude(manifest_sha256="")
    if copy.is_primary:
        here = rows.filter(state__in=GOOD_STATES, left_at=None) | rows.filter(trashed_at__isnull=False, left_at=None)
        return {n: sha for n, sha in here.values_list("number", "manifest_sha256") if n is not None}, []
    digests = {n: sha for n, sha in rows.values_list("number", "manifest_sha256") if n is not None}
    recorded = BackupCopy.objects.filter(copy=copy, presence=BackupPresence.PRESENT)
    numbers = {n for n in recorded.values_list("backup__number", flat=True) if n is not None}
    try:
        numbers |= selection_read(repository, at_least=copy.selection).kept
    except ManifestDamaged as error:
        key = f"selections/{copy.selection:010d}"
        return {n: digests.get(n, "") for n in numbers}, [Finding(error.code, key, error.message)]
    return {n: digests.get(n, "") for n in numbers}, []


def _structure(context: OperationContext, copy: Copy, repository: Repository) -> StoreReport:
    expected, findings = expected_in(copy, repository)
    report = store_verify_structure(repository, expected, erasures=copy.tenant.erasures_number, progress=context)
    report.findings += findings
    structure_recorded(context, copy, report, expected=expected)
    return report


def _bytes(context: OperationContext, copy: Copy, repository: Repository, *, deep: bool) -> StoreReport:
    """Read what is due, or everything; the cursor moves with the reading, so that a stopped run is not begun anew."""
    now, period = clock.now(), sample_period(copy)
    share = share_due(cursor=copy.sample_cursor, since=copy.sampled_at, now=now, period=period)
    if deep:
        share = Share(copy.sample_cursor, CIRCLE)
    began = copy.sampled_at or now - period * (share.length / CIRCLE)

    def reached(cursor: int) -> None:
        read = (cursor - share.begin) % CIRCLE or share.length
        at = began + (now - began) * (read / share.length) if share.length else now
        Copy.objects.filter(pk=copy.pk).update(sample_cursor=cursor, sampled_at=at)

    started = time.monotonic()
    report = store_verify_bytes(repository, share, deep=deep, progress=context, reached=reached)
    read_measured(copy, report.bytes, time.monotonic() - started)
    turned = deep or copy.sample_turn_at is None or share.begin + share.length >= CIRCLE
    sample_recorded(context, copy, report, cursor=share.end, until=now, turned=turned, deep=deep)
    return report


def _said(finding: Finding) -> dict[str, Any]:
    return {"code": finding.code, "key": finding.key, "message": finding.message}
