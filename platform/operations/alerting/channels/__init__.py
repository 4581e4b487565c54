"""Kinds of channels: one file each, with a frozen `Config` and a `send`; imported when they are first asked for."""

import datetime
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Protocol

from core.errors import CatalogueError
from engine.errors import UsageError
from operations.alerting.wording import Words

SEND_SECONDS = 30
"""A channel that has not answered by then has failed this try."""

_MODULES = {"email": "mail", "slack": "slack", "webhook": "webhook", "apprise": "others"}


class ChannelError(CatalogueError):
    """A try that failed; with `retryable` another one follows, after `retry_after` seconds at the earliest."""

    code = "channel.failed"

    def __init__(self, message: str, *, hint: str = "", retryable: bool = True, retry_after: float = 0) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one message from another: retries bear the same id."""

    id: str
    at: datetime.datetime
    host: str


@dataclass(frozen=True, slots=True)
class Sent:
    """That it was taken: a status, and what there is to say about it."""

    status: str
    said: str = ""


class ChannelKind(Protocol):
    """One kind. `send` is called in a thread without a database."""

    kind: ClassVar[str]
    label: ClassVar[str]
    Config: ClassVar[type]

    def send(self, config: Any, words: Words, stamp: Stamp, *, seconds: float) -> Sent:
        """Send once. Raises ChannelError, OutgoingError, UsageError."""
        ...


def channel_kinds() -> list[str]:
    """All kinds."""
    return sorted(_MODULES)


def channel_kind(kind: str) -> ChannelKind:
    """Raise UsageError naming the known kinds when this one is unknown."""
    if kind not in _MODULES:
        raise UsageError(f"unknown kind of channel {kind[:40]!r}", hint=f"one of: {', '.join(channel_kinds())}")
    found: ChannelKind = import_module(f"{__name__}.{_MODULES[kind]}").KIND
    return found
