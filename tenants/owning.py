"""Rows become the guard that stands before every write to a store (engine.fencing)."""

from dataclasses import dataclass

from django.db import IntegrityError, transaction

from core import clock
from core.ids import new_id
from core.rootkey import root_key
from engine.errors import SessionFenced
from engine.keys import Keyring
from engine.owner import owner_checked
from engine.ports import Store
from tenants.models import Installation, RepositoryMirror, Tenant

_REASON_CHARS_MAX = 300


def installation_get() -> Installation:
    """This installation; its identity and the keys of its catalogue backups are made on first use."""
    row = Installation.objects.first()
    if row is not None:
        return row
    row, root = Installation(repository_id=new_id("cat")), root_key()
    row.keyring = Keyring.create(root, tenant_id=row.pk, repository_id=row.repository_id).to_bytes(root)
    try:
        with transaction.atomic():
            row.save(force_insert=True)
            return row
    except IntegrityError:  # Another process was first.
        return Installation.objects.get()


def catalogue_keyring(installation: Installation) -> Keyring:
    """The keys of the catalogue backups, opened by the root key."""
    return Keyring.from_bytes(bytes(installation.keyring), root_key())


def mirror_of(tenant: Tenant) -> RepositoryMirror:
    """What the catalogue knows of the tenant's repository; one that is not there knows nothing."""
    return RepositoryMirror.objects.get_or_create(tenant=tenant)[0]


def behind_put(tenant: Tenant, reason: str) -> None:
    """Note that the store knows more than the catalogue: no deletion until they are reconciled. The first reason stays."""
    mirror_of(tenant)
    RepositoryMirror.objects.filter(tenant=tenant, behind_since=None).update(
        behind_since=clock.now(), behind_reason=reason[:_REASON_CHARS_MAX]
    )


@dataclass
class CatalogueGuard:
    """engine.fencing.Guard of one tenant in one store.

    The generation is the one at which the work began: when this very installation raises it meanwhile, what had begun
    before is refused like a stranger's.
    """

    store: Store
    tenant: Tenant
    repository_id: str
    generation: int
    store_id: str
    primary: bool = True
    """Only the primary's generations are mirrored: a copy has an index of its own."""

    def check(self) -> None:
        """Raise SessionFenced when the store is no longer what it was to the tenant, TakenOver when it has a later owner."""
        now = Tenant.objects.filter(pk=self.tenant.pk).values_list("store_id", "store__name").first()
        if now is not None and (now[0] == self.store_id) != self.primary:
            raise SessionFenced(
                f"the backups of {self.tenant.slug} go on in store {now[1]} since this work began; nothing more was changed",
                hint="run it again",
            )
        owner_checked(self.store, self.repository_id, self.generation)

    def claiming(self, domain: str, generation: int) -> None:
        """Count the claim before it is made, so that no crash can leave one behind that nobody knows."""
        if not self.primary:
            return
        mirror_of(self.tenant)
        column = f"{domain}_generation"
        rows = RepositoryMirror.objects.filter(tenant=self.tenant, **{f"{column}__lt": generation})
        self._new = bool(rows.update(**{column: generation}))

    def claimed_elsewhere(self, domain: str, generation: int) -> None:
        """A claim that was new to us and taken all the same is the trace of work that the catalogue has forgotten."""
        if self.primary and self._new:
            behind_put(self.tenant, f"generation {generation} of the index was claimed by work that is not known here")

    _new: bool = False


def guard_of(tenant: Tenant, store: Store, *, store_id: str, primary: bool = True) -> CatalogueGuard:
    """The guard for work on the tenant's repository in this store that begins now."""
    row = installation_get()
    return CatalogueGuard(store, tenant, row.repository_id, row.generation, store_id, primary)
