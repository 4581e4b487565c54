"""Who goes first when more waits than workers are free: a lower number is taken before any higher one.

Within one number it is turn and turn about between tenants (operations.services), oldest first.
"""

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

RESCUE: Final = 0
"""Somebody waits for their data: restores, their plans, what undoes them."""
ASKED: Final = 10
"""What a person asked for."""
SCHEDULED: Final = 20
"""What the clock asks for."""
UPKEEP: Final = 30
"""What can wait: copies, samples, pruning."""
MOST: Final = 99

_BY_KIND = {
    **dict.fromkeys(("restore", "plan", "key_shred"), RESCUE),
    **dict.fromkeys(("copies", "copy", "copy_verify", "prune", "retention", "retention_look", "reconcile"), UPKEEP),
}


_asked_with: contextvars.ContextVar[int | None] = contextvars.ContextVar("priority", default=None)


def priority_of(kind: str) -> int:
    """The priority of an operation of this kind, asked for here and now."""
    asked_with = _asked_with.get()
    return _BY_KIND.get(kind, ASKED) if asked_with is None else asked_with


@contextmanager
def priority_set(priority: int) -> Iterator[None]:
    """Have whatever is asked for within the block wait in this place, whatever its kind."""
    token = _asked_with.set(priority)
    try:
        yield
    finally:
        _asked_with.reset(token)
