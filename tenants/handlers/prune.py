"""The operation `prune`: chunks that no kept backup needs, and images that no undo needs, leave the store."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from engine.prune import prune
from operations.context import OperationContext
from operations.handlers import register
from tenants import wiring
from tenants.handlers.backup import tenant_resource
from tenants.models import Backup, BackupState, Tenant
from tenants.services.change_images import change_images_prune
from tenants.services.numbers import numbers_close
from tenants.services.plans import plans_forget
from tenants.services.reconciling import manifests_known, reconciled_checked, strangers_noted

_ENDED = (BackupState.EXPIRED, BackupState.DELETED)


@register("prune", resource=tenant_resource, phases=("mark", "repack", "sweep", "change images"))
def run(context: OperationContext) -> Mapping[str, Any]:
    """Prune the tenant's repository; with `dry_run` only say what would be done."""
    tenant = Tenant.objects.select_related("store").get(pk=context.operation.subject_id)
    dry_run = bool(context.params.get("dry_run"))
    with wiring.repository_open(tenant) as repository:
        if not dry_run:
            reconciled_checked(tenant, repository)
            numbers_close(context, tenant, repository)
        # Ended in the catalogue while the store was not told (a kill in between): told again here.
        present = set(repository.numbers())
        ended = Backup.objects.filter(tenant=tenant, state__in=_ENDED).values_list("number", "state")
        forget = {number: state for number, state in ended if number in present}
        with strangers_noted(tenant):
            report = prune(
                repository,
                forget=forget,
                head=tenant.numbers_closed,
                dry_run=dry_run,
                progress=context,
                known=None if dry_run else manifests_known(tenant),
            )
        context.phase("change images")
        images = change_images_prune(context, tenant, repository, dry_run=dry_run)
    if not dry_run:
        plans_forget(tenant)
    return {
        "tenant": tenant.slug,
        "dry_run": dry_run,
        **dataclasses.asdict(report),
        "change_images": dataclasses.asdict(images),
    }
