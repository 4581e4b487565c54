"""`alert list|show|ack|mute|unmute|rules|rule|run|test|deliveries|report`."""

import datetime
from collections.abc import Mapping
from typing import Any

from core.cli import Answer, Call, NounCommand, Verb, argument, count, moment
from core.errors import Exit

_ID = argument("alert", metavar="ALERT", help="id of the alert (alt_…)")
_NOTE = argument("--reason", default="", help="why, for the record")
_GROUP = argument("--group", action="store_true", help="with all others of its rule and cause")
_TENANT = argument("--tenant", default="", metavar="SLUG")
_LIST_MAX = 500


def list_(call: Call) -> Answer:
    """What is wrong now, or was."""
    from operations.alerting.alerts import alert_list, alert_output

    options = call.options
    rows = alert_list(
        tenant=options.tenant,
        rule=options.rule,
        states=options.state or (),
        before=options.before,
        limit=options.limit,
    )
    return Answer(
        {"data": [alert_output(row) for row in rows]}, [line for row in rows for line in _lines(row)] or ["none"]
    )


def _lines(row: Any) -> list[str]:
    from operations.alerting.alerts import next_step

    where = f"{row.subject}: " if row.subject else ""
    more = f" ({row.occurrences} times)" if row.occurrences > 1 else ""
    state = "" if row.state == "open" else f" [{row.state}]"
    step = next_step(row)
    return [
        f"{row.pk}  {row.severity:<8} {row.rule:<20} {row.created_at:%Y-%m-%d %H:%M}{state}",
        f"    {where}{row.message}{more}",
        *([f"    what to do: {step}"] if step and row.state != "resolved" else []),
    ]


def show(call: Call) -> Mapping[str, Any]:
    """One alert."""
    from operations.alerting.alerts import alert_get, alert_output

    return alert_output(alert_get(call.options.alert))


def ack(call: Call) -> Answer:
    """Somebody is at it."""
    from operations.alerting.alerts import alert_acknowledge, alert_output, group_acknowledge

    options = call.options
    if options.group:
        row, acknowledged = group_acknowledge(options.alert, actor=call.actor, note=options.reason)
    else:
        row, acknowledged = alert_acknowledge(options.alert, actor=call.actor, note=options.reason), 1
    data = {**alert_output(row), "acknowledged": acknowledged}
    return Answer(data, [f"{acknowledged} acknowledged: neither repeated nor escalated."])


def mute(call: Call) -> Answer:
    """Say nothing of it for a while."""
    from core import clock
    from engine.errors import UsageError
    from operations.alerting.alerts import alert_mute, alert_output

    options = call.options
    if (options.until is None) == (options.hours is None):
        raise UsageError("until when?", hint="--until TIME or --hours N")
    until = options.until or clock.now() + datetime.timedelta(hours=options.hours)
    row, muted = alert_mute(options.alert, until=until, actor=call.actor, note=options.reason, group=options.group)
    return Answer({**alert_output(row), "muted": muted}, [f"{muted} muted until {until:%Y-%m-%d %H:%M} UTC."])


def unmute(call: Call) -> Answer:
    """Say it again."""
    from operations.alerting.alerts import alert_output, alert_unmute

    row = alert_unmute(call.options.alert, actor=call.actor)
    return Answer(alert_output(row), [f"Alert {row.pk} is said again from the next look on."])


def rules_(call: Call) -> Answer:
    """All rules with what is in force."""
    from core.tenancy import tenant_checked
    from operations.alerting.rule_settings import levels_all, rule_output
    from operations.alerting.rules import rules

    tenant, levels = call.options.tenant, levels_all()
    tenant_checked(tenant)
    data = [rule_output(rule, levels[rule.code], tenant) for rule in rules()]
    return Answer({"data": data}, [line for each in data for line in _rule_lines(each)])


def _rule_lines(each: Mapping[str, Any]) -> list[str]:
    on = "" if each["enabled"] else "  (off)"
    escalates = f", escalated after {each['escalate_minutes']} min" if each["escalate_minutes"] else ""
    lines = [f"{each['rule']:<22} {each['severity']}{escalates}{on}: {each['title']}"]
    lines += [
        f"    {name}={limit['value']:g} {limit['unit']}  {limit['help']}" for name, limit in each["limits"].items()
    ]
    return lines


