"""Backups asked for, held, released and deleted: rows, operation and audit entry in one transaction."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from access.approvals import approval_use
from access.models import Approval
from audit.services import record
from core import clock
from core.errors import Conflict
from core.text import reason_checked
from engine.errors import UsageError
from operations.models import ACTIVE_STATES, Operation, OperationState
from operations.services import operation_enqueue
from tenants.models import Backup, BackupSource, BackupState, BackupType, Origin, Source, Tenant
from tenants.models.backup import GOOD_STATES
from tenants.plan_selectors import restore_saved_by
from tenants.rules import tags_checked
from tenants.selectors import source_get
from tenants.services.holds import release_action
from tenants.shredded import keys_present

HELD_REASON_CHARS_MAX = 500
CLOCK_SLACK = datetime.timedelta(minutes=5)


@dataclass(frozen=True)
class BackupWish:
    """What was asked for; no sources means all that are enabled."""

    type: str = BackupType.INCREMENTAL
    sources: tuple[str, ...] = ()
    since: datetime.datetime | None = None
    tags: tuple[str, ...] = ()
    encrypt: bool = True
    compress: bool = True
    trigger: str = "manual"


def backup_start(
    tenant: Tenant, wish: BackupWish, *, actor: str, reason: str = "", here: bool = False
) -> tuple[Backup, Operation]:
    """Queue a backup. Raises NotFound for an unknown source, UsageError when there is none or a tag is bad."""
    tenant_active(tenant)
    sources = _chosen(tenant, wish.sources)
    tags_checked(wish.tags)
    if wish.since is not None and wish.since > clock.now() + CLOCK_SLACK:
        raise UsageError(f"{wish.since:%Y-%m-%d %H:%M} UTC lies in the future", hint="a time without an offset is UTC")
    with transaction.atomic():
        backup = backup_create(tenant, wish, sources, actor=actor)
        operation = operation_enqueue(
            kind="backup", tenant=tenant.slug, params={}, subject_id=backup.pk, actor=actor, reason=reason, here=here
        )
        _attach(backup, operation)
        record(
            "backup.requested",
            message=f"{wish.type} backup of {tenant.slug}: {', '.join(s.name for s in sources)}",
            actor=actor,
            tenant=tenant.slug,
            data={"backup": backup.pk, "type": wish.type, "sources": [s.name for s in sources], "tags": backup.tags},
        )
    return backup, operation


def backup_import_start(
    source: Source, path: str, *, actor: str, tags: tuple[str, ...] = (), here: bool = False
) -> tuple[Backup, Operation]:
    """Queue the taking in of a portable package as a full backup of the source."""
    tenant = source.tenant
    tenant_active(tenant)
    wish = BackupWish(type=BackupType.FULL, tags=tags, trigger="import")
    with transaction.atomic():
        backup = backup_create(tenant, wish, [source], actor=actor, origin=Origin.IMPORTED)
        operation = operation_enqueue(
            kind="backup", tenant=tenant.slug, params={"package": path}, subject_id=backup.pk, actor=actor, here=here
        )
        _attach(backup, operation)
        record(
            "backup.import_requested",
            message=f"package {path} for source {source.name} of {tenant.slug}",
            actor=actor,
            tenant=tenant.slug,
            data={"backup": backup.pk, "source": source.name, "package": path},
        )
    return backup, operation


def backup_create(
    tenant: Tenant,
    wish: BackupWish,
    sources: list[Source],
    *,
    actor: str,
    origin: str = Origin.RUN,
    operation_id: str = "",
) -> Backup:
    """Write the rows of a backup that is about to run, inside the caller's transaction."""
    backup = Backup.objects.create(
        tenant=tenant,
        requested_type=wish.type,
        type=wish.type,
        origin=origin,
        trigger=wish.trigger,
        created_by=actor,
        tags=tags_checked(wish.tags),
        since=wish.since,
        encrypt=wish.encrypt,
        compress=wish.compress,
        operation_id=operation_id,
    )
    BackupSource.objects.bulk_create(
        BackupSource(backup=backup, source=source, name=source.name, kind=source.kind, category=source.category)
        for source in sources
    )
    return backup


def backup_again(old: Backup, *, actor: str) -> Backup:
    """Write the rows of a backup that does again what a lost or failed one should have done."""
    wish = BackupWish(
        type=old.requested_type,
        since=old.since,
        tags=tuple(old.tags),
        encrypt=old.encrypt,
        compress=old.compress,
        trigger=old.trigger,
    )
    rows = old.sources.select_related("source")
    sources = [each.source for each in rows if each.source is not None and each.source.archived_at is None]
    return backup_create(old.tenant, wish, sources, actor=actor, origin=old.origin)


def backup_hold(backup: Backup, *, held: bool, reason: str, actor: str, approval: Approval | None = None) -> Backup:
    """Put a legal hold on a backup, or take it off; a held one is never expired, deleted or shredded."""
    if backup.trashed_at is not None:
        raise Conflict(f"backup {backup.pk} is in the trash", hint=f"take it back first: backup undelete {backup.pk}")
    if backup.state not in GOOD_STATES:
        raise Conflict(f"backup {backup.pk} is {backup.state}: there is nothing to hold")
    action = release_action(backup, reason)
    reason = reason_checked(reason)[:HELD_REASON_CHARS_MAX]
    with transaction.atomic():
        if backup.held and not held:
            approval_use(approval, action, actor=actor)
        Backup.objects.filter(pk=backup.pk).update(held=held, held_reason=reason if held else "")
        record(
            "backup.held" if held else "backup.released",
            message=f"backup {backup.pk} of {backup.tenant.slug} {'held' if held else 'released'}"
            + (f": {reason}" if reason else ""),
            actor=actor,
            tenant=backup.tenant.slug,
            level="warning",
            data={"backup": backup.pk, "reason": reason},
        )
    backup.refresh_from_db()
    return backup


