"""A restore to other places: source by source, each wholly or not at all; nothing live is touched."""

import os
from contextlib import suppress

from engine.errors import LastroError
from engine.faults import kill_point
from operations.context import OperationContext
from tenants import wiring
from tenants.handlers.courses import Backups, request_of
from tenants.models import Restore, RestoreSource, RestoreSourceState
from tenants.selectors import source_get
from tenants.services.plans import plan_digests
from tenants.services.restore_recording import restore_source_put


def copy_run(context: OperationContext, restore: Restore, backups: Backups) -> None:
    """Fill the target of every source; one that an earlier attempt has filled is made the same again."""
    digests = plan_digests(restore.plan) if restore.plan is not None else {}
    for row in restore.sources.order_by("name"):
        context.check()
        _copy(context, restore, row, backups, digests.get(row.name, ""))


def _copy(context: OperationContext, restore: Restore, row: RestoreSource, backups: Backups, digest: str) -> None:
    context.phase(f"apply {row.name}")
    connector = wiring.connector_at(source_get(restore.tenant, row.name), restore)
    request = request_of(
        restore,
        backups,
        row.name,
        overwrite=bool(context.params.get("overwrite")),
        prove=restore.prove,
        validate=restore.validate_after,
        # What a killed attempt had filled is no longer what was previewed.
        digest=digest if row.state == RestoreSourceState.OLD else "",
    )
    restore_source_put(context, row, RestoreSourceState.APPLYING)
    kill_point("restore.before_copy")
    _folder_made(restore, row.name)
    try:
        report = connector.restore(backups.wanted(restore.backup, row.name), request, context)
    except LastroError as error:
        # The port's promise: a restore that raises has left its target as it was.
        restore_source_put(context, row, RestoreSourceState.OLD, error=error)
        raise
    kill_point("restore.copied")
    restore_source_put(context, row, RestoreSourceState.NEW, report=report)
    for warning in report.warnings:
        context.warn("restore.warning", f"source {row.name}: {warning}")


def _folder_made(restore: Restore, name: str) -> None:
    """Make the folder that a target is put into, as `DIR` of `DIR/<source>`."""
    path = restore.targets.get(name, {}).get("path")
    if path:
        with suppress(OSError):  # What cannot be made is told by the connector, which cannot write there.
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
