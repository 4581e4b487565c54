"""Rules as operators set them: a new version for every change, the old ones kept, each on record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from audit.services import record
from core import clock
from core.errors import NotFound
from core.tenancy import tenants_unknown
from engine.errors import UsageError
from operations.alerting.levels import Level, Levels
from operations.alerting.rules import Rule, rule_get, rules
from operations.models import RuleVersion, Severity

ESCALATE_MINUTES_MAX = 7 * 24 * 60
VERSIONS_SHOWN_MAX = 50


@dataclass(frozen=True)
class RuleChange:
    """What is to be set; None leaves it, `reset` names numbers that become the level above's again."""

    enabled: bool | None = None
    severity: str | None = None
    escalate_minutes: int | None = None
    values: Mapping[str, str] | None = None
    reset: Sequence[str] = ()


def rule_set(code: str, change: RuleChange, *, actor: str, tenant: str = "") -> RuleVersion:
    """Set a rule for all, or for a tenant. Raises NameUnknown, NotFound, UsageError; nothing is changed then."""
    rule = rule_get(code)
    if tenants_unknown([tenant] if tenant else []):
        raise NotFound(f"there is no tenant {tenant[:60]!r}", hint="tenant list shows them")
    named = [change.enabled, change.severity, change.escalate_minutes, change.values or None, change.reset or None]
    if all(each is None for each in named):
        raise UsageError(
            "nothing to set was named",
            hint=f"--enable, --disable, --severity, --escalate, --reset, or --set with: {_limits_text(rule)}",
        )
    values = {name: _value(rule, name, text) for name, text in (change.values or {}).items()}
    for name in change.reset:
        _limit_named(rule, name)
    if change.escalate_minutes is not None and not 0 <= change.escalate_minutes <= ESCALATE_MINUTES_MAX:
        raise UsageError(f"--escalate takes 0 (never) to {ESCALATE_MINUTES_MAX} minutes")
    with transaction.atomic():
        before = RuleVersion.objects.select_for_update().filter(rule=code, tenant=tenant, current=True).first()
        version = _successor(before, code, tenant, change, values, actor)
        version.save(force_insert=True)
        record(
            "alert_rule.set",
            message=f"alert rule {code}{f' for {tenant}' if tenant else ''}",
            actor=actor,
            tenant=tenant,
            level="warning",
            data={"rule": code, "before": _told(before), "after": _told(version)},
        )
    return version


def _successor(
    before: RuleVersion | None, code: str, tenant: str, change: RuleChange, values: Mapping[str, float], actor: str
) -> RuleVersion:
    if before is not None:
        RuleVersion.objects.filter(pk=before.pk).update(current=False, superseded_at=clock.now())
    kept = {**(before.values if before else {}), **values}
    return RuleVersion(
        rule=code,
        tenant=tenant,
        enabled=change.enabled if change.enabled is not None else before.enabled if before else None,
        severity=change.severity if change.severity is not None else before.severity if before else "",
        escalate_minutes=(
            change.escalate_minutes
            if change.escalate_minutes is not None
            else before.escalate_minutes
            if before
            else None
        ),
        values={name: value for name, value in kept.items() if name not in change.reset},
        set_by=actor[:200],
    )


def _told(version: RuleVersion | None) -> dict[str, Any]:
    if version is None:
        return {}
    # Numbers as text: the audit log's JSON knows whole numbers only.
    return {
        "enabled": version.enabled,
        "severity": version.severity,
        "escalate_minutes": version.escalate_minutes,
        "values": {name: f"{value:g}" for name, value in version.values.items()},
    }


def _limit_named(rule: Rule, name: str) -> None:
    if name not in rule.limits:
        raise UsageError(f"rule {rule.code} has no number {name[:40]!r}", hint=f"it has: {_limits_text(rule)}")


def _value(rule: Rule, name: str, text: str) -> float:
    _limit_named(rule, name)
    limit = rule.limits[name]
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not limit.least <= value <= limit.most:  # Never true for what is no number.
        raise UsageError(
            f"{name}: {text[:40]!r} is not a number from {limit.least:g} to {limit.most:g}",
            hint=f"{limit.help} ({limit.unit}; {limit.default:g} at first)",
        )
    return value


def _limits_text(rule: Rule) -> str:
    return ", ".join(f"{name} ({limit.unit})" for name, limit in rule.limits.items()) or "none"


def levels_all() -> dict[str, Levels]:
    """By rule what is in force, for all and for each tenant: one query."""
    for_all: dict[str, Level] = {}
    for_tenants: dict[str, dict[str, Level]] = {}
    for row in RuleVersion.objects.filter(current=True):
        level = Level(row.enabled, row.severity, row.escalate_minutes, row.values)
        if row.tenant:
            for_tenants.setdefault(row.rule, {})[row.tenant] = level
        else:
            for_all[row.rule] = level
    return {
        rule.code: Levels(
            {name: limit.default for name, limit in rule.limits.items()},
            for_all.get(rule.code, Level()),
            for_tenants.get(rule.code, {}),
        )
        for rule in rules()
    }


def rule_versions(code: str, *, tenant: str | None = None) -> list[RuleVersion]:
    """What was set for a rule, newest first."""
    rows = RuleVersion.objects.filter(rule=rule_get(code).code).order_by("-id")
    return list((rows if tenant is None else rows.filter(tenant=tenant))[:VERSIONS_SHOWN_MAX])


def rule_output(rule: Rule, levels: Levels, tenant: str = "") -> dict[str, Any]:
    """A rule with what is in force, as commands and the API give it."""
    return {
        "rule": rule.code,
        "title": rule.title,
        "enabled": levels.enabled(tenant),
        "severity": levels.severity(tenant) or str(Severity(rule.severity)),
        "escalate_minutes": levels.escalate_minutes(rule.escalate_minutes, tenant),
        "limits": {
            name: {
                "value": levels.limit(name, tenant),
                "default": limit.default,
                "unit": limit.unit,
                "help": limit.help,
            }
            for name, limit in rule.limits.items()
        },
        "next_step": rule.next_step,
        "tenants": sorted(levels.for_tenants),
    }