def backup_delete_start(
    backup: Backup, *, actor: str, reason: str = "", here: bool = False, now: bool = False
) -> Operation:
    """Queue the deletion of one backup: into the trash, or with `now` for good, also of one that is in the trash.

    Raises Conflict when it is held, undoes a restore, or is some source's last good one.
    """
    if not (now and backup.trashed_at is not None and not backup.tenant.held):
        backup_deletable(backup)
    return _subject_start("delete", backup, {"now": now}, actor=actor, reason=reason, here=here)


def backup_deletable(backup: Backup) -> None:
    """Raise Conflict when the backup must stay."""
    hold_checked(backup.tenant)
    if backup.trashed_at is not None:
        raise Conflict(
            f"backup {backup.pk} is in the trash already",
            hint=f"back: backup undelete {backup.pk}; for good before its term is over: backup delete {backup.pk} --now",
        )
    if backup.state not in GOOD_STATES:
        raise Conflict(f"backup {backup.pk} is {backup.state}", hint="only a good backup can be deleted")
    if backup.held:
        raise Conflict(
            f"backup {backup.pk} is held: {backup.held_reason or 'no reason given'}",
            hint=f"release it first: backup release {backup.pk}",
        )
    saved = restore_saved_by(backup)
    if saved is not None:
        raise Conflict(
            f"backup {backup.pk} is what undoes restore {saved.pk}", hint="wait for the end of the undo's term"
        )
    last_of = list(Source.objects.filter(last_good_backup=backup).order_by("name").values_list("name", flat=True)[:20])
    if last_of:
        raise Conflict(
            f"backup {backup.pk} is the last good one of {', '.join(last_of)}", hint="take a newer backup first"
        )


def hold_checked(tenant: Tenant) -> None:
    """Raise Conflict while the tenant is under legal hold."""
    if tenant.held:
        raise Conflict(
            f"tenant {tenant.slug} is under legal hold: {tenant.held_reason or 'no reason given'}",
            hint=f"release it first: tenant release {tenant.slug}",
        )


def backup_verify_start(backup: Backup, *, deep: bool, actor: str, here: bool = False) -> Operation:
    """Queue a verification: structural, or deep (every byte)."""
    return _subject_start("verify", backup, {"deep": deep}, actor=actor, here=here)


def backup_export_start(backup: Backup, folder: str, *, actor: str, here: bool = False) -> Operation:
    """Queue a portable export into a folder that does not exist or is empty."""
    return _subject_start("export", backup, {"folder": folder}, actor=actor, here=here)


def backup_archive_start(backup: Backup, *, actor: str, here: bool = False) -> Operation:
    """Queue the making of a portable archive for download (tenants.archives)."""
    return _subject_start("archive", backup, {}, actor=actor, here=here)


def backup_archive_pending(backup: Backup) -> Operation | None:
    """The making of the backup's archive that is queued or runs already, if there is one."""
    states = (OperationState.QUEUED, *ACTIVE_STATES)
    rows = Operation.objects.filter(tenant=backup.tenant.slug, state__in=states, kind="archive", subject_id=backup.pk)
    return rows.order_by("id").first()


def backups_all_start(*, slugs: Sequence[str] | None, type: str, actor: str, reason: str = "") -> Operation:
    """Queue a backup of every tenant that has something to back up, or of those named; each is an operation of its own."""
    params = {"slugs": None if slugs is None else list(slugs), "type": BackupType(type).value}
    with transaction.atomic():
        return operation_enqueue(kind="backups", tenant="", params=params, actor=actor, reason=reason)


def prune_start(tenant: Tenant, *, dry_run: bool, actor: str, here: bool = False) -> Operation:
    """Queue the removal of what no kept backup of the tenant needs."""
    with transaction.atomic():
        return operation_enqueue(
            kind="prune",
            tenant=tenant.slug,
            params={"dry_run": dry_run},
            subject_id=tenant.pk,
            actor=actor,
            here=here,
        )


def _subject_start(
    kind: str, backup: Backup, params: Mapping[str, Any], *, actor: str, reason: str = "", here: bool = False
) -> Operation:
    with transaction.atomic():
        return operation_enqueue(
            kind=kind,
            tenant=backup.tenant.slug,
            params=params,
            subject_id=backup.pk,
            actor=actor,
            reason=reason,
            here=here,
        )


def tenant_active(tenant: Tenant) -> None:
    """Raise Conflict for a tenant that was removed: it is kept for restores, and takes nothing new. Or KeysDestroyed."""
    keys_present(tenant)
    if tenant.archived_at is not None:
        raise Conflict(
            f"tenant {tenant.slug} was removed on {tenant.archived_at:%Y-%m-%d}",
            hint=f"bring it back first: tenant reinstate {tenant.slug}",
        )


def _chosen(tenant: Tenant, names: tuple[str, ...]) -> list[Source]:
    if names:
        return [source_get(tenant, name) for name in dict.fromkeys(names)]
    sources = list(Source.objects.select_related("tenant").filter(tenant=tenant, enabled=True).order_by("name"))
    if not sources:
        raise UsageError(
            f"tenant {tenant.slug} has no source to back up",
            hint=f"add one: source add {tenant.slug} NAME --kind files --category assets --set path=DIR",
        )
    return sources


def _attach(backup: Backup, operation: Operation) -> None:
    Backup.objects.filter(pk=backup.pk, state=BackupState.RUNNING).update(operation_id=operation.pk)
    backup.operation_id = operation.pk