def rule(call: Call) -> Answer:
    """Show a rule with its versions, or set it."""
    from operations.alerting.rule_settings import RuleChange, levels_all, rule_output, rule_set, rule_versions
    from operations.alerting.rules import rule_get

    options = call.options
    known = rule_get(options.rule)
    if options.what == "set":
        change = RuleChange(
            enabled=options.enabled,
            severity=options.severity,
            escalate_minutes=options.escalate,
            values=_values(options.set),
            reset=options.reset or (),
        )
        rule_set(known.code, change, actor=call.actor, tenant=options.tenant)
    data = rule_output(known, levels_all()[known.code], options.tenant)
    data["versions"] = [
        {
            "id": row.pk,
            "tenant": row.tenant or None,
            "enabled": row.enabled,
            "severity": row.severity or None,
            "escalate_minutes": row.escalate_minutes,
            "values": row.values,
            "current": row.current,
            "set_by": row.set_by,
            "set_at": row.created_at,
        }
        for row in rule_versions(known.code, tenant=options.tenant or None)
    ]
    return Answer(data, [*_rule_lines(data), f"    what to do: {known.next_step}", *_version_lines(data["versions"])])


def _version_lines(versions: list[dict[str, Any]]) -> list[str]:
    lines = []
    for each in versions:
        said = [f"{name}={value:g}" for name, value in each["values"].items()]
        said += [] if each["enabled"] is None else ["on" if each["enabled"] else "off"]
        said += [each["severity"]] if each["severity"] else []
        said += [] if each["escalate_minutes"] is None else [f"escalate {each['escalate_minutes']} min"]
        for_whom = f" for {each['tenant']}" if each["tenant"] else ""
        now = ", in force" if each["current"] else ""
        lines.append(f"    {each['set_at']:%Y-%m-%d %H:%M} by {each['set_by']}{for_whom}: {', '.join(said)}{now}")
    return lines


def _values(given: list[str] | None) -> dict[str, str]:
    from engine.errors import UsageError

    values = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set takes NAME=NUMBER, not {text[:40]!r}", hint="for example --set hours=12")
        values[key] = value
    return values


def run(call: Call) -> Answer:
    """Look, tell and send now, in this process."""
    from operations.alerting.watching import probes_run, watch_round

    probes = probes_run(now_or_never=True) if call.options.probes else []
    done = watch_round(now_or_never=True)
    looked = done.looked
    assert looked is not None
    data = {
        "opened": looked.opened,
        "resolved": looked.resolved,
        "live": looked.live,
        "broken": list(looked.broken),
        "messages": done.messages,
        "delivered": done.sent.delivered,
        "retried": done.sent.retried,
        "failed": done.sent.failed,
        "probes": probes,
    }
    sent = done.sent
    lines = [
        f"{looked.live} alerts live: {looked.opened} new, {looked.resolved} over",
        f"{done.messages} messages; {sent.delivered} delivered, {sent.retried} to be tried again, {sent.failed} failed",
    ]
    if looked.live and not done.messages and not _has_channel():
        lines.append("nobody is told: there is no channel; channel add NAME --kind email --set to=…")
    lines += [f"these rules could not look: {', '.join(looked.broken)}; the log says why"] if looked.broken else []
    return Answer(data, lines, exit=Exit.WARNED if looked.broken or done.sent.failed else Exit.OK)


def _has_channel() -> bool:
    from operations.alerting.channel_settings import channel_list

    return any(row.enabled for row in channel_list())


def test(call: Call) -> Answer:
    """A test message by every channel that is on; exit 1 when one fails."""
    from operations.alerting.channel_settings import channel_list

    rows = [row for row in channel_list() if row.enabled]
    if not rows:
        from core.errors import Conflict

        raise Conflict("there is no channel to test", hint="add one: channel add NAME --kind email --set to=…")
    return tested(call, [row.name for row in rows])


