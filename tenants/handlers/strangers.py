"""The operation `strangers`: what is none of the repository's in a store is set aside."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from operations.context import OperationContext
from operations.handlers import register
from tenants.copy_opening import copy_open
from tenants.copy_selectors import copy_of
from tenants.handlers.backup import tenant_resource
from tenants.services.strangers import strangers_set_aside


@register("strangers", resource=tenant_resource, phases=("set aside",))
def run(context: OperationContext) -> Mapping[str, Any]:
    """Set them aside, under the tenant's lease: no session may be about to commit under such a number."""
    copy = copy_of(context.operation.subject_id)
    context.phase("set aside")
    with copy_open(copy) as repository:
        done, locked = strangers_set_aside(context, copy.tenant, repository, store=copy.store.name)
    for key in locked:
        context.warn(
            "copy.stranger_locked", f"{key} is locked in {copy.store.name} and stays; again when its lock is over"
        )
    return {
        "tenant": copy.tenant.slug,
        "store": copy.store.name,
        "set_aside": [asdict(each) for each in done],
        "locked": locked,
    }
