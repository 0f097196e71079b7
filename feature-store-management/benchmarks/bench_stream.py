"""The stream processor on one core: events a second while it catches up, and freshness at a steady rate.

The processor is the real one, in a process of its own bound to one core; sender, broker, Redis and PostgreSQL
have the others. The embedded broker hands messages over in bursts, every hundred milliseconds or more, so
freshness without it is measured on a log in memory (`instant_log.py`) from which each event can be read the
moment it arrives: from there to the answer of Redis, with the same session, Redis and PostgreSQL. What the
broker adds is measured apart, by a bare consumer on the same topic.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.instant_log import InstantLog
from benchmarks.report import Growth, Report, Result
from data_source_connectors.kafka_consumer_utils import open_consumer
from data_transformation_pipelines.stream_jobs_feast.aggregation_contract import load_definition
from data_transformation_pipelines.stream_jobs_feast.chaos import send_all
from data_transformation_pipelines.stream_jobs_feast.rehearsal import (
    Rehearsal,
    as_messages,
    in_disorder,
    made_up_events,
    rehearse,
    source_topic,
)
from data_transformation_pipelines.stream_jobs_feast.stream_metrics import StreamMetrics

ROOT = Path(__file__).resolve().parents[1]
RATE = 5_000
MULTIPLES = (1, 4, 16)
PATIENCE_SECONDS = 600


@dataclass(frozen=True)
class Measured:
    """What a processor's own process found; times in seconds."""

    events: int
    seconds: float
    cpu_seconds: float
    processing: NDArray[np.float64]
    freshness: NDArray[np.float64]


def run(quick: bool) -> Report:
    """Measure and return the figures."""
    smallest, seconds = (400, 2) if quick else (5_000, 12)
    growth = []
    for multiple in MULTIPLES:
        found = _catch_up(smallest * multiple)
        growth.append(Growth("stream", multiple, smallest * multiple, found.seconds))
    instant = _instant(RATE * seconds)
    steady, broker = _steady(RATE * seconds)
    live = np.percentile(instant.freshness * 1_000, [50, 99])
    whole = np.percentile(steady.freshness * 1_000, [50, 99])
    alone = np.percentile(broker * 1_000, [50, 99])
    core = f"{found.cpu_seconds / found.seconds:.0%} of one core"
    note = f"{RATE} events/s offered; two views, one core"
    return Report(
        [
            Result("stream, events a second", found.events / found.seconds, "events/s", note=core),
            Result("stream, freshness p50 without the broker", float(live[0]), "ms", note=note),
            Result("stream, freshness p99 without the broker", float(live[1]), "ms", note=note),
            Result(
                "stream, freshness p50 with the embedded broker",
                float(whole[0]),
                "ms",
                note="a terminal's events pass it twice",
            ),
            Result(
                "stream, freshness p99 with the embedded broker",
                float(whole[1]),
                "ms",
                note="a terminal's events pass it twice",
            ),
            Result(
                "stream, the embedded broker's share p50", float(alone[0]), "ms", note="a bare consumer, once"
            ),
            Result(
                "stream, the embedded broker's share p99", float(alone[1]), "ms", note="a bare consumer, once"
            ),
        ],
        growth,
    )


def _catch_up(events: int) -> Measured:
    """Return how long the processor takes for a log that holds so many events already."""
    definition = load_definition()
    with rehearse(definition, name="bench") as rehearsal:
        frame = in_disorder(made_up_events(events, 2))
        send_all(rehearsal.settings.kafka, source_topic(rehearsal.settings.stream, definition), frame)
        return _measured(_start(rehearsal, "process", "--until-caught-up"))


def _instant(events: int) -> Measured:
    """Return what a processor makes of events that come at a steady rate from a broker without delay."""
    with rehearse(load_definition(), name="bench") as rehearsal:
        return _measured(_start(rehearsal, "instant", str(events)))


def _steady(events: int) -> tuple[Measured, NDArray[np.float64]]:
    """Return what a running processor and a bare consumer see of events that come at a steady rate."""
    definition = load_definition()
    with rehearse(definition, name="bench") as rehearsal:
        processor, consumer = _start(rehearsal, "process"), _start(rehearsal, "consume", str(events))
        _wait_for_start(rehearsal, processor)
        sender = _start(rehearsal, "send", str(events))
        if sender.wait(PATIENCE_SECONDS):
            raise RuntimeError("the sender failed")
        began = time.monotonic()
        while rehearsal.processed() < 2 * events:
            if processor.poll() is not None or time.monotonic() - began > PATIENCE_SECONDS:
                raise RuntimeError("the processor does not get through")
            time.sleep(0.1)
        processor.terminate()
        out, _ = consumer.communicate(timeout=PATIENCE_SECONDS)
        return _measured(processor), np.array(json.loads(out.splitlines()[-1]))


def _wait_for_start(rehearsal: Rehearsal, processor: subprocess.Popen[str]) -> None:
    """Send one event and wait until it is through: by then the processor has joined its group."""
    definition = load_definition()
    first = made_up_events(1, 1).assign(transaction_id=10**12)
    send_all(rehearsal.settings.kafka, source_topic(rehearsal.settings.stream, definition), first)
    began = time.monotonic()
    while rehearsal.processed() < 2:
        if processor.poll() is not None or time.monotonic() - began > PATIENCE_SECONDS:
            raise RuntimeError("the processor did not start")
        time.sleep(0.1)


