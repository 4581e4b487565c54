"""What `doctor` looks at to know whether Lastro itself could be brought back: kits, catalogue backups, owners, mirrors."""

import datetime
from collections.abc import Iterator
from typing import Any

from core import clock
from core.rootkey import root_key
from engine.errors import LastroError, TakenOver
from engine.owner import owner_checked
from tenants import wiring
from tenants.models import CatalogueStore, Installation, Promotion, RecoveryKit, RepositoryMirror, StoreConfig, Tenant
from tenants.owning import installation_get

OK, WARNING, CRITICAL = "ok", "warning", "critical"
Told = tuple[str, str, str, str, dict[str, Any]]
"""Name, status, message, hint, figures of a sign."""

CATALOGUE_AGE_MAX = datetime.timedelta(days=2)
NAMED_MAX = 5


def recovery_signs(*, network: bool = True) -> Iterator[Told]:
    """Kits, catalogue backups, reconciliation; with `network` the owners, for which every store is opened."""
    for look in (_recovery_kit, _catalogue_backups, _reconciliation, *((_owners,) if network else ())):
        yield from look()


def _told(name: str, status: str, message: str, hint: str = "", figures: dict[str, Any] | None = None) -> Told:
    return name, status, message, hint, figures or {}


def _recovery_kit() -> Iterator[Told]:
    """A kit must have been made, and since the root key was replaced last."""
    if not Tenant.objects.exists():
        return
    newest = RecoveryKit.objects.order_by("-id").first()
    if newest is None:
        hint = "kit export --output FILE, once more with --printable; keep both away from this host"
        yield _told("recovery kit", WARNING, "none was ever made: with this host the root key would be lost", hint)
    elif newest.root_key_id == root_key().key_id:  # One of a replaced key is complained of among the keys.
        yield _told("recovery kit", OK, f"made on {newest.created_at:%Y-%m-%d}, holds the root key of today")


def _catalogue_backups() -> Iterator[Told]:
    """The catalogue must lie in a store, and not be too old there."""
    if not Tenant.objects.exists():
        return
    places = list(CatalogueStore.objects.exclude(taken_at=None).select_related("store").order_by("-taken_at"))
    hint = "a worker does it by itself; by hand: catalogue backup --here"
    if not places:
        adopted = Installation.objects.exclude(adopted_from="").exists()
        said = "none since this catalogue was adopted" if adopted else "no store keeps one"
        yield _told("catalogue backups", WARNING, f"{said}: with this host the catalogue would be lost", hint)
        return
    newest = places[0]
    assert newest.taken_at is not None
    age = clock.now() - newest.taken_at
    figures = {"stores": len(places), "age_hours": round(age.total_seconds() / 3600)}
    if age > CATALOGUE_AGE_MAX and _anything_since(newest):
        yield _told("catalogue backups", WARNING, f"the newest is {figures['age_hours']} hours old", hint, figures)
        return
    failed = [
        f"{each.store.name}: {each.error}" for each in CatalogueStore.objects.exclude(error="").select_related("store")
    ]
    if failed:
        yield _told("catalogue backups", WARNING, f"not kept in {'; '.join(failed[:NAMED_MAX])}", hint, figures)
    else:
        yield _told(
            "catalogue backups",
            OK,
            f"in {len(places)} stores, the newest of {newest.taken_at:%Y-%m-%d %H:%M} UTC",
            "",
            figures,
        )


def _anything_since(place: CatalogueStore) -> bool:
    from tenants.services.catalogue_backups import changed_since

    return changed_since(place.audit_size)


def _reconciliation() -> Iterator[Told]:
    """The catalogue must know what the stores know, and own them."""
    rows = RepositoryMirror.objects.exclude(behind_since=None).select_related("tenant__store").order_by("tenant__slug")
    moving = Promotion.objects.filter(settled_at=None).select_related("tenant").order_by("pk")
    begun = moving.first()
    if begun is not None:
        yield _told(
            "promotion",
            WARNING,
            f"the primaries of {moving.count()} tenants are half-way to another store, {begun.tenant.slug} among them: "
            "nothing of theirs is deleted",
            f"copy promote {begun.tenant.slug} {begun.after_name} goes on",
        )
    behind = rows.exclude(tenant__in=moving.values("tenant"))
    first = behind.first()
    if first is not None:
        names = ", ".join(each.tenant.slug for each in behind[:NAMED_MAX])
        more = f" and {behind.count() - NAMED_MAX} more" if behind.count() > NAMED_MAX else ""
        yield _told(
            "reconciliation",
            CRITICAL,
            f"the stores know more than this catalogue of {names}{more} ({first.behind_reason}): nothing is deleted",
            f"was the catalogue restored? store reconcile {first.tenant.store.name}",
        )
    for place in CatalogueStore.objects.filter(behind=True).select_related("store"):
        yield _told(
            "reconciliation",
            CRITICAL,
            f"store {place.store.name} holds backups of this catalogue that it does not remember",
            f"was the catalogue restored? store reconcile {place.store.name}",
        )


def _owners() -> Iterator[Told]:
    """No store may have been adopted by another installation."""
    installation = installation_get()
    taken = []
    for row in StoreConfig.objects.order_by("name"):
        try:
            with wiring.store_open(row) as store:
                owner_checked(store, installation.repository_id, installation.generation)
        except TakenOver:
            taken.append(row.name)
        except LastroError:
            continue  # The check of the store itself says so.
    if taken:
        yield _told(
            "owner",
            CRITICAL,
            f"adopted by another installation: {', '.join(taken)}; nothing is written there",
            "use that installation; if this is the one to go on with: store reconcile NAME --take-over",
        )
    else:
        yield _told("owner", OK, f"owner {installation.generation} of its stores")
