"""Verdicts in words, for people who ask why a backup is still there or where it went."""

import datetime
from collections.abc import Mapping

from tenants.retention.decide import Rules, Verdict
from tenants.retention.policy import FOREVER, Policy

_COUNTS: Mapping[str, tuple[str, str]] = {
    "daily": ("daily_count", "newest backup of its day"),
    "weekly": ("weekly_count", "newest backup of its week"),
    "weekly_full": ("weekly_full_count", "newest full backup of its week"),
    "monthly": ("monthly_count", "newest backup of its month"),
    "monthly_full": ("monthly_full_count", "newest full backup of its month"),
    "yearly": ("yearly_count", "newest backup of its year"),
}
_PLAIN: Mapping[str, str] = {
    "tenant_held": "the tenant is under legal hold",
    "held": "it is under legal hold",
    "tag": "its tag is one that is never ended",
    "undo": "it undoes a restore until the end of the undo's term",
    "future": "it lies in the future: the clock was wrong when it was taken, or is now",
    "last_good": "it is the last good backup of {source}",
    "waits": "its copy in {source} is still to be made",
    "": "no rule keeps it",
}


def words(verdict: Verdict, rules: Rules, *, names: Mapping[str, str] | None = None) -> str:
    """Why the backup stays or goes; `names` says what its sources are called."""
    policy = rules.of(verdict.source)
    if verdict.rule in _COUNTS:
        name, noun = _COUNTS[verdict.rule]
        count = getattr(policy, name)
        total = "without end" if count == FOREVER else f"of {count}"
        said = f"{noun}: number {verdict.rank} {total}"
    elif verdict.rule in ("days", "pre_deploy"):
        said = _by_days(verdict.rule, policy)
    else:
        said = _PLAIN[verdict.rule]
    return said.replace("{source}", _called(verdict.source, names))


def _by_days(rule: str, policy: Policy) -> str:
    if rule == "days":
        return f"every backup of the last {_count(policy.incremental_days)} stays"
    return f"one before a deployment stays for {_count(policy.pre_deploy_days)}"


def _count(days: int) -> str:
    return "days, without end," if days == FOREVER else f"{days} days"


def _called(source: str, names: Mapping[str, str] | None) -> str:
    return f"source {(names or {}).get(source, source)}" if source else "all its sources"


def goes(verdict: Verdict) -> str:
    """When it goes, in short."""
    if not verdict.kept:
        return "now"
    return "never" if verdict.goes_at is None else day_text(verdict.goes_at)


def day_text(at: datetime.datetime) -> str:
    """A time as lists show it."""
    return f"{at:%Y-%m-%d %H:%M}"
