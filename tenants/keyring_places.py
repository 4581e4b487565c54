"""Keyrings in stores: which stores keep them, how one is put into its place, how it is destroyed there."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from django.db.models import QuerySet

from core import clock
from engine.errors import LastroError, ObjectExists, ObjectLocked, ObjectMissing, StoreError
from engine.faults import kill_point
from engine.keys import Keyring, RootKey, keyring_root_id
from engine.ports import LockingStore, Store, VersionedStore
from engine.repository import keyring_key
from tenants.models import KeyringPlace, KeyringState, StoreConfig, Tenant

KEYRING_BYTES_MAX = 4 << 20
BATCH_TENANTS = 64
OLDER_VERSIONS = "keys.older_versions"
"""Error code of a place that is right while something there keeps what it replaced."""
WRITERS = 8
"""Keyrings on their way to one store at a time: a remote one answers each put after tens of milliseconds."""


def stores_keeping() -> list[StoreConfig]:
    """The stores in which keyrings shall lie, by name."""
    return list(StoreConfig.objects.filter(keeps_keys=True).order_by("name"))


def may_keep(row: StoreConfig, store: Store) -> bool:
    """Whether keyrings may lie in this store: never where an object is locked, since what is locked cannot be shredded."""
    return row.keeps_keys and not (isinstance(store, LockingStore) and store.lock_days > 0)


def keyring_store(blob: bytes, repository_id: str, store: Store) -> str:
    """Make this the keyring in its place, and the only version of it; what keeps older ones, "" for nothing.

    A store that keeps older versions would keep what a former root key opens: they go first. A crash in between
    leaves the place empty, which the next look mends from the catalogue. Raises StoreError.
    """
    key = keyring_key(repository_id)
    try:
        there = store.get(key, 0, KEYRING_BYTES_MAX)
    except ObjectMissing:
        there = None
    if there == blob:
        return ""
    kept = ""
    if isinstance(store, VersionedStore) and there is not None:
        try:
            store.purge(key)
        except ObjectLocked as error:  # Soft deletion of a bucket: the place itself is free all the same.
            kept = error.message
        kill_point("key.place_purged")
    store.put(key, [blob])
    if store.get(key, 0, KEYRING_BYTES_MAX) != blob:
        raise StoreError("the store gives back another keyring than was put into it", hint="do not use it for keys")
    return kept


def keyring_purge(repository_id: str, store: Store) -> tuple[int, str]:
    """Destroy every version of the keyring in this store; how many there were, and the SHA-256 of the newest.

    Raises ObjectLocked with everything else of it gone, StoreError.
    """
    key = keyring_key(repository_id)
    try:
        sha256 = hashlib.sha256(store.get(key, 0, KEYRING_BYTES_MAX)).hexdigest()
        found = 1
    except ObjectMissing:
        sha256, found = "", 0
    if isinstance(store, VersionedStore):
        return max(store.purge(key), found), sha256
    store.delete(key)
    return found, sha256


def keyring_store_beside(blob: bytes, repository_id: str, store: Store) -> str:
    """Put a keyring that opens no tenant where objects may be locked; what stays of older ones there, "" for nothing.

    In a store with locks the older one can be neither replaced nor deleted: the new one lies beside it, in `keyrings/`.
    """
    if not (isinstance(store, LockingStore) and store.lock_days > 0):
        return keyring_store(blob, repository_id, store)
    found = list(keyrings_found(repository_id, store))
    if blob in found:
        return ""
    key = keyring_key(repository_id)
    if found:
        key = f"r/{repository_id}/keyrings/{hashlib.sha256(blob).hexdigest()[:32]}"
    try:
        store.create(key, [blob])
    except ObjectExists as error:
        raise StoreError(f"{key} holds something else than a keyring", hint="look at that object by hand") from error
    return "an object lock keeps the keyring before" if found else ""


def keyrings_found(repository_id: str, store: Store) -> Iterator[bytes]:
    """Every keyring of the repository in this store, the one in its own place first."""
    keys = [keyring_key(repository_id), *(info.key for info in store.list(f"r/{repository_id}/keyrings/"))]
    for key in keys:
        try:
            yield store.get(key, 0, KEYRING_BYTES_MAX)
        except ObjectMissing:
            continue


def keyring_opened(repository_id: str, store: Store, root: RootKey) -> Keyring:
    """The keyring with the most keys of those in the store that this root key opens, and that are this repository's.

    Raises ObjectMissing when there is none, else what the first of them raises, ForeignKeyring among it.
    """
    best: Keyring | None = None
    failure: LastroError | None = None
    for blob in keyrings_found(repository_id, store):
        try:
            found = Keyring.of(blob, root, repository_id=repository_id)
        except LastroError as error:
            failure = failure or error
            continue
        if best is None or found.includes(best):
            best = found
    if best is None:
        raise failure or ObjectMissing(f"the store holds no keyring of {repository_id}")
    return best


def place_put(tenant: Tenant, row: StoreConfig, store: Store) -> None:
    """Put the tenant's keyring into an open store that may keep it, and write that down. Raises StoreError."""
    blob = bytes(tenant.keyring)
    kept = keyring_store(blob, tenant.repository_id, store)
    if not shredded_meanwhile(tenant, store):
        place_note(tenant, row, blob, kept=kept)


