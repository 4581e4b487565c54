"""Promotions: how a tenant's primary came to lie in another store."""

from typing import ClassVar

from django.db import models

from core.models import Record
from tenants.models.tenant import StoreConfig, Tenant


class Promotion(Record):
    """One change of a tenant's primary; unfinished while `settled_at` is empty, and taken up by repeating the command."""

    id_prefix: ClassVar[str] = "pro"

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="promotions")
    before = models.ForeignKey(StoreConfig, null=True, on_delete=models.SET_NULL, related_name="+")
    after = models.ForeignKey(StoreConfig, null=True, on_delete=models.SET_NULL, related_name="+")
    before_name = models.CharField(max_length=60)
    """Stores can be removed; what happened stays."""
    after_name = models.CharField(max_length=60)
    lost = models.BooleanField(default=False)
    """The former primary was not there: nothing could be brought from it."""
    ending = models.BooleanField(default=False)
    """The former primary is to be no copy either."""
    account = models.JSONField(default=dict)
    """What it came to, as `copy promote` prints it; long lists are cut."""
    operation_id = models.CharField(max_length=40, blank=True)
    switched_at = models.DateTimeField()
    settled_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["tenant"], condition=models.Q(settled_at=None), name="promotion_unsettled_single"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.tenant_id}: {self.before_name} -> {self.after_name}"
