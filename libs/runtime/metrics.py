"""Counters, gauges and histograms for Prometheus, with their labels bound once.

A `.labels()` look-up costs more than the increment itself (0.7 us against 0.28 us), so a service
binds what it needs at the start and increments the bound ones.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

NAMESPACE: Final = "tideserve"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_BUCKETS_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
NO_LABELS: Final[Mapping[str, str]] = {}


class Metrics:
    """The metrics of one process, each named `tideserve_<service>_<name>`.

    Asking twice for the same name gives the same family; its label names must then agree.
    """

    def __init__(self, *, service: str) -> None:
        self._service = service
        self._registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}

    def counter(self, name: str, help_text: str, labels: Mapping[str, str] = NO_LABELS) -> Counter:
        """Return a counter bound to the labels; its name gets `_total`."""
        family = self._counters.get(name)
        if family is None:
            family = self._counters[name] = Counter(
                self._full(name), help_text, tuple(labels), registry=self._registry
            )
        return family.labels(**labels) if labels else family

    def gauge(self, name: str, help_text: str, labels: Mapping[str, str] = NO_LABELS) -> Gauge:
        """Return a gauge bound to the labels."""
        family = self._gauges.get(name)
        if family is None:
            family = self._gauges[name] = Gauge(
                self._full(name), help_text, tuple(labels), registry=self._registry
            )
        return family.labels(**labels) if labels else family

    def histogram(
        self,
        name: str,
        help_text: str,
        labels: Mapping[str, str] = NO_LABELS,
        *,
        buckets: Sequence[float] = LATENCY_BUCKETS_S,
    ) -> Histogram:
        """Return a histogram bound to the labels; the default buckets are seconds."""
        family = self._histograms.get(name)
        if family is None:
            family = self._histograms[name] = Histogram(
                self._full(name),
                help_text,
                tuple(labels),
                registry=self._registry,
                buckets=tuple(buckets),
            )
        return family.labels(**labels) if labels else family

    def exposition(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self._registry)

    def _full(self, name: str) -> str:
        return f"{NAMESPACE}_{self._service}_{name}"
