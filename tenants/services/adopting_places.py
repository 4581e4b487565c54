"""Where everything lies after an adoption: keys taken from the stores, tenants moved to the store that is there."""

from collections.abc import Mapping
from typing import Any

from django.db import transaction

from core import sealing
from engine.errors import DamageError, LastroError, WrongKey
from engine.ports import Store
from tenants import wiring
from tenants.keyring_places import KEYRING_BYTES_MAX, place_note
from tenants.models import (
    Source,
    StoreConfig,
    Tenant,
)
from tenants.services.promoting import primary_switch
from tenants.services.rebuilding import Note
from tenants.tenant_sealing import keyring_of


def stores_reachable(first: StoreConfig, note: Note) -> list[StoreConfig]:
    """Find the adopted store, and whichever others of the catalogue can be opened from here."""
    found = [first]
    for row in StoreConfig.objects.exclude(pk=first.pk).order_by("name"):
        try:
            with wiring.store_open(row):
                found.append(row)
        except LastroError as error:
            note(f"store {row.name} cannot be opened from here: {error.message}")
    return found


def keyrings_take(row: StoreConfig, store: Store, note: Note) -> list[str]:
    """Wrapped keys from the adopted store, and what it has not from the others; slugs of tenants that none has."""
    _keyrings_from(row, store)
    if _without_keys().exists():
        for other in stores_reachable(row, lambda text: None)[1:]:
            with wiring.store_open(other) as place:
                _keyrings_from(other, place)
    slugs = list(_without_keys().order_by("slug").values_list("slug", flat=True))
    if slugs:
        note(
            f"{len(slugs)} tenants: no store that can be reached keeps their keys; their encrypted backups cannot be read"
        )
    return slugs


def _without_keys() -> Any:
    return Tenant.objects.filter(keyring=b"", shredded_at=None)


def _keyrings_from(row: StoreConfig, store: Store) -> None:
    for tenant in list(_without_keys().order_by("pk")):
        try:
            blob = store.get(f"r/{tenant.repository_id}/keyring", 0, KEYRING_BYTES_MAX)
            tenant.keyring = blob
            keyring_of(tenant)
        except LastroError:
            continue
        Tenant.objects.filter(pk=tenant.pk).update(keyring=blob)
        place_note(tenant, row, blob)


def primaries_put(row: StoreConfig, store: Store) -> list[str]:
    """Tenants whose primary is not there go on in this store, where it holds their repository; their slugs."""
    promoted: list[str] = []
    usable: dict[str, bool] = {row.pk: True}
    for tenant in (
        Tenant.objects.filter(repository_ready=True).exclude(store=row).select_related("store").order_by("slug")
    ):
        if tenant.store_id not in usable:
            usable[tenant.store_id] = _can_open(tenant.store)
        if usable[tenant.store_id] and _holds(tenant.store, tenant):
            continue
        if not wiring.repository_present(store, tenant.repository_id):
            continue
        away = not usable[tenant.store_id]
        with transaction.atomic():
            primary_switch(tenant, row, actor="system:adoption", lost=True, gone=not away)
        promoted.append(tenant.slug)
    return promoted or _promoted_before(row)


def _promoted_before(row: StoreConfig) -> list[str]:
    """Tenants that an earlier, killed run had moved here and not reconciled yet."""
    behind = Tenant.objects.filter(store=row, mirror__behind_since__isnull=False)
    moved = behind.filter(mirror__sealed_generation=0, copies__enabled=False)
    return list(moved.distinct().values_list("slug", flat=True))


def _can_open(row: StoreConfig) -> bool:
    try:
        with wiring.store_open(row):
            return True
    except LastroError:
        return False


def _holds(row: StoreConfig, tenant: Tenant) -> bool:
    try:
        with wiring.store_open(row) as store:
            return wiring.repository_present(store, tenant.repository_id)
    except LastroError:
        return False


def default_put(row: StoreConfig) -> None:
    """New tenants need a store that is there."""
    default = StoreConfig.objects.filter(is_default=True).first()
    if default is None or (default.pk != row.pk and not _can_open(default)):
        with transaction.atomic():
            StoreConfig.objects.filter(is_default=True).update(is_default=False)
            StoreConfig.objects.filter(pk=row.pk).update(is_default=True)


def tenants_behind() -> list[Tenant]:
    """Tenants that wait for their reconciliation and whose keys are there."""
    rows = Tenant.objects.filter(mirror__behind_since__isnull=False, repository_ready=True, shredded_at=None)
    return list(rows.exclude(keyring=b"").select_related("store").order_by("slug"))


def settings_unreadable() -> list[str]:
    """Settings sealed by a root key that is not at hand: the backup of the catalogue is older than the last rotation."""
    sources = Source.objects.select_related("tenant").order_by("tenant__slug", "name")
    return [
        *(
            f"secrets of store {row.name}: give them again with store set"
            for row in StoreConfig.objects.order_by("name")
            if _is_sealed_otherwise(row.sealed, f"store:{row.pk}")
        ),
        *(
            f"secrets of source {row.tenant.slug}/{row.name}: give them again with source set"
            for row in sources.iterator()
            if _is_sealed_otherwise(row.sealed, f"source:{row.pk}")
        ),
    ]


def _is_sealed_otherwise(sealed: Mapping[str, str], owner: str) -> bool:
    try:
        sealing.unseal(sealed, owner=owner)
    except (WrongKey, DamageError):
        return True
    return False
