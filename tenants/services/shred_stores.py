"""Shredding in the stores: every version of the keyring, then whatever of the tenant was stored unencrypted."""

import datetime
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from core import clock
from engine.errors import LastroError, ObjectLocked, ObjectMissing
from engine.faults import kill_point
from engine.ports import Store, VersionedStore
from engine.repository import delete_all, keyring_key
from engine.sealed import CIPHER_NONE, HEADER, HEADER_BYTES
from tenants import wiring
from tenants.keyring_places import keyring_purge
from tenants.models import Backup, DestroyedKey, KeyringPlace, StoreConfig, Tenant
from tenants.owning import guard_of
from tenants.services.given_up import given_up_places

BATCH_OBJECTS = 500


@dataclass(frozen=True)
class Pending:
    """Something that still has the tenant: where, what, why, and until when if that is known."""

    place: str
    what: str
    why: str
    until: datetime.datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """As the certificate has it."""
        return {**asdict(self), "until": self.until.isoformat() if self.until else None}


@dataclass
class StoresShredded:
    """What was done in all stores."""

    pending: list[Pending] = field(default_factory=list)
    objects: int = 0
    """Objects deleted: sealed ones, which nobody can read any more, and plain ones."""
    locked: int = 0
    locked_until: datetime.datetime | None = None
    """Sealed objects that locks keep: noise without a key."""


def keyrings_destroy(tenant: Tenant, *, check: Callable[[], None]) -> list[Pending]:
    """Destroy every version of the keyring in every store there is; what could not be destroyed.

    Every store is looked at, not only those that ought to keep keys: a keyring may have been put there before.
    """
    pending = []
    for row in StoreConfig.objects.order_by("name"):
        check()
        place, what = f"store {row.name}", keyring_key(tenant.repository_id)
        try:
            with wiring.store_open(row) as store:
                guard_of(tenant, store, store_id=row.pk, primary=row.pk == tenant.store_id).check()
                versions, sha256 = keyring_purge(tenant.repository_id, store)
        except ObjectLocked as error:
            pending.append(Pending(place, what, f"an object lock keeps a version of it: {error.message}", error.until))
        except LastroError as error:
            pending.append(Pending(place, what, f"it could not be reached or refuses: {error.message}"))
        else:
            KeyringPlace.objects.filter(tenant=tenant, store=row).delete()
            if versions:
                destroyed(tenant, place, what, versions=versions, sha256=sha256)
        kill_point("shred.place_purged")
    return [*pending, *_given_up(tenant)]


def _given_up(tenant: Tenant) -> Iterator[Pending]:
    """What may lie in stores that were given up as lost: out of reach is not destroyed."""
    for each in given_up_places(tenant):
        why = "it was given up as lost, and nobody has declared it destroyed"
        if each.keys_there:
            yield Pending(each.store.words, keyring_key(tenant.repository_id), why)
        if each.objects_there and _plain_ever(tenant):
            yield Pending(each.store.words, "objects stored without encryption", why)


def destroyed(tenant: Tenant, place: str, what: str, *, versions: int = 1, sha256: str = "") -> None:
    """Keep for the certificate that something was destroyed; what an earlier run said stays."""
    DestroyedKey.objects.get_or_create(
        tenant=tenant,
        place=place,
        what=what,
        defaults={"versions": versions, "sha256": sha256, "destroyed_at": clock.now()},
    )


def objects_destroy(tenant: Tenant, *, check: Callable[[], None], advance: Callable[[int], None]) -> StoresShredded:
    """Delete all objects of the repository in every store. Plain ones that cannot be deleted are pending."""
    done = StoresShredded()
    for row in StoreConfig.objects.order_by("name"):
        place = f"store {row.name}"
        try:
            with wiring.store_open(row) as store:
                guard_of(tenant, store, store_id=row.pk, primary=row.pk == tenant.store_id).check()
                plain = _repository_destroy(tenant, place, store, done, check, advance)
                if plain or _plain_ever(tenant):
                    done.pending += _older_versions(tenant, place, store, check)
        except LastroError as error:
            if _plain_ever(tenant):
                why = f"it could not be reached or refuses: {error.message}"
                done.pending.append(Pending(place, "objects stored without encryption", why))
    return done


