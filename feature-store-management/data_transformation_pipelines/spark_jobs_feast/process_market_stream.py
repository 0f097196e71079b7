"""Keep today's totals per customer and terminal with Spark Structured Streaming, beyond one machine.

`python -m data_transformation_pipelines.spark_jobs_feast.process_market_stream [--until-caught-up]`

Takes the place of `stream_jobs_feast.process_transaction_stream`: the same definition, the same rules (its
code), the same topics, online rows and dead letters. One of the two runs at a time. Each view has a query of
its own; the first one's forwards the events that the others count.

Position and totals lie in the checkpoint, a version of them a batch: after a crash the batch is done again
from the totals before it, with the same messages, and gives the same rows. Without a checkpoint, which a new
version of the definition has not, they are rebuilt from the beginning of the log. Outages are waited out.

Rows go to the online store; the offline table gets them from the next dbt build.

Exit 0: told to stop, or caught up where that was asked; 1: Spark can't go on; 2: bad options or settings.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from kafka import KafkaProducer
from kafka.partitioner import murmur2
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException, StreamingQueryException
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F  # noqa: N812 (its name everywhere)
from pyspark.sql.streaming import StreamingQuery
from pyspark.sql.streaming.state import GroupState, GroupStateTimeout

from data_source_connectors.kafka_consumer_utils import (
    BrokerUnavailableError,
    KafkaSettings,
    ensure_topics,
    open_producer,
)
from data_source_connectors.settings import SettingsError, read_settings
from data_transformation_pipelines.python_scripts_feast.command_line import (
    BAD_USAGE,
    OneLineParser,
    whole_number,
)
from data_transformation_pipelines.stream_jobs_feast.aggregation_contract import (
    DEFINITION,
    AggregationError,
    StreamDefinition,
    StreamedView,
    load_definition,
)
from data_transformation_pipelines.stream_jobs_feast.online_rows import OnlineRows
from data_transformation_pipelines.stream_jobs_feast.process_transaction_stream import waiting_seconds
from data_transformation_pipelines.stream_jobs_feast.running_totals import TotalsRow
from data_transformation_pipelines.stream_jobs_feast.stream_settings import (
    FeastSettings,
    RedisSettings,
    StreamSettings,
)
from data_transformation_pipelines.stream_jobs_feast.transaction_events import (
    RefusedMessageError,
    check_key,
    decode,
)

from .command_errors import one_line
from .kafka_source import read_topic
from .spark_session import SparkSettings, spark_session
from .stored_totals import StoredTotals

log = logging.getLogger("market_stream")

# What a row of a batch is: totals to write, a message to forward, a message that was refused.
TOTALS, FORWARD, LETTER = 0, 1, 2
FLUSH_SECONDS = 40
CHECK_SECONDS = 0.5
# As the tasks' errors name them; they reach the driver as text. The last is a machine with too much to do.
OUTAGES = (
    "redis.exceptions.",
    "kafka.errors.",
    "BrokerUnavailableError",
    "Python worker failed to connect back",
)
RESULT_FIELDS = (
    "kind int, entity bigint, event_us bigint, created_us bigint, day bigint, events bigint, "
    "cents array<bigint>, key binary, value binary, reason string, partition int, offset bigint, "
    "known_us bigint, target int"
)
RESULT_COLUMNS = [field.split()[0] for field in RESULT_FIELDS.split(", ")]
NO_TOTALS = (0, 0, 0, 0, ())


@dataclass(frozen=True)
class StreamJob:
    """All that the job is told; travels to the executors."""

    definition: StreamDefinition
    kafka: KafkaSettings
    redis: RedisSettings
    feast: FeastSettings
    stream: StreamSettings

    def topic(self, view: StreamedView) -> str:
        """Return the topic that feeds a view."""
        return self.stream.topic(view.topic)

    @property
    def forwarded(self) -> list[StreamedView]:
        """The views whose topics the first one's events are forwarded to."""
        first, *others = self.definition.views
        return [view for view in others if view.topic != first.topic]


