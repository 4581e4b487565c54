"""The operations on keys: a tenant's new epoch, the root key's successor, shredding."""

from collections.abc import Mapping
from typing import Any

from operations.context import OperationContext
from operations.handlers import register
from operations.models import Operation
from tenants.handlers.backup import tenant_resource
from tenants.models import RootRotation, Tenant
from tenants.services import key_rotation, shredding


@register("key_rotate", resource=tenant_resource, phases=("rotate",), cancellable=False)
def rotate(context: OperationContext) -> Mapping[str, Any]:
    """Give the tenant a new epoch."""
    context.phase("rotate")
    tenant = Tenant.objects.get(pk=context.operation.subject_id)
    result = key_rotation.tenant_rotate(context, tenant, compromised=bool(context.params.get("compromised")))
    for name in result["waiting"]:
        context.warn("key.place_pending", f"store {name} has still to get the new keyring; the next backup tries again")
    return result


def root_resource(operation: Operation) -> str:
    """One look at the root key at a time, for the whole installation."""
    return key_rotation.RESOURCE


@register("key_rotate_root", resource=root_resource, phases=("catalogue", "stores", "check"))
def rotate_root(context: OperationContext) -> Mapping[str, Any]:
    """Wrap anew what the old root key wraps."""
    return key_rotation.root_rotate(context, RootRotation.objects.get(pk=context.operation.subject_id))


@register(
    shredding.KIND,
    resource=tenant_resource,
    phases=("keys", "objects", "catalogue", "certificate"),
    cancellable=False,
)
def shred(context: OperationContext) -> Mapping[str, Any]:
    """Destroy the tenant's keys wherever they lie."""
    return shredding.shred(context, Tenant.objects.get(pk=context.operation.subject_id))
