"""What a processor tells Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

# Seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class ManyAtOnceHistogram:
    """A histogram that takes whole arrays: the client library's takes one value a call, and time a value."""

    def __init__(self, name: str, text: str, label: str, registry: CollectorRegistry) -> None:
        self._name, self._text, self._label = name, text, label
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._sums: dict[str, float] = {}
        registry.register(self)

    def observe(self, label: str, seconds: NDArray[np.float64]) -> None:
        """Count values under a label."""
        places = np.searchsorted(BUCKETS, seconds, side="left")
        counts = np.bincount(places, minlength=len(BUCKETS) + 1)
        self._counts[label] = self._counts.get(label, np.zeros(len(BUCKETS) + 1, np.int64)) + counts
        self._sums[label] = self._sums.get(label, 0.0) + float(seconds.sum())

    def describe(self) -> list[Metric]:
        """Return the metric without values."""
        return [HistogramMetricFamily(self._name, self._text, labels=[self._label])]

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label])
        bounds = [*(str(bound) for bound in BUCKETS), "+Inf"]
        for label, counts in list(self._counts.items()):
            cumulative = [float(count) for count in np.cumsum(counts)]
            family.add_metric([label], list(zip(bounds, cumulative, strict=True)), self._sums[label])
        yield family


class LagGauge:
    """How many messages of each partition that is owned are in the log and not processed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.values: Mapping[tuple[str, int], int] = {}
        registry.register(self)

    def describe(self) -> list[Metric]:
        """Return the metric without values."""
        return [self._family()]

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        family = self._family()
        for (topic, partition), lag in self.values.items():
            family.add_metric([topic, str(partition)], lag)
        yield family

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(
            "stream_lag", "Messages in the log that are not processed.", labels=["topic", "partition"]
        )


class CounterBy:
    """A counter by labels, of this processor alone.

    The client library's own are shared by a process, and by several where PROMETHEUS_MULTIPROC_DIR is set, as
    Feast does on import.
    """

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name, self._text, self._labels = name, text, labels
        self.values: dict[tuple[str, ...], int] = {}
        registry.register(self)

    def add(self, *labels: str, count: int = 1) -> None:
        """Count under these labels."""
        self.values[labels] = self.values.get(labels, 0) + count

    def describe(self) -> list[Metric]:
        """Return the metric without values."""
        return [CounterMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, count in list(self.values.items()):
            family.add_metric(labels, count)
        yield family


class StreamMetrics:
    """The metrics of one processor, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.freshness = ManyAtOnceHistogram(
            "stream_freshness_seconds", "From an event's arrival in the log to Redis.", "view", registry
        )
        self.processing = ManyAtOnceHistogram(
            "stream_processing_seconds", "From the poll that returned an event to Redis.", "view", registry
        )
        self.events = CounterBy("stream_events", "Events counted.", ["view"], registry)
        self.duplicates = CounterBy("stream_duplicates", "Events seen before.", ["view"], registry)
        self.late = CounterBy(
            "stream_late", "Events of a day before their entity's newest: offline only.", ["view"], registry
        )
        self.rejected = CounterBy(
            "stream_rejected", "Messages sent to the dead letters.", ["topic", "reason"], registry
        )
        self.rebuilds = CounterBy(
            "stream_rebuilds", "Partitions whose state was rebuilt from the log.", ["view"], registry
        )
        self.outages = CounterBy(
            "stream_outages", "Sessions ended by an outage, and begun again.", ["error"], registry
        )
        self.lag = LagGauge(registry)

    def serve(self, port: int, host: str = "127.0.0.1") -> int:
        """Answer at a port (0: any free one) of loopback or another address, and return it."""
        server, _ = start_http_server(port, addr=host, registry=self.registry)
        return int(server.server_port)
