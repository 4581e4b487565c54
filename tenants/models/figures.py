"""Counters of the overview: what was counted, and the changes since, which triggers write (tenants.figures)."""

from django.db import models


class FigureSubject(models.TextChoices):
    BACKUPS = "backups", "backups of tenants"
    RESTORES = "restores", "restores"


class FigureColumns(models.Model):
    """What is counted: all rows, how they ended, and the sums that averages are made of."""

    total = models.BigIntegerField(default=0)
    success = models.BigIntegerField(default=0)
    failed = models.BigIntegerField(default=0)
    duration_ms = models.BigIntegerField(default=0)
    """Of successes."""
    size_bytes = models.BigIntegerField(default=0)
    """Of successes."""

    class Meta:
        abstract = True


class Figure(FigureColumns):
    """The sums of one subject, up to the changes that were folded in."""

    subject = models.CharField(primary_key=True, max_length=20, choices=FigureSubject.choices)

    def __str__(self) -> str:
        return f"{self.subject}: {self.total}"


class FigureChange(FigureColumns):
    """One change of a counted row, written by a trigger in the transaction that made it.

    Rows are only added here, and the sums themselves are not touched: two transactions never wait for each other over a
    counter.
    """

    subject = models.CharField(max_length=20, choices=FigureSubject.choices)

    def __str__(self) -> str:
        return f"{self.subject} {self.total:+d}"
