"""Crypto-shredding: a tenant is made unreadable by destroying its keyring, everywhere, and a certificate says so."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction
from django.db.models import Max

from access.approvals import Action, approval_use
from access.models import Approval
from audit.services import record
from core import clock
from core.errors import ConfirmationNeeded, Conflict, NotFound
from core.text import reason_checked
from engine.certificate import (
    CERTIFICATE_BYTES_MAX,
    certificate_check,
    certificate_claims,
    certificate_digest,
    certificate_sign,
)
from engine.errors import UsageError, WrongKey
from engine.faults import kill_point
from operations.context import OperationContext
from operations.models import Operation, OperationState
from operations.selectors import operations_active
from operations.services import operation_cancel, operation_enqueue
from tenants.archives import archives_clear
from tenants.models import Backup, CertificateState, DestroyedKey, GivenUpPlace, ShredCertificate, Tenant
from tenants.owning import catalogue_keyring, installation_get
from tenants.services.clearing import caches_clear, catalogue_clear
from tenants.services.compacting import catalogue_compact, catalogue_notes
from tenants.services.copies import COPY_KINDS
from tenants.services.shred_stores import Pending, StoresShredded, destroyed, keyrings_destroy, objects_destroy
from tenants.services.tenants import idle_checked

KIND = "key_shred"
_CATALOGUE_NOTE = (
    "Backups of the catalogue taken before hold its rows about the tenant (names, settings) until their own retention "
    "is over."
)


class Held(Conflict):
    """A legal hold outranks everything."""

    code = "keys.held"


def shred_start(
    tenant: Tenant,
    *,
    confirmed: str | None,
    reason: str,
    actor: str,
    approval: Approval | None = None,
    here: bool = False,
) -> Operation:
    """Queue the destruction of a tenant's keys, or go on with one that is pending.

    Copies that only wait are cancelled. Raises ConfirmationNeeded, Held under a legal hold, Busy while anything else of
    the tenant is queued or runs.
    """
    if confirmed != tenant.slug:
        raise ConfirmationNeeded(
            f"this destroys the keys of {tenant.slug}: none of its backups can ever be read again",
            hint=f"confirm with --confirm {tenant.slug}",
        )
    if not reason.strip():
        raise UsageError("shredding needs a reason, which the certificate states", hint='--reason "…"')
    hold_checked(tenant)
    idle_checked(tenant, but=queued_copies(tenant))
    with transaction.atomic():
        if tenant.shredded_at is None:  # What was agreed to is brought to its end without asking again.
            approval_use(approval, shred_action(tenant, reason), actor=actor)
        for each in queued_copies(tenant):
            operation_cancel(each.pk, actor=actor, reason="the tenant's keys are about to be destroyed")
        operation = operation_enqueue(
            kind=KIND,
            tenant=tenant.slug,
            params={"approved_by": approval.decided_by if approval else ""},
            subject_id=tenant.pk,
            actor=actor,
            reason=reason_checked(reason),
            here=here,
        )
        record(
            "key.shred_requested",
            message=f"the keys of {tenant.slug} shall be destroyed: {reason}",
            actor=actor,
            tenant=tenant.slug,
            level="warning",
            data={"operation": operation.pk, "approval": approval.pk if approval else ""},
        )
    return operation


def queued_copies(tenant: Tenant) -> list[Operation]:
    """Copies that every backup queues by itself, and their repairs, which nobody has begun."""
    active = operations_active(tenant=tenant.slug)
    return [each for each in active if each.kind in COPY_KINDS and each.state == OperationState.QUEUED]


def shred_action(tenant: Tenant, reason: str) -> Action:
    """What a second master has to agree to."""
    return Action("keys", "key.shred", tenant.slug, {"reason": reason}, tenant_id=tenant.pk)


def hold_checked(tenant: Tenant) -> None:
    """Raise Held when the tenant or one of its backups is under a legal hold."""
    if Tenant.objects.filter(pk=tenant.pk, held=True).exists():
        why = tenant.held_reason or "no reason given"
        raise Held(f"tenant {tenant.slug} is under a legal hold: {why}", hint="nothing was destroyed; release it first")
    held = Backup.objects.filter(tenant=tenant, held=True).order_by("-id").first()
    if held is not None:
        raise Held(
            f"backup {held.pk} of {tenant.slug} is under a legal hold: {held.held_reason or 'no reason given'}",
            hint=f"nothing was destroyed; release it first: backup release {held.pk}",
        )


def shred(context: OperationContext, tenant: Tenant) -> dict[str, Any]:
    """Destroy the keys, clear the catalogue, issue a certificate. Killed anywhere, the next run does the rest.

    The catalogue's keyring goes first: from then on nothing can begin that needs it.
    """
    hold_checked(tenant)
    _others_checked(context, tenant)
    kill_point("shred.begun")
    context.phase("keys")
    if tenant.shredded_at is None:
        _catalogue_keyring_destroy(context, tenant)
    kill_point("shred.catalogue_cleared")
    pending = keyrings_destroy(tenant, check=context.check)
    context.phase("objects")
    stores = objects_destroy(tenant, check=context.check, advance=lambda count: context.advance(items=count))
    pending += stores.pending
    Tenant.objects.filter(pk=tenant.pk).update(repository_ready=False)  # No store ought to hold it any more.
    context.phase("catalogue")
    counts = catalogue_clear(tenant, actor=context.operation.actor, operation_id=context.operation.pk)
    caches_clear(tenant)
    archives_clear(tenant)
    kill_point("shred.rows_cleared")
    uncompacted = catalogue_compact()
    if uncompacted:
        pending.append(Pending("catalogue", "bytes of deleted rows in its storage", uncompacted))
    kill_point("shred.catalogue_compacted")
    context.phase("certificate")
    row = _certificate_issue(context, tenant, pending, counts, stores)
    for each in pending:
        until = f", until {each.until:%Y-%m-%d}" if each.until else ""
        context.warn("key.shred_pending", f"{each.place}: {each.what} ({each.why}{until})")
    return {"tenant": tenant.slug, "certificate": row.pk, "state": row.state, "pending": [p.to_json() for p in pending]}


def _others_checked(context: OperationContext, tenant: Tenant) -> None:
    """Work that was queued between the request and now would find no keys; it has to end first."""
    others = [each for each in operations_active(tenant=tenant.slug) if each.pk != context.operation.pk]
    running = [each for each in others if each.state != "queued"]
    if running:
        raise Conflict(f"{running[0].kind} {running[0].pk} of {tenant.slug} runs", hint="wait for its end, then again")


def _catalogue_keyring_destroy(context: OperationContext, tenant: Tenant) -> None:
    import hashlib

    now = clock.now()
    with transaction.atomic():
        context.fence()
        blob = bytes(Tenant.objects.select_for_update().get(pk=tenant.pk).keyring)
        epochs = _epochs(blob)
        what = f"keyring of {tenant.repository_id}" + (f", epochs {epochs[0]} to {epochs[-1]}" if epochs else "")
        destroyed(tenant, "catalogue", what, sha256=hashlib.sha256(blob).hexdigest())
        archived = tenant.archived_at or now
        Tenant.objects.filter(pk=tenant.pk).update(keyring=b"", shredded_at=now, archived_at=archived)
        record(
            "key.destroyed",
            message=f"the keyring of {tenant.slug} is gone from the catalogue",
            actor=context.operation.actor,
            tenant=tenant.slug,
            level="warning",
            data={"operation": context.operation.pk, "repository": tenant.repository_id},
        )
    tenant.refresh_from_db()


def _epochs(blob: bytes) -> list[int]:
    try:
        return sorted(int(number) for number in json.loads(blob)["epochs"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


# ------------------------------------------------------------ certificates


def _certificate_issue(
    context: OperationContext,
    tenant: Tenant,
    pending: Sequence[Pending],
    counts: Mapping[str, int],
    stores: StoresShredded,
) -> ShredCertificate:
    installation = installation_get()
    before = ShredCertificate.objects.filter(tenant=tenant).order_by("-number").first()
    state = CertificateState.PENDING if pending else CertificateState.COMPLETE
    row = ShredCertificate(
        tenant=tenant, number=before.number + 1 if before else 1, state=state, operation_id=context.operation.pk
    )
    document = {
        "id": row.pk,
        "number": row.number,
        "supersedes": before.sha256 if before else None,
        "installation_id": installation.pk,
        "tenant": {"slug": tenant.slug, "id": tenant.pk},
        "repository_id": tenant.repository_id,
        "state": state.value,
        **_asked(context, before),
        "keys_destroyed_at": tenant.shredded_at.isoformat() if tenant.shredded_at else None,
        "issued_at": clock.now().isoformat(),
        "destroyed": [
            {
                "place": each.place,
                "what": each.what,
                "versions": each.versions,
                "sha256": each.sha256 or None,
                "at": each.destroyed_at.isoformat(),
            }
            for each in DestroyedKey.objects.filter(tenant=tenant).order_by("id")
        ],
        "cleared": _cleared(before, counts),
        "pending": [each.to_json() for each in pending],
        "notes": _notes(tenant, stores),
    }
    row.document = certificate_sign(document, catalogue_keyring(installation))
    row.sha256 = certificate_digest(row.document)
    with transaction.atomic():
        context.fence()
        row.save(force_insert=True)
        record(
            "key.shredded" if not pending else "key.shred_pending",
            message=f"certificate {row.pk} for {tenant.slug}: {row.state}",
            actor=context.operation.actor,
            tenant=tenant.slug,
            level="warning",
            data={"certificate": row.pk, "sha256": row.sha256, "state": row.state, "pending": len(pending)},
        )
    return row


def _asked(context: OperationContext, before: ShredCertificate | None) -> dict[str, Any]:
    """Who asked for it and why: what the first certificate says, however often it takes to finish."""
    if before is not None:
        return {name: before.document[name] for name in ("reason", "requested_by", "approved_by")}
    operation = context.operation
    first = Operation.objects.filter(kind=KIND, subject_id=operation.subject_id).order_by("id").first() or operation
    return {
        "reason": first.reason,
        "requested_by": first.actor,
        "approved_by": context.params.get("approved_by") or None,
    }


def _cleared(before: ShredCertificate | None, counts: Mapping[str, int]) -> dict[str, int]:
    cleared: dict[str, int] = dict(before.document["cleared"]) if before else {}
    for name, count in counts.items():
        cleared[name] = max(count, cleared.get(name, 0))
    return cleared


def _notes(tenant: Tenant, stores: StoresShredded) -> list[str]:
    notes = [
        "Recovery kits and backups of the catalogue hold no keys of tenants.",
        _CATALOGUE_NOTE,
        "The audit log keeps who did what, and the names that people typed.",
        *catalogue_notes(),
    ]
    sealed = GivenUpPlace.objects.filter(tenant=tenant, store__destroyed_at=None, keys_there=False, objects_there=True)
    if sealed.exists():
        notes.append(
            f"Sealed objects may lie in {sealed.count()} stores that were given up; no keyring is known to have lain there."
        )
    if stores.locked:
        until = f" until {stores.locked_until:%Y-%m-%d}" if stores.locked_until else ""
        notes.append(f"{stores.locked} sealed objects stay{until} because they are locked; no key opens them any more.")
    return notes


def certificate_get(tenant: Tenant) -> ShredCertificate:
    """The newest certificate of a tenant. Raises NotFound."""
    row = ShredCertificate.objects.filter(tenant=tenant).order_by("-number").first()
    if row is None:
        said = "has not been issued yet" if tenant.shredded_at else "its keys are there"
        raise NotFound(
            f"there is no certificate for {tenant.slug}: {said}",
            hint=f"key shred {tenant.slug} --confirm {tenant.slug} --reason …" if tenant.shredded_at else "key list",
        )
    return row


def certificate_numbers(tenant: Tenant) -> int:
    """How many certificates there are; each supersedes those before it."""
    return int(ShredCertificate.objects.filter(tenant=tenant).aggregate(most=Max("number"))["most"] or 0)


def installation_public_key() -> str:
    """The key by which this installation's certificates are checked, in hex; a new root key brings a new one."""
    keyring = catalogue_keyring(installation_get())
    return keyring.public_key_of(keyring.epoch).hex()


def certificate_verify(blob: bytes, *, public_key: str = "") -> dict[str, Any]:
    """Check a certificate by a public key (hex), or by this installation's own. Raises WrongKey, ObjectDamaged.

    Of a former key of this installation, which may be a thief's by now, only those that the catalogue knows are genuine.
    """
    if len(blob) > CERTIFICATE_BYTES_MAX:
        raise UsageError("that is too large for a certificate")
    if public_key:
        return certificate_check(blob, public_key=public_key)
    newest = installation_public_key()
    former = {key.hex() for key in catalogue_keyring(installation_get()).public_keys.values()} - {newest}
    claimed = certificate_claims(blob)
    if claimed not in former:
        return certificate_check(blob, public_key=newest)
    document = certificate_check(blob, public_key=claimed)
    if not ShredCertificate.objects.filter(sha256=certificate_digest(document)).exists():
        raise WrongKey(
            f"the certificate is signed by a former key of this installation ({claimed[:16]}…), and the catalogue does not know it",
            hint="whoever has that key can have made it; key certificate show gives the genuine one",
        )
    return document
