"""Keys: where keyrings lie, when epochs began, root keys in rotation, and what was destroyed."""

from typing import ClassVar

from django.db import models

from core import clock
from core.models import Record
from tenants.models.tenant import StoreConfig, Tenant


class KeyringState(models.TextChoices):
    """What is known of a keyring's place; observed, not decided, so that any look may replace it."""

    PENDING = "pending", "has still to be written"
    WRITTEN = "written", "holds the keyring as it is"
    DAMAGED = "damaged", "holds something else"


class KeyringPlace(models.Model):
    """One store that keeps, or has still to get, the keyring of one tenant."""

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="keyring_places")
    store = models.ForeignKey(StoreConfig, on_delete=models.PROTECT, related_name="keyring_places")
    state = models.CharField(max_length=10, choices=KeyringState.choices, default=KeyringState.PENDING)
    sha256 = models.CharField(max_length=64, blank=True)
    """Of the object that was written last."""
    root_key_id = models.CharField(max_length=64, blank=True)
    """The root key that wraps it."""
    written_at = models.DateTimeField(null=True)
    checked_at = models.DateTimeField(null=True)
    """When `key verify` last opened it."""
    error_code = models.CharField(max_length=100, blank=True)
    error = models.TextField(blank=True)

    class Meta:
        ordering = ["tenant", "store"]
        constraints = [models.UniqueConstraint(fields=["tenant", "store"], name="keyring_place_unique")]
        indexes = [
            models.Index(fields=["state", "id"], name="keyring_place_state"),
            models.Index(fields=["root_key_id", "id"], name="keyring_place_root"),
        ]

    def __str__(self) -> str:
        return f"{self.tenant_id}/{self.store_id}"


class KeyEpoch(models.Model):
    """When an epoch of a tenant's keys began, and why; the first began with the tenant."""

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="key_epochs")
    epoch = models.PositiveIntegerField()
    compromised = models.BooleanField(default=False)
    """The keys before it got out: with it the id key was replaced, too."""
    adopted = models.BooleanField(default=False)
    """It began with an adoption: another installation had the keys before it."""
    signing_key = models.CharField(max_length=64, blank=True)
    """Public key (hex) of the signing key that began with it; empty when that of before goes on to sign."""
    signs_from = models.PositiveBigIntegerField(null=True)
    """The first number that no former key signs."""
    began_at = models.DateTimeField(default=clock.now)
    created_by = models.CharField(max_length=200, blank=True)
    reason = models.CharField(max_length=500, blank=True)

    class Meta:
        ordering = ["tenant", "epoch"]
        constraints = [models.UniqueConstraint(fields=["tenant", "epoch"], name="key_epoch_unique")]

    def __str__(self) -> str:
        return f"{self.tenant_id}/{self.epoch}"


class RootRotation(Record):
    """One root key taking the place of another; unfinished while something is still wrapped by the old one."""

    id_prefix: ClassVar[str] = "rot"

    old_key_id = models.CharField(max_length=64)
    new_key_id = models.CharField(max_length=64)
    running = models.BooleanField(default=True)
    finished_at = models.DateTimeField(null=True)
    created_by = models.CharField(max_length=200, blank=True)
    reason = models.CharField(max_length=500, blank=True)
    rewrapped = models.JSONField(default=dict)
    """How many of what were wrapped anew, over all runs."""
    waiting = models.JSONField(default=list)
    """What still needs the old key, in words, as the last run found it."""

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["running"], condition=models.Q(running=True), name="root_rotation_single")
        ]

    def __str__(self) -> str:
        return f"{self.old_key_id} -> {self.new_key_id}"


class DestroyedKey(models.Model):
    """One thing that shredding destroyed: what, where, how many versions of it."""

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="destroyed_keys")
    place = models.CharField(max_length=200)
    """`catalogue`, or `store NAME`."""
    what = models.CharField(max_length=300)
    versions = models.PositiveIntegerField(default=1)
    sha256 = models.CharField(max_length=64, blank=True)
    destroyed_at = models.DateTimeField(default=clock.now)

    class Meta:
        ordering = ["id"]
        constraints = [models.UniqueConstraint(fields=["tenant", "place", "what"], name="destroyed_key_unique")]

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


class GivenUpStore(Record):
    """A store that was given up as lost (`store remove --lost`): whatever lies in it is out of reach, not gone."""

    id_prefix: ClassVar[str] = "gus"

    name = models.CharField(max_length=63)
    kind = models.CharField(max_length=30)
    place = models.CharField(max_length=300, blank=True)
    """Where it was, without secrets."""
    given_up_by = models.CharField(max_length=200, blank=True)
    reason = models.CharField(max_length=500, blank=True)
    destroyed_at = models.DateTimeField(null=True)
    """When an operator declared that nothing of it exists any more; None: it may be found by anybody."""
    destroyed_by = models.CharField(max_length=200, blank=True)
    destroyed_reason = models.CharField(max_length=500, blank=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"

    @property
    def words(self) -> str:
        """As certificates name it."""
        return f"store {self.name} ({self.kind}), given up on {self.created_at:%Y-%m-%d}"


class GivenUpPlace(models.Model):
    """What one tenant may still have in a store that was given up."""

    store = models.ForeignKey(GivenUpStore, on_delete=models.CASCADE, related_name="places")
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="given_up_places")
    keys_there = models.BooleanField(default=False)
    objects_there = models.BooleanField(default=False)
    """Its repository, or a copy of that, lay there."""

    class Meta:
        ordering = ["store", "tenant"]
        constraints = [models.UniqueConstraint(fields=["store", "tenant"], name="given_up_place_unique")]

    def __str__(self) -> str:
        return f"{self.store_id}/{self.tenant_id}"


class CertificateState(models.TextChoices):
    PENDING = "pending", "something still has the tenant"
    COMPLETE = "complete", "nothing that Lastro knows of has it"


class ShredCertificate(Record):
    """A signed statement of what was destroyed; the newest of a tenant supersedes those before it."""

    id_prefix: ClassVar[str] = "crt"

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="certificates")
    number = models.PositiveIntegerField()
    state = models.CharField(max_length=10, choices=CertificateState.choices)
    document = models.JSONField()
    """With its signature: as it is handed out."""
    sha256 = models.CharField(max_length=64)
    operation_id = models.CharField(max_length=40, blank=True, db_index=True)

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["tenant", "number"], name="certificate_number_unique")]

    def __str__(self) -> str:
        return self.id
