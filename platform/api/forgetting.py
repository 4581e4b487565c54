"""What of the API is forgotten by the day."""

import datetime
from typing import Any

from django.db.models import QuerySet

from api.idempotency import KEPT
from api.models import Repeat
from core import clock
from operations.history import history_register


@history_register("first answers to repeatable requests", term="history")
def repeats(before: datetime.datetime) -> "QuerySet[Any]":
    """A day old: their term is a promise of the API, not the installation's choice."""
    return Repeat.objects.filter(created_at__lt=clock.now() - KEPT)