def _plain_ever(tenant: Tenant) -> bool:
    return Backup.objects.filter(tenant=tenant, encrypt=False).exclude(manifest_sha256="").exists()


def _repository_destroy(
    tenant: Tenant,
    place: str,
    store: Store,
    done: StoresShredded,
    check: Callable[[], None],
    advance: Callable[[int], None],
) -> int:
    plain_count = 0
    plain_until: datetime.datetime | None = None
    prefix, plain_kept = f"r/{tenant.repository_id}/", 0
    for batch in _batches(store, prefix):
        check()
        plain = [key for key in batch if _is_plain(store, prefix, key)]
        plain_count += len(plain)
        for key in plain:
            try:
                _plain_delete(store, key)
            except ObjectLocked as error:
                plain_kept += 1
                plain_until = max(filter(None, (plain_until, error.until)), default=None)
        sealed = sorted(set(batch) - set(plain))
        kept = _sealed_delete(store, sealed, done)
        done.objects += len(batch) - kept
        advance(len(batch))
    if plain_kept:
        what = f"{plain_kept} objects stored without encryption"
        done.pending.append(Pending(place, what, "object locks keep them", plain_until))
    elif plain_count:
        destroyed(tenant, place, f"{plain_count} objects stored without encryption")
    return plain_count


def _batches(store: Store, prefix: str) -> Iterator[list[str]]:
    batch: list[str] = []
    for info in store.list(prefix):
        batch.append(info.key)
        if len(batch) == BATCH_OBJECTS:
            yield batch
            batch = []
    if batch:
        yield batch


def _is_plain(store: Store, prefix: str, key: str) -> bool:
    """Whether an object can be read without a key: the plain domain's, and the manifests of its backups."""
    if key.startswith(f"{prefix}plain/"):
        return True
    if not key.startswith(f"{prefix}manifests/"):
        return False
    try:
        header = store.get(key, 0, HEADER_BYTES)
    except ObjectMissing:
        return False
    return len(header) == HEADER_BYTES and HEADER.unpack(header)[2] == CIPHER_NONE


def _plain_delete(store: Store, key: str) -> None:
    if isinstance(store, VersionedStore):
        store.purge(key)
    else:
        store.delete(key)


def _sealed_delete(store: Store, keys: list[str], done: StoresShredded) -> int:
    """Delete what is noise by now; how many of them locks keep."""
    try:
        delete_all(store, keys)
    except ObjectLocked as error:
        done.locked_until = max(filter(None, (done.locked_until, error.until)), default=None)
        kept = 0
        for key in keys:
            try:
                store.delete(key)
            except ObjectLocked:
                kept += 1
        done.locked += kept
        return kept
    return 0


def _older_versions(tenant: Tenant, place: str, store: Store, check: Callable[[], None]) -> Iterator[Pending]:
    """A bucket with versions keeps plain objects that a prune deleted long ago, which no listing shows."""
    if not isinstance(store, VersionedStore):
        return
    what = "older versions of objects stored without encryption"
    keys_kept = getattr(store, "keys_kept", None)
    if keys_kept is None:
        why = "they may have been deleted before, and a bucket may keep versions; have noncurrent versions expire there"
        yield Pending(place, what, why)
        return
    kept, until, gone = 0, None, 0
    prefix = f"r/{tenant.repository_id}/"
    # Manifests of plain backups are plain themselves, and what is deleted does not tell any more what it was.
    for part in ("plain/", "manifests/"):
        for key in keys_kept(prefix + part):
            check()
            try:
                gone += store.purge(key)
            except ObjectLocked as error:
                kept, until = kept + 1, max(filter(None, (until, error.until)), default=None)
    if kept:
        yield Pending(place, f"{kept} {what}", "object locks keep them", until)
    elif gone:
        destroyed(tenant, place, what, versions=gone)
