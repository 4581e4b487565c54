"""A Slack incoming webhook (or what speaks like one). Texts are plain: nothing in an alert becomes a link or a mention.

Source: https://api.slack.com/messaging/webhooks and https://api.slack.com/reference/surfaces/formatting (escaping).
"""

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from engine.adapters import setting
from operations.alerting.channels import Sent, Stamp
from operations.alerting.channels.calls import address_checked, posted
from operations.alerting.wording import Words

BLOCK_CHARS_MAX = 2_900
_SIGNS = {"critical": "\U0001f534", "warning": "\U0001f7e0", "info": "\u2139\ufe0f"}


@dataclass(frozen=True, slots=True)
class SlackConfig:
    """The address is the secret: whoever has it can write into the room."""

    url: str = setting(label="Webhook URL", help="https://hooks.slack.com/services/…; @FILE or env:NAME.", secret=True)
    plain_http: bool = setting(label="Without TLS", help="Allow an http:// address.", default=False)

    def validate(self) -> None:
        """Raises UsageError."""
        address_checked(self.url, plain_http=self.plain_http)


def escaped(text: str) -> str:
    """Slack's three special characters: without them no mention (`<!channel>`) and no link can be made."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def payload(words: Words) -> dict[str, Any]:
    """The JSON that Slack takes: plain-text blocks, and the subject where only a text is shown."""
    sign = "\u2705" if words.kind == "resolved" else _SIGNS.get(words.severity, "")
    text = f"{sign} {words.text}".strip()[:BLOCK_CHARS_MAX]
    block = {"type": "section", "text": {"type": "plain_text", "text": text, "emoji": False}}
    return {"text": escaped(f"{sign} {words.subject}".strip()), "mrkdwn": False, "blocks": [block]}


class SlackKind:
    """See the module."""

    kind: ClassVar[str] = "slack"
    label: ClassVar[str] = "Slack (incoming webhook)"
    Config: ClassVar[type] = SlackConfig

    def send(self, config: SlackConfig, words: Words, stamp: Stamp, *, seconds: float) -> Sent:
        """Post once."""
        answer = posted(config.url, json.dumps(payload(words)).encode(), {}, seconds=seconds)
        return Sent(str(answer.status))


KIND = SlackKind()
