"""The operation `catalogue`: Lastro backs up its own catalogue."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from operations.context import OperationContext
from operations.handlers import register
from operations.models import Operation
from tenants.services.catalogue_backups import RESOURCE, catalogue_keep


def _resource(operation: Operation) -> str:
    return RESOURCE


@register("catalogue", resource=_resource, phases=("read the catalogue", "store", "commit"))
def run(context: OperationContext) -> Mapping[str, Any]:
    """Keep the catalogue in every store."""
    return {"stores": [dataclasses.asdict(each) for each in catalogue_keep(context)]}
