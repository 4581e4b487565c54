"""Accounts of people, tokens of programs."""

import datetime
from typing import ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.db import models

from core import clock
from core.models import Record


class AccountManager(BaseUserManager["Account"]):
    pass


class Account(Record, AbstractBaseUser):
    """A person who logs in. Only masters may do anything; there are no finer permissions of people."""

    id_prefix = "acc"

    username = models.CharField(max_length=150, unique=True)
    is_master = models.BooleanField(default=False)
    is_active = models.BooleanField(default=True)

    objects: ClassVar[AccountManager] = AccountManager()

    USERNAME_FIELD = "username"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    def __str__(self) -> str:
        return self.username


class Scope(models.TextChoices):
    READ = "read"
    BACKUP_WRITE = "backup:write"
    RESTORE_WRITE = "restore:write"
    RELEASE_WRITE = "release:write"
    FLAG_WRITE = "flag:write"
    ADMIN = "admin"


class Token(Record):
    """A program's right to act for a master. The secret is shown once; only its SHA-256 is kept.

    Its 256 random bits need no slow hash. `tenants` are slugs; an empty list means all.
    """

    id_prefix = "tok"

    account = models.ForeignKey(Account, on_delete=models.CASCADE, related_name="tokens")
    name = models.CharField(max_length=150)
    prefix = models.CharField(max_length=24, unique=True)
    secret_hash = models.CharField(max_length=64)
    scopes = models.JSONField(default=list)
    tenants = models.JSONField(default=list)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    def is_live(self, at: datetime.datetime | None = None) -> bool:
        """Neither revoked nor expired, of an account that is still an active master."""
        at = at or clock.now()
        if self.revoked_at is not None or (self.expires_at is not None and self.expires_at <= at):
            return False
        return bool(self.account.is_active and self.account.is_master)


class ApprovalState(models.TextChoices):
    REQUESTED = "requested"
    APPROVED = "approved"
    REJECTED = "rejected"
    USED = "used"


class Approval(Record):
    """One destructive action that a second master has to agree to before it is done.

    `digest` binds it to exactly what was asked for: another reason, another tenant is another action.
    """

    id_prefix = "apr"

    area = models.CharField(max_length=20)
    """What `LASTRO_FOUR_EYES` names: `keys`, `restores` …"""
    action = models.CharField(max_length=60)
    tenant = models.CharField(max_length=63, blank=True)
    """Its slug, as people read it."""
    tenant_id = models.CharField(max_length=40, blank=True)
    """What it is bound to: a slug may come to belong to another tenant. Empty in those asked for before this was kept."""
    details = models.JSONField(default=dict)
    """What the action would do, as the approver reads it; no secrets."""
    digest = models.CharField(max_length=64)
    state = models.CharField(max_length=10, choices=ApprovalState.choices, default=ApprovalState.REQUESTED)
    requested_by = models.CharField(max_length=150)
    decided_by = models.CharField(max_length=150, blank=True)
    decided_at = models.DateTimeField(null=True)
    decision_reason = models.CharField(max_length=500, blank=True)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["digest", "state"], name="access_approval_digest"),
            models.Index(fields=["state", "-id"], name="access_approval_newest"),
        ]
