"""Where the work of this thread comes from: address, token, command, request, operation; for the audit log and the log."""

import contextvars
import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

TEXT_CHARS_MAX = 200
FIELDS = ("address", "token", "behalf", "command", "request", "operation")
"""What `acting` takes: the address of a client, the prefix of a token, the account behind it or behind sudo, noun and
verb of a command, the ids of a request and of an operation."""

_said: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("origin", default=MappingProxyType({}))


@contextmanager
def acting(**said: str) -> Iterator[None]:
    """Say where the work in the block comes from, besides what is known already; empty texts say nothing."""
    assert set(said) <= set(FIELDS), f"unknown: {sorted(set(said) - set(FIELDS))}"
    known = {name: text[:TEXT_CHARS_MAX] for name, text in said.items() if text}
    token = _said.set({**_said.get(), **known})
    try:
        yield
    finally:
        _said.reset(token)


def origin() -> dict[str, str | int]:
    """What is known of it now; host and process always."""
    return {"host": _host(), "pid": os.getpid(), **_said.get()}


def origin_field(name: str) -> str:
    """One field, empty when it is not known."""
    return _said.get().get(name, "")


@functools.cache
def _host() -> str:
    return os.uname().nodename[:TEXT_CHARS_MAX]
