"""The audit log: entries that only grow, and the head that says how far they go."""

from django.db import models

from core.ids import ID_LENGTH_MAX
from core.models import Record


class Level(models.TextChoices):
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Entry(Record):
    """What was done, by whom; leaf number `sequence` (from 0) of the Merkle tree.

    Append-only: triggers refuse updates and deletions (migration 0002), and who drops them is found out by
    `audit.verification`.
    """

    id_prefix = "aud"

    sequence = models.BigIntegerField(unique=True)
    timestamp = models.DateTimeField()
    type = models.CharField(max_length=60)
    level = models.CharField(max_length=8, choices=Level.choices, default=Level.INFO)
    message = models.TextField()
    user_id = models.CharField(max_length=150, blank=True)
    """Who did it: the name of an account, `token:<prefix>`, `cli:<user>`, `system:<part>`."""
    tenant = models.CharField(max_length=63, blank=True)
    data = models.JSONField(default=dict)
    leaf_hash = models.CharField(max_length=64)
    root_hash = models.CharField(max_length=64)
    """Root of the tree of all entries up to and with this one."""

    class Meta:
        indexes = [
            models.Index(fields=["tenant", "-sequence"], name="audit_entry_tenant"),
            models.Index(fields=["type", "-sequence"], name="audit_entry_type"),
        ]


class Head(models.Model):
    """One row: size and root of the tree, and the peaks from which the next root is made.

    `seal` binds size and root to the installation's root key, so that entries cut off at the end show.
    """

    id = models.CharField(primary_key=True, max_length=ID_LENGTH_MAX)
    size = models.BigIntegerField(default=0)
    root_hash = models.CharField(max_length=64)
    peaks = models.JSONField(default=list)
    seal = models.BinaryField()

    def __str__(self) -> str:
        return f"{self.size} entries, root {self.root_hash[:16]}"
