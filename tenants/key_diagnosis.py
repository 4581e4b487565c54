"""What `doctor` says about keys: too few places, one credential over all of them, rotations and shreddings that wait."""

import hashlib
from collections.abc import Iterator
from typing import Any

from django.db.models import Count, Max, Q

from core import sealing
from core.rootkey import root_key
from tenants.keyring_places import stores_keeping
from tenants.models import (
    CertificateState,
    GivenUpStore,
    KeyringPlace,
    KeyringState,
    RecoveryKit,
    RootRotation,
    ShredCertificate,
    StoreConfig,
    Tenant,
)

OK, WARNING, CRITICAL = "ok", "warning", "critical"
NAMED_MAX = 5
_PLACE_FIELDS = frozenset({"path", "bucket", "container", "prefix", "folder", "storage_class"})
"""Settings that say where in a store something goes, not who goes there."""

Told = tuple[str, str, str, str, dict[str, Any]]
"""Name, status, message, hint, figures."""


def key_signs() -> Iterator[Told]:
    """Look at everything about keys that needs no store to be opened."""
    yield from _places()
    yield from _rotation()
    yield from _kits()
    yield from _shreddings()
    yield from _given_up()


def _places() -> Iterator[Told]:
    tenants = Tenant.objects.filter(shredded_at=None, repository_ready=True)
    count = tenants.count()
    if not count:
        return
    written = Count("keyring_places", filter=Q(keyring_places__state=KeyringState.WRITTEN))
    nowhere = tenants.annotate(places_count=written).filter(places_count=0)
    damaged = KeyringPlace.objects.filter(state=KeyringState.DAMAGED, tenant__shredded_at=None)
    pending = KeyringPlace.objects.filter(state=KeyringState.PENDING, tenant__shredded_at=None).count()
    figures = {"tenants": count, "nowhere": nowhere.count(), "damaged": damaged.count(), "pending": pending}
    if figures["damaged"]:
        names = _named(damaged.order_by("tenant__slug").values_list("tenant__slug", "store__name").distinct())
        yield "keyrings", CRITICAL, f"not what was put there: {names}", "key verify, then key repair", figures
    elif figures["nowhere"]:
        names = _named(nowhere.order_by("slug").values_list("slug"))
        yield "keyrings", CRITICAL, f"not known to lie in any store: {names}", "run: key repair", figures
    elif pending:
        yield "keyrings", WARNING, f"{pending} keyrings have still to be put into a store", "run: key repair", figures
    else:
        yield from _independence(figures)


def _independence(figures: dict[str, Any]) -> Iterator[Told]:
    rows = stores_keeping()
    if len(rows) < 2:
        where = f"store {rows[0].name}" if rows else "no store"
        hint = "add a second store, under other credentials: store add NAME --kind …"
        yield "keyrings", WARNING, f"all of them lie in {where} and nowhere else but in the catalogue", hint, figures
    elif len({_credential(row) for row in rows}) < 2:
        names = ", ".join(row.name for row in rows[:NAMED_MAX])
        hint = "one of them should be reached by another account, or stand on another host"
        yield "keyrings", WARNING, f"whoever gets into one store gets into all that keep keys: {names}", hint, figures
    else:
        yield "keyrings", OK, f"{figures['tenants']} of them, each in {len(rows)} stores", "", figures


def _credential(row: StoreConfig) -> tuple[str, ...]:
    """What somebody has to have who gets into the store: its secrets, else whatever names its user and host."""
    secrets = sealing.unseal(row.sealed, owner=f"store:{row.pk}")
    if secrets:
        return row.kind, hashlib.sha256("\0".join(sorted(secrets.values())).encode()).hexdigest()
    return row.kind, *(f"{k}={v}" for k, v in sorted(row.config.items()) if k not in _PLACE_FIELDS)


def _rotation() -> Iterator[Told]:
    rotation = RootRotation.objects.filter(running=True).first()
    if rotation is not None:
        waits = f": {rotation.waiting[0]}" if rotation.waiting else ""
        message = f"the root key {rotation.old_key_id} is still needed{waits}"
        yield "root key rotation", WARNING, message, "mend that, then run: key rotate-root", {}


def _kits() -> Iterator[Told]:
    newest = RecoveryKit.objects.order_by("-id").first()
    if newest is not None and newest.root_key_id != root_key().key_id:
        message = f"the newest recovery kit holds the root key {newest.root_key_id}, which opens nothing any more"
        yield "recovery kit", WARNING, message, "make a new one and destroy the old ones: kit export --output FILE", {}


def _shreddings() -> Iterator[Told]:
    newest = dict(ShredCertificate.objects.values_list("tenant").annotate(newest=Max("number")))
    pending = ShredCertificate.objects.filter(state=CertificateState.PENDING).select_related("tenant")
    waiting = [row for row in pending if newest[row.tenant_id] == row.number]
    stopped = Tenant.objects.exclude(shredded_at=None).filter(certificates=None)
    names = sorted({row.tenant.slug for row in waiting} | set(stopped.values_list("slug", flat=True)[:NAMED_MAX]))
    if names:
        hint = f"key certificate show {names[0]} says what waits; then run key shred again"
        yield "shredding", WARNING, f"not at its end: {', '.join(names[:NAMED_MAX])}", hint, {"pending": len(names)}


def _given_up() -> Iterator[Told]:
    """Stores that were given up and may still hold what shredding was to destroy."""
    stores = GivenUpStore.objects.filter(destroyed_at=None)
    held = stores.filter(places__tenant__shredded_at__isnull=False).distinct().order_by("-id")
    first = held.first()
    if first is not None:
        named = ", ".join(each.words for each in held[:NAMED_MAX])
        message = f"may still hold keys or data of shredded tenants: {named}"
        hint = f"when it is known to be destroyed: store destroyed {first.pk} --confirm {first.name} --reason …"
        yield "given-up stores", WARNING, message, hint, {"stores": held.count()}
    elif count := stores.count():
        message = f"{count} were given up as lost and never declared destroyed: what a tenant has in one, its certificate will name"
        yield "given-up stores", OK, message, "", {"stores": count}


def _named(rows: Any) -> str:
    found = ["/".join(row) for row in rows[: NAMED_MAX + 1]]
    return ", ".join(found[:NAMED_MAX]) + (" and more" if len(found) > NAMED_MAX else "")
