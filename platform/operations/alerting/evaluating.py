"""One look for what is wrong: alerts are opened, seen again, resolved; each once, however many looks there are.

A rule's findings are compared with its living alerts by fingerprint. A look that fails leaves that rule's alerts as they
are and becomes an alert of its own: nothing is taken for well because nobody could look. All writing is in batches, a
transaction a rule.
"""

import datetime
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from django.db import DatabaseError, connection, transaction

from audit.services import record
from core import clock
from core.logs import redact
from engine.errors import LastroError
from engine.faults import kill_point
from operations.alerting.levels import Levels
from operations.alerting.rule_settings import levels_all
from operations.alerting.rules import FINGERPRINT_CHARS_MAX, MESSAGE_CHARS_MAX, Finding, Rule, preparations, rules
from operations.alerting.transitions import alerts_resolve
from operations.models import LIVE_STATES, Alert, Severity

log = logging.getLogger(__name__)

T = TypeVar("T")
ACTOR = "system:alerts"
FINDINGS_MAX = 20_000
"""Of one rule in one look; more is one more finding that says so."""
BATCH_ROWS = 500
BROKEN_RULE = "alerting_broken"


@dataclass(frozen=True, slots=True)
class Looked:
    """What one look did."""

    opened: int = 0
    again: int = 0
    resolved: int = 0
    live: int = 0
    broken: tuple[str, ...] = ()


@dataclass(slots=True)
class _Changes:
    new: list[Finding] = field(default_factory=list)
    again: list[tuple[Mapping[str, Any], Finding]] = field(default_factory=list)
    back: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    over: list[str] = field(default_factory=list)


def alerts_look() -> Looked:
    """Look by every rule. What could not be looked at is told by its names, and by an alert."""
    now, levels = clock.now(), levels_all()
    total = Looked()
    broken: dict[str, str] = {}
    for name, prepare in preparations().items():
        _tried(name, partial(prepare, levels), broken)
    for rule in rules():
        if rule.code == BROKEN_RULE:
            continue
        done = _tried(rule.code, partial(_by_rule, rule, rule.look, levels[rule.code], now), broken)
        total = _added(total, done) if done is not None else total
    total = _added(total, _broken(broken, levels, now))
    return replace(total, broken=tuple(sorted(broken)))


