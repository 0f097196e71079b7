"""What champion and canary did lately: counts by slices of time, which add up over processes.

Everything is a count, so that the windows of all workers of a service are one window.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

SLICE_SECONDS = 30.0
# Latency: 24 buckets a decade, from 10 us on; the quantile is right to 10 %.
_FIRST_MS, _PER_DECADE, LATENCY_BUCKETS = 0.01, 24, 24 * 7
DEFAULT_EDGES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


K = TypeVar("K")


def _add(counts: dict[K, int], others: Mapping[K, int]) -> None:
    for key, count in others.items():
        counts[key] = counts.get(key, 0) + count


class Counts(msgspec.Struct):
    """What one variant did: `requests` were decided, `errors` were not.

    `degraded` were decided on a lower rung or on an old view, `incomplete` lacked a value. `scores` counts by
    bin of the edges of the rollout, `latencies` by bucket of the logarithm.
    """

    requests: int = 0
    errors: int = 0
    degraded: int = 0
    incomplete: int = 0
    decisions: dict[str, int] = {}
    latencies: dict[int, int] = {}
    scores: dict[int, int] = {}

    def add(self, other: Counts) -> None:
        """Add what another did."""
        self.requests += other.requests
        self.errors += other.errors
        self.degraded += other.degraded
        self.incomplete += other.incomplete
        _add(self.decisions, other.decisions)
        _add(self.latencies, other.latencies)
        _add(self.scores, other.scores)

    def latency_ms(self, quantile: float) -> float | None:
        """Return the upper end of the bucket that holds the quantile; None without requests."""
        total = sum(self.latencies.values())
        rest = quantile * total
        for bucket in sorted(self.latencies):
            rest -= self.latencies[bucket]
            if rest <= 0:
                return _FIRST_MS * math.exp((bucket + 1) * math.log(10) / _PER_DECADE)
        return None


class Agreement(msgspec.Struct):
    """What the shadow said beside the decision that was given: `difference` is the sum of |score - score|."""

    scored: int = 0
    agreed: int = 0
    dropped: int = 0
    failed: int = 0
    difference: float = 0.0

    def add(self, other: Agreement) -> None:
        """Add what another process saw."""
        self.scored += other.scored
        self.agreed += other.agreed
        self.dropped += other.dropped
        self.failed += other.failed
        self.difference += other.difference


class Slice(msgspec.Struct):
    """The counts of a piece of time that began at `start`, epoch seconds."""

    start: float
    variants: dict[str, Counts] = {}
    shadow: Agreement = msgspec.field(default_factory=Agreement)


def latency_bucket(milliseconds: float) -> int:
    """Return the bucket of a latency."""
    if milliseconds <= _FIRST_MS:
        return 0
    return min(LATENCY_BUCKETS, int(math.log10(milliseconds / _FIRST_MS) * _PER_DECADE))


class Window:
    """The slices of the last `seconds` of one process."""

    def __init__(self, seconds: float, edges: Sequence[float] = DEFAULT_EDGES) -> None:
        self.seconds = seconds
        self.edges = tuple(edges)
        self.slices: list[Slice] = []

    def at(self, now: float) -> Slice:
        """Return the slice of `now`; forgets what is older than the window."""
        slices = self.slices
        if slices and now - slices[-1].start < SLICE_SECONDS:
            return slices[-1]
        slices.append(Slice(now))
        while slices[0].start < now - self.seconds - SLICE_SECONDS:
            slices.pop(0)
        return slices[-1]

    def _of(self, variant: str, now: float) -> Counts:
        variants = self.at(now).variants
        counts = variants.get(variant)
        if counts is None:
            counts = variants[variant] = Counts()
        return counts

    def decided(
        self,
        variant: str,
        now: float,
        *,
        decision: str,
        score: float | None,
        latency_ms: float,
        degraded: bool,
        incomplete: bool,
    ) -> None:
        """Count a decision."""
        counts = self._of(variant, now)
        counts.requests += 1
        counts.degraded += degraded
        counts.incomplete += incomplete
        counts.decisions[decision] = counts.decisions.get(decision, 0) + 1
        bucket = latency_bucket(latency_ms)
        counts.latencies[bucket] = counts.latencies.get(bucket, 0) + 1
        if score is not None:
            at = bisect.bisect_right(self.edges, score)
            counts.scores[at] = counts.scores.get(at, 0) + 1

    def failed(self, variant: str, now: float) -> None:
        """Count a request that this variant could not decide."""
        self._of(variant, now).errors += 1


class Summary(msgspec.Struct):
    """The counts of a window, of one process or of all."""

    variants: dict[str, Counts] = {}
    shadow: Agreement = msgspec.field(default_factory=Agreement)


def summary(slices: Iterable[Slice], since: float) -> Summary:
    """Return the sum of the slices that began at `since` or later."""
    total = Summary()
    for piece in slices:
        if piece.start >= since:
            for variant, counts in piece.variants.items():
                total.variants.setdefault(variant, Counts()).add(counts)
            total.shadow.add(piece.shadow)
    return total


def score_bins(reference: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[int, ...]] | None:
    """Return edges and counts of the scores in a bundle's reference statistics, None if it has none."""
    score = reference.get("score")
    if not isinstance(score, Mapping):
        return None
    edges, counts = score.get("edges"), score.get("counts")
    if not isinstance(edges, list) or not isinstance(counts, list) or len(counts) != len(edges) + 1:
        return None
    if list(edges) != sorted(edges) or sum(counts) <= 0:
        return None
    return tuple(float(edge) for edge in edges), tuple(int(count) for count in counts)
