"""The metrics of a service; labels come from closed sets, never from requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    PlatformCollector,
    ProcessCollector,
)

from common_service_libs.loop_metrics import LoopCounter, LoopHistogram

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SCORES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


class Labelled:
    """A metric with labels whose children are kept: finding one costs one look-up on the hot path."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._children: dict[tuple[str, ...], Any] = {}

    def at(self, *values: str) -> Any:
        """Return the child with these values of the labels."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._metric.labels(*values)
        return child


class ServiceMetrics:
    """Counters, gauges and histograms of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Labelled:
            return Labelled(Counter(name, text, labels, registry=registry))

        def loop_counter(name: str, text: str, *labels: str) -> LoopCounter:
            return LoopCounter(name, text, *labels, registry=registry)

        def loop_histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...]) -> LoopHistogram:
            return LoopHistogram(name, text, *labels, buckets=buckets, registry=registry)

        self.requests = loop_counter("http_requests_total", "Requests.", "method", "route", "status")
        self.seconds = loop_histogram(
            "http_request_duration_seconds", "Time to the last byte.", "route", buckets=SECONDS
        )
        self.decisions = loop_counter(
            "decisions_total", "Decisions given.", "decision", "model_version", "policy_version"
        )
        self.scores = loop_histogram("decision_score", "Scores given.", buckets=SCORES)
        self.rungs = loop_counter(
            "decision_rung_total", "Decisions by rung of the degradation ladder.", "rung"
        )
        self.repeats = Counter(
            "decision_repeats_total", "Requests answered from the record.", registry=registry
        )
        self.unchecked = Counter(
            "decision_repeats_unchecked_total",
            "Request ids that could not be looked up: database silent.",
            registry=registry,
        )
        self.rate_limit_local = Counter(
            "rate_limit_local_total",
            "Rate limits kept by the process alone: Redis silent.",
            registry=registry,
        )
        self.shed = counter("requests_shed_total", "Requests turned away unseen: overload.", "reason")
        self.requests_running = Gauge("requests_running", "Requests being served.", registry=registry)
        self.requests_waiting = Gauge("requests_waiting", "Requests waiting for room.", registry=registry)
        self.snapshot_entities = Gauge("hot_snapshot_entities", "Entities remembered.", registry=registry)
        self.breaker = Gauge(
            "circuit_breaker_state",
            "0: closed, 1: open, 2: half-open, a probe under way.",
            ("dependency",),
            registry=registry,
        )
        self.feature_status = loop_counter(
            "feature_status_total", "Views by what was found.", "view", "status"
        )
        self.fallbacks = counter("feature_fallbacks_total", "Features that took their fallback.", "feature")
        self.value_status = counter(
            "feature_value_status_total", "Values of vectors that were not present.", "feature", "status"
        )
        self.rule_hits = loop_counter("rule_hits_total", "Rules that fired.", "rule")
        self.rule_errors = counter("rule_errors_total", "Rules that failed on values.", "rule")
        self.policy = Gauge(
            "policy_info", "The policy in service.", ("name", "version", "sha256"), registry=registry
        )
        self.policy_swaps = counter("policy_swaps_total", "Attempts to take over a policy.", "outcome")
        self.list_loads = counter("list_loads_total", "Attempts to take over the lists.", "outcome")
        self.list_entries = Gauge("list_entries", "Entries of the lists.", ("list",), registry=registry)
        self.online_store_up = Gauge("online_store_up", "Online store connected.", registry=registry)
        self.model = Gauge(
            "model_info", "The bundle in service.", ("name", "version", "bundle_sha256"), registry=registry
        )
        self.swaps = counter("model_swaps_total", "Attempts to load a bundle.", "outcome")
        self.rollout = Gauge(
            "rollout_info", "Canary and shadow.", ("role", "version", "bundle_sha256"), registry=registry
        )
        self.rollout_share = Gauge("rollout_canary_share", "Share of the canary now.", registry=registry)
        self.rollout_aborted = Gauge("rollout_canary_aborted", "Canary stopped.", registry=registry)
        self.rollout_aborts = Counter("rollout_aborts_total", "Canaries stopped.", registry=registry)
        self.rollout_verdicts = counter("rollout_verdicts_total", "Verdicts on the canary.", "verdict")
        self.rollout_decisions = counter(
            "rollout_decisions_total", "Decisions by variant while something is rolled out.", "variant"
        )
        self.rollout_errors = counter(
            "rollout_errors_total", "Requests that a variant could not decide.", "variant"
        )
        self.shadow = counter("shadow_decisions_total", "What became of offers to the shadow.", "outcome")
        self.flushes = counter("decision_flushes_total", "Batches sent to the database.", "outcome")
        self.flushed = counter("decision_records_flushed_total", "Records sent to the database.", "outcome")
        self.topic_flushes = counter(
            "decision_topic_flushes_total", "Batches sent to the topic of decisions.", "outcome"
        )
        self.topic_flushed = counter(
            "decision_topic_records_total", "Records sent to the topic of decisions.", "outcome"
        )
        self.claims = counter(
            "decision_claims_total",
            "Request ids that clients sent, by what the claim on them said.",
            "outcome",
        )
        self._spool_records = Gauge("spool_records", "Records not in every sink yet.", registry=registry)
        self._spool_bytes = Gauge("spool_bytes", "Size of the spool.", registry=registry)

    def spool(self, records: Callable[[], float], size: Callable[[], float]) -> None:
        """Say where to ask what the spool holds."""
        self._spool_records.set_function(records)
        self._spool_bytes.set_function(size)
