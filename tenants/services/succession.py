"""Successors of signing keys: after a compromise, and after an adoption (docs/adr/0018)."""

from typing import Any

from django.db import transaction
from django.db.models import Q

from audit.services import record
from core import clock
from core.errors import Unreconciled
from core.rootkey import root_key
from engine.erasures import ledger_restate
from engine.errors import BackupMissing, DamageError, LastroError, ManifestDamaged, StoreError, WrongKey
from engine.faults import kill_point
from engine.keys import Keyring
from engine.repository import Repository
from engine.signers import Known
from operations.context import OperationContext
from tenants import wiring
from tenants.keyring_places import keyring_store, may_keep, place_note, shredded_meanwhile, stores_keeping
from tenants.models import (
    Backup,
    KeyEpoch,
    KeyringPlace,
    KeyringState,
    RepositoryMirror,
    StoreConfig,
    Tenant,
)
from tenants.models.backup import GOOD_STATES
from tenants.services.numbers import numbers_close
from tenants.tenant_sealing import keyring_of

RACES_MAX = 5
_SETTLED = ("succeeded", "warned", "expired", "deleted")


def numbers_settle(context: OperationContext, tenant: Tenant) -> None:
    """Take into the catalogue what killed sessions had committed: what is not known at a break is no backup after it.

    Raises StoreError or DamageError when a number is open and the primary cannot be asked, Unreconciled when it holds a
    number that was never given out here: whether that is ours, or a thief's, a person has to know.
    """
    if not tenant.repository_ready:
        return
    try:
        with wiring.repository_open(tenant) as repository:
            repository.guard.check()
            _none_ahead(tenant, repository)
            numbers_close(context, tenant, repository)
    except (StoreError, DamageError):
        tenant.refresh_from_db()
        if _numbers_open(tenant):
            raise
    tenant.refresh_from_db()


def _none_ahead(tenant: Tenant, repository: Repository) -> None:
    number = tenant.number_reserved + 1
    try:
        repository.manifest(number)
    except (BackupMissing, ManifestDamaged, WrongKey):
        return  # Nothing, or nothing that opens: that is no backup before a break, and none after it.
    raise Unreconciled(
        f"the store of {tenant.slug} holds backup number {number}, which this catalogue never gave out; nothing was changed",
        hint=f"was the catalogue restored? store reconcile {tenant.store.name} --tenant {tenant.slug}; if not, somebody made it with "
        f"the keys that got out: take r/{tenant.repository_id}/manifests/{number:010d} away by hand; then again",
    )


def _numbers_open(tenant: Tenant) -> bool:
    given_out = range(tenant.numbers_closed + 1, tenant.number_reserved + 1)
    known = Backup.objects.filter(tenant=tenant, number__gt=tenant.numbers_closed, state__in=_SETTLED)
    return bool(set(given_out) - set(known.values_list("number", flat=True)))


def known_now(tenant: Tenant) -> Known:
    """What the catalogue knows of the repository: all that is believed of former keys after a break."""
    rows = Backup.objects.filter(tenant=tenant, number__isnull=False).exclude(manifest_sha256="")
    alive = Q(state__in=GOOD_STATES) | Q(trashed_at__isnull=False)
    kept, ended = (
        dict(each.values_list("number", "manifest_sha256")) for each in (rows.filter(alive), rows.exclude(alive))
    )
    return Known(
        {number: sha256 for number, sha256 in kept.items() if number is not None},
        {number: sha256 for number, sha256 in ended.items() if number is not None},
        erasures=tenant.erasures_number,
    )


def ledger_settle(context: OperationContext, tenant: Tenant) -> None:
    """After a break: repeat the erasure ledger under the new keys. What cannot be done now is warned of."""
    if not tenant.erasures_number:
        return
    try:
        with wiring.repository_open(tenant) as repository:
            repository.guard.check()
            number = ledger_restate(repository, at_least=tenant.erasures_number)
    except LastroError as error:
        said = "the erasure ledger was not repeated under the new keys; the next rotation does it"
        context.warn("key.ledger_pending", f"{said}: {error.message}")
        return
    with transaction.atomic():
        context.fence()
        Tenant.objects.filter(pk=tenant.pk, erasures_number__lt=number).update(erasures_number=number)


# ---------------------------------------------------------------- after an adoption


def successor_make(context: OperationContext, tenant: Tenant, repository: Repository) -> bool:
    """Give an adopted tenant a signing key of this installation's; False when none is due.

    The key before signs it: it is trusted, and signs nothing from here on. The keyring lies in a store before anything
    is signed by it; the other stores get it by the next `keyrings_spread`. Repeating it is safe.
    """
    for _ in range(RACES_MAX):
        tenant.refresh_from_db()
        if not RepositoryMirror.objects.filter(tenant=tenant, succession_due=True).exists():
            return False
        before = bytes(tenant.keyring)
        keyring = keyring_of(tenant).rotated()
        at = clock.now().isoformat()
        keyring = keyring.succeeded(since=tenant.number_reserved + 1, at=at, reason="adopted")
        blob = keyring.to_bytes(root_key())
        row = _stored(tenant, blob, repository)
        kill_point("adopt.successor_stored")
        with transaction.atomic():
            context.fence()
            if not Tenant.objects.filter(pk=tenant.pk, keyring=before, shredded_at=None).update(keyring=blob):
                continue
            RepositoryMirror.objects.filter(tenant=tenant).update(succession_due=False)
            KeyringPlace.objects.filter(tenant=tenant).update(state=KeyringState.PENDING)
            epoch_note(context, tenant, keyring, adopted=True)
        tenant.refresh_from_db()
        place_note(tenant, row, blob)
        return True
    return False


def _stored(tenant: Tenant, blob: bytes, repository: Repository) -> StoreConfig:
    """Put the keyring into the primary, which is open, else into the first store that keeps keys; which it was."""
    if may_keep(tenant.store, repository.store):
        keyring_store(blob, tenant.repository_id, repository.store)
        return tenant.store
    failure: LastroError | None = None
    for row in stores_keeping():
        try:
            with wiring.store_open(row) as store:
                if may_keep(row, store):
                    keyring_store(blob, tenant.repository_id, store)
                    shredded_meanwhile(tenant, store)
                    return row
        except LastroError as error:
            failure = failure or error
    raise failure or StoreError("no store keeps keys", hint="store set NAME --keeps-keys yes")


def epoch_note(
    context: OperationContext, tenant: Tenant, keyring: Keyring, *, compromised: bool = False, adopted: bool = False
) -> None:
    """Write down a new epoch, and the signing key that began with it."""
    operation, successor = context.operation, keyring.successors.get(keyring.epoch)
    values: dict[str, Any] = {
        "compromised": compromised,
        "adopted": adopted,
        "created_by": operation.actor,
        "reason": operation.reason[:500],
        "began_at": clock.now(),
        "signing_key": successor.public_key.hex() if successor else "",
        "signs_from": successor.since if successor else None,
    }
    KeyEpoch.objects.update_or_create(tenant=tenant, epoch=keyring.epoch, defaults=values)
    why = " after a compromise" if compromised else " after an adoption" if adopted else ""
    record(
        "key.rotated",
        message=f"tenant {tenant.slug}: epoch {keyring.epoch}{why}",
        actor=operation.actor,
        tenant=tenant.slug,
        level="warning" if compromised or adopted else "info",
        data={
            "epoch": keyring.epoch,
            "compromised": compromised,
            "adopted": adopted,
            "signing_key": values["signing_key"],
            "signs_from": values["signs_from"],
            "trusted_before": successor is None or successor.known is None,
            "reason": operation.reason,
        },
    )
