"""Counters and histograms for the event loop's thread alone: counting is a look-up in a dict, without a lock.

What a decision counts, a dozen things, cost a twentieth of it with locks. What other threads count stays with
the client library's own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString


class LoopCounter:
    """A counter with labels; `name` ends in `_total`."""

    def __init__(self, name: str, text: str, *labels: str, registry: CollectorRegistry) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._counts: dict[tuple[str, ...], int] = {}
        registry.register(self)

    def count(self, *values: str) -> None:
        """Count one with these values of the labels."""
        self._counts[values] = self._counts.get(values, 0) + 1

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield what has been counted."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, count in self._counts.items():
            family.add_metric(values, count)
        yield family


class LoopHistogram:
    """A histogram with labels; `buckets` are the upper bounds, the last of all left out."""

    def __init__(
        self, name: str, text: str, *labels: str, buckets: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._bounds = tuple(buckets)
        self._shown = [*map(floatToGoString, buckets), "+Inf"]
        self._found: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}
        if not labels:
            self._found[()] = [0] * len(self._shown), [0.0]
        registry.register(self)

    def observe(self, value: float, *values: str) -> None:
        """Count a value with these values of the labels."""
        found = self._found.get(values)
        if found is None:
            found = self._found[values] = [0] * len(self._shown), [0.0]
        counts, total = found
        counts[bisect_left(self._bounds, value)] += 1
        total[0] += value

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield what has been counted."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, (counts, (total,)) in self._found.items():
            family.add_metric(values, list(zip(self._shown, accumulate(counts), strict=True)), total)
        yield family
