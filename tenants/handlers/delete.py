"""The operation `delete`: one backup goes into the trash, or at once for good."""

from collections.abc import Mapping
from typing import Any

from django.db import transaction

from engine.faults import kill_point
from operations.context import OperationContext
from operations.handlers import register
from tenants import wiring
from tenants.handlers.backup import tenant_resource
from tenants.handlers.prune import frozen_reason
from tenants.models import Backup
from tenants.models.backup import ENDED_STATES
from tenants.outputs import moment
from tenants.retention_selectors import trash_ends
from tenants.selectors import backup_get
from tenants.services.backups import backup_deletable, hold_checked
from tenants.services.losses import loss_accept
from tenants.services.reconciling import reconciled_checked
from tenants.services.trash import backup_trash, trash_emptied


@register("delete", resource=tenant_resource, phases=("forget",), cancellable=False)
def run(context: OperationContext) -> Mapping[str, Any]:
    """Put the backup into the trash; with `now` let the store forget it, where its chunks stay until a prune."""
    backup = backup_get(context.operation.subject_id)
    if context.params.get("lost"):
        return loss_accept(context, backup)
    at_once = bool(context.params.get("now"))
    context.phase("forget")
    if backup.state not in ENDED_STATES:
        backup_deletable(backup)
        with transaction.atomic():
            context.fence()
            reason = context.operation.reason or "deleted by an operator"
            backup_trash(backup, actor=context.operation.actor, reason=reason)
    hold_checked(backup.tenant)
    frozen = frozen_reason(context) if at_once and backup.trashed_at is not None else ""
    if at_once and backup.trashed_at is not None and not frozen:
        kill_point("delete.trashed")
        _forget(context, backup)
    return {
        "id": backup.pk,
        "state": backup.state,
        "trashed_at": moment(backup.trashed_at),
        "until": moment(trash_ends(backup.trashed_at)),
        "frozen": frozen,
    }


def _forget(context: OperationContext, backup: Backup) -> None:
    """The catalogue says first that it has ended; a kill in between leaves it in the trash."""
    with wiring.repository_open(backup.tenant) as repository:
        context.check()
        reconciled_checked(backup.tenant, repository)
        if backup.number in set(repository.numbers()):
            repository.forget(backup.number, context.operation.reason or "deleted by an operator")
    kill_point("delete.forgotten")
    trash_emptied(context, backup.tenant, [backup])
    backup.refresh_from_db()
