"""The rules about keys, recovery and retention: what `doctor` finds without asking a store."""

import datetime
from collections import Counter
from collections.abc import Iterable, Iterator

from operations.alerting.levels import Levels
from operations.alerting.rules import Finding, rule_register
from operations.models import Severity
from tenants.key_diagnosis import key_signs
from tenants.recovery_diagnosis import recovery_signs
from tenants.services.clock_watch import THAW_HINT, clock_looked_at

_SEVERITIES = {"critical": Severity.CRITICAL, "warning": Severity.WARNING}


def _findings(signs: Iterable[tuple[str, str, str, str, object]]) -> Iterator[Finding]:
    seen: Counter[str] = Counter()
    for name, status, message, hint, _ in signs:
        if status in _SEVERITIES:
            # A name may come twice (a store each): which of them it is tells them apart.
            yield Finding(f"{name}:{seen[name]}", message, subject=name, hint=hint, severity=_SEVERITIES[status])
            seen[name] += 1


@rule_register(
    "keys",
    title="Keys need somebody",
    severity=Severity.WARNING,
    next_step="lastro doctor says what to do; without its keys no backup can be read",
)
def keys(levels: Levels, now: datetime.datetime) -> Iterable[Finding]:
    """Keyrings that are damaged, nowhere, or in one hand; rotations and shreddings that wait."""
    return _findings(key_signs())


@rule_register(
    "recovery",
    title="Lastro itself could not be brought back",
    severity=Severity.WARNING,
    next_step="lastro doctor says what to do",
)
def recovery(levels: Levels, now: datetime.datetime) -> Iterable[Finding]:
    """Recovery kits, backups of the catalogue, reconciliation with the stores."""
    return _findings(recovery_signs(network=False))


@rule_register(
    "retention_frozen",
    title="Deletion is frozen",
    severity=Severity.WARNING,
    next_step=THAW_HINT,
)
def retention_frozen(levels: Levels, now: datetime.datetime) -> Iterator[Finding]:
    """The clock cannot be trusted: nothing is ended or swept, and stores fill up."""
    frozen = clock_looked_at()
    if frozen is not None:
        since = f"{frozen.created_at:%Y-%m-%d %H:%M} UTC"
        yield Finding(
            "retention", f"nothing is deleted since {since}: {frozen.reason}", subject="retention", occurrence=frozen.pk
        )
