"""What of this app's rows leaves the catalogue after its term (see operations.history)."""

import datetime

from django.db.models import OuterRef, QuerySet, Subquery

from core.errors import Conflict
from core.ids import first_id
from operations.history import history_guarded_by, history_register
from tenants.models import Drill, DrillState, PlanState, RestorePlan, Validation
from tenants.services.clock_watch import THAW_HINT, clock_looked_at

DRILLS_KEPT = 10
"""Of each tenant, whatever their age: the last one says whether a restore would work, ten make the estimate of its time."""


@history_register("plans", term="history")
def _plans(before: datetime.datetime) -> "QuerySet[RestorePlan]":
    """Plans that no restore was made of; the others belong to their restore's record."""
    old = RestorePlan.objects.filter(pk__lt=first_id("pln", before), restores=None).exclude(state=PlanState.MAKING)
    return old.exclude(expires_at__gte=before)


@history_register("drills", term="evidence")
def _drills(before: datetime.datetime) -> "QuerySet[Drill]":
    """With their validations; never one whose throw-away targets are still to be removed."""
    newest = Drill.objects.filter(tenant=OuterRef("tenant")).order_by("-pk").values("pk")
    oldest_kept = Subquery(newest[DRILLS_KEPT - 1 : DRILLS_KEPT])
    ended = Drill.objects.exclude(state=DrillState.RUNNING).filter(cleared=True)
    return ended.filter(pk__lt=first_id("drl", before)).filter(pk__lt=oldest_kept)


@history_register("validations", term="evidence")
def _validations(before: datetime.datetime) -> "QuerySet[Validation]":
    """Those of restores; the restore itself stays."""
    return Validation.objects.filter(pk__lt=first_id("val", before), drill=None)


def _believable() -> None:
    frozen = clock_looked_at()
    if frozen is not None:
        raise Conflict(f"nothing is deleted while the clock is not believed: {frozen.reason}", hint=THAW_HINT)


history_guarded_by(_believable)
