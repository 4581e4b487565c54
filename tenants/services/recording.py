"""What a worker writes down about a backup: its number, its manifest, its failure."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction

from audit.services import record
from core import clock
from engine.checksums import source_digest
from engine.errors import LastroError
from engine.manifest import Manifest
from operations.context import OperationContext
from tenants.models import Backup, BackupSource, BackupState, BackupType, Module, Origin, Source, Tenant
from tenants.transitions import backup_transition

_ERROR_CHARS_MAX = 2_000


def backup_begin(context: OperationContext, backup: Backup, *, parent: Backup | None) -> int:
    """Reserve the next sequence number under the tenant's lease and return it.

    A number is given out once, whatever becomes of its session: the row of the tenant counts.
    """
    with transaction.atomic():
        context.fence()
        tenant = Tenant.objects.select_for_update().get(pk=backup.tenant_id)
        number = tenant.number_reserved + 1
        Tenant.objects.filter(pk=tenant.pk).update(number_reserved=number)
        Backup.objects.filter(pk=backup.pk).update(number=number, parent=parent, started_at=clock.now())
    backup.refresh_from_db()
    return number


def backup_committed(
    context: OperationContext,
    backup: Backup,
    manifest: Manifest,
    *,
    warnings: Sequence[Mapping[str, str]],
    locked_until: datetime.datetime | None = None,
) -> None:
    """Record a committed manifest, unless the lease was lost: the next session adopts it then."""
    state = BackupState.WARNED if warnings else BackupState.SUCCEEDED
    with transaction.atomic():
        context.fence()
        said = [dict(warning) for warning in warnings]
        _settle(backup, manifest, state, actor=context.operation.actor, warnings=said, locked_until=locked_until)


def backup_adopted(context: OperationContext, tenant: Tenant, manifest: Manifest) -> Backup:
    """Record a manifest that is in the store and not in the catalogue: its session died after the commit."""
    document = manifest.document
    failed = document.get("failed_sources") or []
    state = BackupState.WARNED if failed else BackupState.SUCCEEDED
    warnings = [{"code": each["code"], "message": f"source {each['name']}: {each['message']}"} for each in failed]
    with transaction.atomic():
        context.fence()
        backup, _ = Backup.objects.get_or_create(
            pk=document["id"],
            tenant=tenant,
            defaults={
                "number": manifest.number,
                "requested_type": document["type"],
                "type": document["type"],
                "created_by": document["created_by"],
                "trigger": document["trigger"],
                "tags": list(document["tags"]),
                "encrypt": bool(document["metadata"]["encrypted"]),
                "compress": bool(document["metadata"]["compressed"]),
                "origin": "adopted",
                "created_at": datetime.datetime.fromisoformat(document["timestamp"]),
            },
        )
        if backup.state in (BackupState.RUNNING, BackupState.FAILED):
            _settle(backup, manifest, state, actor="system:adoption", warnings=warnings, origin="adopted")
    return backup


def backup_failed(backup: Backup, error: LastroError, *, actor: str) -> None:
    """Record a failure, inside the caller's transaction or in one of its own; a settled backup stays."""
    with transaction.atomic():
        backup.refresh_from_db()
        if backup.state != BackupState.RUNNING:
            return
        backup_transition(
            backup,
            to=BackupState.FAILED,
            actor=actor,
            reason=error.code,
            finished_at=clock.now(),
            error_code=error.code,
            error=error.message[:_ERROR_CHARS_MAX],
            error_hint=error.hint[:_ERROR_CHARS_MAX],
        )
        backup.sources.filter(state=BackupSource.State.PENDING).update(state=BackupSource.State.MISSING)
        record(
            "backup.failed",
            # The code and not the words, which may name tables and files: entries outlive a shredded tenant.
            message=f"backup {backup.pk} of {backup.tenant.slug} failed: {error.code}",
            actor=actor,
            tenant=backup.tenant.slug,
            level="error",
            data={"backup": backup.pk, "code": error.code},
        )


