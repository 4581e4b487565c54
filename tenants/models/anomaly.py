"""What is usual for a source, what was unusual about its newest backup, and what a store last answered."""

from typing import ClassVar

from django.db import models

from core.models import Record
from tenants.models.backup import Backup
from tenants.models.tenant import Source, StoreConfig


class Baseline(models.Model):
    """The figures of a source's last backups, the newest last: what the next one is held against."""

    WINDOW: ClassVar[int] = 14
    PARTS_MAX: ClassVar[int] = 200

    source = models.OneToOneField(Source, primary_key=True, on_delete=models.CASCADE, related_name="baseline")
    window = models.JSONField(default=list)
    """[{"backup", "at", "size", "rows", "files", "parts": {module: items}, "together", "new", "packed"}]."""

    def __str__(self) -> str:
        return self.source_id


class Metric(models.TextChoices):
    SIZE = "size"
    SIZE_MEAN = "size_mean"
    ROWS = "rows"
    FILES = "files"
    PART = "part"
    COMPRESSIBILITY = "compressibility"
    CHAIN = "chain"
    OVERLOOKED = "overlooked"


class Anomaly(Record):
    """One figure of one backup that was out of the ordinary."""

    id_prefix: ClassVar[str] = "anm"

    source = models.ForeignKey(Source, on_delete=models.CASCADE, related_name="anomalies")
    backup = models.ForeignKey(Backup, on_delete=models.CASCADE, related_name="anomalies")
    metric = models.CharField(max_length=20, choices=Metric.choices)
    part = models.CharField(max_length=255, blank=True)
    value = models.FloatField(default=0)
    usual = models.FloatField(default=0)
    """The median of the backups before, or the mean of seven days."""
    least = models.FloatField(default=0)
    most = models.FloatField(default=0)
    """Between these the backups before lay."""
    count = models.PositiveIntegerField(default=0)
    said = models.CharField(max_length=300, blank=True)
    """Words of the backup itself, where there is no figure."""
    current = models.BooleanField(default=True)
    """It is about the newest backup of its source."""

    class Meta:
        indexes = [
            models.Index(fields=["metric", "source"], condition=models.Q(current=True), name="anomaly_current"),
            models.Index(fields=["source", "-id"], name="anomaly_newest"),
        ]

    def __str__(self) -> str:
        return f"{self.source_id} {self.metric} {self.part}"


class StoreLook(models.Model):
    """What a look at a store last found: that it answers, holds what it should, and has room."""

    store = models.OneToOneField(StoreConfig, primary_key=True, on_delete=models.CASCADE, related_name="look")
    looked_at = models.DateTimeField()
    failing_since = models.DateTimeField(null=True)
    error_code = models.CharField(max_length=100, blank=True)
    error = models.CharField(max_length=500, blank=True)
    hint = models.CharField(max_length=500, blank=True)
    free_bytes = models.BigIntegerField(null=True)

    def __str__(self) -> str:
        return self.store_id
