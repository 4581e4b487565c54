"""How many operations may run at once: over all workers, per tenant, per store."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from django.db import transaction

from audit.services import record
from core.errors import NotFound
from core.tenancy import tenants_unknown
from engine.errors import UsageError
from operations.models import Quota, QuotaScope

MOST = 10_000


@dataclass
class Quotas:
    """The limits, and what counts against them at this moment."""

    limits: Mapping[tuple[str, str], int]
    tenants: Counter[str] = field(default_factory=Counter)
    lanes: Counter[str] = field(default_factory=Counter)
    total: int = 0

    @classmethod
    def load(cls) -> "Quotas":
        """The limits as they are set now, nothing counted yet."""
        return cls({(row.scope, row.name): row.running_max for row in Quota.objects.all()})

    def count(self, *, tenant: str, lane: str, by: int = 1) -> None:
        """Count what runs."""
        self.total += by
        if tenant:
            self.tenants[tenant] += by
        if lane:
            self.lanes[lane] += by

    def free(self, *, tenant: str, lane: str) -> bool:
        """Whether one more may run."""
        return not (
            self._reached(QuotaScope.ALL, "", self.total)
            or (tenant and self._reached(QuotaScope.TENANT, tenant, self.tenants[tenant]))
            or (lane and self._reached(QuotaScope.STORE, lane, self.lanes[lane]))
        )

    @property
    def all_taken(self) -> bool:
        """Whether nothing more may run at all."""
        return self._reached(QuotaScope.ALL, "", self.total)

    def full_lanes(self) -> list[str]:
        """Stores that may take no more."""
        return self._full(QuotaScope.STORE, self.lanes)

    def full_tenants(self) -> list[str]:
        """Tenants that may have no more."""
        return self._full(QuotaScope.TENANT, self.tenants)

    def _full(self, scope: str, counts: Counter[str]) -> list[str]:
        none = [name for (of, name), most in self.limits.items() if of == scope and name and not most]
        return sorted({*none, *(name for name, count in counts.items() if self._reached(scope, name, count))})

    def _reached(self, scope: str, name: str, count: int) -> bool:
        most = self.limits.get((scope, name), self.limits.get((scope, "")))
        return most is not None and count >= most


def quota_list() -> list[Quota]:
    """Every quota that was set."""
    return list(Quota.objects.order_by("scope", "name"))


def quota_set(scope: str, name: str, running_max: int, *, actor: str) -> Quota:
    """Let at most so many operations run at once; an empty name means each tenant or store without a quota of its own.

    What runs already goes on. Raises UsageError for a number out of range, NotFound for an unknown tenant.
    """
    if not 0 <= running_max <= MOST:
        raise UsageError(
            f"a quota is a number from 0 to {MOST}", hint="0 stops what it is about; quota remove lifts it"
        )
    if scope == QuotaScope.TENANT and name and tenants_unknown([name]):
        raise NotFound(f"there is no tenant {name[:60]!r}", hint="tenant list shows them")
    with transaction.atomic():
        before = Quota.objects.filter(scope=scope, name=name).values_list("running_max", flat=True).first()
        row, _ = Quota.objects.update_or_create(scope=scope, name=name, defaults={"running_max": running_max})
        record(
            "quota.set",
            message=f"at most {running_max} at once: {QuotaScope(scope).label}{f' {name}' if name else ''}",
            actor=actor,
            tenant=name if scope == QuotaScope.TENANT else "",
            data={"scope": scope, "name": name, "before": before, "after": running_max},
        )
    return row


def quota_remove(scope: str, name: str, *, actor: str) -> None:
    """Lift a quota. Raises NotFound."""
    with transaction.atomic():
        row = Quota.objects.filter(scope=scope, name=name).first()
        if row is None:
            raise NotFound(f"there is no such quota: {scope} {name}".rstrip(), hint="quota list shows them")
        before = row.running_max
        row.delete()
        record(
            "quota.removed",
            message=f"no quota any more: {QuotaScope(scope).label}{f' {name}' if name else ''}",
            actor=actor,
            tenant=name if scope == QuotaScope.TENANT else "",
            data={"scope": scope, "name": name, "before": before},
        )
