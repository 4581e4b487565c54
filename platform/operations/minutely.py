"""Small work that a worker does once a minute beside its operations: an app registers it in its module `minutely`."""

import logging
from collections.abc import Callable

from django.db import DatabaseError
from django.utils.module_loading import autodiscover_modules

from engine.errors import LastroError

log = logging.getLogger(__name__)

_works: dict[str, Callable[[], object]] = {}


def minutely(name: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Have the decorated function called once a minute; it is short, may be called twice at a time, and may be killed."""

    def decorate(work: Callable[[], object]) -> Callable[[], object]:
        _works[name] = work
        return work

    return decorate


def minute() -> dict[str, str]:
    """Do all of it; what fails is logged and does not keep the rest from being done."""
    autodiscover_modules("minutely")
    failed = {}
    for name, work in _works.items():
        try:
            work()
        except (LastroError, DatabaseError, OSError) as error:
            log.exception("%s failed", name)
            failed[name] = type(error).__name__
    return failed


@minutely("the audit log's")
def _audit() -> None:
    from audit.tasks import minute as audit_minute

    audit_minute()
