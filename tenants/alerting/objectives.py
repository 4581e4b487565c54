"""The rule about objectives: what would be lost, or how long it would take to be back, is more than allowed."""

import datetime
from collections.abc import Iterator

from operations.alerting.levels import Levels
from operations.alerting.rules import Finding, rule_register
from operations.models import Severity
from tenants.objective_selectors import objectives_breached
from tenants.objectives.rules import length_words


@rule_register(
    "objective_breached",
    title="Objectives are not kept",
    severity=Severity.WARNING,
    next_step="objective show TENANT says what; back up more often (schedule), or restore faster: nearer stores, smaller sources",
)
def objective_breached(levels: Levels, now: datetime.datetime) -> Iterator[Finding]:
    """By the versions in force; what was never rehearsed breaks no objective of time."""
    for each in objectives_breached(now=now):
        subject = f"{each.tenant}/{each.source}"
        if not each.rpo_kept:
            # When, not how long ago: words that change every minute would be written every minute.
            had = f"{each.last_good_at:%Y-%m-%d %H:%M} UTC" if each.last_good_at else "never"
            yield Finding(
                f"{each.source_id}:rpo",
                f"more than {length_words(each.terms.rpo_seconds)} would be lost: the last good backup is of {had}",
                tenant=each.tenant,
                subject=subject,
                hint=f"at once: backup create {each.tenant} --source {each.source}; then back it up more often: schedule add",
                cause="recovery point",
            )
        if each.rto_kept is False and each.back_seconds is not None:
            yield Finding(
                f"{each.source_id}:rto",
                f"it would take {length_words(each.back_seconds)} to be back, by its last drill; "
                f"{length_words(each.terms.rto_seconds)} are allowed",
                tenant=each.tenant,
                subject=subject,
                cause="recovery time",
            )
