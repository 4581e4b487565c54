"""Leases: taken, renewed and released by compare-and-swap; each taking raises the fencing token."""

import datetime

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, Q

from core import clock
from core.errors import Busy
from engine.errors import SessionFenced
from operations.models import Lease

HEARTBEATS_MISSED_MAX = 2


def heartbeat_interval() -> datetime.timedelta:
    return datetime.timedelta(seconds=settings.LASTRO_HEARTBEAT_SECONDS)


def lease_duration() -> datetime.timedelta:
    """How long silence is believed to be life: two heartbeats."""
    return HEARTBEATS_MISSED_MAX * heartbeat_interval()


def lease_take(resource: str, *, holder: str) -> int:
    """Claim the resource inside the caller's transaction and return the new fencing token.

    A free lease and one whose holder has been silent past its expiry can be taken. Raises Busy naming the
    holder otherwise.
    """
    now = clock.catalogue_now()
    expires_at = now + lease_duration()
    free = Q(holder="") | Q(expires_at__lt=now)
    if not Lease.objects.filter(free, pk=resource).update(holder=holder, token=F("token") + 1, expires_at=expires_at):
        try:
            with transaction.atomic():
                Lease.objects.create(resource=resource, holder=holder, token=1, expires_at=expires_at)
        except IntegrityError:
            present = Lease.objects.get(pk=resource)
            raise Busy(
                f"{resource} is taken by operation {present.holder}",
                hint=f"wait for it or cancel it: operation show {present.holder}",
                operation=present.holder,
            ) from None
    return Lease.objects.values_list("token", flat=True).get(pk=resource)


def lease_renew(resource: str, *, holder: str, token: int) -> bool:
    """Put off the expiry; False when the lease is no longer the holder's."""
    expires_at = clock.catalogue_now() + lease_duration()
    return Lease.objects.filter(pk=resource, holder=holder, token=token).update(expires_at=expires_at) == 1


def lease_release(resource: str, *, holder: str) -> None:
    """Free the resource if it is still the holder's; the token stays where it is."""
    Lease.objects.filter(pk=resource, holder=holder).update(holder="")


def lease_assert(resource: str, *, holder: str, token: int) -> None:
    """Hold the lease's row for the rest of the caller's transaction, or raise SessionFenced.

    Call it first in the transaction that records a result: what a fenced worker did is then never recorded.
    """
    row = Lease.objects.select_for_update().filter(pk=resource, holder=holder, token=token)
    if not row.exists():
        raise SessionFenced(
            f"operation {holder} no longer holds {resource}", hint="it was silent for too long; look at the newer one"
        )
