"""All other services, through Apprise (https://github.com/caronc/apprise), in a process of its own that is guarded.

Its more than a hundred plug-ins open connections of their own. So they run in a child that has none of our settings, that
may connect to judged addresses only (whatever a name leads to at that moment), that can start no program and write no
file, and that is ended at its deadline; see others_child.py.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from django.conf import settings

from engine.adapters import setting
from engine.errors import UsageError
from operations.alerting.channels import ChannelError, Sent, Stamp
from operations.alerting.wording import Words

CHECK_SECONDS = 30
URL_CHARS_MAX = 2_000
BODY_CHARS_MAX = 8_000
_CHILD = Path(__file__).with_name("others_child.py")
_HERE_ONLY = frozenset({"dbus", "qt", "glib", "kde", "gnome", "macosx", "windows", "syslog", "blink1", "file"})
_TYPES = {"critical": "failure", "warning": "warning", "info": "info"}
_UNVERIFIED = re.compile(r"[?&]verify=(no|n|0|false|off|f|-)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class OthersConfig:
    """An Apprise address: tokens stand in it, so all of it is a secret."""

    url: str = setting(
        label="Apprise URL",
        help="For example discord://ID/TOKEN or tgram://TOKEN/CHAT; @FILE or env:NAME.",
        secret=True,
    )

    def validate(self) -> None:
        """Raises UsageError; what Apprise makes of it is asked in its own process."""
        scheme, colon, _ = self.url.partition("://")
        if not colon or len(self.url) > URL_CHARS_MAX or not self.url.isprintable():
            raise UsageError("that is no Apprise URL", hint="SCHEME://…, as its documentation lists them")
        if scheme.lower() in _HERE_ONLY:
            raise UsageError(f"{scheme[:20]}:// leads to this host only", hint="name a service that people see")
        if _UNVERIFIED.search(self.url):
            raise UsageError("verify=no leaves certificates unchecked", hint="take it out of the address")
        said = _child({"mode": "check", "url": self.url}, seconds=CHECK_SECONDS)
        if not said.get("ok"):
            raise UsageError(
                "Apprise does not understand this address", hint="compare it with the service's page there"
            )


def _child(asked: dict[str, Any], *, seconds: float) -> dict[str, Any]:
    asked["allow"] = [str(network) for network in settings.LASTRO_OUTGOING_ALLOW]
    try:
        done = subprocess.run(  # noqa: PLW1510 - its answer says how it went
            [sys.executable, "-I", str(_CHILD)],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=seconds,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"},
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        raise ChannelError(f"it did not answer within {seconds:.0f} seconds", hint="is the service up?") from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise ChannelError(f"Apprise ended with {done.returncode} and said nothing") from None
    return answer


class OthersKind:
    """See the module."""

    kind: ClassVar[str] = "apprise"
    label: ClassVar[str] = "Others, through Apprise"
    Config: ClassVar[type] = OthersConfig

    def send(self, config: OthersConfig, words: Words, stamp: Stamp, *, seconds: float) -> Sent:
        """Notify once."""
        kind = "success" if words.kind == "resolved" else _TYPES.get(words.severity, "info")
        asked = {
            "mode": "send",
            "url": config.url,
            "title": words.subject,
            "body": words.text[:BODY_CHARS_MAX],
            "type": kind,
        }
        said = _child(asked, seconds=seconds)
        if said.get("refused"):
            raise ChannelError(
                f"{said['refused']}: nothing was sent there",
                hint="if it is yours and meant, list it in LASTRO_OUTGOING_ALLOW (addresses or networks)",
                retryable=False,
            )
        if not said.get("ok"):
            raise ChannelError(f"the service did not take it: {said.get('said') or 'no reason was given'}"[:400])
        return Sent("sent")


KIND = OthersKind()
