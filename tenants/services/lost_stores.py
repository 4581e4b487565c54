"""Stores that are gone for good: what is given up with one is told, then everything that counted on it is let go."""

from dataclasses import dataclass

from django.db import transaction
from django.db.models import F, Q, QuerySet

from access.approvals import Action, approval_use
from access.models import Approval
from audit.services import record
from core.errors import Conflict
from core.text import counted
from engine.errors import StoreError, UsageError
from engine.repository import keyring_key
from operations.models import Operation, OperationState
from operations.services import operation_cancel, operation_run
from tenants.models import (
    Backup,
    BackupCopy,
    BackupPresence,
    BackupState,
    CertificateState,
    Copy,
    KeyringPlace,
    StoreConfig,
    Tenant,
)
from tenants.models.backup import GOOD_STATES
from tenants.services.given_up import given_up_note
from tenants.services.promoting import copy_best, promote_start
from tenants.services.rebuilding import Note
from tenants.services.stores import primary_checked, store_default, store_objects_present
from tenants.transitions import backups_transition

NAMED_MAX = 200


@dataclass(frozen=True)
class StoreLoss:
    """What the catalogue has of a store that is to be given up."""

    copies: int
    backups: int
    """Backups that it held a copy of."""
    alone: tuple[str, ...]
    """Those of them that no other store holds: they are lost."""
    keyrings: int
    nowhere: int
    """Tenants whose keyring lay in this store and nowhere else but in the catalogue."""
    shredded: tuple[str, ...]
    """Shredded tenants of which it may still hold a keyring."""
    catalogues: int
    primaries: int = 0
    """Tenants whose primary it is: they go on in a copy, or begin anew."""

    def words(self) -> str:
        """As one clause for a question or an answer."""
        said = [f"the primary of {counted(self.primaries, 'tenant')}"] if self.primaries else []
        if self.copies:
            said.append(f"copies of {counted(self.copies, 'tenant')} with {counted(self.backups, 'backup')}")
        said.append(counted(self.keyrings, "keyring"))
        if self.catalogues:
            said.append(f"{counted(self.catalogues, 'backup')} of the catalogue")
        if self.alone:
            more = " …" if len(self.alone) > 5 else ""
            said.append(
                f"{counted(len(self.alone), 'backup')} that no other store holds: {', '.join(self.alone[:5])}{more}"
            )
        if self.shredded:
            said.append(
                f"the proof that no keyring of {', '.join(self.shredded[:5])} is left in it (key rotate-root makes such "
                "a keyring worthless)"
            )
        return "; ".join(said)


def store_loss(row: StoreConfig) -> StoreLoss:
    """What would be given up with this store."""
    here = BackupCopy.objects.filter(copy__store=row, presence=BackupPresence.PRESENT, backup__state__in=GOOD_STATES)
    keys = KeyringPlace.objects.filter(store=row, tenant__shredded_at=None)
    elsewhere = KeyringPlace.objects.filter(state="written").exclude(store=row)
    catalogue = getattr(row, "catalogue", None)
    return StoreLoss(
        copies=_copies(row).count(),
        backups=here.count(),
        alone=tuple(_alone(row).values_list("pk", flat=True)),
        keyrings=keys.count(),
        nowhere=keys.exclude(tenant__in=elsewhere.values("tenant")).count(),
        shredded=tuple(each.slug for each in _unproven(row)),
        catalogues=catalogue.number_reserved if catalogue is not None else 0,
        primaries=_primaries(row).count(),
    )


def primaries_move(row: StoreConfig, to: StoreConfig, *, actor: str, reason: str, note: Note) -> list[str]:
    """Let every tenant whose primary was in a lost store go on in its best copy, or begin anew in `to`; their slugs.

    Each is an operation of its own; the first that fails stops the rest (Conflict), and a repeat goes on there. New
    tenants go to `to` when the lost store was the default one.
    """
    if to.pk == row.pk:
        raise UsageError(f"{row.name} is the store that is lost", hint="--to another store")
    _answers_checked(row)
    primary_checked(to)
    _holds_checked(row, primaries=True)
    moved: list[str] = []
    for tenant in list(_primaries(row).select_related("store").order_by("slug")):
        best = copy_best(tenant)
        target = best.store if best is not None else to
        operation = operation_run(
            promote_start(tenant, target, lost=True, actor=actor, reason=reason, here=True).pk, here=True
        )
        if operation.error:
            raise Conflict(
                f"the backups of {tenant.slug} cannot go on in {target.name}: {operation.error['detail']}",
                hint=f"{operation.error.get('hint') or 'mend that'}; then the same command again: {len(moved)} tenants have moved",
            )
        for warning in operation.warnings:
            note(f"{tenant.slug}: {warning['message']}")
        moved.append(tenant.slug)
    if row.is_default:
        with transaction.atomic():
            StoreConfig.objects.filter(is_default=True).update(is_default=False)
            StoreConfig.objects.filter(pk=to.pk).update(is_default=True)
        row.refresh_from_db()
    return moved


def _primaries(row: StoreConfig) -> "QuerySet[Tenant]":
    return Tenant.objects.filter(store=row, shredded_at=None)


def give_up_action(row: StoreConfig, reason: str) -> Action:
    """What a second master has to agree to: what the store alone holds is ended."""
    return Action("stores", "store.remove.lost", details={"store": row.name, "id": row.pk, "reason": reason})


