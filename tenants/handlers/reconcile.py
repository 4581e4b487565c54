"""The operation `reconcile`: the catalogue takes over what the store knows of one tenant."""

from collections.abc import Mapping
from typing import Any

from engine.promotion import selections_drop
from operations.context import OperationContext
from operations.handlers import register
from tenants import wiring
from tenants.handlers.backup import tenant_resource
from tenants.models import Promotion, Tenant
from tenants.services.keys import keyring_take_back
from tenants.services.promised import promise_keep
from tenants.services.promoting import promotion_settled
from tenants.services.reconciling import tenant_reconcile
from tenants.services.succession import successor_make


@register("reconcile", resource=tenant_resource, phases=("take over backups",))
def run(context: OperationContext) -> Mapping[str, Any]:
    """Reconcile the tenant; the catalogue must own the store."""
    tenant = Tenant.objects.select_related("store").get(pk=context.operation.subject_id)
    if not context.params.get("keys_taken") and keyring_take_back(tenant, []):
        tenant.refresh_from_db()  # Another installation, or this one before its catalogue was restored, had newer keys.
    promotion = Promotion.objects.filter(tenant=tenant, settled_at=None).first()
    with wiring.repository_open(tenant) as repository:
        repository.guard.check()
        if promotion is not None:
            promise_keep(tenant, repository)
            selections_drop(repository)
        found = tenant_reconcile(
            context,
            tenant,
            repository,
            close=bool(context.params.get("close")),
            promoted=bool(context.params.get("promoted")) or promotion is not None,
        )
        successor_make(context, tenant, repository)
    if promotion is not None:
        promotion_settled(promotion, promotion.account, actor=context.operation.actor)
    for backup in found.missing:
        context.warn("reconcile.missing", f"backup {backup} is not in the store; another copy may hold it")
    for backup in found.replaced:
        context.warn("reconcile.replaced", f"backup {backup} is lost: the store holds another one under its number")
    return found.answer()