@dataclass(frozen=True)
class PartitionStep:
    """What is done with a view's messages; `targets`: the partitions of each topic forwarded to."""

    job: StreamJob
    view: StreamedView
    targets: dict[str, int]

    def count(
        self, key: tuple[int], frames: Iterable[pd.DataFrame], state: GroupState
    ) -> Iterator[pd.DataFrame]:
        """Count one partition's new messages; yield totals that changed, what to forward, what is refused."""
        definition, limits = self.job.definition, self.job.stream.limits
        stored = bytes(state.get[0]) if state.exists else None
        totals = StoredTotals(self.view, definition.window, limits, stored)
        newest: dict[int, TotalsRow] = {}
        rows: list[tuple[Any, ...]] = []
        messages = pd.concat(list(frames), ignore_index=True).sort_values("offset")
        columns = (messages[name].tolist() for name in ("key", "value", "offset", "known_us"))
        for message_key, value, offset, known_us in zip(*columns, strict=True):
            place = (int(key[0]), offset, known_us)
            try:
                event, time_us = decode(_bytes(value))
                check_key(_bytes(message_key), getattr(event, self.view.entity_key), self.view.entity_key)
                row = totals.add(event, time_us, known_us, offset)
            except RefusedMessageError as error:
                letter = (_bytes(message_key), _bytes(value), str(error)[:500])
                rows.append((LETTER, 0, *NO_TOTALS, *letter, *place, 0))
                continue
            if row is None:
                continue
            if row.online:
                newest[row.entity] = row
            for name, partitions in self.targets.items():
                entity = getattr(event, name)
                to_key = b"%d" % entity
                target = (murmur2(to_key) & 0x7FFFFFFF) % partitions
                rows.append((FORWARD, entity, *NO_TOTALS, to_key, _bytes(value), name, *place, target))
        state.update((totals.stored(),))
        for row in newest.values():
            rows.append((TOTALS, *row[:6], None, None, None, 0, 0, 0, 0))
        yield pd.DataFrame(rows, columns=RESULT_COLUMNS)


def _bytes(value: Any) -> bytes | None:
    return None if value is None or isinstance(value, float) else bytes(value)


# Executors keep their connections from batch to batch.


@cache
def _online_rows(redis: RedisSettings, project: str, definition: str) -> OnlineRows:
    return OnlineRows(redis, project, StreamDefinition.model_validate_json(definition))


@cache
def _producer(kafka: KafkaSettings) -> KafkaProducer:
    return open_producer(kafka)


def write_totals(job: StreamJob, view: StreamedView, rows: Iterable[Row]) -> None:
    """Write totals into Redis, over rows that are not newer."""
    totals = [
        TotalsRow(row.entity, row.event_us, row.created_us, row.day, row.events, tuple(row.cents), True)
        for row in rows
    ]
    if totals:
        definition = job.definition.model_dump_json()
        _online_rows(job.redis, job.feast.feast_project, definition).write(view, totals)


def send_messages(job: StreamJob, view: StreamedView, rows: Iterable[Row]) -> None:
    """Send what is forwarded, and refused messages to the dead letters; returns when the log has them."""
    topic_of = {other.entity_key: job.topic(other) for other in job.forwarded}
    dead_letters, sent = job.stream.dead_letter_topic(job.definition), []
    for row in rows:
        producer = _producer(job.kafka)
        if row.kind == FORWARD:
            to = {
                "topic": topic_of[row.reason],
                "partition": row.target,
                "timestamp_ms": row.known_us // 1_000,
            }
            sent.append(producer.send(key=bytes(row.key), value=bytes(row.value), **to))
            continue
        headers = [
            ("reason", row.reason.encode()),
            ("topic", job.topic(view).encode()),
            ("partition", b"%d" % row.partition),
            ("offset", b"%d" % row.offset),
        ]
        key, value = _bytes(row.key), _bytes(row.value)
        # A message must have a key or a value.
        value = b"" if key is None and value is None else value
        sent.append(producer.send(dead_letters, key=key, value=value, headers=headers))
    if sent:
        _producer(job.kafka).flush(timeout=FLUSH_SECONDS)
    for each in sent:
        each.get(timeout=FLUSH_SECONDS)


def write_batch(job: StreamJob, view: StreamedView, batch: DataFrame, _batch_id: int) -> None:
    """Bring a batch's rows to where they belong; whatever fails, all of it is done again."""
    batch.persist()
    try:
        batch.where(F.col("kind") == TOTALS).foreachPartition(partial(write_totals, job, view))
        # In order of arrival into each partition: one that was read faster must not make the others late.
        messages = batch.where(F.col("kind") != TOTALS).repartition("kind", "reason", "target")
        messages.sortWithinPartitions("known_us", "partition", "offset").foreachPartition(
            partial(send_messages, job, view)
        )
    finally:
        batch.unpersist()


@dataclass(frozen=True)
class Pace:
    """Where the state lies, how often a batch begins, and how many messages it has at most."""

    checkpoint: str
    trigger_seconds: float
    batch_rows: int