def store_give_up(row: StoreConfig, *, actor: str, reason: str = "", approval: Approval | None = None) -> StoreLoss:
    """Forget a store that is gone for good, with its copies and places of keyrings; the place is not touched.

    Backups that no other store holds are ended. Raises Conflict when it answers and holds repositories, while it is
    some tenant's primary or the default store, and for a backup under a hold.
    """
    _given_up_checked(row)
    loss = store_loss(row)
    with transaction.atomic():
        approval_use(approval, give_up_action(row, reason), actor=actor)
        unproven = {tenant.pk: waits for tenant, waits in _unproven(row).items()}
        given_up = given_up_note(row, unproven=unproven, actor=actor, reason=reason)
        _operations_end(row, actor=actor)
        for at in range(0, len(loss.alone), NAMED_MAX):
            backups_transition(
                loss.alone[at : at + NAMED_MAX],
                to=BackupState.DELETED,
                actor=actor,
                reason=f"lost with store {row.name}",
                expected={"held": False},
            )
        Copy.objects.filter(store=row).delete()
        KeyringPlace.objects.filter(store=row).delete()
        # Of a shredded tenant nothing is kept anywhere: its row has to point to some store.
        Tenant.objects.filter(store=row, shredded_at__isnull=False).update(store=store_default())
        record(
            "store.lost",
            message=f"store {row.name} ({row.kind}) is given up as lost: {loss.words()}",
            actor=actor,
            level="error",
            data={
                "store": row.name,
                "given_up": given_up.pk,
                "kind": row.kind,
                "reason": reason,
                "copies": loss.copies,
                "backups": loss.backups,
                "lost": list(loss.alone[:NAMED_MAX]),
                "keyrings": loss.keyrings,
                "shredded": list(loss.shredded[:NAMED_MAX]),
            },
        )
        row.delete()
    return loss


def _copies(row: StoreConfig) -> "QuerySet[Copy]":
    """Copies that are kept there; the rows of primaries and of shredded tenants are none."""
    return Copy.objects.filter(store=row, tenant__shredded_at=None).exclude(tenant__store=F("store"))


def _alone(row: StoreConfig) -> "QuerySet[Backup]":
    """Good backups that only a copy in this store has."""
    here = Backup.objects.filter(
        copies__copy__store=row, copies__presence=BackupPresence.PRESENT, left_at__isnull=False, state__in=GOOD_STATES
    )
    elsewhere = BackupCopy.objects.filter(presence=BackupPresence.PRESENT).exclude(copy__store=row)
    return here.exclude(pk__in=elsewhere.values("backup")).order_by("pk")


def _unproven(row: StoreConfig) -> dict[Tenant, list[str]]:
    """Shredded tenants whose newest certificate waits for this store, or was never issued, and for what of it."""
    found: dict[Tenant, list[str]] = {}
    for tenant in Tenant.objects.filter(shredded_at__isnull=False).order_by("slug").iterator():
        newest = tenant.certificates.order_by("-number").first()
        if newest is None:
            found[tenant] = [keyring_key(tenant.repository_id)]
            continue
        waits = [str(each["what"]) for each in newest.document["pending"] if each["place"] == f"store {row.name}"]
        if waits and newest.state == CertificateState.PENDING:
            found[tenant] = waits
    return found


def _given_up_checked(row: StoreConfig) -> None:
    if row.is_default:
        raise Conflict(
            f"store {row.name} is the default one",
            hint=f"store remove {row.name} --lost --to NAME makes another one the default",
        )
    slugs = list(_primaries(row).order_by("slug").values_list("slug", flat=True)[:6])
    if slugs:
        raise Conflict(
            f"store {row.name} is the primary of {', '.join(slugs[:5])}{' …' if len(slugs) > 5 else ''}",
            hint=f"store remove {row.name} --lost --to NAME: they go on in their copies, and those without one begin anew there",
        )
    _holds_checked(row)
    _answers_checked(row)


def _holds_checked(row: StoreConfig, *, primaries: bool = False) -> None:
    """Raise Conflict for a backup under a hold that is in no other store; with `primaries` of those that lie there first."""
    held = _alone(row).filter(Q(held=True) | Q(tenant__held=True)).first()
    if held is None and primaries:
        rows = Backup.objects.filter(tenant__in=_primaries(row), state__in=GOOD_STATES, left_at=None)
        elsewhere = BackupCopy.objects.filter(presence=BackupPresence.PRESENT).exclude(copy__store=row)
        rows = rows.filter(Q(held=True) | Q(tenant__held=True)).exclude(pk__in=elsewhere.values("backup"))
        held = rows.order_by("pk").first()
    if held is not None:
        raise Conflict(
            f"backup {held.pk} of {held.tenant.slug} is under a hold, and no other store has it",
            hint=f"those who asked for the hold have to know; then: backup release {held.pk}, or tenant release {held.tenant.slug}",
        )


def _answers_checked(row: StoreConfig) -> None:
    """Raise Conflict when the store can be read and holds repositories."""
    try:
        present = store_objects_present(row)
    except StoreError:
        return
    if present:
        raise Conflict(
            f"store {row.name} answers and holds repositories: it is not lost",
            hint="tenant set SLUG --store NAME and copy remove TENANT STORE empty it, store set NAME --keeps-keys no and "
            "key repair take its keyrings away; then store remove without --lost",
        )


def _operations_end(row: StoreConfig, *, actor: str) -> None:
    """Nobody can work on a copy that is gone."""
    copies = Copy.objects.filter(store=row).values("pk")
    waiting = Operation.objects.filter(subject_id__in=copies, state=OperationState.QUEUED)
    for operation in list(waiting.values_list("pk", flat=True)):
        operation_cancel(operation, actor=actor, reason=f"store {row.name} is lost")
