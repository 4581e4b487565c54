"""The operation `delete`: one backup ends, by a signed record in the store and then in the catalogue."""

from collections.abc import Mapping
from typing import Any, cast

from django.db import transaction

from operations.context import OperationContext
from operations.handlers import register
from tenants import wiring
from tenants.handlers.backup import tenant_resource
from tenants.models import BackupState
from tenants.selectors import backup_get
from tenants.services.backups import backup_deletable
from tenants.services.reconciling import reconciled_checked
from tenants.transitions import backup_transition


@register("delete", resource=tenant_resource, phases=("forget",), cancellable=False)
def run(context: OperationContext) -> Mapping[str, Any]:
    """Forget the backup; its chunks stay until a prune finds that nothing else needs them."""
    backup = backup_get(context.operation.subject_id)
    context.phase("forget")
    if backup.state != BackupState.DELETED:
        backup_deletable(backup)
        with wiring.repository_open(backup.tenant) as repository:
            context.check()
            reconciled_checked(backup.tenant, repository)
            repository.forget(cast(int, backup.number), context.operation.reason or "deleted by an operator")
        with transaction.atomic():
            context.fence()
            backup_transition(
                backup, to=BackupState.DELETED, actor=context.operation.actor, reason=context.operation.reason
            )
    return {"id": backup.pk, "state": backup.state}
