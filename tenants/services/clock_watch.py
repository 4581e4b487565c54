"""Whether the time can be trusted: nothing is ended or swept by a clock that jumped.

Three witnesses stand against the wall clock: the latest time that the catalogue has seen, which never goes back; the
machine's own time since its start, which nobody can set; and the clock of the catalogue's server where it has one. A
store is a fourth one: `engine.prune` compares its clock before it deletes. Whoever sets the clock by little and little
within one start is seen, too, because the first word of each start is kept. A freeze stays until somebody thaws it,
also when the clock is right again: what was taken or ended meanwhile has to be looked at first.
"""

import datetime
import os

from django.db import IntegrityError, transaction

from audit.services import record
from core import clock
from core.errors import Conflict
from tenants.models import Backup, ClockWitness, DeletionFreeze

STEP_MAX = datetime.timedelta(hours=1)
"""So far the wall clock may stand from where the machine's time since its start puts it."""
GAP_MAX = datetime.timedelta(days=4)
"""So long a machine may have been off; what a reboot and a clock that was set forward look like is the same."""
WITNESSES_MAX = 200
_UNKNOWN = "unknown"
THAW_HINT = "is the time right now? Look at: retention upcoming; then: retention thaw --confirm all"


def freeze_active() -> DeletionFreeze | None:
    """The freeze in force; asks only the catalogue."""
    return DeletionFreeze.objects.filter(active=True).first()


def clock_looked_at() -> DeletionFreeze | None:
    """Hold the clock against its witnesses, and freeze deletion when they disagree; the freeze in force, if any."""
    frozen = freeze_active()
    if frozen is not None:
        return frozen
    now, machine = clock.now(), clock.machine()
    found = _disagreement(now, machine)
    if found is not None:
        return _freeze(*found)
    with transaction.atomic():
        witness, _ = ClockWitness.objects.get_or_create(
            pk=machine.boot_id, defaults={"booted_at": now - machine.running, "seen_at": now}
        )
        # Never `booted_at`: small steps would add up unseen.
        ClockWitness.objects.filter(pk=witness.pk, seen_at__lt=now).update(seen_at=now)
        kept = list(ClockWitness.objects.order_by("-seen_at").values_list("pk", flat=True)[:WITNESSES_MAX])
        ClockWitness.objects.exclude(pk__in=kept).delete()
    return None


def _disagreement(now: datetime.datetime, machine: clock.Machine) -> tuple[str, str] | None:
    skew = clock.catalogue_now() - now
    if abs(skew) > STEP_MAX:
        return "clock.catalogue", f"this host's clock is {_span(skew)} from that of the catalogue's server"
    seen = ClockWitness.objects.order_by("-seen_at").values_list("seen_at", flat=True).first()
    newest = max((at for at in (seen, _newest_backup()) if at is not None), default=now)
    if now < newest - STEP_MAX:
        return "clock.backward", f"the clock stands {_span(newest - now)} before a time that was seen already"
    before = ClockWitness.objects.filter(pk=machine.boot_id).first() if machine.boot_id != _UNKNOWN else None
    if before is not None:
        step = now - machine.running - before.booted_at
        if abs(step) > STEP_MAX:
            forward = "forward" if step > datetime.timedelta(0) else "back"
            return "clock.stepped", f"the clock went {forward} by {_span(step)}: was it set, or the machine paused?"
    elif seen is not None and now > seen + GAP_MAX:
        return (
            "clock.gap",
            f"nothing was seen of this installation for {_span(now - seen)}: it was off, or the clock was set forward",
        )
    return None


def _newest_backup() -> datetime.datetime | None:
    return Backup.objects.order_by("-id").values_list("created_at", flat=True).first()


def freeze_for_store(seen: datetime.datetime, *, store: str) -> DeletionFreeze | None:
    """Freeze when a store's own clock, read at this moment, is far from ours."""
    skew = seen - clock.now()
    if abs(skew) <= STEP_MAX:
        return None
    return _freeze("clock.store", f"this host's clock is {_span(skew)} from that of store {store}")


def _freeze(code: str, reason: str) -> DeletionFreeze:
    try:
        with transaction.atomic():
            frozen = DeletionFreeze.objects.create(code=code, reason=reason[:500])
            record(
                "retention.frozen",
                message=f"no backup is ended and nothing swept: {reason}",
                actor="system:clock",
                level="error",
                data={"freeze": frozen.pk, "code": code, "pid": os.getpid()},
            )
            return frozen
    except IntegrityError:  # Another process saw it, too.
        return DeletionFreeze.objects.get(active=True)


def thaw(*, actor: str, reason: str = "") -> tuple[DeletionFreeze, int]:
    """Trust the clock from now on. What lies in the trash has its whole term again; how many backups that are.

    Raises Conflict when nothing is frozen.
    """
    frozen = freeze_active()
    if frozen is None:
        raise Conflict("deletion is not frozen", hint="nothing to do")
    now, machine = clock.now(), clock.machine()
    with transaction.atomic():
        DeletionFreeze.objects.filter(pk=frozen.pk).update(active=False, thawed_at=now, thawed_by=actor[:200])
        # The present time is the measure again, whatever was seen while it was wrong.
        ClockWitness.objects.all().delete()
        ClockWitness.objects.create(pk=machine.boot_id, booted_at=now - machine.running, seen_at=now)
        again = Backup.objects.filter(trashed_at__isnull=False).update(trashed_at=now)
        record(
            "retention.thawed",
            message=f"backups may be ended again after: {frozen.reason}",
            actor=actor,
            level="warning",
            data={"freeze": frozen.pk, "reason": reason, "terms_begun_again": again},
        )
    frozen.refresh_from_db()
    return frozen, again


def _span(span: datetime.timedelta) -> str:
    hours = abs(span).total_seconds() / 3600
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours"
