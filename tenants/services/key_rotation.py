"""New keys in the place of old ones: epochs of a tenant, and the root key of the installation."""

from collections.abc import Iterator, Mapping
from typing import Any

from django.db import IntegrityError, transaction

from access.approvals import Action, approval_use
from access.models import Approval
from audit.services import record
from core import clock
from core.errors import Conflict
from core.rewrapping import column_rewrap, sealed_columns
from core.rootkey import RootKeyMissing, root_key, root_key_former, root_key_prepare, root_key_retire, root_key_switch
from core.text import reason_checked
from engine.errors import LastroError
from engine.faults import kill_point
from engine.keys import RootKey
from engine.owner import owner_checked
from engine.ports import Store
from operations.context import OperationContext
from operations.models import ACTIVE_STATES, Operation
from operations.services import operation_enqueue
from tenants import wiring
from tenants.catalogue.places import catalogue_keys_renew
from tenants.keyring_places import (
    OLDER_VERSIONS,
    keyring_purge,
    keyring_store,
    keyring_store_beside,
    may_keep,
    place_failed,
    place_note,
    places_write,
    shredded_meanwhile,
    stores_keeping,
)
from tenants.models import (
    CatalogueStore,
    KeyringPlace,
    KeyringState,
    RootRotation,
    StoreConfig,
    Tenant,
)
from tenants.owning import installation_get
from tenants.services.compacting import catalogue_compact
from tenants.services.succession import epoch_note, known_now, ledger_settle, numbers_settle
from tenants.shredded import keys_present
from tenants.tenant_sealing import keyring_of

RESOURCE = "root-key"
REASON_CHARS_MAX = 500
RACES_MAX = 5
NAMED_MAX = 5
FAILURES_MAX = 100
_KEYRINGS = "keyrings of tenants"


# ------------------------------------------------------------ one tenant


def tenant_rotate_start(
    tenant: Tenant,
    *,
    actor: str,
    reason: str = "",
    compromised: bool = False,
    approval: Approval | None = None,
    here: bool = False,
) -> Operation:
    """Queue a new epoch for a tenant; `compromised` replaces the id key, too. Raises KeysDestroyed."""
    keys_present(tenant)
    with transaction.atomic():
        if compromised:
            approval_use(approval, compromise_action(tenant, reason), actor=actor)
        return operation_enqueue(
            kind="key_rotate",
            tenant=tenant.slug,
            params={"compromised": compromised},
            subject_id=tenant.pk,
            actor=actor,
            reason=reason,
            here=here,
        )


def compromise_action(tenant: Tenant, reason: str) -> Action:
    """What a second master has to agree to."""
    return Action("keys", "key.rotate.compromised", tenant.slug, {"reason": reason}, tenant_id=tenant.pk)


def root_action(reason: str, given: RootKey | None) -> Action:
    """What a second master has to agree to: which key it is, too, as who brings one along may have kept it."""
    return Action("keys", "key.rotate-root", "", {"reason": reason, "to": given.key_id if given else "made by Lastro"})


def tenant_rotate(context: OperationContext, tenant: Tenant, *, compromised: bool) -> dict[str, Any]:
    """Give the tenant a new epoch; what is written from now on is sealed by it, what was written stays readable.

    The new keyring lies in at least one store before anything is sealed by it: no backup may depend on the catalogue
    alone. After a compromise the signing key is replaced, too, and of what the former one signed only that is believed which
    the catalogue knows. Raises StoreError when no store that keeps keys can be reached; nothing has changed then.
    """
    if compromised:
        numbers_settle(context, tenant)
    for _ in range(RACES_MAX):
        tenant.refresh_from_db()
        before = bytes(tenant.keyring)
        keyring = keyring_of(tenant).rotated(compromised=compromised)
        if compromised:
            since, at = tenant.number_reserved + 1, clock.now().isoformat()
            keyring = keyring.succeeded(since=since, at=at, reason="compromised", known=known_now(tenant))
        blob = keyring.to_bytes(root_key())
        stored, failed = _stored_somewhere(tenant, blob)
        kill_point("key.epoch_stored")
        with transaction.atomic():
            context.fence()
            # The root key may have been rotated meanwhile, which has wrapped the keyring anew: look at it again.
            if not Tenant.objects.filter(pk=tenant.pk, keyring=before, shredded_at=None).update(keyring=blob):
                continue
            epoch_note(context, tenant, keyring, compromised=compromised)
            KeyringPlace.objects.filter(tenant=tenant).update(state=KeyringState.PENDING)
        tenant.refresh_from_db()
        for row in stored:
            place_note(tenant, row, blob)
        if compromised:
            ledger_settle(context, tenant)
        return {
            "tenant": tenant.slug,
            "epoch": keyring.epoch,
            "key_id": keyring.key_id,
            "compromised": compromised,
            "signing_key": keyring.public_key_of(keyring.epoch).hex(),
            "waiting": sorted(failed),
        }
    raise Conflict(f"the keyring of {tenant.slug} is being changed all the time", hint="try again")


