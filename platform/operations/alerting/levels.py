"""What is set for one rule, for all tenants and for some: read once for a whole look."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Level:
    """What one version sets; None, empty and absent: as the level above says."""

    enabled: bool | None = None
    severity: str = ""
    escalate_minutes: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Levels:
    """The built-in numbers, what is set for all, and what is set for each tenant that has something of its own."""

    defaults: Mapping[str, float]
    for_all: Level = field(default_factory=Level)
    for_tenants: Mapping[str, Level] = field(default_factory=dict)

    def limit(self, name: str, tenant: str = "") -> float:
        """The number in force for the tenant."""
        own = self.for_tenants.get(tenant)
        if own is not None and name in own.values:
            return own.values[name]
        return self.for_all.values.get(name, self.defaults[name])

    def least(self, name: str) -> float:
        """The smallest number in force for anybody: what a query for all tenants has to ask for."""
        own = [level.values[name] for level in self.for_tenants.values() if name in level.values]
        return min([self.limit(name), *own])

    def most(self, name: str) -> float:
        """The largest number in force for anybody."""
        own = [level.values[name] for level in self.for_tenants.values() if name in level.values]
        return max([self.limit(name), *own])

    def enabled(self, tenant: str = "") -> bool:
        """Whether the rule is on for the tenant."""
        own = self.for_tenants.get(tenant)
        if own is not None and own.enabled is not None:
            return own.enabled
        return self.for_all.enabled is not False

    def severity(self, tenant: str = "") -> str:
        """The severity that is set for the tenant; empty: the finding's or the rule's own."""
        own = self.for_tenants.get(tenant)
        return (own.severity if own is not None else "") or self.for_all.severity

    def escalate_minutes(self, default: int, tenant: str = "") -> int:
        """After how long without an acknowledgement the next channels hear; 0: never."""
        own = self.for_tenants.get(tenant)
        if own is not None and own.escalate_minutes is not None:
            return own.escalate_minutes
        return default if self.for_all.escalate_minutes is None else self.for_all.escalate_minutes
