"""Losses accepted: a backup that no store holds any more is ended by a signed record, so that prune can go on."""

from collections.abc import Mapping
from typing import Any

from django.db import transaction

from audit.services import record
from core import clock
from core.errors import Conflict
from engine.errors import BackupMissing, ManifestDamaged, RepositoryMissing, StoreError
from engine.faults import kill_point
from engine.repository import Repository
from operations.context import OperationContext
from operations.models import Operation
from operations.services import operation_enqueue
from tenants import wiring
from tenants.copy_opening import copy_open
from tenants.copy_selectors import copies_of
from tenants.models import Backup, BackupCopy, BackupState, Copy, CopyFinding, Tenant
from tenants.models.backup import ENDED_STATES, GOOD_STATES
from tenants.services.reconciling import last_good_again, reconciled_checked
from tenants.transitions import backup_transition


def loss_accept_start(backup: Backup, *, actor: str, reason: str = "", here: bool = False) -> Operation:
    """Queue the end of a backup that was lost in every store; the operation looks whether it was.

    Raises Conflict when it is held, or is no backup that a store ought to hold.
    """
    _acceptable(backup)
    with transaction.atomic():
        return operation_enqueue(
            kind="delete",
            tenant=backup.tenant.slug,
            params={"lost": True},
            subject_id=backup.pk,
            actor=actor,
            reason=reason,
            here=here,
        )


def loss_accept(context: OperationContext, backup: Backup) -> Mapping[str, Any]:
    """Look for the manifest in every store of the tenant, and end the backup when none has it.

    The store's record comes first; a kill in between is mended by a repeat. Raises Conflict when a store holds it, or
    cannot be asked.
    """
    _acceptable(backup)
    tenant, number = backup.tenant, backup.number
    assert number is not None, "a good backup has a number"
    reason = context.operation.reason or "lost in every store, given up by an operator"
    _not_in_copies(backup, number)
    with wiring.repository_open(tenant) as repository:
        if not repository.forgotten(number):
            reconciled_checked(tenant, repository)
            _not_in(repository, tenant.store.name, backup, number)
            context.check()
            repository.forget_lost(number, reason, manifest_sha256=backup.manifest_sha256)
    kill_point("loss.record_stored")
    _ended(context, backup, reason)
    last_good_again(context, tenant)
    return {"id": backup.pk, "state": backup.state, "lost": True}


def _acceptable(backup: Backup) -> None:
    if Tenant.objects.filter(pk=backup.tenant_id, held=True).exists() or backup.held:
        raise Conflict(
            f"backup {backup.pk} is under a hold, or its tenant is",
            hint="a loss under a hold is for those to know who asked for it: release it first",
        )
    gone = backup.state in ENDED_STATES and backup.trashed_at is None
    if backup.number is None or gone or backup.state not in (*GOOD_STATES, *ENDED_STATES):
        raise Conflict(f"backup {backup.pk} is {backup.state}", hint="no store ought to hold it; there is no loss")


def _not_in_copies(backup: Backup, number: int) -> None:
    for copy in copies_of(backup.tenant):
        try:
            with copy_open(copy) as repository:
                _not_in(repository, copy.store.name, backup, number)
        except RepositoryMissing:
            continue
        except StoreError as error:
            raise _unasked(copy, backup, error) from error


def _not_in(repository: Repository, store: str, backup: Backup, number: int) -> None:
    try:
        repository.manifest(number)
    except (BackupMissing, ManifestDamaged):
        return
    raise Conflict(
        f"store {store} holds backup {backup.pk}; it is not lost",
        hint=f"copy repair {backup.tenant.slug} brings it back where it lacks; to end it: backup delete {backup.pk}",
    )


def _unasked(copy: Copy, backup: Backup, error: StoreError) -> Conflict:
    return Conflict(
        f"store {copy.store.name} may hold backup {backup.pk} and cannot be asked: {error.message}",
        hint=f"wait for it; if it is gone for good: store remove {copy.store.name} --lost",
    )


def _ended(context: OperationContext, backup: Backup, reason: str) -> None:
    """Ended, and out of the trash: nothing is left that could be taken back."""
    actor = context.operation.actor
    with transaction.atomic():
        context.fence()
        if backup.state in GOOD_STATES:
            backup_transition(backup, to=BackupState.DELETED, actor=actor, reason=reason, damaged=True)
        Backup.objects.filter(pk=backup.pk).update(trashed_at=None)
        BackupCopy.objects.filter(backup=backup).delete()
        findings = CopyFinding.objects.filter(copy__tenant=backup.tenant, mended_at=None)
        findings.filter(key=f"manifests/{backup.number:010d}").update(mended_at=clock.now(), mended_from="given up")
        record(
            "backup.lost",
            message=f"backup {backup.pk} of {backup.tenant.slug} is in no store any more, and given up",
            actor=actor,
            tenant=backup.tenant.slug,
            level="error",
            data={"backup": backup.pk, "number": backup.number, "manifest": backup.manifest_sha256, "reason": reason},
        )
    backup.refresh_from_db()
