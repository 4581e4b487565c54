"""Retention: policies, and what keeps a wrong clock from ending backups."""

from typing import ClassVar

from django.db import models

from core import clock
from core.models import Record
from tenants.models.tenant import Source, StoreConfig, Tenant


class RetentionPolicy(Record):
    """One policy where it was set: for everything, or for a tenant, a source, a store, or several of these together."""

    id_prefix: ClassVar[str] = "ret"

    place = models.CharField(max_length=130, unique=True)
    """Ids of tenant, source and store joined by `/`, `-` for each that is not named; constraints ignore NULLs."""
    tenant = models.ForeignKey(Tenant, null=True, on_delete=models.CASCADE, related_name="retention_policies")
    source = models.ForeignKey(Source, null=True, on_delete=models.CASCADE, related_name="retention_policies")
    store = models.ForeignKey(StoreConfig, null=True, on_delete=models.CASCADE, related_name="retention_policies")
    values = models.JSONField(default=dict)
    """Every number of the policy: `tenants.retention.policy.Policy.to_json`."""
    set_by = models.CharField(max_length=200, blank=True)
    set_at = models.DateTimeField(default=clock.now)

    class Meta:
        ordering = ["place"]
        verbose_name_plural = "retention policies"

    def __str__(self) -> str:
        return self.place


class ClockWitness(models.Model):
    """What one system start said about the time: the wall clock must go on as fast as the machine runs."""

    boot_id = models.CharField(primary_key=True, max_length=64)
    booted_at = models.DateTimeField()
    """The wall clock less the time since the start; a step of the clock moves it."""
    seen_at = models.DateTimeField()

    class Meta:
        ordering = ["-seen_at"]
        verbose_name_plural = "clock witnesses"

    def __str__(self) -> str:
        return self.boot_id


class DeletionFreeze(Record):
    """A stretch in which nothing was ended or swept, because the time could not be trusted."""

    id_prefix: ClassVar[str] = "frz"

    active = models.BooleanField(default=True)
    code = models.CharField(max_length=60)
    reason = models.CharField(max_length=500)
    thawed_at = models.DateTimeField(null=True)
    thawed_by = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["active"], condition=models.Q(active=True), name="deletion_freeze_single")
        ]

    def __str__(self) -> str:
        return f"{self.pk}: {self.code}"
