"""The operation `retention_look`: every tenant's backups are looked at, and work is queued where something has to go."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from operations.context import OperationContext
from operations.handlers import register
from operations.models import Operation
from tenants.services.retention import retention_look

QUEUED_NAMED_MAX = 100


def _resource(operation: Operation) -> str:
    return "retention-look"


@register("retention_look", resource=_resource, phases=("look",))
def run(context: OperationContext) -> Mapping[str, Any]:
    """Look at every tenant; a frozen deletion is a warning, and nothing is done."""
    context.phase("look")
    looked = retention_look(actor=context.operation.actor)
    if looked.frozen:
        context.warn("retention.frozen", f"nothing is ended while deletion is frozen: {looked.frozen}")
    found = dataclasses.asdict(looked)
    return {**found, "queued": looked.queued[:QUEUED_NAMED_MAX], "queued_total": len(looked.queued)}
