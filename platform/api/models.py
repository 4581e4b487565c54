"""What the API itself remembers."""

from typing import Any

from django.db import models

from access.models import Token
from core.models import Record


class Repeat(Record):
    """The first answer to a request with an idempotency key, for 24 hours."""

    id_prefix = "rep"

    token = models.ForeignKey(Token, on_delete=models.CASCADE, related_name="+")
    key = models.CharField(max_length=128)
    digest = models.CharField(max_length=64)
    """SHA-256 of method, path and canonical body."""
    status = models.PositiveSmallIntegerField(null=True)
    """None until it was answered."""
    body: "models.JSONField[Any, Any]" = models.JSONField(null=True)
    headers = models.JSONField(default=dict)
    tenant = models.CharField(max_length=63, blank=True)
    """Slug of the tenant that the answer is about."""

    class Meta:
        constraints = [models.UniqueConstraint(fields=["token", "key"], name="api_repeat_key")]
        indexes = [models.Index(fields=["created_at"], name="api_repeat_created")]
