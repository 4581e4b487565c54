"""What Prometheus reads: families of figures that apps give, as text.

Everything comes from the catalogue, so every process of every host says the same, and a restart loses no count. Each app
registers its families in a module `metrics`; each of them asks a constant number of questions, whatever the size.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from django.conf import settings
from django.utils.module_loading import autodiscover_modules
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS_TYPE

__all__ = [
    "CONTENT_TYPE_LATEST",
    "OPENMETRICS_TYPE",
    "Exposition",
    "exposition",
    "families",
    "gauge",
    "metrics_register",
]

Families = Callable[[], Iterable[Metric]]
_families: dict[str, Families] = {}


def metrics_register(name: str) -> Callable[[Families], Families]:
    """Have the decorated function give families; called by an app's module `metrics`."""

    def decorate(give: Families) -> Families:
        _families[name] = give
        return give

    return decorate


def gauge(name: str, about: str, *labels: str) -> GaugeMetricFamily:
    """An empty family; `add_metric` takes the values of the labels, then the figure."""
    return GaugeMetricFamily(name, about, labels=labels)


def families() -> Iterator[Metric]:
    """All of them, counted now, and how long that took."""
    autodiscover_modules("metrics")
    took = gauge("lastro_metrics_seconds", "Time that counting these figures took, by part", "part")
    for part, give in sorted(_families.items()):
        begun = time.monotonic()
        yield from give()
        took.add_metric([part], round(time.monotonic() - begun, 6))
    yield took


class _All:
    """A collector as prometheus_client's writer expects one."""

    def collect(self) -> Iterator[Metric]:
        return families()


class Exposition:
    """The text, counted anew at most every LASTRO_METRICS_SECONDS; others who ask meanwhile wait for it or get the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._text, self._at = b"", -1e9

    def text(self) -> bytes:
        """UTF-8 in Prometheus' text format."""
        from prometheus_client.exposition import generate_latest

        with self._lock:
            if time.monotonic() - self._at >= settings.LASTRO_METRICS_SECONDS:
                self._text = generate_latest(_All())
                self._at = time.monotonic()
            return self._text

    def forget(self) -> None:
        """Count anew at the next look."""
        self._at = -1e9


exposition = Exposition()