def start(spark: SparkSession, job: StreamJob, view: StreamedView, pace: Pace) -> StreamingQuery:
    """Start a view's query and return it."""
    targets = {}
    if view == job.definition.views[0]:
        producer = open_producer(job.kafka)
        try:
            targets = {
                other.entity_key: len(producer.partitions_for(job.topic(other))) for other in job.forwarded
            }
        finally:
            producer.close()
    counted = (
        read_topic(spark, job.kafka, job.topic(view), pace.batch_rows)
        .groupBy("partition")
        .applyInPandasWithState(
            PartitionStep(job, view, targets).count,
            outputStructType=RESULT_FIELDS,
            stateStructType="totals binary",
            outputMode="append",
            timeoutConf=GroupStateTimeout.NoTimeout,
        )
    )
    return (
        counted.writeStream.foreachBatch(partial(write_batch, job, view))
        .option("checkpointLocation", f"{pace.checkpoint}/{view.view}")
        .trigger(processingTime=f"{pace.trigger_seconds} seconds")
        .queryName(view.view)
        .start()
    )


def follow(queries: list[StreamingQuery], stop: threading.Event, *, until_caught_up: bool) -> None:
    """Wait until the queries have caught up, if so asked, or until `stop` is set; raises what ended one."""
    try:
        if until_caught_up:
            # In this order: the first one's batches forward what the others count.
            for query in queries:
                query.processAllAvailable()
            return
        while not stop.wait(CHECK_SECONDS):
            for query in queries:
                if not query.isActive:
                    # Raises what ended it.
                    query.awaitTermination()
                    return
    finally:
        for query in queries:
            query.stop()


def is_outage(error: Exception) -> bool:
    """Return whether a query ended for a reason that passes: a server that could not be reached."""
    return any(name in str(error) for name in OUTAGES)


def process(
    begin: Callable[[], list[StreamingQuery]], stop: threading.Event, *, until_caught_up: bool
) -> None:
    """Run queries, each from its checkpoint, until they end well; what ends one is waited out."""
    failed = 0
    while not stop.is_set():
        queries = begin()
        try:
            follow(queries, stop, until_caught_up=until_caught_up)
            return
        except StreamingQueryException as error:
            if not is_outage(error):
                raise
            advanced = any(query.lastProgress is not None for query in queries)
            failed = 1 if advanced else failed + 1
            wait = waiting_seconds(failed)
            log.warning("%s; trying again in %.1f s", one_line(error), wait)
            stop.wait(wait)


def read_job(definition: Path) -> StreamJob:
    """Return what the environment says; raises SettingsError or AggregationError."""
    return StreamJob(
        load_definition(definition),
        read_settings(KafkaSettings),
        read_settings(RedisSettings),
        read_settings(FeastSettings),
        read_settings(StreamSettings),
    )


def checkpoint_of(job: StreamJob) -> str:
    """Return where the state lies by default: one place a topic, project and version of the definition."""
    folder = Path(os.environ.get("DATA_DIR") or os.environ.get("LOCAL_DIR") or ".") / "checkpoints"
    definition = job.definition
    name = f"{job.stream.topic_prefix}{job.feast.feast_project}-{definition.name}-v{definition.version}"
    return str(folder.resolve() / name)


def main(arguments: list[str]) -> int:
    """Run the command line."""
    parser = OneLineParser(prog="process_market_stream", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--until-caught-up", action="store_true", help="end when the log is processed")
    parser.add_argument("--definition", type=Path, default=DEFINITION, help="another file of totals to keep")
    parser.add_argument("--checkpoint", metavar="FOLDER", help="of state; default: below DATA_DIR")
    parser.add_argument("--trigger-seconds", type=float, default=1.0, help="default %(default)s")
    parser.add_argument("--batch-rows", type=whole_number, default=100_000, help="default %(default)s")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("kafka").setLevel(logging.ERROR)
    logging.getLogger("py4j").setLevel(logging.ERROR)
    try:
        job = read_job(options.definition)
        spark_settings = read_settings(SparkSettings)
    except (SettingsError, AggregationError) as error:
        print(f"process_market_stream: {error}", file=sys.stderr)
        return BAD_USAGE
    pace = Pace(options.checkpoint or checkpoint_of(job), options.trigger_seconds, options.batch_rows)
    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    try:
        ensure_topics(job.kafka, job.stream.topics(job.definition))
        with spark_session("process_market_stream", spark_settings) as spark:
            process(
                lambda: [start(spark, job, view, pace) for view in job.definition.views],
                stop,
                until_caught_up=options.until_caught_up,
            )
    except (BrokerUnavailableError, PySparkException, Py4JError) as error:
        log.error("%s", one_line(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
