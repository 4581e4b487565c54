"""A signed webhook as Standard Webhooks describes it (https://www.standardwebhooks.com): receivers can check and deduplicate.

`webhook-signature` is `v1,` and the base64 HMAC-SHA256 of `<webhook-id>.<webhook-timestamp>.<body>`, once for each live
secret. While one secret replaces another both sign, so that receivers change theirs when they like.
"""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from typing import Any, ClassVar

from core import clock
from engine.adapters import setting
from engine.errors import UsageError
from operations.alerting.channels import Sent, Stamp
from operations.alerting.channels.calls import address_checked, posted
from operations.alerting.wording import Words

PREFIX = "whsec_"
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 24, 64


def secret_made() -> str:
    """A new secret, as the standard writes them."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def secret_read(text: str) -> bytes:
    """Raise UsageError for what is no secret of 24 to 64 bytes."""
    try:
        raw = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not SECRET_BYTES_MIN <= len(raw) <= SECRET_BYTES_MAX:
        raise UsageError(
            f"a secret is {PREFIX} and the base64 of {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes",
            hint="leave it out and one is made",
        )
    return raw


@dataclass(frozen=True, slots=True)
class WebhookConfig:
    """Where to, and what signs; `former_secret` signs, too, while receivers change over."""

    url: str = setting(label="URL", help="Called with POST; redirects are not followed.")
    secret: str = setting(label="Secret", help="whsec_… ; made when it is left out.", default="", secret=True)
    former_secret: str = setting(label="Former secret", help="Signs, too; see channel rotate.", default="", secret=True)
    plain_http: bool = setting(label="Without TLS", help="Allow an http:// address.", default=False)

    def validate(self) -> None:
        """Raises UsageError."""
        address_checked(self.url, plain_http=self.plain_http)
        for each in self.live:
            secret_read(each)

    @property
    def live(self) -> list[str]:
        return [each for each in (self.secret, self.former_secret) if each]


def signature(live: list[str], message_id: str, timestamp: str, body: bytes) -> str:
    """The value of `webhook-signature`."""
    signed = b".".join([message_id.encode(), timestamp.encode(), body])
    macs = [hmac.new(secret_read(each), signed, hashlib.sha256).digest() for each in live]
    return " ".join(f"v1,{base64.b64encode(mac).decode()}" for mac in macs)


def body_of(words: Words, stamp: Stamp) -> bytes:
    """`{type, timestamp, data}`; the same bytes as long as the alerts are the same."""
    kind = {"report": "report", "notice": "notice", "test": "test"}.get(words.kind, "alert")
    document: dict[str, Any] = {
        "type": kind if kind != "alert" else f"alert.{words.kind}",
        "timestamp": stamp.at.isoformat().replace("+00:00", "Z"),
        "data": {"subject": words.subject, "severity": words.severity, **words.data},
    }
    return json.dumps(document, sort_keys=True).encode()


class WebhookKind:
    """See the module."""

    kind: ClassVar[str] = "webhook"
    label: ClassVar[str] = "Signed webhook (Standard Webhooks)"
    Config: ClassVar[type] = WebhookConfig

    def send(self, config: WebhookConfig, words: Words, stamp: Stamp, *, seconds: float) -> Sent:
        """Post once."""
        body, timestamp = body_of(words, stamp), str(int(clock.now().timestamp()))
        headers = {
            "webhook-id": stamp.id,
            "webhook-timestamp": timestamp,
            "webhook-signature": signature(config.live, stamp.id, timestamp, body),
        }
        answer = posted(config.url, body, headers, seconds=seconds)
        return Sent(str(answer.status))


KIND = WebhookKind()
