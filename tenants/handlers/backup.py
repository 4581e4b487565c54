"""The operation `backup`: one session, one manifest; also the safety backup inside a restore."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, cast

from core.errors import InternalError
from core.text import counted
from engine.backup import BackupRequest, SourceInput, backup_run
from engine.errors import BackupMissing, CancelledError, DamageError, LastroError
from engine.faults import kill_point
from engine.manifest import Manifest
from engine.ports import Connector, SourceReader
from engine.progress import Progress
from engine.repository import Repository
from operations.context import OperationContext
from operations.handlers import register
from operations.models import Operation
from tenants import outputs, wiring
from tenants.locking import locker_for
from tenants.models import Backup, BackupSource, Source
from tenants.selectors import backup_get, backup_parents
from tenants.services.backups import backup_again
from tenants.services.copies import copies_queue_after
from tenants.services.keys import keys_settle
from tenants.services.numbers import numbers_close, previous_sha256
from tenants.services.recording import backup_begin, backup_committed, backup_failed

log = logging.getLogger(__name__)

PHASES = ("open", "read", "store", "commit")


class PackageConnector:
    """A portable package in the place of its source: only reading is asked of it."""

    def __init__(self, connector: Connector, path: str) -> None:
        self._connector, self._path = connector, path

    def open(self, progress: Progress) -> AbstractContextManager[SourceReader]:
        return self._connector.open_package(self._path, progress)


def tenant_resource(operation: Operation) -> str:
    """One operation at a time per tenant; different tenants in parallel."""
    return f"tenant:{operation.tenant}"


def _lost(operation: Operation) -> None:
    backup = Backup.objects.filter(pk=operation.subject_id).first()
    if backup is not None:
        ended = LastroError("its worker ended without a word", hint=f"run it again: operation retry {operation.pk}")
        ended.code = "operation.lost"
        backup_failed(backup, ended, actor="system:reaper")


def _dropped(operation: Operation) -> None:
    backup = Backup.objects.filter(pk=operation.subject_id).first()
    if backup is not None:
        ended = LastroError(f"it never ran: the operation {operation.state}")
        ended.code = "operation.not_run"
        backup_failed(backup, ended, actor=operation.actor)


def _retry(operation: Operation) -> Mapping[str, Any]:
    return {"subject_id": backup_again(backup_get(operation.subject_id), actor=operation.actor).pk}


@register(
    "backup",
    resource=tenant_resource,
    phases=PHASES,
    on_lost=_lost,
    on_dropped=_dropped,
    on_retry=_retry,
    hooks=True,
)
def run(context: OperationContext) -> Mapping[str, Any]:
    """Take the backup that the operation is about."""
    backup = backup_get(context.operation.subject_id)
    if backup.operation_id != context.operation.pk:
        Backup.objects.filter(pk=backup.pk).update(operation_id=context.operation.pk)
    backup_perform(context, backup, package=context.params.get("package", ""))
    keys_settle(backup.tenant)  # Whatever store lacks the keyring, it is of use from this backup on.
    copies_queue_after(backup.tenant)
    return outputs.backup(backup)


def backup_perform(context: OperationContext, backup: Backup, *, package: str = "") -> Manifest:
    """Run the backup's session under the operation's lease and record how it ended; raises what stopped it."""
    try:
        with wiring.repository_open(backup.tenant) as repository:
            return _session(context, repository, backup, package)
    except LastroError as error:
        backup_failed(backup, error, actor=context.operation.actor)
        raise
    except BaseException as error:
        unforeseen = InternalError(f"ended by {type(error).__name__}", hint="the log has the rest")
        stopped = CancelledError("interrupted") if isinstance(error, KeyboardInterrupt | SystemExit) else unforeseen
        backup_failed(backup, stopped, actor=context.operation.actor)
        raise


def _session(context: OperationContext, repository: Repository, backup: Backup, package: str) -> Manifest:
    tenant = backup.tenant
    numbers_close(context, tenant, repository)
    sources = _sources(backup)
    inputs = [_input(source, package) for source in sources]
    rows = backup_parents(sources, since=backup.since, encrypt=backup.encrypt)
    warned_before = len(context.warnings)
    parents = _parent_manifests(context, repository, rows)
    number = backup_begin(context, backup, parent=_newest(rows, parents))
    kill_point("backup.number_reserved")
    locker = locker_for(repository, backup, list(rows.values()), context)
    request = BackupRequest(
        backup_id=backup.pk,
        number=number,
        type="full" if backup.requested_type == "full" else "incremental",
        tenant_name=tenant.name,
        created_by=backup.created_by,
        trigger=backup.trigger,
        tags=tuple(backup.tags),
        encrypt=backup.encrypt,
        compress=backup.compress,
        platform_version=tenant.platform_version,
        parents=parents,
        previous=previous_sha256(tenant, repository, number),
        locker=locker,
    )
    try:
        manifest = backup_run(repository, inputs, request, context)
    except DamageError as error:
        if not parents:
            raise
        manifest = _without_parents(context, repository, inputs, request, rows, error)
    left = repository.domain(encrypted=request.encrypt).index.left
    if left:
        log.warning(
            "store %s keeps %d index objects that nobody needs: it lets us delete nothing", tenant.store, len(left)
        )
    kill_point("backup.before_record")
    backup_committed(
        context,
        backup,
        manifest,
        warnings=context.warnings[warned_before:],
        locked_until=locker.locked_until if locker else None,
    )
    return manifest


def _without_parents(
    context: OperationContext,
    repository: Repository,
    inputs: Sequence[SourceInput],
    request: BackupRequest,
    rows: Mapping[str, Backup],
    error: DamageError,
) -> Manifest:
    """Read everything anew when the backups to compare with are damaged: what is there now must be kept all the same."""
    from tenants.handlers.mending import damage_set_aside

    count = damage_set_aside(context, repository, rows.values())
    context.warn(
        "backup.parent_damaged",
        f"the backup to compare with is damaged ({error.message}): {counted(count, 'pack')} set aside, all is read anew",
    )
    return backup_run(repository, inputs, replace(request, parents={}), context)


def _parent_manifests(
    context: OperationContext, repository: Repository, rows: Mapping[str, Backup]
) -> dict[str, Manifest]:
    """By source name the manifest to compare it with; one that is lost makes this backup dearer, not impossible."""
    manifests: dict[str, Manifest] = {}
    for row in {each.pk: each for each in rows.values()}.values():
        try:
            manifests[row.pk] = wiring.manifest_of(repository, row)
        except (BackupMissing, DamageError) as error:
            context.warn(
                "backup.parent_lost", f"backup {row.pk} cannot be compared with, all is read anew: {error.message}"
            )
    return {name: manifests[row.pk] for name, row in rows.items() if row.pk in manifests}


def _newest(rows: Mapping[str, Backup], manifests: Mapping[str, Manifest]) -> Backup | None:
    return max((rows[name] for name in manifests), key=lambda row: row.number or 0, default=None)


def _sources(backup: Backup) -> Sequence[Source]:
    names = BackupSource.objects.filter(backup=backup).values_list("name", flat=True)
    return list(Source.objects.filter(tenant=backup.tenant_id, name__in=list(names)).order_by("name"))


def _input(source: Source, package: str) -> SourceInput:
    connector = wiring.connector_open(source)
    if package:
        connector = cast(Connector, PackageConnector(connector, package))
    return SourceInput(source.name, source.category, source.kind, connector)