def _tried(name: str, work: Callable[[], T], broken: dict[str, str]) -> T | None:
    """What the work gives; None when it could not be done, and `broken` says why."""
    try:
        return work()
    except (LastroError, DatabaseError, OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        log.exception("alert rule %s could not look", name)
        if isinstance(error, DatabaseError) and not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
        broken[name] = f"{type(error).__name__}: {redact(str(error))}"
        return None


def _added(one: Looked, other: Looked) -> Looked:
    return Looked(
        one.opened + other.opened, one.again + other.again, one.resolved + other.resolved, one.live + other.live
    )


def _broken(broken: Mapping[str, str], levels: Mapping[str, Levels], now: datetime.datetime) -> Looked:
    rule = next((each for each in rules() if each.code == BROKEN_RULE), None)
    if rule is None:
        return Looked()
    findings = [Finding(code, f"the rule {code} could not look: {said}", subject=code) for code, said in broken.items()]
    return _by_rule(rule, lambda levels, now: findings, levels[rule.code], now)


def _by_rule(rule: Rule, look: Any, levels: Levels, now: datetime.datetime) -> Looked:
    found = _found(rule, look(levels, now) if levels.enabled() or levels.for_tenants else (), levels)
    live = {
        row["fingerprint"]: row
        for row in Alert.objects.filter(rule=rule.code, state__in=LIVE_STATES).values(
            "pk", "fingerprint", "occurrence", "severity", "message", "hint", "absent_since"
        )
    }
    if not found and not live:
        return Looked()
    changes = _compared(rule, found, live, now)
    with transaction.atomic():
        _seen(rule, changes, now)
        opened = _opened(rule, changes.new, now)
        resolved = _resolved(rule, changes.over, now)
        if opened or resolved:
            record(
                "alerts.changed",
                message=f"{rule.code}: {opened} opened, {resolved} over",
                actor=ACTOR,
                level="warning" if opened else "info",
                data={"rule": rule.code, "opened": opened, "resolved": resolved, "live": len(found)},
            )
        kill_point("alert.looked")
    return Looked(opened, len(changes.again), resolved, len(found))


def _found(rule: Rule, findings: Iterable[Finding], levels: Levels) -> dict[str, Finding]:
    found: dict[str, Finding] = {}
    rest = iter(findings)
    for finding in islice(rest, FINDINGS_MAX):
        if levels.enabled(finding.tenant):
            severity = levels.severity(finding.tenant) or finding.severity or rule.severity
            found[finding.fingerprint[:FINGERPRINT_CHARS_MAX]] = _bounded(replace(finding, severity=str(severity)))
    if next(rest, None) is not None:
        found["and more"] = Finding(
            "and more", f"more than {FINDINGS_MAX:,} at once; the others are not listed", severity=str(rule.severity)
        )
    return found


def _bounded(finding: Finding) -> Finding:
    return replace(
        finding,
        message=one_line(finding.message, MESSAGE_CHARS_MAX),
        hint=one_line(finding.hint, MESSAGE_CHARS_MAX),
        subject=one_line(finding.subject, 200),
        cause=one_line(finding.cause, 200),
        occurrence=finding.occurrence[:100],
        fingerprint=finding.fingerprint[:FINGERPRINT_CHARS_MAX],
    )


def one_line(text: str, most: int) -> str:
    """A text on one line, without control characters and secrets, cut to `most` characters."""
    text = redact(text)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _compared(
    rule: Rule, found: Mapping[str, Finding], live: Mapping[str, Mapping[str, Any]], now: datetime.datetime
) -> _Changes:
    changes = _Changes()
    for fingerprint, finding in found.items():
        row = live.get(fingerprint)
        if row is None:
            changes.new.append(finding)
            continue
        if row["absent_since"] is not None:
            changes.back.append(row["pk"])
        was = (row["occurrence"], row["severity"], row["message"], row["hint"])
        if was != (finding.occurrence, finding.severity, finding.message, finding.hint):
            changes.again.append((row, finding))
    for fingerprint, row in live.items():
        if fingerprint in found:
            continue
        since = row["absent_since"] or now
        if now - since >= rule.calm:
            changes.over.append(row["pk"])
        elif row["absent_since"] is None:
            changes.gone.append(row["pk"])
    return changes


def _seen(rule: Rule, changes: _Changes, now: datetime.datetime) -> None:
    living = Alert.objects.filter(rule=rule.code, state__in=LIVE_STATES)
    # One statement for all; those that no look found are set right below.
    living.filter(absent_since=None).update(last_seen_at=now)
    for ids in _batches(changes.gone):
        living.filter(pk__in=ids).update(absent_since=now)
    for ids in _batches(changes.back):
        living.filter(pk__in=ids).update(absent_since=None, last_seen_at=now)
    for pairs in _batches(changes.again):
        _again(pairs)


def _again(pairs: list[tuple[Mapping[str, Any], Finding]]) -> None:
    """Put new words and occurrences into rows. By `executemany`: a bulk_update of 10,000 took twenty times as long."""
    columns = ", ".join(f"{connection.ops.quote_name(name)} = %s" for name in _TOLD_COLUMNS)
    table, count = (connection.ops.quote_name(name) for name in (Alert._meta.db_table, "occurrences"))
    statement = f"UPDATE {table} SET {columns}, {count} = {count} + %s WHERE id = %s"  # noqa: S608 - names of ours
    with connection.cursor() as cursor:
        cursor.executemany(
            statement,
            [
                (
                    *(getattr(finding, name) for name in _TOLD_COLUMNS),
                    int(finding.occurrence != row["occurrence"]),
                    row["pk"],
                )
                for row, finding in pairs
            ],
        )
    worse = [row["pk"] for row, finding in pairs if _rank(finding.severity) > _rank(row["severity"])]
    if worse:
        Alert.objects.filter(pk__in=worse).update(told_at=None)  # It got worse: that is said at once.


_TOLD_COLUMNS = ("occurrence", "severity", "message", "hint", "cause")


def _opened(rule: Rule, findings: list[Finding], now: datetime.datetime) -> int:
    opened = 0
    for batch in _batches(findings):
        muted = _mutes(rule, [each.fingerprint for each in batch], now)
        rows = [
            Alert(
                rule=rule.code,
                fingerprint=each.fingerprint,
                tenant=each.tenant,
                subject=each.subject,
                severity=each.severity,
                message=each.message,
                hint=each.hint,
                cause=each.cause,
                occurrence=each.occurrence,
                last_seen_at=now,
                created_at=now,
                muted_until=muted.get(each.fingerprint),
            )
            for each in batch
        ]
        # Another look may have opened one meanwhile: there is one of it, whoever was first.
        Alert.objects.bulk_create(rows, ignore_conflicts=True)
        opened += len(rows)
    return opened


def _mutes(rule: Rule, fingerprints: list[str], now: datetime.datetime) -> dict[str, datetime.datetime]:
    """A mute outlives the alert: what comes and goes stays silent until its time."""
    rows = Alert.objects.filter(rule=rule.code, fingerprint__in=fingerprints, muted_until__gt=now)
    return {fingerprint: until for fingerprint, until in rows.values_list("fingerprint", "muted_until") if until}


def _resolved(rule: Rule, ids: list[str], now: datetime.datetime) -> int:
    moved = 0
    for batch in _batches(ids):
        told = Alert.objects.filter(pk__in=batch, told_at__isnull=False).values_list("pk", flat=True)
        told_ids = list(told)
        silent = [pk for pk in batch if pk not in set(told_ids)]
        ending = {"resolved_at": now, "escalate_at": None}
        moved += len(alerts_resolve(told_ids, actor=ACTOR, reason="no longer found", recovery_due=True, **ending))
        moved += len(alerts_resolve(silent, actor=ACTOR, reason="no longer found", **ending))
    return moved


def _rank(severity: str) -> int:
    return list(Severity.values).index(severity) if severity in Severity.values else 0


def _batches(items: list[Any]) -> Iterable[list[Any]]:
    return (items[at : at + BATCH_ROWS] for at in range(0, len(items), BATCH_ROWS))
