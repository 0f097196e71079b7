"""Keep today's totals per customer and terminal from the stream of transactions, in Redis and offline.

`--until-caught-up` processes what the log holds and ends; otherwise it runs until SIGTERM, which it obeys
after making durable what it has done. Safe to kill and to run again at any moment, and beside others of its
group. Outages of broker, Redis or database are waited out.
"""

from __future__ import annotations

import logging
import random
import signal
import sys
import threading
import time
from pathlib import Path

import psycopg
import redis
from kafka.errors import KafkaError

from data_source_connectors.database_connector import DatabaseSettings, DatabaseUnavailableError
from data_source_connectors.kafka_consumer_utils import BrokerUnavailableError, KafkaSettings
from data_source_connectors.settings import SettingsError, read_settings
from data_transformation_pipelines.python_scripts_feast.command_line import OneLineParser

from .aggregation_contract import DEFINITION, AggregationError, StreamDefinition, load_definition
from .offline_rows import LostPartitionError, MissingTableError
from .stream_metrics import StreamMetrics
from .stream_session import LogLostError, Session, Settings, StalledError
from .stream_settings import FeastSettings, RedisSettings, StreamSettings

log = logging.getLogger("transaction_stream")

OUTAGES: tuple[type[Exception], ...] = (
    redis.RedisError,
    psycopg.OperationalError,
    psycopg.InterfaceError,
    DatabaseUnavailableError,
    BrokerUnavailableError,
    KafkaError,
    StalledError,
    LostPartitionError,
)
LONGEST_WAIT_SECONDS = 10


def waiting_seconds(attempt: int) -> float:
    """Return how long to wait before the next attempt: random, growing to some seconds."""
    return random.uniform(0.2, min(LONGEST_WAIT_SECONDS, 0.5 * 2 ** min(attempt, 10)))  # noqa: S311


def process(
    settings: Settings,
    definition: StreamDefinition,
    metrics: StreamMetrics,
    stop: threading.Event,
    *,
    until_caught_up: bool,
) -> None:
    """Run one session after the other until `stop` is set or the log is caught up."""
    attempt = 0

    def ready() -> None:
        nonlocal attempt
        attempt = 0

    while not stop.is_set():
        try:
            Session(settings, definition, metrics, stop).run(until_caught_up=until_caught_up, on_ready=ready)
            return
        except OUTAGES as error:
            attempt += 1
            wait = waiting_seconds(attempt)
            metrics.outages.add(type(error).__name__)
            log.warning(
                "%s: %s; trying again in %.1f s", type(error).__name__, " ".join(str(error).split()), wait
            )
            stop.wait(wait)


def main(arguments: list[str]) -> int:
    """Run the command line."""
    parser = OneLineParser(prog="process_transaction_stream", description=__doc__.split("\n\n")[0])
    parser.add_argument("--until-caught-up", action="store_true", help="end when the log is processed")
    parser.add_argument("--definition", type=Path, default=DEFINITION, help="another file of totals to keep")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("kafka").setLevel(logging.ERROR)
    stop = threading.Event()
    try:
        definition = load_definition(options.definition)
        settings = read_all_settings()
    except (SettingsError, AggregationError) as error:
        parser.error(str(error))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    metrics = StreamMetrics()
    if settings.stream.metrics_port is not None:
        log.info(
            "metrics on port %d", metrics.serve(settings.stream.metrics_port, settings.stream.metrics_host)
        )
    began = time.monotonic()
    try:
        process(settings, definition, metrics, stop, until_caught_up=options.until_caught_up)
    except (MissingTableError, LogLostError) as error:
        log.error("%s", error)
        return 1
    log.info("ended after %.1f s: %s", time.monotonic() - began, summary(metrics))
    return 0


def read_all_settings() -> Settings:
    """Return what the environment says; raises SettingsError."""
    return Settings(
        read_settings(KafkaSettings),
        read_settings(RedisSettings),
        read_settings(DatabaseSettings),
        read_settings(FeastSettings),
        read_settings(StreamSettings),
    )


def summary(metrics: StreamMetrics) -> str:
    """Return the counters in one line."""
    totals: dict[str, float] = {}
    for metric in metrics.registry.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                name = sample.name.removeprefix("stream_").removesuffix("_total")
                name += "".join(f" {value}" for value in sample.labels.values())
                totals[name] = totals.get(name, 0) + sample.value
    return ", ".join(f"{name}: {value:.0f}" for name, value in totals.items()) or "nothing processed"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
