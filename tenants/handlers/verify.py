"""The operation `verify`: stored bytes of one backup, read and authenticated again."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from django.db import transaction

from core import clock
from engine.errors import DamageError
from engine.quarantine import Quarantined
from engine.repository import Repository
from engine.verify import Finding, verify_backup
from operations.context import OperationContext
from operations.handlers import register
from tenants import wiring
from tenants.handlers.backup import tenant_resource
from tenants.handlers.mending import packs_mended
from tenants.models import Backup
from tenants.models.backup import GOOD_STATES
from tenants.selectors import backup_usable

FINDINGS_MAX = 1_000
AFFECTED_MAX = 1_000
"""How many of the tenant's newest backups are looked at when packs were lost."""
_HARMLESS = "damage.index"


@register("verify", resource=tenant_resource, phases=("structure", "packs"))
def run(context: OperationContext) -> Mapping[str, Any]:
    """Verify the backup; what is wrong with it is the result, not an error of the operation.

    Damaged packs are taken out of use, so that the next backup stores what was in them anew, and every other
    backup that needs what was lost is marked too.
    """
    backup = backup_usable(context.operation.subject_id)
    deep = bool(context.params.get("deep"))
    with wiring.repository_open(backup.tenant) as repository:
        findings = _verified(context, repository, backup, deep=deep)
        aside = _quarantine(context, repository, backup, findings)
        affected = _affected(context, repository, backup) if aside.chunks_lost else []
        # What a copy has mended is whole again; the findings stand all the same.
        left = _verified(context, repository, backup, deep=False) if aside.packs else findings
    _mark(context, backup, deep=deep, damaged=_is_damaged(left))
    return {
        "id": backup.pk,
        "status": "failed" if findings else "passed",
        "deep": deep,
        "findings": [_finding(each) for each in findings[:FINDINGS_MAX]],
        "findings_total": len(findings),
        "quarantined_packs": aside.packs,
        "whole": not _is_damaged(left),
        "lost_chunks": aside.chunks_lost,
        "affected": affected,
    }


def _verified(context: OperationContext, repository: Repository, backup: Backup, *, deep: bool) -> list[Finding]:
    try:
        manifest = wiring.manifest_of(repository, backup)
        return verify_backup(repository, manifest, deep=deep, progress=context)
    except DamageError as error:
        return [Finding(error.code, f"manifest {backup.number}", error.message)]


def _is_damaged(findings: Collection[Finding]) -> bool:
    # A rebuilt index is a finding, but the backup is whole again.
    return any(finding.code != _HARMLESS for finding in findings)


def _quarantine(
    context: OperationContext, repository: Repository, backup: Backup, findings: Sequence[Finding]
) -> Quarantined:
    packs = {finding.key.removeprefix("pack ") for finding in findings if finding.key.startswith("pack ")}
    if not packs:
        return Quarantined(0, 0, 0)
    context.check()
    return packs_mended(context, backup.tenant, repository, repository.domain(encrypted=backup.encrypt), packs)


def _affected(context: OperationContext, repository: Repository, backup: Backup) -> list[str]:
    """Mark the tenant's other backups that need what was lost: none of them may be a parent any more."""
    others = Backup.objects.filter(tenant=backup.tenant, state__in=GOOD_STATES, encrypt=backup.encrypt)
    affected = []
    for other in others.exclude(pk=backup.pk).select_related("tenant").order_by("-number")[:AFFECTED_MAX]:
        context.check()
        if _is_damaged(_verified(context, repository, other, deep=False)):
            affected.append(other.pk)
    with transaction.atomic():
        context.fence()
        Backup.objects.filter(pk__in=affected).update(damaged=True)
    return affected


def _mark(context: OperationContext, backup: Backup, *, deep: bool, damaged: bool) -> None:
    with transaction.atomic():
        context.fence()
        Backup.objects.filter(pk=backup.pk).update(verified_at=clock.now(), verified_deep=deep, damaged=damaged)


def _finding(finding: Finding) -> dict[str, Any]:
    return {"code": finding.code, "key": finding.key, "message": finding.message, "parts": list(finding.parts)[:100]}
