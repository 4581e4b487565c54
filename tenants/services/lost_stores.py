"""Stores that are gone for good: what is given up with one is told, then everything that counted on it is let go."""

from dataclasses import dataclass

from django.db import transaction
from django.db.models import F, Q, QuerySet

from audit.services import record
from core.errors import Conflict
from engine.errors import StoreError
from operations.models import Operation, OperationState
from operations.services import operation_cancel
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
from tenants.services.stores import store_default, store_objects_present
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

    def words(self) -> str:
        """As one clause for a question or an answer."""
        said = [f"copies of {self.copies} tenants with {self.backups} backups", f"{self.keyrings} keyrings"]
        if self.catalogues:
            said.append(f"{self.catalogues} backups of the catalogue")
        if self.alone:
            said.append(f"{len(self.alone)} backups that no other store holds: {', '.join(self.alone[:5])}")
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
        shredded=tuple(_unproven(row)),
        catalogues=catalogue.number_reserved if catalogue is not None else 0,
    )


def store_give_up(row: StoreConfig, *, actor: str, reason: str = "") -> StoreLoss:
    """Forget a store that is gone for good, with its copies and places of keyrings; the place is not touched.

    Backups that no other store holds are ended. Raises Conflict when it answers and holds repositories, while it is
    some tenant's primary or the default store, and for a backup under a hold.
    """
    _given_up_checked(row)
    loss = store_loss(row)
    with transaction.atomic():
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


def _unproven(row: StoreConfig) -> list[str]:
    """Shredded tenants whose newest certificate waits for this store."""
    found = []
    for tenant in Tenant.objects.filter(certificates__state=CertificateState.PENDING).distinct().order_by("slug"):
        newest = tenant.certificates.order_by("-number").first()
        if newest is not None and any(each["place"] == f"store {row.name}" for each in newest.document["pending"]):
            found.append(tenant.slug)
    return found


def _given_up_checked(row: StoreConfig) -> None:
    if row.is_default:
        raise Conflict(
            f"store {row.name} is the default one", hint="store adopt NAME of another store makes that the default"
        )
    slugs = list(Tenant.objects.filter(store=row, shredded_at=None).order_by("slug").values_list("slug", flat=True)[:6])
    if slugs:
        raise Conflict(
            f"store {row.name} is the primary of {', '.join(slugs[:5])}{' …' if len(slugs) > 5 else ''}",
            hint="let their copies take its place first: store adopt NAME of the store that holds them",
        )
    held = _alone(row).filter(Q(held=True) | Q(tenant__held=True)).first()
    if held is not None:
        raise Conflict(
            f"backup {held.pk} of {held.tenant.slug} is under a hold, and no other store has it",
            hint=f"those who asked for the hold have to know; then: backup release {held.pk}, or tenant release {held.tenant.slug}",
        )
    try:
        present = store_objects_present(row)
    except StoreError:
        return
    if present:
        raise Conflict(
            f"store {row.name} answers and holds repositories: it is not lost",
            hint="copy remove TENANT STORE, store set NAME --keeps-keys no, key repair, then store remove without --lost",
        )


def _operations_end(row: StoreConfig, *, actor: str) -> None:
    """Nobody can work on a copy that is gone."""
    copies = Copy.objects.filter(store=row).values("pk")
    waiting = Operation.objects.filter(subject_id__in=copies, state=OperationState.QUEUED)
    for operation in list(waiting.values_list("pk", flat=True)):
        operation_cancel(operation, actor=actor, reason=f"store {row.name} is lost")
