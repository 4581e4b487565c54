"""Whether a figure is out of the ordinary: the median of those before it, and their deviation from that.

Median and median absolute deviation do not move when one of the figures is wild, so that one bad backup neither hides
the next nor makes it usual. 1.4826 times the latter is the standard deviation of what is normally distributed
(Rousseeuw and Croux, Alternatives to the Median Absolute Deviation, 1993).
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SAMPLES_MIN = 7
"""With fewer before it nothing is called unusual."""
_NORMAL = 1.4826


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far is too far: so many deviations, and at least so many percent and so many units down or up."""

    deviations: float
    fall_percent: float
    rise_percent: float
    least: float


@dataclass(frozen=True, slots=True)
class Unusual:
    """A figure that is, with what was usual."""

    value: float
    usual: float
    least: float
    most: float
    count: int


def unusual(value: float, before: Sequence[float], tolerance: Tolerance) -> Unusual | None:
    """Hold a figure against those before it; None when it is in the ordinary, or too few are known."""
    if len(before) < SAMPLES_MIN:
        return None
    middle = statistics.median(before)
    spread = _NORMAL * statistics.median(abs(each - middle) for each in before)
    percent = tolerance.fall_percent if value < middle else tolerance.rise_percent
    margin = max(tolerance.deviations * spread, percent / 100 * abs(middle), tolerance.least)
    if abs(value - middle) < margin or value == middle:
        return None
    return Unusual(value, middle, min(before), max(before), len(before))