def _stored_somewhere(tenant: Tenant, blob: bytes) -> tuple[list[StoreConfig], dict[str, LastroError]]:
    """Put the keyring into every store that keeps keys; those that have it, and the failures by store.

    Raises the first failure when none has it.
    """
    failed: dict[str, LastroError] = {}
    stored: list[StoreConfig] = []
    ours = installation_get()
    for row in stores_keeping():
        try:
            with wiring.store_open(row) as store:
                if may_keep(row, store):
                    owner_checked(
                        store, ours.repository_id, ours.generation
                    )  # Whoever has adopted the store has keys there that are not ours.
                    keyring_store(blob, tenant.repository_id, store)
                    if shredded_meanwhile(tenant, store):
                        continue
                    stored.append(row)
        except LastroError as error:
            place_failed(tenant, row, error)
            failed[row.name] = error
    tenant.refresh_from_db()
    keys_present(tenant)
    if not stored:
        raise next(iter(failed.values()), Conflict("no store keeps keys", hint="store set NAME --keeps-keys yes"))
    return stored, failed


# ------------------------------------------------------------ the root key


def root_rotate_start(
    *,
    actor: str,
    reason: str = "",
    given: RootKey | None = None,
    approval: Approval | None = None,
    here: bool = False,
) -> tuple[RootRotation, Operation]:
    """Put a new root key in the old one's place and queue the wrapping of everything anew; or go on with that.

    From here on the new key seals and both open. Raises Conflict for another key than that of an unfinished rotation,
    UsageError when the key has to come from the environment.
    """
    rotation = RootRotation.objects.filter(running=True).first()
    if rotation is None:
        rotation = _begun(given, approval, actor=actor, asked=reason)
    elif given is not None and given.key_id != rotation.new_key_id:
        raise Conflict(
            f"a rotation from {rotation.old_key_id} to {rotation.new_key_id} is not finished",
            hint="go on with it first: key rotate-root",
        )
    with transaction.atomic():
        operation = operation_enqueue(
            kind="key_rotate_root",
            tenant="",
            params={},
            subject_id=rotation.pk,
            actor=actor,
            reason=reason,
            here=here,
        )
    return rotation, operation


def root_rotation_running() -> bool:
    """Whether a rotation of the root key has begun and is not finished."""
    return RootRotation.objects.filter(running=True).exists()


def _begun(given: RootKey | None, approval: Approval | None, *, actor: str, asked: str) -> RootRotation:
    reason = reason_checked(asked)[:REASON_CHARS_MAX]
    old, new = root_key(), root_key_prepare(given)
    try:
        with transaction.atomic():
            approval_use(approval, root_action(asked, given), actor=actor)
            rotation = RootRotation.objects.create(
                old_key_id=old.key_id, new_key_id=new.key_id, created_by=actor, reason=reason
            )
            root_key_switch(old=old.key_id, new=new.key_id)
            catalogue_keys_renew(old, new)
            record(
                "key.root_rotation_begun",
                message=f"root key {new.key_id} takes the place of {old.key_id}",
                actor=actor,
                level="warning",
                data={"old": old.key_id, "new": new.key_id, "reason": reason},
            )
    except IntegrityError:
        raise Conflict("another rotation of the root key has begun meanwhile", hint="key list shows it") from None
    kill_point("key.rotation_begun")
    return rotation


def root_rotate(context: OperationContext, rotation: RootRotation) -> dict[str, Any]:
    """Wrap anew whatever the old root key still wraps; destroy the old key when nothing needs it any more.

    Repeating it is safe, from any point. What cannot be reached keeps the rotation unfinished, and the old key alive.
    """
    if not rotation.running:
        return _answer(rotation, [])
    root = root_key()
    if root.former is None:
        raise RootKeyMissing(
            f"the old root key {rotation.old_key_id} is not at hand on this host, so nothing can be wrapped anew",
            hint="give it in LASTRO_ROOT_KEY_OLD_FILE, or run this on the host that has it",
        )
    counts: dict[str, int] = dict(rotation.rewrapped)
    failures: list[str] = []
    context.phase("catalogue")
    _columns_rewrap(context, root, counts, failures)
    context.phase("stores")
    waiting = [*_places_rewrap(context, root, counts), *_catalogue_keyrings(context)]
    context.phase("check")
    # Whoever had the old key in hand when this began may have sealed one more thing under it.
    before = counts.get(_KEYRINGS, 0)
    _columns_rewrap(context, root, counts, failures)
    if counts.get(_KEYRINGS, 0) != before:
        waiting.append("tenants were added while this ran")
    waiting += _older_operations(context, rotation)
    for failure in dict.fromkeys(failures):
        context.warn("key.unreadable", f"neither key opens it, it was left as it is: {failure}")
    if not waiting:
        kill_point("key.rotation_settled")
        root_key_retire()
        uncompacted = catalogue_compact()
        if uncompacted:
            said = "the catalogue's storage may still hold bytes of rows that the old key opens"
            context.warn("key.not_compacted", f"{said}: {uncompacted}")
    _rotation_note(context, rotation, counts, waiting)
    return _answer(rotation, waiting)


