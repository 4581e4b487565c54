"""The kinds of work that schedules may ask for, registered by the apps that know them.

An app registers them in its module `works`, imported when the list is first asked for. What the module imports should be
light: the planner runs beside the workers and asks once a minute.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from django.utils.module_loading import autodiscover_modules

from engine.errors import LastroError, UsageError
from operations import priorities
from operations.models import Schedule

Selection = Mapping[str, Iterable[str]]


class Withdrawn(LastroError):
    """There is nobody any more to do the work for: the expected run is taken back, it did not fail."""

    code = "schedule.withdrawn"


@dataclass(frozen=True, slots=True)
class Target:
    """One tenant of a schedule, with the store that its work loads."""

    tenant: str
    lane: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """What a run asks of its kind of work."""

    tenant: str
    params: Mapping[str, Any]
    selection: Mapping[str, list[str]]
    full: bool
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Begun:
    """How a run began: the operation that does it, or none when there was nothing to do, which `note` explains."""

    operation_id: str = ""
    note: str = ""


def _params_none(params: Mapping[str, Any]) -> dict[str, Any]:
    if params:
        raise UsageError(f"it takes no parameter {min(params)!r}")
    return {}


def _whole(schedule: Schedule) -> list[Target]:
    return [Target("")]


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of work.

    `begin` is called in a transaction, touches the catalogue only, and queues what is to be done. It raises Busy when it
    should be asked again soon, Withdrawn when the tenant is no longer one to do it for; any other LastroError fails the run.
    `targets` gives the tenants of a schedule in a constant number of queries.
    """

    name: str
    summary: str
    begin: Callable[[Order], Begun]
    targets: Callable[[Schedule], list[Target]] = _whole
    params: Callable[[Mapping[str, Any]], dict[str, Any]] = _params_none
    selects: frozenset[str] = field(default_factory=frozenset)
    """By which lists a schedule may choose for whom: of `tenants`, `classes`, `categories`, `sources`; none: it is done for
    the whole installation at once."""
    fulls: bool = False
    """A schedule may name days on which it is full."""
    exclusive: bool = False
    """A tenant that a schedule of this work names is left out of those for all tenants."""
    priority: int = priorities.SCHEDULED

    @property
    def per_tenant(self) -> bool:
        return "tenants" in self.selects


_works: dict[str, Work] = {}
_defaults: dict[str, Callable[[], Any]] = {}


def work_register(work: Work) -> None:
    """Let schedules ask for this kind of work; called by an app's module `works`."""
    assert work.name not in _works, f"work {work.name} registered twice"
    _works[work.name] = work


@functools.cache
def _load() -> None:
    autodiscover_modules("works")


def default_register(name: str, wish: Callable[[], Any]) -> None:
    """Make this schedule (`wish` gives its ScheduleWish) when a worker first starts; once, so that a removed one stays away."""
    assert name not in _defaults, f"default schedule {name} registered twice"
    _defaults[name] = wish


def defaults() -> Mapping[str, Callable[[], Any]]:
    """The schedules of a new installation, by name."""
    works()
    return dict(_defaults)


def work_get(name: str) -> Work:
    """Find a kind of work. Raises UsageError naming those there are."""
    known = works()
    if name not in known:
        raise UsageError(f"there is no work {name[:40]!r} to schedule", hint=f"one of: {', '.join(sorted(known))}")
    return known[name]


def works() -> Mapping[str, Work]:
    """Every kind of work by name."""
    _load()
    return MappingProxyType(_works)
