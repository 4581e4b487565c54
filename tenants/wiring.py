"""Rows become open stores, repositories and connectors; nowhere else do the two worlds meet."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings

import connectors
import stores
from core import sealing
from engine.errors import BackupMissing, LastroError, ManifestDamaged, ObjectMissing, UsageError
from engine.manifest import Manifest
from engine.ports import Connector, ScratchSite, Store
from engine.repository import Repository
from tenants.absence import backup_away, primary_missed
from tenants.keyring_places import may_keep, place_failed, place_put, stores_keeping
from tenants.models import Backup, Restore, RestorePlan, Source, StoreConfig, Tenant
from tenants.owning import guard_of
from tenants.store_wrapping import store_wrapped
from tenants.tenant_sealing import keyring_of


def data_folder() -> Path:
    """The folder of catalogue, keys and default store."""
    return Path(settings.LASTRO_DATA)


def cache_folder() -> Path:
    """Where index segments are kept near; may be deleted at any time."""
    return data_folder() / "cache"


def scratch_site() -> ScratchSite:
    """Where drills make their throw-away targets."""
    return ScratchSite(settings.LASTRO_DRILL_FOLDER or str(data_folder() / "drills"), settings.LASTRO_DRILL_DSN)


def store_kind(kind: str) -> type[Store]:
    """The adapter of a kind; UsageError when there is none."""
    return stores.load(kind)


def connector_kind(kind: str) -> type[Connector]:
    """The adapter of a kind; UsageError when there is none."""
    return connectors.load(kind)


@contextmanager
def store_open(row: StoreConfig) -> Iterator[Store]:
    """Open a store for the block."""
    adapter: Any = store_kind(row.kind)
    store: Store = adapter(sealing.config_of(adapter.Config, row.config, row.sealed, owner=f"store:{row.pk}"))
    try:
        yield store_wrapped(row, store)
    finally:
        store.close()


def store_make(row: StoreConfig) -> None:
    """Make the place of a store that is being added; one that is there stays as it is. Raises StoreError."""
    adapter: Any = store_kind(row.kind)
    make = getattr(adapter, "make", adapter)
    make(sealing.config_of(adapter.Config, row.config, row.sealed, owner=f"store:{row.pk}")).close()


@contextmanager
def repository_open(tenant: Tenant) -> Iterator[Repository]:
    """Open the tenant's repository for the block; one that a killed `tenant add` left out is made now."""
    keyring = keyring_of(tenant)
    with ExitStack() as stack:
        with primary_missed(tenant):
            store = stack.enter_context(store_open(tenant.store))
            if not tenant.repository_ready:
                repository_create(tenant, store)
            repository = Repository.open(
                store, repository_id=tenant.repository_id, keyring=keyring, cache=cache_folder()
            )
        repository.guard = guard_of(tenant, store, store_id=tenant.store_id)
        yield repository


def repository_present(store: Store, repository_id: str) -> bool:
    """Whether the store holds this repository, at the price of one look-up."""
    try:
        store.stat(f"r/{repository_id}/config")
    except ObjectMissing:
        return False
    return True


def repository_create(tenant: Tenant, store: Store) -> None:
    """Put keyring and config of the tenant's repository into the store; repeating it is safe.

    The keyring goes elsewhere when this store may not keep it, and there before anything can be sealed by it. Raises
    UsageError when no store keeps keys, StoreError when none of those that do can be reached.
    """
    keyring = keyring_of(tenant)
    Repository.create(store, repository_id=tenant.repository_id, tenant_id=tenant.pk, keyring=keyring, root=None)
    if may_keep(tenant.store, store):
        place_put(tenant, tenant.store, store)
    else:
        _keyring_elsewhere(tenant)
    Tenant.objects.filter(pk=tenant.pk).update(repository_ready=True)
    tenant.repository_ready = True


def _keyring_elsewhere(tenant: Tenant) -> None:
    """Put the keyring into the first store that keeps keys and can be reached."""
    failed: LastroError | None = None
    for row in stores_keeping():
        try:
            with store_open(row) as other:
                if may_keep(row, other):
                    place_put(tenant, row, other)
                    return
        except LastroError as error:
            place_failed(tenant, row, error)
            failed = failed or error
    if failed is not None:
        raise failed
    raise UsageError(
        f"no store keeps the keys of {tenant.slug}: {tenant.store.name} locks what is put into it, or is not to keep keys",
        hint="a key that cannot be deleted cannot be shredded; add a store without locks: store add NAME --kind …",
    )


def manifest_of(repository: Repository, backup: Backup) -> Manifest:
    """The manifest that the backup committed. Raises BackupMissing, or ManifestDamaged for any other one.

    StoreUnreachable, when every store that holds it is away.
    """
    assert backup.number is not None, "only a backup with a number has a manifest"
    try:
        manifest = repository.manifest(backup.number)
    except BackupMissing as error:
        raise backup_away(repository, backup, error) from error
    if manifest.sha256 != backup.manifest_sha256:
        raise ManifestDamaged(
            f"manifest {backup.number} in the store is not the one that backup {backup.pk} committed",
            hint="the store was rolled back or tampered with; look for another copy",
        )
    return manifest


def connector_open(source: Source) -> Connector:
    """The connector of a source; constructing it opens nothing."""
    adapter: Any = connector_kind(source.kind)
    connector: Connector = adapter(
        sealing.config_of(adapter.Config, source.config, source.sealed, owner=f"source:{source.pk}")
    )
    return connector


def connector_at(source: Source, restore: Restore | RestorePlan) -> Connector:
    """The connector on the alternative target of a restore or its plan; the source's own place when there is none."""
    target: Mapping[str, str] = {
        **restore.targets.get(source.name, {}),
        **sealing.unseal(restore.sealed.get(source.name, {}), owner=f"restore:{restore.pk}:{source.name}"),
    }
    connector = connector_open(source)
    return connector.at(target) if target else connector