def _columns_rewrap(context: OperationContext, root: RootKey, counts: dict[str, int], failures: list[str]) -> None:
    for column in sealed_columns():
        for done in column_rewrap(column, root, check=context.check):
            context.advance(items=done.rows)
            counts[column.label] = counts.get(column.label, 0) + done.changed
            failures += done.failures[: max(0, FAILURES_MAX - len(failures))]


def _places_rewrap(context: OperationContext, root: RootKey, counts: dict[str, int]) -> Iterator[str]:
    """Put the keyrings into the stores anew; says what is still to be done."""
    for row in StoreConfig.objects.order_by("name"):
        try:
            with wiring.store_open(row) as store:
                if may_keep(row, store):
                    _store_rewrap(context, row, store, counts)
                else:
                    _store_clear(row, store)
        except LastroError as error:
            context.warn("key.place_pending", f"store {row.name}: {error.message}")
        old = KeyringPlace.objects.filter(store=row, tenant__shredded_at=None).exclude(root_key_id="")
        older = KeyringPlace.objects.filter(
            store=row, error_code=OLDER_VERSIONS, written_at__gte=context.operation.started_at
        )
        if (place := older.first()) is not None:
            said = f"store {row.name} keeps what it replaced, which the old key opens: {place.error}"
            context.warn("key.older_versions", said)
        left = old.exclude(root_key_id=root.key_id)
        if count := left.count():
            names = list(left.order_by("tenant__slug").values_list("tenant__slug", flat=True)[:NAMED_MAX])
            yield f"store {row.name} still has the old keyrings of {', '.join(names)}" + (
                f" and {count - NAMED_MAX} more" if count > NAMED_MAX else ""
            )


def _store_rewrap(context: OperationContext, row: StoreConfig, store: Store, counts: dict[str, int]) -> None:
    right = KeyringPlace.objects.filter(store=row, state=KeyringState.WRITTEN)
    tenants = Tenant.objects.filter(shredded_at=None).exclude(pk__in=right.values("tenant"))
    for done in places_write(row, store, tenants, check=context.check):
        context.advance(items=done.written)
        counts["keyrings in stores"] = counts.get("keyrings in stores", 0) + done.written
        if done.error is not None:
            context.warn("key.place_pending", f"store {row.name}: {done.error.message}")


def _store_clear(row: StoreConfig, store: Store) -> None:
    """A store that is no longer to keep keys would keep what the old root key opens."""
    for place in KeyringPlace.objects.filter(store=row).select_related("tenant").iterator():
        keyring_purge(place.tenant.repository_id, store)
        place.delete()


def _catalogue_keyrings(context: OperationContext) -> Iterator[str]:
    """The keyring of the catalogue's own backups lies beside them in every store."""
    installation = installation_get()
    blob, repository_id = bytes(installation.keyring), installation.repository_id
    for place in CatalogueStore.objects.filter(ready=True).select_related("store"):
        try:
            with wiring.store_open(place.store) as store:
                if kept := keyring_store_beside(blob, repository_id, store):
                    said = (
                        f"store {place.store.name}: the old root key goes on to open old backups of the catalogue there"
                    )
                    context.warn("key.older_versions", f"{said} ({kept})")
        except LastroError as error:
            yield f"store {place.store.name} still has the old keyring of the catalogue's backups: {error.message}"


def _older_operations(context: OperationContext, rotation: RootRotation) -> list[str]:
    """Work that began before the rotation holds rows as they were wrapped then."""
    older = Operation.objects.filter(state__in=ACTIVE_STATES, started_at__lt=rotation.created_at)
    rows = older.exclude(pk=context.operation.pk).order_by("pk")[:NAMED_MAX]
    return [f"{row.kind} {row.pk} began before the rotation and still runs" for row in rows]


def _rotation_note(
    context: OperationContext, rotation: RootRotation, counts: Mapping[str, int], waiting: list[str]
) -> None:
    rotation.rewrapped, rotation.waiting = dict(counts), waiting
    if not waiting:
        rotation.running, rotation.finished_at = False, clock.now()
    with transaction.atomic():
        rotation.save()
        record(
            "key.root_rotation_waits" if waiting else "key.root_rotated",
            message=f"root key {rotation.new_key_id} in the place of {rotation.old_key_id}: "
            + (f"the old one is still needed, {len(waiting)} things wait" if waiting else "the old one is destroyed"),
            actor=context.operation.actor,
            level="warning",
            data={"rewrapped": dict(counts), "waiting": waiting[:NAMED_MAX]},
        )
    for each in waiting:
        context.warn("key.old_root_needed", f"the old root key {rotation.old_key_id} is still needed: {each}")


def _answer(rotation: RootRotation, waiting: list[str]) -> dict[str, Any]:
    return {
        "rotation": rotation.pk,
        "old_key_id": rotation.old_key_id,
        "new_key_id": rotation.new_key_id,
        "finished": not rotation.running,
        "rewrapped": dict(rotation.rewrapped),
        "waiting": waiting,
        "old_key_still_needed": root_key_former() or None,
    }
