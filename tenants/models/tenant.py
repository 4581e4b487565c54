"""Tenants, their sources and modules, and the stores that keep them."""

from typing import ClassVar

from django.db import models
from django.db.models.functions import Lower

from core.models import Record
from tenants.rules import NAME_CHARS_MAX, SLUG_CHARS_MAX, SOURCE_NAME_CHARS_MAX, VERSION_CHARS_MAX


class Criticality(models.TextChoices):
    CRITICAL = "critical", "critical"
    IMPORTANT = "important", "important"
    NORMAL = "normal", "normal"


class Category(models.TextChoices):
    DATABASE = "database", "database"
    ASSETS = "assets", "assets"
    CONFIGURATIONS = "configurations", "configurations"


class StoreConfig(Record):
    """A store and its settings; the objects in it are the stores' business."""

    id_prefix: ClassVar[str] = "sto"

    name = models.CharField(max_length=SOURCE_NAME_CHARS_MAX)
    kind = models.CharField(max_length=30)
    config = models.JSONField(default=dict)
    sealed = models.JSONField(default=dict)
    """Secret settings, each sealed by the root key under the context `store:<id>:<field>`, base64."""
    is_default = models.BooleanField(default=False)
    offsite = models.BooleanField(default=False)
    """It stands elsewhere than the tenants' data and the other stores: what the 1 of 3-2-1 asks for."""
    medium = models.CharField(max_length=40, blank=True)
    """What it is kept on, for the 2 of 3-2-1; empty: its kind."""
    paid = models.BooleanField(null=True)
    """Reading costs money: verified by samples over 30 days, not 7; None: by its kind."""
    keeps_keys = models.BooleanField(default=True)
    """Keyrings may lie in it. Never in an object-locked bucket: a key that cannot be deleted cannot be shredded."""
    bytes_per_second = models.PositiveBigIntegerField(default=0)
    """Limit of all transfers of one process to and from it; 0: none."""
    tested_at = models.DateTimeField(null=True)
    tested = models.JSONField(default=dict)
    """What the last test found, as `store test` prints it."""

    class Meta:
        constraints = [
            models.UniqueConstraint(Lower("name"), name="store_name_unique"),
            models.UniqueConstraint(
                fields=["is_default"], condition=models.Q(is_default=True), name="store_default_single"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class Tenant(Record):
    """A customer of the platform; owns sources, keys and one repository."""

    id_prefix: ClassVar[str] = "ten"

    slug = models.CharField(max_length=SLUG_CHARS_MAX, unique=True)
    name = models.CharField(max_length=NAME_CHARS_MAX)
    criticality = models.CharField(max_length=10, choices=Criticality.choices, default=Criticality.NORMAL)
    platform_version = models.CharField(max_length=VERSION_CHARS_MAX, blank=True)
    """Version of the platform that the tenant runs on; recorded in each backup."""
    store = models.ForeignKey(StoreConfig, on_delete=models.PROTECT, related_name="tenants")
    repository_id = models.CharField(max_length=40, unique=True)
    keyring = models.BinaryField()
    """The keyring object: every secret in it is wrapped by the root key."""
    repository_ready = models.BooleanField(default=False)
    """False until the repository's config is in the store: a killed `tenant add` is finished by the next operation."""
    number_reserved = models.PositiveBigIntegerField(default=0)
    """The highest sequence number ever given to a session; raised only under the tenant's lease."""
    numbers_closed = models.PositiveBigIntegerField(default=0)
    """All numbers up to this one are known to hold a manifest or a void record."""
    erasures_number = models.PositiveBigIntegerField(default=0)
    """The newest record of the erasure ledger known here: when the store lacks it, nothing is restored."""
    archived_at = models.DateTimeField(null=True)
    """Removed: it takes no backups and is in no list; its keys, backups and sources stay, so that they can be restored."""
    held = models.BooleanField(default=False)
    """Legal hold: no backup of it is ended and no key of it destroyed."""
    held_reason = models.CharField(max_length=500, blank=True)
    shredded_at = models.DateTimeField(null=True)
    """Its keys were destroyed: nothing of it can be read again, nothing new be written."""

    class Meta:
        ordering = ["slug"]

    def __str__(self) -> str:
        return self.slug


class SourceManager(models.Manager["Source"]):
    """Sources that were not removed."""

    def get_queryset(self) -> models.QuerySet["Source"]:
        return super().get_queryset().filter(archived_at=None)


class Source(Record):
    """A thing we protect; its class, schedule and retention are its own."""

    id_prefix: ClassVar[str] = "src"

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="sources")
    name = models.CharField(max_length=SOURCE_NAME_CHARS_MAX)
    kind = models.CharField(max_length=30)
    category = models.CharField(max_length=20, choices=Category.choices)
    config = models.JSONField(default=dict)
    sealed = models.JSONField(default=dict)
    """Secret settings, each sealed by the root key under the context `source:<id>:<field>`, base64."""
    criticality = models.CharField(max_length=10, choices=Criticality.choices, default=Criticality.NORMAL)
    enabled = models.BooleanField(default=True)
    tested_at = models.DateTimeField(null=True)
    tested_summary = models.CharField(max_length=500, blank=True)
    last_good_backup = models.ForeignKey("tenants.Backup", null=True, on_delete=models.SET_NULL, related_name="+")
    last_good_at = models.DateTimeField(null=True)
    """When the data of the last good backup was read: the age of a source counts from here."""
    archived_at = models.DateTimeField(null=True)
    """Removed: its name is free again, and its backups stay."""

    objects = SourceManager()
    every = models.Manager["Source"]()

    class Meta:
        ordering = ["tenant", "name"]
        constraints = [
            models.UniqueConstraint(
                "tenant", Lower("name"), condition=models.Q(archived_at=None), name="source_name_unique"
            ),
        ]
        indexes = [models.Index(fields=["last_good_at"], name="source_last_good")]

    def __str__(self) -> str:
        return f"{self.tenant_id}/{self.name}"


class Module(Record):
    """A part of a source that can be restored alone, as the newest backup saw it."""

    id_prefix: ClassVar[str] = "mod"

    source = models.ForeignKey(Source, on_delete=models.CASCADE, related_name="modules")
    name = models.CharField(max_length=255)
    items = models.PositiveBigIntegerField(default=0)
    """Rows of a table module, files of a tree module."""
    size_bytes = models.PositiveBigIntegerField(default=0)
    contents = models.JSONField(default=list)
    """Names of its tables or paths, cut at `CONTENTS_MAX`."""

    CONTENTS_MAX: ClassVar[int] = 100

    class Meta:
        ordering = ["source", "name"]
        constraints = [models.UniqueConstraint(fields=["source", "name"], name="module_name_unique")]

    def __str__(self) -> str:
        return self.name
