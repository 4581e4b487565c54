"""What stands between the engine and an open store: the bandwidth limit and patience, both of the running operation."""

import logging
import time
from collections.abc import Callable

from engine.errors import StoreError
from engine.ports import Store
from operations.context import current_context
from stores._retry import DEADLINE_SECONDS, RetryStore
from stores._throttle import throttled
from tenants.models import StoreConfig

log = logging.getLogger(__name__)

LOOK_SECONDS = 15.0
"""So long a person who only looks at something waits for a store; an operation has more patience."""
CHECK_SECONDS = 1.0
"""So soon a wish to stop is heard while a store is waited for."""


def store_wrapped(row: StoreConfig, store: Store) -> Store:
    """The store under its limit and, behind a network, with its passing failures tried again until a deadline.

    Waiting ends when the operation that this thread works on is cancelled or has lost its lease.
    """
    context = current_context()
    check = context.check if context is not None else _carry_on
    limited = throttled(store, row.pk, row.bytes_per_second, check=check)
    if not getattr(store, "remote", True):
        return limited

    def tell(error: StoreError, wait_seconds: float) -> None:
        log.warning("store %s: %s; trying again in %.1f s", row.name, error.message, wait_seconds)

    deadline = DEADLINE_SECONDS if context is not None else LOOK_SECONDS
    return RetryStore(limited, on_retry=tell, check=check, sleep=_checked_sleep(check), deadline_seconds=deadline)


def _carry_on() -> None:
    """No operation runs that could be cancelled."""


def _checked_sleep(check: Callable[[], None]) -> Callable[[float], None]:
    def sleep(seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            check()
            time.sleep(min(left, CHECK_SECONDS))

    return sleep
