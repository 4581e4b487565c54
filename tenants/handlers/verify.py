"""The operation `verify`: stored bytes of one backup, read and authenticated again."""

from collections.abc import Mapping
from typing import Any

from django.db import transaction

from core import clock
from engine.errors import DamageError
from engine.verify import Finding, verify_backup
from operations.context import OperationContext
from operations.handlers import register
from tenants import wiring
from tenants.handlers.backup import tenant_resource
from tenants.models import Backup
from tenants.selectors import backup_usable

FINDINGS_MAX = 1_000


@register("verify", resource=tenant_resource, phases=("structure", "packs"))
def run(context: OperationContext) -> Mapping[str, Any]:
    """Verify the backup; what is wrong with it is the result, not an error of the operation."""
    backup = backup_usable(context.operation.subject_id)
    deep = bool(context.params.get("deep"))
    with wiring.repository_open(backup.tenant) as repository:
        try:
            manifest = wiring.manifest_of(repository, backup)
            findings = verify_backup(repository, manifest, deep=deep, progress=context)
        except DamageError as error:
            findings = [Finding(error.code, f"manifest {backup.number}", error.message)]
    # A rebuilt index is a finding, but the backup is whole again.
    damaged = any(finding.code != "damage.index" for finding in findings)
    with transaction.atomic():
        context.fence()
        Backup.objects.filter(pk=backup.pk).update(verified_at=clock.now(), verified_deep=deep, damaged=damaged)
    return {
        "id": backup.pk,
        "status": "failed" if findings else "passed",
        "deep": deep,
        "findings": [_finding(each) for each in findings[:FINDINGS_MAX]],
        "findings_total": len(findings),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {"code": finding.code, "key": finding.key, "message": finding.message, "parts": list(finding.parts)[:100]}
