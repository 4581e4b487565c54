"""What a policy would do: days to come, with the backups that they would bring."""

from dataclasses import dataclass, replace
from typing import Any

from core import clock
from tenants.models import Tenant
from tenants.retention.calendar import Cadence
from tenants.retention.decide import Rules
from tenants.retention.policy import Policy, policy_words
from tenants.retention.simulate import Fate, simulate
from tenants.retention.words import words
from tenants.retention_selectors import PolicyBook, backups_known, calendar, rules_of, sources_of

DAYS_MAX = 3_660


@dataclass(frozen=True, slots=True)
class Simulation:
    """The policy that was tried, and the fate of every backup, oldest first."""

    policy: Policy
    rules: Rules
    fates: list[Fate]
    names: dict[str, str]

    def lines(self) -> list[dict[str, Any]]:
        """Each backup with the rule that keeps it at the end, or kept it last, and the date on which it goes."""
        return [self._line(fate) for fate in self.fates]

    def _line(self, fate: Fate) -> dict[str, Any]:
        verdict = fate.verdict
        goes_at = fate.gone_at or verdict.goes_at
        return {
            "id": verdict.point.id,
            "timestamp": verdict.point.at.isoformat().replace("+00:00", "Z"),
            "type": "full" if verdict.point.full else "incremental",
            "simulated": fate.simulated,
            "kept": fate.gone_at is None,
            "rule": verdict.rule,
            "words": words(verdict, self.rules, names=self.names),
            "goes_at": None if goes_at is None else goes_at.isoformat().replace("+00:00", "Z"),
        }

    @property
    def said(self) -> str:
        """The policy in words."""
        return policy_words(self.policy)


def retention_simulate(tenant: Tenant, *, days: int, cadence: Cadence, policy: Policy | None = None) -> Simulation:
    """Let `days` pass over the tenant's backups in its primary store; with a policy, by that one for all its sources.

    Writes nothing. Backups come by the cadence and hold every source that is backed up today.
    """
    sources = sources_of(tenant)
    rules = rules_of(tenant, book=PolicyBook.load(tenant), sources=sources)
    if policy is not None:
        rules = replace(rules, policy=policy, sources={})
    points = [known.point for known in backups_known(tenant) if known.left_at is None]
    coming = tuple(sorted(set(sources.names) - sources.ended))
    fates = simulate(points, rules, cadence, calendar(), now=clock.now(), days=days, sources=coming)
    return Simulation(rules.policy, rules, fates, dict(sources.names))
