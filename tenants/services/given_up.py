"""Stores that were given up as lost: what of a tenant may still lie in them, until somebody declares them destroyed."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django.db import transaction

from access.approvals import Action, approval_use
from access.models import Approval
from audit.services import record
from core import clock
from core.errors import ConfirmationNeeded, Conflict, NotFound
from core.text import reason_checked
from engine.errors import UsageError
from tenants.models import (
    Copy,
    DestroyedKey,
    GivenUpPlace,
    GivenUpStore,
    KeyringPlace,
    StoreConfig,
    Tenant,
)

LIST_MAX = 200
NAMED_MAX = 5
PLACE_CHARS_MAX = 300
REASON_CHARS_MAX = 500
_PLACE = ("endpoint", "host", "account", "bucket", "container", "path", "prefix")
_BATCH = 500


def given_up_note(row: StoreConfig, *, unproven: Mapping[str, Iterable[str]], actor: str, reason: str) -> GivenUpStore:
    """Write down whose keyrings and objects a store may hold that is about to be forgotten, in the caller's transaction.

    `unproven`: tenants (by id) that were shredded while the store was away, with what their certificates wait for there.
    """
    store = GivenUpStore.objects.create(
        name=row.name,
        kind=row.kind,
        place="/".join(str(row.config[key]) for key in _PLACE if row.config.get(key))[:PLACE_CHARS_MAX],
        given_up_by=actor,
        reason=reason[:REASON_CHARS_MAX],
    )
    # A place that was never written to may have been all the same: the answer to a put can be lost.
    keys = set(KeyringPlace.objects.filter(store=row).values_list("tenant_id", flat=True))
    there = set(Copy.objects.filter(store=row, tenant__shredded_at=None).values_list("tenant_id", flat=True))
    there |= set(Tenant.objects.filter(store=row, shredded_at=None).values_list("pk", flat=True))
    for tenant_id, waits in unproven.items():
        keys |= {tenant_id} if any(what.endswith("/keyring") for what in waits) else set()
        there |= {tenant_id}
    places = (
        GivenUpPlace(store=store, tenant_id=pk, keys_there=pk in keys, objects_there=pk in there)
        for pk in sorted(keys | there)
    )
    GivenUpPlace.objects.bulk_create(places, batch_size=_BATCH)
    return store


def given_up_places(tenant: Tenant) -> Iterator[GivenUpPlace]:
    """Where the tenant may still have something that nobody can reach."""
    rows = GivenUpPlace.objects.filter(tenant=tenant, store__destroyed_at=None).select_related("store")
    yield from rows.order_by("store_id")


def given_up_get(wanted: str) -> GivenUpStore:
    """One by its id, or by the name that it had when no other had that. Raises NotFound, Conflict."""
    rows = list(GivenUpStore.objects.filter(pk=wanted) or GivenUpStore.objects.filter(name=wanted)[:2])
    if not rows:
        raise NotFound(f"no store {wanted[:60]!r} was given up", hint="store lost shows them")
    if len(rows) > 1:
        raise Conflict(f"several stores called {wanted[:60]!r} were given up", hint="name it by its id: store lost")
    return rows[0]


def given_up_list() -> list[dict[str, Any]]:
    """Every store that was given up, newest first, with how many tenants may have something in it."""
    found = []
    for store in GivenUpStore.objects.order_by("-id")[:LIST_MAX]:
        places = GivenUpPlace.objects.filter(store=store)
        shredded = places.filter(tenant__shredded_at__isnull=False).order_by("tenant__slug")
        found.append(
            {
                "id": store.pk,
                "name": store.name,
                "kind": store.kind,
                "place": store.place,
                "given_up_at": store.created_at,
                "given_up_by": store.given_up_by,
                "reason": store.reason,
                "keyrings": places.filter(keys_there=True).count(),
                "tenants": places.count(),
                "shredded": list(shredded.values_list("tenant__slug", flat=True)[:LIST_MAX]),
                "destroyed_at": store.destroyed_at,
                "destroyed_by": store.destroyed_by or None,
                "destroyed_reason": store.destroyed_reason or None,
            }
        )
    return found


def destroyed_action(store: GivenUpStore, reason: str) -> Action:
    """What a second master has to agree to: certificates rest on it."""
    return Action("stores", "store.destroyed", details={"store": store.pk, "name": store.name, "reason": reason})


def given_up_destroyed(
    store: GivenUpStore, *, confirmed: str | None, reason: str, actor: str, approval: Approval | None = None
) -> list[str]:
    """Declare that nothing of a given-up store exists any more; slugs of the shredded tenants that waited for that.

    It is the operator's word: certificates quote it. Raises ConfirmationNeeded, Conflict when it was declared before.
    """
    if confirmed != store.name:
        raise ConfirmationNeeded(
            f"this declares that nothing of {store.words} exists any more, and certificates of shredding will say so",
            hint=f"confirm with --confirm {store.name}",
        )
    if not reason.strip():
        raise UsageError("how is it known?", hint='--reason "disks shredded, protocol 17 of 2026-11-22"')
    reason, asked = reason_checked(reason)[:REASON_CHARS_MAX], reason
    now = clock.now()
    with transaction.atomic():
        approval_use(approval, destroyed_action(store, asked), actor=actor)
        changes = {"destroyed_at": now, "destroyed_by": actor, "destroyed_reason": reason}
        if not GivenUpStore.objects.filter(pk=store.pk, destroyed_at=None).update(**changes):
            raise Conflict(f"{store.words} was declared destroyed before", hint="store lost shows by whom, and why")
        waiting = Tenant.objects.filter(given_up_places__store=store, shredded_at__isnull=False).order_by("slug")
        for tenant in waiting:
            what = f"all of it, as {actor or 'an operator'} declared: {reason}"[:300]
            defaults = {"versions": 0, "destroyed_at": now}
            DestroyedKey.objects.get_or_create(tenant=tenant, place=store.words, what=what, defaults=defaults)
        slugs = list(waiting.values_list("slug", flat=True))
        record(
            "store.declared_destroyed",
            message=f"{store.words} is declared destroyed: {reason}",
            actor=actor,
            level="warning",
            data={"store": store.pk, "name": store.name, "reason": reason, "shredded": slugs[:LIST_MAX]},
        )
    store.refresh_from_db()
    return slugs
