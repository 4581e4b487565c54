"""The claim on what an operation works on."""

from django.db import models

from core.ids import ID_LENGTH_MAX


class Lease(models.Model):
    """The claim on a resource; one row each, kept for ever so that `token` only grows."""

    resource = models.CharField(primary_key=True, max_length=120)
    holder = models.CharField(max_length=ID_LENGTH_MAX, blank=True)
    """Id of the operation; empty when free."""
    token = models.BigIntegerField(default=0)
    expires_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.resource} #{self.token} {self.holder or 'free'}"