def tested(call: Call, names: list[str]) -> Answer:
    """Send a test by each of these channels now, and say how it went."""
    from operations.alerting.channel_settings import channel_test
    from operations.alerting.delivering import deliveries_send

    results = []
    for name in names:
        delivery = channel_test(name, actor=call.actor)
        deliveries_send(only=delivery.pk)
        delivery.refresh_from_db()
        last = delivery.log[-1] if delivery.log else {"status": "unknown", "said": "another process sends it"}
        results.append({"channel": name, "state": delivery.state, "status": last["status"], "said": last["said"]})
    bad = [each["channel"] for each in results if each["state"] != "delivered"]
    if bad:
        call.terminal.note(f"error: nothing got through: {', '.join(bad)}; mend that, then: channel test {bad[0]}")
    lines = [f"{each['channel']}: {each['state']} ({each['status']}) {each['said']}".rstrip() for each in results]
    return Answer({"data": results}, lines, exit=Exit.FAILED if bad else Exit.OK)


def deliveries(call: Call) -> Answer:
    """The delivery log."""
    from operations.alerting.alerts import delivery_list, delivery_output

    rows = delivery_list(channel=call.options.channel, limit=call.options.limit)
    data = [delivery_output(row) for row in rows]
    lines = []
    for each in data:
        about = f"{each['kind']} {each['rule'] or ''}".strip()
        lines.append(f"{each['id']}  {each['state']:<10} {each['channel']:<20} {about}")
        lines += [f"    {t['at']}  {t['status']} in {t['duration_ms']} ms  {t['said']}".rstrip() for t in each["log"]]
    return Answer({"data": data}, lines or ["none"])


def report(call: Call) -> Answer:
    """The report about the last days; sent when asked to."""
    from operations.alerting.notices import report_make, report_send

    options = call.options
    content = report_make(days=options.days)
    queued = report_send(actor=call.actor, days=options.days) if options.send else 0
    lines = [content["subject"], "", content["lead"], *(f"  {name}: {value}" for name, value in content["figures"])]
    lines += [f"  {row['tenant']} ({row['state']}): {row['what']}" for row in content["worst"]]
    lines += [f"  and {content['more']} more"] if content["more"] else []
    lines += [f"queued for {queued} channels"] if options.send else []
    return Answer({**content, "queued": queued}, lines)


class Command(NounCommand):
    help = "What is wrong, who is told, by which rules."
    verbs = (
        Verb(
            "list",
            list_,
            "alerts, newest first; those that live unless --state says otherwise",
            (
                _TENANT,
                argument("--rule", default="", metavar="RULE"),
                argument("--state", action="append", choices=("open", "acknowledged", "resolved")),
                argument("--before", default="", metavar="ID", help="go on after this id"),
                argument("--limit", type=count(_LIST_MAX), default=100),
            ),
        ),
        Verb("show", show, "one alert", (_ID,)),
        Verb("ack", ack, "say that somebody is at it", (_ID, _GROUP, _NOTE)),
        Verb(
            "mute",
            mute,
            "say nothing of it for a while, also when it comes back",
            (
                _ID,
                _GROUP,
                argument("--until", type=moment, metavar="TIME"),
                argument("--hours", type=count(8_760), metavar="N"),
                _NOTE,
            ),
        ),
        Verb("unmute", unmute, "say it again", (_ID,)),
        Verb("rules", rules_, "all rules with what is in force", (_TENANT,)),
        Verb(
            "rule",
            rule,
            "show a rule with its versions, or set it for all or for a tenant",
            (
                argument("what", choices=("show", "set")),
                argument("rule", metavar="RULE"),
                _TENANT,
                argument("--set", action="append", metavar="NAME=NUMBER"),
                argument("--reset", action="append", metavar="NAME", help="as the level above says again"),
                argument("--severity", choices=("info", "warning", "critical")),
                argument("--escalate", type=int, metavar="MINUTES", help="0: never"),
                argument("--enable", dest="enabled", action="store_const", const=True, default=None),
                argument("--disable", dest="enabled", action="store_const", const=False),
            ),
        ),
        Verb(
            "run",
            run,
            "look, tell and send now; a worker does it every minute",
            (argument("--probes", action="store_true", help="ask the stores first"),),
        ),
        Verb("test", test, "send a test by every channel that is on"),
        Verb(
            "deliveries",
            deliveries,
            "what was sent, each try with its outcome",
            (argument("--channel", default="", metavar="NAME"), argument("--limit", type=count(_LIST_MAX), default=50)),
        ),
        Verb(
            "report",
            report,
            "the report about the last days",
            (
                argument("--days", type=count(366), default=7),
                argument("--send", action="store_true", help="to the channels that ask for reports"),
            ),
        ),
    )
