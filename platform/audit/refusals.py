"""Attempts that were refused: on record like deeds, but so that nobody can fill the log with them."""

import argparse
import contextlib
import logging
import threading
import time
from typing import Any

from django.db import DatabaseError, connection

from audit.services import record
from engine.errors import LastroError

log = logging.getLogger(__name__)

PER_MINUTE = 60
"""Of one process; more are counted, and the next entry says how many."""
SLUG_OPTIONS = ("tenant", "slug")


class _Allowance:
    """So many a minute, evenly; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left, self._at, self._passed_over = float(PER_MINUTE), time.monotonic(), 0

    def take(self) -> int | None:
        """How many were passed over since the last one; None when this one is, too."""
        with self._lock:
            now = time.monotonic()
            self._left = min(PER_MINUTE, self._left + (now - self._at) * PER_MINUTE / 60)
            self._at = now
            if self._left < 1:
                self._passed_over += 1
                return None
            self._left -= 1
            passed_over, self._passed_over = self._passed_over, 0
            return passed_over


_allowance = _Allowance()


def command_refused(command: str, options: argparse.Namespace, error: LastroError) -> None:
    """Record that a command which would have changed something was refused or has failed.

    Its code, not its words: these may repeat what somebody typed into the wrong place. A catalogue that cannot be
    written takes no entry; the command says what is wrong then.
    """
    from core.cli import actor_name

    named = next((value for each in SLUG_OPTIONS if isinstance(value := getattr(options, each, None), str)), "")
    _record(
        "command.refused", f"{command}: {error.code}", actor=actor_name(), tenant=_known(named),
        data={"command": command, "code": error.code},
    )  # fmt: skip


def request_refused(method: str, route: str, status: int, *, actor: str) -> None:
    """Record that a request which would have changed something was refused; `route` is the pattern, not the path."""
    _record(
        "request.refused", f"{method} {route}: {status}", actor=actor, tenant="",
        data={"method": method, "route": route, "status": status},
    )  # fmt: skip


def token_refused(prefix: str, method: str, route: str, why: str, *, tenant: str = "", **data: Any) -> None:
    """Record that a token asked for what it may not have; `why` is a code or our own words, `tenant` whose it is."""
    _record(
        "api.refused", f"{method} {route}: {why}", actor=f"token:{prefix}", tenant=_known(tenant),
        data={"method": method, "route": route, **data},
    )  # fmt: skip


def _record(type_: str, message: str, *, actor: str, tenant: str, data: dict[str, Any]) -> None:
    passed_over = _allowance.take()
    if passed_over is None:
        return
    if passed_over:
        data["unrecorded"] = passed_over
    try:
        record(type_, message=message, actor=actor, tenant=tenant, level="warning", data=data)
    except (DatabaseError, LastroError) as refused:
        log.warning("a refusal could not be recorded: %s", type(refused).__name__)
        with contextlib.suppress(DatabaseError):
            connection.close_if_unusable_or_obsolete()


def _known(slug: str) -> str:
    """The slug if there is, or was, such a tenant: what is typed in its place need not be one."""
    from core.tenancy import tenancy_get

    tenancy = tenancy_get()
    with contextlib.suppress(DatabaseError):
        return slug if slug and tenancy is not None and slug in tenancy.known([slug[:63]]) else ""
    return ""
