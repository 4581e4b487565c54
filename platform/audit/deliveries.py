"""How far those who receive the log have got: one at a time sends, and who fails is left alone for a while.

A claim is a row with an end, not a lock: sending takes as long as the network does, and no transaction is open meanwhile.
"""

import datetime
import hashlib

from django.db import models

from audit.models import Delivery
from core import clock

CLAIM = datetime.timedelta(minutes=5)
BACK_OFF_MIN = datetime.timedelta(seconds=30)
BACK_OFF_MAX = datetime.timedelta(hours=1)
ERROR_CHARS_MAX = 500
NAME_CHARS_MAX = 200


def delivery_name(text: str) -> str:
    """The key of a receiver: its address, of a long one the beginning and a hash. PostgreSQL takes no longer key."""
    if len(text) <= NAME_CHARS_MAX:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text[: NAME_CHARS_MAX - len(digest) - 1]} {digest}"


def delivery_claim(name: str, *, log_id: str, urgent: bool = False) -> Delivery | None:
    """Take the right to send; None while somebody else has it, or (unless `urgent`) while a failure is waited out.

    A log of another name begins anew: its receivers have nothing of it.
    """
    now = clock.catalogue_now()
    Delivery.objects.get_or_create(pk=name, defaults={"log_id": log_id})
    Delivery.objects.filter(pk=name).exclude(log_id=log_id).update(log_id=log_id, position=0)
    free = models.Q(claimed_until=None) | models.Q(claimed_until__lt=now)
    if not urgent:
        free &= models.Q(not_before=None) | models.Q(not_before__lte=now)
    if not Delivery.objects.filter(free, pk=name).update(claimed_until=now + CLAIM):
        return None
    return Delivery.objects.get(pk=name)


def delivery_moved(delivery: Delivery, position: int) -> None:
    """What lies before `position` has arrived; the claim goes on."""
    now = clock.catalogue_now()
    delivery.position = position
    Delivery.objects.filter(pk=delivery.pk, log_id=delivery.log_id).update(
        position=position, sent_at=now, claimed_until=now + CLAIM
    )


def delivery_done(delivery: Delivery) -> None:
    """Nothing is left to send."""
    Delivery.objects.filter(pk=delivery.pk).update(claimed_until=None, failures=0, not_before=None, error="")


def delivery_failed(delivery: Delivery, error: str) -> None:
    """Try again later: after half a minute, then twice as long each time, up to an hour."""
    wait = min(BACK_OFF_MAX, BACK_OFF_MIN * 2 ** min(delivery.failures, 10))
    Delivery.objects.filter(pk=delivery.pk).update(
        claimed_until=None, failures=delivery.failures + 1, not_before=clock.catalogue_now() + wait,
        error=error[:ERROR_CHARS_MAX],
    )  # fmt: skip
