"""What a rule is, and which there are.

An app registers its rules in a module `alert_rules`, imported when they are first asked for. A rule looks at the
catalogue only (what a network has to be asked for is written down by probes, see watching.py), for all tenants at once:
a look takes a fixed number of queries, whatever the number of tenants.
"""

import datetime
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from django.utils.module_loading import autodiscover_modules

from engine.errors import NameUnknown
from operations.alerting.levels import Levels
from operations.models import Severity

FINGERPRINT_CHARS_MAX = 200
MESSAGE_CHARS_MAX = 500


@dataclass(frozen=True, slots=True)
class Limit:
    """A number that an operator may set."""

    default: float
    least: float
    most: float
    unit: str
    help: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong now. Its words are bounded and hold no secret.

    `fingerprint` tells it from others of its rule. `cause` groups: what has one cause is told at once. `occurrence`
    names the event behind it (a backup's id): another one counts as another occurrence.
    """

    fingerprint: str
    message: str
    tenant: str = ""
    subject: str = ""
    hint: str = ""
    cause: str = ""
    occurrence: str = ""
    severity: str = ""


Look = Callable[[Levels, datetime.datetime], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; `title` completes "3 × …", `next_step` says what to do for every finding without a hint of its own."""

    code: str
    title: str
    severity: Severity
    next_step: str
    look: Look
    limits: Mapping[str, Limit] = field(default_factory=dict)
    calm: datetime.timedelta = datetime.timedelta(0)
    """Only what no look has found for so long is over: what comes and goes makes no noise."""
    escalate_minutes: int = 30
    """0: never."""
    repeat_hours: int = 24


_rules: dict[str, Rule] = {}
_preparations: dict[str, Callable[[Mapping[str, Levels]], None]] = {}


def preparation_register(name: str) -> Callable[[Callable[[Mapping[str, Levels]], None]], None]:
    """Have the decorated function called before every look, with what is in force by rule: it writes down what rules ask for."""

    def decorate(prepare: Callable[[Mapping[str, Levels]], None]) -> None:
        _preparations[name] = prepare

    return decorate


def preparations() -> dict[str, Callable[[Mapping[str, Levels]], None]]:
    """By name what comes before a look."""
    rules()
    return dict(_preparations)


def rule_register(
    code: str,
    *,
    title: str,
    severity: Severity,
    next_step: str,
    limits: Mapping[str, Limit] | None = None,
    calm_minutes: int = 0,
    escalate_minutes: int | None = None,
) -> Callable[[Look], Look]:
    """Register the decorated look as a rule; the code must be new."""

    def decorate(look: Look) -> Look:
        assert code not in _rules, f"rule {code} registered twice"
        _rules[code] = Rule(
            code,
            title,
            severity,
            next_step,
            look,
            dict(limits or {}),
            datetime.timedelta(minutes=calm_minutes),
            (30 if severity == Severity.CRITICAL else 0) if escalate_minutes is None else escalate_minutes,
        )
        return look

    return decorate


def rules() -> list[Rule]:
    """All rules by code."""
    autodiscover_modules("alert_rules")
    return [_rules[code] for code in sorted(_rules)]


def rule_get(code: str) -> Rule:
    """Raise NameUnknown naming the rules when there is no such one."""
    known = {rule.code: rule for rule in rules()}
    if code not in known:
        raise NameUnknown(f"there is no rule {code[:40]!r}", hint=f"one of: {', '.join(known)}")
    return known[code]


def rule_find(code: str) -> Rule | None:
    """The rule, None for one of another version of the program."""
    rules()
    return _rules.get(code)
