"""What this installation is to its stores: who owns them, how much of them it knows, which recovery kits there are."""

from typing import ClassVar

from django.db import models

from core.models import Record
from tenants.models.tenant import StoreConfig, Tenant


class Installation(Record):
    """This installation, one row: its identity in the stores outlives the host and the catalogue."""

    id_prefix: ClassVar[str] = "ins"

    repository_id = models.CharField(max_length=40, unique=True)
    """The repository in which it keeps backups of its own catalogue; the same id in every store."""
    keyring = models.BinaryField()
    """The keyring of that repository, wrapped by the root key; it opens no tenant's data."""
    generation = models.PositiveBigIntegerField(default=1)
    """Its owner number; a store that knows a higher one was adopted by somebody else."""
    single = models.BooleanField(default=True, unique=True)
    """True in the only row there may be."""
    adopted_from = models.CharField(max_length=64, blank=True)
    """Id of the catalogue backup (or `manifests`) that it was rebuilt from; empty for one that began here."""
    adopted_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.id


class CatalogueStore(models.Model):
    """One store as a place of catalogue backups: its chain there is one of its own."""

    store = models.OneToOneField(StoreConfig, primary_key=True, on_delete=models.CASCADE, related_name="catalogue")
    ready = models.BooleanField(default=False)
    """The repository and the owner record are there."""
    generation = models.PositiveBigIntegerField(default=0)
    """The highest owner record of ours that is known to be there."""
    number_reserved = models.PositiveBigIntegerField(default=0)
    numbers_closed = models.PositiveBigIntegerField(default=0)
    behind = models.BooleanField(default=False)
    """The store holds catalogue backups that this catalogue did not write: it was rolled back."""
    taken_at = models.DateTimeField(null=True)
    """When the newest one here was taken."""
    audit_size = models.PositiveBigIntegerField(default=0)
    """How long the audit log was then: nothing new since means nothing to keep."""
    size_bytes = models.PositiveBigIntegerField(default=0)
    stored_bytes = models.PositiveBigIntegerField(default=0)
    error_code = models.CharField(max_length=100, blank=True)
    error = models.TextField(blank=True)

    def __str__(self) -> str:
        return f"{self.store_id} #{self.number_reserved}"


class RepositoryMirror(models.Model):
    """What this catalogue knows of a tenant's repository beyond its numbers, to see when it has been left behind."""

    tenant = models.OneToOneField(Tenant, primary_key=True, on_delete=models.CASCADE, related_name="mirror")
    sealed_generation = models.PositiveBigIntegerField(default=0)
    plain_generation = models.PositiveBigIntegerField(default=0)
    """The highest generations of the index that this catalogue may have claimed."""
    behind_since = models.DateTimeField(null=True)
    """The store was seen to know more than the catalogue; nothing is deleted until they are reconciled."""
    behind_reason = models.CharField(max_length=300, blank=True)
    reconciled_at = models.DateTimeField(null=True)
    succession_due = models.BooleanField(default=False)
    """Adopted by this installation, whose own signing key has still to take the place of the former one's."""
    promised = models.JSONField(null=True)
    """Numbers that the copy which has become the primary had promised to hold, as ranges; None: nobody could say."""
    images_kept = models.JSONField(default=list)
    """Change images that no row names, found by the last reconciliation: kept for the term of an undo after it."""

    def __str__(self) -> str:
        return f"{self.tenant_id} {self.sealed_generation}/{self.plain_generation}"


class RecoveryKit(Record):
    """A recovery kit that was made; not the kit."""

    id_prefix: ClassVar[str] = "kit"

    sha256 = models.CharField(max_length=64)
    root_key_id = models.CharField(max_length=64)
    printable = models.BooleanField(default=False)
    repositories = models.PositiveBigIntegerField(default=0)
    """How many it names; it serves those made later, too."""
    created_by = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.id