def _start(rehearsal: Rehearsal, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 (this very module)
        [sys.executable, "-m", "benchmarks.bench_stream", *arguments],
        cwd=ROOT,
        env=rehearsal.environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def _measured(processor: subprocess.Popen[str]) -> Measured:
    out, _ = processor.communicate(timeout=PATIENCE_SECONDS)
    if processor.returncode:
        raise RuntimeError(f"the processor ended with {processor.returncode}")
    found = json.loads(out.splitlines()[-1])
    return Measured(
        found["events"],
        found["seconds"],
        found["cpu_seconds"],
        np.array(found["processing"]),
        np.array(found["freshness"]),
    )


# What runs in a process of its own.


def bind(first: bool) -> None:
    """Bind this process to one core: the processor to the first, all that helps it to the last."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0] if first else cores[-1]})


def process_and_report(arguments: list[str]) -> None:
    """Run the processor's command with a record of every event's times, and print it."""
    from data_transformation_pipelines.stream_jobs_feast import process_transaction_stream as command  # noqa: PLC0415

    bind(first=True)
    metrics = StreamMetrics()
    ends: list[tuple[float, float]] = []
    taken: dict[str, list[NDArray[np.float64]]] = {"processing": [], "freshness": []}

    def record(kind: str) -> Any:
        def observe(_view: str, seconds: NDArray[np.float64]) -> None:
            taken[kind].append(seconds)
            if kind == "processing":
                ends.append((time.perf_counter() - float(seconds.max()), time.process_time()))

        return observe

    metrics.processing.observe = record("processing")  # type: ignore[method-assign]
    metrics.freshness.observe = record("freshness")  # type: ignore[method-assign]
    command.StreamMetrics = lambda: metrics  # type: ignore[assignment,misc]
    if code := command.main(arguments):
        sys.exit(code)
    events = metrics.events.values["customer_today",]
    print(
        json.dumps(
            {
                "events": events,
                "seconds": time.perf_counter() - ends[0][0],
                "cpu_seconds": time.process_time() - ends[0][1],
                "processing": np.concatenate(taken["processing"]).tolist(),
                "freshness": np.concatenate(taken["freshness"]).tolist(),
            }
        )
    )


def process_instantly(events: int) -> None:
    """Run one session on a log without delay, and print every event's times."""
    from data_transformation_pipelines.stream_jobs_feast import stream_session  # noqa: PLC0415
    from data_transformation_pipelines.stream_jobs_feast.process_transaction_stream import (  # noqa: PLC0415
        read_all_settings,
    )

    bind(first=True)
    settings, definition = read_all_settings(), load_definition()
    messages = list(as_messages(made_up_events(events, 1)))
    source = source_topic(settings.stream, definition)
    instant = InstantLog(source, messages, RATE, settings.stream.topic_partitions)
    stream_session.ensure_topics = lambda *_: None
    stream_session.open_consumer = lambda *_, **__: instant  # type: ignore[assignment]
    stream_session.open_producer = lambda *_, **__: instant
    taken: list[NDArray[np.float64]] = []
    metrics, stop = StreamMetrics(), threading.Event()
    metrics.freshness.observe = lambda label, seconds: taken.append(seconds)  # type: ignore[method-assign]
    session = stream_session.Session(settings, definition, metrics, stop)
    update = session._update_gauges

    def stop_at_the_end() -> None:
        update()
        if instant.exhausted:
            stop.set()

    session._update_gauges = stop_at_the_end  # type: ignore[method-assign]
    began, cpu = time.perf_counter(), time.process_time()
    session.run(until_caught_up=False, on_ready=lambda: None)
    freshness = np.concatenate(taken)
    if len(freshness) != 2 * events:
        sys.exit(f"{len(freshness)} of {2 * events} rows were written")
    print(
        json.dumps(
            {
                "events": events,
                "seconds": time.perf_counter() - began,
                "cpu_seconds": time.process_time() - cpu,
                "processing": [],
                "freshness": freshness.tolist(),
            }
        )
    )


def send_steadily(events: int) -> None:
    """Send events at the benchmark's rate."""
    from data_transformation_pipelines.stream_jobs_feast.process_transaction_stream import (  # noqa: PLC0415
        read_all_settings,
    )

    bind(first=False)
    settings, definition = read_all_settings(), load_definition()
    send_all(
        settings.kafka,
        source_topic(settings.stream, definition),
        made_up_events(events, 1),
        RATE,
        linger_ms=2,
    )


def consume_and_report(events: int) -> None:
    """Read the events as a bare consumer and print how old each was."""
    from data_transformation_pipelines.stream_jobs_feast.process_transaction_stream import (  # noqa: PLC0415
        read_all_settings,
    )

    bind(first=False)
    settings, definition = read_all_settings(), load_definition()
    consumer = open_consumer(settings.kafka, group=None)
    consumer.subscribe([source_topic(settings.stream, definition)])
    ages: list[float] = []
    while len(ages) < events:
        polled = consumer.poll(timeout_ms=500, max_records=5_000)
        now = time.time()
        ages += [now - record.timestamp / 1_000 for records in polled.values() for record in records]
    consumer.close()
    print(json.dumps(ages))


if __name__ == "__main__":
    if sys.argv[1] == "process":
        process_and_report(sys.argv[2:])
    elif sys.argv[1] == "instant":
        process_instantly(int(sys.argv[2]))
    elif sys.argv[1] == "send":
        send_steadily(int(sys.argv[2]))
    else:
        consume_and_report(int(sys.argv[2]))
