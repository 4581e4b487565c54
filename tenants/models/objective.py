"""How much may be lost and how long it may take to be back: objectives in versions, so that the past is judged by its own."""

from typing import ClassVar

from django.db import models

from core.models import Record
from tenants.models.tenant import Criticality, Source, Tenant


class Objective(Record):
    """One version of the objectives of a place: everything, a tenant, a class, a tenant's class, or a source."""

    id_prefix: ClassVar[str] = "obj"

    place = models.CharField(max_length=120)
    """`<tenant id>/<class>/<source id>`, each empty for all."""
    tenant = models.ForeignKey(Tenant, null=True, on_delete=models.PROTECT, related_name="objectives")
    criticality = models.CharField(max_length=10, choices=Criticality.choices, blank=True)
    source = models.ForeignKey(Source, null=True, on_delete=models.PROTECT, related_name="objectives")
    rpo_seconds = models.PositiveBigIntegerField(null=True)
    """Most data, in time, that may be lost; None: as the next wider place says."""
    rto_seconds = models.PositiveBigIntegerField(null=True)
    """Longest time until it is back; None: as the next wider place says."""
    valid_from = models.DateTimeField()
    valid_until = models.DateTimeField(null=True)
    """None: in force."""
    set_by = models.CharField(max_length=200, blank=True)
    reason = models.TextField(blank=True)

    class Meta:
        ordering = ["place", "valid_from"]
        constraints = [
            models.UniqueConstraint(
                fields=["place"], condition=models.Q(valid_until=None), name="objective_in_force_single"
            )
        ]
        indexes = [models.Index(fields=["tenant", "valid_from"], name="objective_tenant")]

    def __str__(self) -> str:
        return self.place


class SourceClass(models.Model):
    """A class that a source had: until when. The one it has now stands in the source itself."""

    source = models.ForeignKey(Source, on_delete=models.CASCADE, related_name="classes")
    criticality = models.CharField(max_length=10, choices=Criticality.choices)
    until = models.DateTimeField()

    class Meta:
        ordering = ["source", "until"]
        indexes = [models.Index(fields=["source", "until"], name="source_class_until")]

    def __str__(self) -> str:
        return f"{self.source_id} {self.criticality} until {self.until}"
