"""The audit log: entries that only grow, the head that says how far they go, and signed checkpoints of it."""

from django.db import models

from core.ids import ID_LENGTH_MAX
from core.models import Record


class Level(models.TextChoices):
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Entry(Record):
    """What was done, by whom; leaf number `sequence` (from 0) of the Merkle tree.

    Append-only: triggers refuse updates, and deletions but of what a signed truncation has cut off (`audit.triggers`).
    Who drops them is found out by `audit.verification`.
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
    origin = models.JSONField(default=dict)
    """From where: `core.origin`. Empty in entries that are older than this field; these are hashed without it."""
    leaf_hash = models.CharField(max_length=64)
    root_hash = models.CharField(max_length=64)
    """Root of the tree of all entries up to and with this one."""

    class Meta:
        indexes = [
            models.Index(fields=["tenant", "-sequence"], name="audit_entry_tenant"),
            models.Index(fields=["type", "-sequence"], name="audit_entry_type"),
            models.Index(fields=["user_id", "-sequence"], name="audit_entry_user"),
            models.Index(fields=["level", "-sequence"], name="audit_entry_level"),
            models.Index(fields=["timestamp", "sequence"], name="audit_entry_time"),
        ]


class Head(models.Model):
    """One row: size and root of the tree, and the peaks from which the next root is made.

    `seal` binds all of it to the installation's root key, so that entries cut off at either end show.
    """

    id = models.CharField(primary_key=True, max_length=ID_LENGTH_MAX)
    size = models.BigIntegerField(default=0)
    root_hash = models.CharField(max_length=64)
    peaks = models.JSONField(default=list)
    log_id = models.CharField(max_length=32, blank=True)
    """Made at random with the first entry; another one after an adoption, see `lineage`."""
    lineage = models.JSONField(default=list)
    """[{"log", "size", "root"}]: the logs that this one has gone on from, and where."""
    first = models.BigIntegerField(default=0)
    """Sequence of the oldest entry that is kept; those before it were cut off by signed truncation."""
    frontier = models.JSONField(default=list)
    """Peaks of the tree of the first `first` entries, so that the rest goes on verifying."""
    checkpoint_size = models.BigIntegerField(default=0)
    """Size of the newest checkpoint."""
    seal = models.BinaryField()

    def __str__(self) -> str:
        return f"{self.size} entries, root {self.root_hash[:16]}"


class CheckpointKey(Record):
    """The Ed25519 key that signs checkpoints and truncations; which one is the newest row."""

    id_prefix = "aky"

    public = models.CharField(max_length=64)
    """In hex."""
    sealed = models.BinaryField()
    """The private key under the root key; its context names the public one."""


class Checkpoint(Record):
    """A signed statement of size and root at a moment, in a form that can be kept elsewhere (C2SP tlog-checkpoint)."""

    id_prefix = "ckp"

    log_id = models.CharField(max_length=32)
    size = models.BigIntegerField(unique=True)
    root_hash = models.CharField(max_length=64)
    key = models.ForeignKey(CheckpointKey, on_delete=models.PROTECT, related_name="checkpoints")
    note = models.TextField()


class Delivery(models.Model):
    """How far a witness or a forwarder has got."""

    name = models.CharField(primary_key=True, max_length=200)
    log_id = models.CharField(max_length=32, blank=True)
    position = models.BigIntegerField(default=0)
    """Witness: size of the newest checkpoint it holds. Forwarder: sequence of the next entry to send."""
    failures = models.IntegerField(default=0)
    not_before = models.DateTimeField(null=True)
    claimed_until = models.DateTimeField(null=True)
    sent_at = models.DateTimeField(null=True)
    error = models.TextField(blank=True)

    def __str__(self) -> str:
        return f"{self.name} at {self.position}"


class Tile(models.Model):
    """A perfect subtree's hash, kept so that proofs need not read all leaves; made again from them when it is missing."""

    height = models.SmallIntegerField()
    index = models.BigIntegerField()
    hash = models.CharField(max_length=64)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["height", "index"], name="audit_tile_unique")]

    def __str__(self) -> str:
        return f"{self.height}/{self.index}"
