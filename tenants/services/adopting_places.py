"""Where everything lies after an adoption: keys taken from the stores, tenants moved to the store that is there."""

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from django.db import transaction
from django.db.models import Max, Q, QuerySet

from core import sealing
from core.rootkey import root_key
from engine.errors import DamageError, LastroError, WrongKey
from engine.keys import Keyring
from engine.ports import Store
from engine.repository import keyring_key
from tenants import wiring
from tenants.keyring_places import BATCH_TENANTS, KEYRING_BYTES_MAX, may_keep, place_note, places_write
from tenants.models import (
    KeyEpoch,
    KeyringPlace,
    KeyringState,
    Source,
    StoreConfig,
    Tenant,
)
from tenants.services.promoting import primary_switch
from tenants.services.rebuilding import Note
from tenants.tenant_sealing import keyring_of

READERS = 8
"""Keyrings on their way from one store at a time."""


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
    for other in stores_reachable(row, lambda text: None)[1:]:
        with wiring.store_open(other) as place:
            _keyrings_from(other, place)
    slugs = list(_without_keys().order_by("slug").values_list("slug", flat=True))
    if slugs:
        note(
            f"{len(slugs)} tenants: no store that can be reached keeps their keys; their encrypted backups cannot be read"
        )
    return slugs


def keyrings_put_back(note: Note) -> list[str]:
    """Tenants of whose keys the catalogue knows a later epoch than any store holds; their slugs.

    Somebody put a former keyring back: what was sealed since cannot be read, and former keys pass for the present ones.
    """
    known = dict(KeyEpoch.objects.values_list("tenant").annotate(newest=Max("epoch")))
    found = []
    for tenant in (
        Tenant.objects.filter(pk__in=known, shredded_at=None).exclude(keyring=b"").order_by("slug").iterator()
    ):
        epoch = max((int(n) for n in json.loads(bytes(tenant.keyring))["epochs"]), default=0)
        if epoch < known[tenant.pk]:
            found.append(tenant.slug)
            note(
                f"{tenant.slug}: every store holds a former keyring (epoch {epoch}, the catalogue knows {known[tenant.pk]}); look "
                "into older versions of the object, or adopt from another store; until then believe no backup of it that is new"
            )
    return found


def _without_keys() -> Any:
    return Tenant.objects.filter(keyring=b"", shredded_at=None)


def _keyrings_from(row: StoreConfig, store: Store) -> None:
    """Take each keyring that has more keys than what was found so far: whoever put a former one back gains nothing."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="keyring") as pool:
        for batch in _batches(Tenant.objects.filter(shredded_at=None)):
            for tenant, blob in zip(batch, pool.map(partial(_keyring_get, store), batch), strict=True):
                if blob:
                    _keyring_better(row, tenant, blob)


def _keyring_get(store: Store, tenant: Tenant) -> bytes:
    try:
        return store.get(keyring_key(tenant.repository_id), 0, KEYRING_BYTES_MAX)
    except LastroError:
        return b""


def _keyring_better(row: StoreConfig, tenant: Tenant, blob: bytes) -> None:
    before = bytes(tenant.keyring)
    if blob == before:
        return
    try:
        found = Keyring.of(blob, root_key(), tenant_id=tenant.pk, repository_id=tenant.repository_id)
        known = keyring_of(tenant) if before else None
    except LastroError:
        return
    if known is None or (found != known and found.includes(known)):
        Tenant.objects.filter(pk=tenant.pk).update(keyring=blob)
        place_note(tenant, row, blob)


def _batches(rows: "QuerySet[Tenant]") -> Iterator[list[Tenant]]:
    last = ""
    while batch := list(rows.filter(pk__gt=last).order_by("pk")[:BATCH_TENANTS]):
        last = batch[-1].pk
        yield batch


def keyrings_spread(rows: Iterable[StoreConfig], note: Note) -> None:
    """Put the keyrings that an adoption has given successors into every store that can be reached; the others wait."""
    for row in rows:
        try:
            with wiring.store_open(row) as store:
                if not may_keep(row, store):
                    continue
                right = KeyringPlace.objects.filter(store=row, state=KeyringState.WRITTEN)
                tenants = Tenant.objects.filter(shredded_at=None, repository_ready=True).exclude(keyring=b"")
                for done in places_write(row, store, tenants.exclude(pk__in=right.values("tenant")), check=_go_on):
                    if done.error is not None:
                        note(
                            f"store {row.name}: {done.failed} keyrings have still to be put there: {done.error.message}"
                        )
        except LastroError as error:
            note(f"store {row.name} has still to get the new keyrings: {error.message}")


def _go_on() -> None:
    """Nobody cancels an adoption."""


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
    rows = Tenant.objects.filter(repository_ready=True, shredded_at=None)
    rows = rows.filter(Q(mirror__behind_since__isnull=False) | Q(mirror__succession_due=True))
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
