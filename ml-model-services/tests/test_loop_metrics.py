"""What is counted without locks reads like what the client library counts."""

from __future__ import annotations

import random

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from common_service_libs.loop_metrics import LoopCounter, LoopHistogram
from common_service_libs.metrics import SECONDS


def text_of(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


def test_the_text_is_the_client_librarys() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    requests = LoopCounter("requests_total", "Requests.", "route", "status", registry=ours)
    seconds = LoopHistogram("seconds", "Time.", "route", buckets=SECONDS, registry=ours)
    scores = LoopHistogram("score", "Scores.", buckets=(0.5, 1.0), registry=ours)
    their_requests = Counter("requests_total", "Requests.", ("route", "status"), registry=theirs)
    their_seconds = Histogram("seconds", "Time.", ("route",), buckets=SECONDS, registry=theirs)
    their_scores = Histogram("score", "Scores.", buckets=(0.5, 1.0), registry=theirs)
    assert text_of(ours) == text_of(theirs)
    chance = random.Random(1)
    for _ in range(500):
        route, status = chance.choice(['/a"\n', "/b"]), chance.choice(["200", "503"])
        value = chance.choice([*SECONDS, chance.expovariate(10), 0.0, 9.0])
        requests.count(route, status)
        their_requests.labels(route, status).inc()
        seconds.observe(value, route)
        their_seconds.labels(route).observe(value)
        scores.observe(value)
        their_scores.observe(value)
    assert text_of(ours) == text_of(theirs)
    assert 'requests_total{route="/b",status="503"}' in "\n".join(text_of(ours))
