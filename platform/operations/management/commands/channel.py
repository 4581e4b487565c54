"""`channel add|set|list|show|test|rotate|enable|disable|remove`."""

import argparse
from collections.abc import Mapping
from typing import Any

from core.cli import Answer, Call, NounCommand, Verb, argument

_NAME = argument("name", metavar="NAME")


def _settings(given: list[str] | None) -> dict[str, str]:
    from engine.errors import UsageError

    values: dict[str, str] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set takes KEY=VALUE, not {key[:40]!r}", hint="for example --set to=ops@example.org")
        values[key] = value
    return values


def _yes_or_no(text: str) -> bool:
    if text in ("yes", "no"):
        return text == "yes"
    raise argparse.ArgumentTypeError(f"{text[:20]!r} is not yes or no")


def _wish(call: Call) -> Any:
    from operations.alerting.channel_settings import ChannelWish

    options = call.options
    return ChannelWish(
        tenant=options.tenant,
        severity=options.severity,
        step=options.step,
        notices=options.notices,
        reports=options.reports,
        per_minute=options.per_minute,
    )


def add(call: Call) -> Answer:
    """Save a channel."""
    from operations.alerting.channel_settings import channel_add, channel_output, channel_secret

    options = call.options
    row = channel_add(
        options.name, kind=options.kind, values=_settings(options.set), actor=call.actor, wish=_wish(call)
    )
    secret = channel_secret(row)
    data = {**channel_output(row), **({"secret": secret} if secret else {})}
    lines = [f"Channel {row.name} hears of {row.severity} alerts and worse. Try it: channel test {row.name}"]
    lines += [f"Receivers check signatures by this secret, shown once: {secret}"] if secret else []
    return Answer(data, lines)


def set_(call: Call) -> Answer:
    """Change what is named."""
    from operations.alerting.channel_settings import channel_output, channel_update

    options = call.options
    row = channel_update(options.name, actor=call.actor, values=_settings(options.set), wish=_wish(call))
    return Answer(channel_output(row), [f"Channel {row.name} is changed. Try it: channel test {row.name}"])


def list_(call: Call) -> Answer:
    """All channels."""
    from operations.alerting.channel_settings import channel_list, channel_output, channels_inherit

    channels_inherit()
    rows = channel_list()
    return Answer({"data": [channel_output(row) for row in rows]}, [_line(row) for row in rows] or ["none"])


def _line(row: Any) -> str:
    what = [f"{row.severity} and worse", f"step {row.step}"]
    what += [f"tenant {row.tenant}"] if row.tenant else []
    what += ["notices"] if row.notices else []
    what += ["reports"] if row.reports else []
    what += [] if row.enabled else ["off"]
    line = f"{row.name:<20} {row.kind:<8} {', '.join(what)}"
    if row.failing_since:
        line += f"\n    failing since {row.failing_since:%Y-%m-%d %H:%M} UTC: {row.error}"
    return line


def show(call: Call) -> Mapping[str, Any]:
    """Show one; secrets are only said to be set."""
    from operations.alerting.channel_settings import channel_get, channel_output

    return channel_output(channel_get(call.options.name))


def test(call: Call) -> Answer:
    """Send a test now; exit 1 when it fails."""
    from operations.management.commands.alert import tested

    return tested(call, [call.options.name])


def rotate(call: Call) -> Answer:
    """Give a webhook a new secret; the one before signs, too."""
    from operations.alerting.channel_settings import channel_output, channel_rotate

    row, secret = channel_rotate(call.options.name, actor=call.actor)
    lines = [
        f"The new secret of {row.name}, shown once: {secret}",
        f"Both sign from now on. When every receiver has it: channel set {row.name} --set former_secret=",
    ]
    return Answer({**channel_output(row), "secret": secret}, lines)


def enable(call: Call) -> Answer:
    """Use it again."""
    return _switch(call, enabled=True)


def disable(call: Call) -> Answer:
    """Leave it out."""
    return _switch(call, enabled=False)


def _switch(call: Call, *, enabled: bool) -> Answer:
    from operations.alerting.channel_settings import channel_enable, channel_output

    row = channel_enable(call.options.name, enabled=enabled, actor=call.actor)
    said = "hears again" if enabled else "hears nothing until it is enabled again; what was queued for it is dropped"
    return Answer(channel_output(row), [f"Channel {row.name} {said}."])


def remove(call: Call) -> Answer:
    """Remove one."""
    from operations.alerting.channel_settings import channel_remove

    channel_remove(call.options.name, actor=call.actor)
    return Answer({"name": call.options.name, "removed": True}, [f"Channel {call.options.name} is gone."])


_COMMON = (
    argument("--set", action="append", metavar="KEY=VALUE", help="a setting; secrets may be @FILE or env:NAME"),
    argument("--severity", choices=("info", "warning", "critical"), help="the least that it hears of (warning)"),
    argument("--step", type=int, metavar="N", help="1 hears at once, 2 when nobody has acknowledged, …"),
    argument("--tenant", metavar="SLUG", help="hears of this tenant only; '' of all"),
    argument("--notices", type=_yes_or_no, metavar="yes|no", help="hears of what went well, too"),
    argument("--reports", type=_yes_or_no, metavar="yes|no", help="gets the weekly report"),
    argument("--per-minute", type=int, metavar="N", help="messages a minute at the most (20)"),
)


class Command(NounCommand):
    help = "Ways to tell people: e-mail, Slack, signed webhooks, and others."
    verbs = (
        Verb(
            "add",
            add,
            "add a channel",
            (
                _NAME,
                argument(
                    "--kind",
                    required=True,
                    help="email (to, sender, host, port, security, user, password), slack (url), "
                    "webhook (url, secret), apprise (url)",
                ),
                *_COMMON,
            ),
        ),
        Verb("set", set_, "change settings; the others stay, and KEY= takes one back", (_NAME, *_COMMON)),
        Verb("list", list_, "list channels"),
        Verb("show", show, "show a channel; secrets are only said to be set", (_NAME,)),
        Verb("test", test, "send a test now", (_NAME,)),
        Verb("rotate", rotate, "give a webhook a new secret beside the old one", (_NAME,)),
        Verb("enable", enable, "use a channel again", (_NAME,)),
        Verb("disable", disable, "leave a channel out until it is enabled again", (_NAME,)),
        Verb("remove", remove, "remove a channel", (_NAME,)),
    )
