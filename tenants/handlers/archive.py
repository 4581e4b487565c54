"""The operation `archive`: a backup as one portable file to be fetched."""

import shutil
from collections.abc import Mapping
from typing import Any

from operations.context import OperationContext
from operations.handlers import register
from tenants.archives import archive_find, archive_put, archive_room_checked, archive_workplace, archives_clear
from tenants.handlers.backup import tenant_resource
from tenants.handlers.export import export_into
from tenants.selectors import backup_usable


@register("archive", resource=tenant_resource, phases=("export", "checksums", "archive"))
def run(context: OperationContext) -> Mapping[str, Any]:
    """Make the archive, unless it is there; clear away those that nobody fetched within their day."""
    archives_clear()
    backup = backup_usable(context.operation.subject_id)
    found = archive_find(backup)
    if found is None:
        folder = archive_workplace(backup, context.operation.pk)
        archive_room_checked(backup)
        try:
            export_into(context, backup, folder)
            context.phase("archive")
            found = archive_put(backup, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return {"id": backup.pk, "size_bytes": found.size, "sha256": found.sha256}