def shredded_meanwhile(tenant: Tenant, store: Store) -> bool:
    """Whether the tenant was shredded while its keyring was on its way; then it is destroyed again, here.

    Shredding says so in the catalogue before it looks into the stores: what was put there before, it finds.
    """
    if Tenant.objects.filter(pk=tenant.pk, shredded_at=None).exists():
        return False
    keyring_purge(tenant.repository_id, store)
    return True


def place_note(tenant: Tenant, row: StoreConfig, blob: bytes, *, kept: str = "") -> None:
    """Write down that the place holds these bytes; pending, should the catalogue have others by now.

    `kept` says what keeps older versions there.
    """
    now = clock.now()
    present = Tenant.objects.filter(pk=tenant.pk, keyring=blob).exists()
    values = {
        "state": KeyringState.WRITTEN if present else KeyringState.PENDING,
        "sha256": hashlib.sha256(blob).hexdigest(),
        "root_key_id": keyring_root_id(blob),
        "written_at": now,
        "checked_at": now,
        "error_code": OLDER_VERSIONS if kept else "",
        "error": kept,
    }
    KeyringPlace.objects.update_or_create(tenant=tenant, store=row, defaults=values)


def place_failed(tenant: Tenant, row: StoreConfig, error: LastroError) -> None:
    """Write down that the place could not be reached; it stays pending until it can."""
    values = {
        "state": KeyringState.PENDING, "checked_at": clock.now(), "error_code": error.code, "error": error.message,
    }  # fmt: skip
    KeyringPlace.objects.update_or_create(tenant=tenant, store=row, defaults=values)


@dataclass
class PlacesDone:
    """What a pass over one store did."""

    written: int = 0
    failed: int = 0
    error: LastroError | None = None
    """The first one."""


def places_write(
    row: StoreConfig, store: Store, tenants: QuerySet[Tenant], *, check: Callable[[], None]
) -> Iterator[PlacesDone]:
    """Put the keyrings of these tenants into one open store, several at a time; yields after each batch.

    One that fails stays pending; a batch that fails as a whole is the last one. Bounded memory.
    """
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="keyring") as pool:
        for batch in _batches(tenants):
            check()
            done = PlacesDone()
            # Threads do nothing but talk to the store: the catalogue's connection is this thread's.
            results = pool.map(lambda tenant: _stored(tenant, store), batch)
            for tenant, error in zip(batch, results, strict=True):
                if isinstance(error, str):
                    if not shredded_meanwhile(tenant, store):
                        place_note(tenant, row, bytes(tenant.keyring), kept=error)
                    done.written += 1
                else:
                    place_failed(tenant, row, error)
                    done.failed += 1
                    done.error = done.error or error
            kill_point("key.places_written")
            yield done
            if not done.written:
                return  # It is away or refuses: thousands of others would only wait as long each.


def _batches(tenants: QuerySet[Tenant]) -> Iterator[Sequence[Tenant]]:
    last = ""
    while batch := list(tenants.filter(pk__gt=last).order_by("pk")[:BATCH_TENANTS]):
        last = batch[-1].pk
        yield batch


def _stored(tenant: Tenant, store: Store) -> LastroError | str:
    """What failed, or what keeps older versions there."""
    try:
        return keyring_store(bytes(tenant.keyring), tenant.repository_id, store)
    except LastroError as error:
        return error