def _settle(
    backup: Backup, manifest: Manifest, state: BackupState, *, actor: str, warnings: list[dict[str, str]], **more: Any
) -> None:
    document, metadata = manifest.document, manifest.document["metadata"]
    backup_transition(
        backup,
        to=state,
        actor=actor,
        number=manifest.number,
        type=document["type"],
        taken_at=datetime.datetime.fromisoformat(document["timestamp"]),
        finished_at=clock.now(),
        duration_ms=metadata["duration_ms"],
        size_bytes=metadata["size_bytes"],
        stored_bytes=metadata["stored_bytes"],
        new_bytes=metadata.get("new_bytes", 0),
        new_packed_bytes=metadata.get("new_packed_bytes", 0),
        platform_version=metadata["platform_version"],
        schema_version=metadata["schema_version"][:200],
        key_id=metadata["key_id"] or "",
        checksums=document["checksums"],
        manifest_sha256=manifest.sha256,
        missed=sum(int(source.get("missed", 0)) for source in document["sources"]),
        note=_note(backup, document),
        warnings=warnings,
        error_code="",
        error="",
        error_hint="",
        **more,
    )
    _sources_put(backup, document)
    record(
        "backup.finished",
        message=f"backup {backup.pk} of {backup.tenant.slug} {state}",
        actor=actor,
        tenant=backup.tenant.slug,
        level="warning" if warnings else "info",
        data={"backup": backup.pk, "number": manifest.number, "manifest": manifest.sha256},
    )


def _note(backup: Backup, document: Mapping[str, Any]) -> str:
    if backup.requested_type == BackupType.INCREMENTAL and document["type"] == BackupType.FULL:
        when = f" at or before {backup.since:%Y-%m-%d %H:%M}" if backup.since else ""
        return f"there was no earlier backup{when} to compare with: it became a full one"
    fresh = [source["name"] for source in document["sources"] if not source["compared_with_parent"]]
    if backup.requested_type == BackupType.INCREMENTAL and fresh:
        return f"read in full, not in the parent: {', '.join(fresh)}"[:500]
    return ""


def _sources_put(backup: Backup, document: Mapping[str, Any]) -> None:
    rows = {row.name: row for row in backup.sources.all()}
    present = {source.name: source for source in Source.objects.filter(tenant=backup.tenant_id)}
    for node in document["sources"]:
        source = present.get(node["name"])
        row = rows.get(node["name"]) or BackupSource(backup=backup, source=source, name=node["name"])
        row.kind, row.category, row.state = node["kind"], node["category"], BackupSource.State.KEPT
        row.position, row.schema_version = dict(node["position"]), node["schema_version"][:200]
        row.rows = sum(int(table["rows"]) for table in node["tables"])
        row.files = sum(int(tree["files"]) for tree in node["trees"])
        row.size_bytes = sum(int(part["bytes"]) for sort in _SORTS for part in node[sort])
        row.sha256 = source_digest(node)
        row.save()
        if source is not None:
            _last_good_put(source, backup)
            _modules_put(source, document)
    for failure in document.get("failed_sources") or ():
        backup.sources.filter(name=failure["name"]).update(
            state=BackupSource.State.MISSING,
            error_code=failure["code"],
            error=failure["message"][:_ERROR_CHARS_MAX],
        )


_SORTS = ("tables", "trees", "documents")


_SAFETY = "safety"


def _last_good_put(source: Source, backup: Backup) -> None:
    # A safety backup keeps what a restore is about to throw away, and an imported package is as old as its
    # maker left it: neither says that the source is protected now, nor may it free the last good one for deletion.
    if backup.trigger == _SAFETY or backup.origin == Origin.IMPORTED:
        return
    # An adopted backup may be older than the one the source points to.
    if source.last_good_at is None or (backup.taken_at is not None and source.last_good_at < backup.taken_at):
        Source.objects.filter(pk=source.pk).update(last_good_backup=backup, last_good_at=backup.taken_at)


def _modules_put(source: Source, document: Mapping[str, Any]) -> None:
    rows: dict[str, Module] = {}
    for module in document["modules"]:
        if module["source"] != source.name:
            continue
        row = rows.setdefault(module["name"][:255], Module(source=source, name=module["name"][:255]))
        row.items += int(module.get("rows", module.get("files", 0)))
        row.size_bytes += int(module["bytes"])
        contents = [*row.contents, *(module.get("tables") or module.get("paths") or ())]
        row.contents = contents[: Module.CONTENTS_MAX]
    Module.objects.filter(source=source).exclude(name__in=list(rows)[:_MODULES_MAX]).delete()
    Module.objects.bulk_create(
        list(rows.values())[:_MODULES_MAX],
        update_conflicts=True,
        unique_fields=["source", "name"],
        update_fields=["items", "size_bytes", "contents"],
        batch_size=500,
    )


_MODULES_MAX = 10_000
