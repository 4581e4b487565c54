"""The operation `backups`: one backup of each tenant, queued; the workers take them from there."""

from collections.abc import Mapping
from typing import Any

from engine.errors import LastroError
from operations.context import OperationContext
from operations.handlers import register
from operations.selectors import operations_active
from tenants.models import Tenant
from tenants.selectors import source_guarded
from tenants.services.backups import BackupWish, backup_start

FAILED_NAMED_MAX = 100


@register("backups", phases=("queue",))
def run(context: OperationContext) -> Mapping[str, Any]:
    """Go through the tenants by slug; one that has a backup under way is left alone, one that cannot be begun is named."""
    slugs: list[str] | None = context.params["slugs"]
    rows = Tenant.objects.filter(archived_at=None, shredded_at=None, pk__in=source_guarded().values("tenant_id"))
    if slugs is not None:
        rows = rows.filter(slug__in=slugs)
    wish = BackupWish(type=context.params["type"], trigger=_trigger(context))
    queued = busy = 0
    failed: list[dict[str, str]] = []
    for tenant in rows.select_related("store").order_by("slug").iterator(chunk_size=500):
        context.check()
        if any(each.kind == "backup" for each in operations_active(tenant=tenant.slug)):
            busy += 1
            continue
        try:
            backup_start(tenant, wish, actor=context.operation.actor, reason=context.operation.reason)
            queued += 1
        except LastroError as error:
            context.warn(error.code, f"{tenant.slug}: {error.message}")
            failed = [*failed, {"tenant": tenant.slug, "code": error.code, "detail": error.message}][:FAILED_NAMED_MAX]
    return {"queued": queued, "under_way": busy, "failed": failed}


def _trigger(context: OperationContext) -> str:
    return "api" if context.operation.actor.startswith("token:") else "manual"
