"""What a scenario is: one round of steps, each measured for us and for a peer, with the bounds we promise."""

import importlib
import pkgutil
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from tests.bench import scenarios


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure of one step: metric `wall_seconds`, `cpu_seconds`, `peak_bytes`, `stored_bytes` …"""

    step: str
    who: str
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class Bound:
    """Our median may be at most `ratio` times that of `peer` (for a bound in absolute terms: peer "" and `most`)."""

    step: str
    metric: str
    peer: str
    ratio: float = 0.0
    most: float = 0.0


class Scenario(Protocol):
    """A class in `scenarios/` decorated with @register. Peers that are not installed are left out and named."""

    name: ClassVar[str]
    about: ClassVar[str]
    bounds: ClassVar[tuple[Bound, ...]]

    def missing(self) -> str:
        """Why this scenario cannot run here; "" when it can."""

    def prepare(self, place: Path, size: int) -> None:
        """Make the data of about `size` bytes once; the place lives until all rounds are done."""

    def round(self, place: Path, number: int) -> Iterator[Sample]:
        """Run every step once, ours and the peers' in turn, each on fresh repositories."""


OURS = "lastro"
_known: dict[str, type[Scenario]] = {}


def register(scenario: type[Scenario]) -> type[Scenario]:
    """Class decorator."""
    assert scenario.name not in _known, f"scenario {scenario.name} registered twice"
    _known[scenario.name] = scenario
    return scenario


def known() -> Mapping[str, type[Scenario]]:
    """Every scenario by name."""
    for module in pkgutil.iter_modules(scenarios.__path__):
        importlib.import_module(f"{scenarios.__name__}.{module.name}")
    return dict(sorted(_known.items()))


def medians(samples: Iterable[Sample]) -> dict[tuple[str, str, str], float]:
    """Median by (step, metric, who)."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for sample in samples:
        values.setdefault((sample.step, sample.metric, sample.who), []).append(sample.value)
    return {key: statistics.median(numbers) for key, numbers in values.items()}


def judged(bounds: Iterable[Bound], found: Mapping[tuple[str, str, str], float]) -> Iterator[tuple[Bound, float, bool]]:
    """Each bound that can be judged, with the ratio (or the value) found and whether it holds."""
    for bound in bounds:
        ours = found.get((bound.step, bound.metric, OURS))
        theirs = found.get((bound.step, bound.metric, bound.peer))
        if ours is not None and not bound.peer:
            yield bound, ours, ours <= bound.most
        elif ours is not None and theirs:
            yield bound, ours / theirs, ours / theirs <= bound.ratio
