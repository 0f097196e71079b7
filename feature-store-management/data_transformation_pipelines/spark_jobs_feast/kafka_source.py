"""A topic as a streaming data frame: by Spark's own Kafka source where its jar is, else by kafka-python.

Both give `key`, `value`, `partition`, `offset` and `known_us`, the time of the message in microseconds since
1970 (UTC). The second is a data source in Python: the driver asks how far each partition reaches, and each
partition's new messages are read by a task of their own. It starts where the log does; where the log no
longer has what comes next, it fails rather than leave a gap.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from kafka import KafkaConsumer, TopicPartition
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 (its name everywhere)
from pyspark.sql.datasource import DataSource, DataSourceStreamReader, InputPartition
from pyspark.sql.streaming.datasource import ReadAllAvailable, ReadLimit, ReadMaxRows
from pyspark.sql.types import StructType

from data_source_connectors.kafka_consumer_utils import BrokerUnavailableError, KafkaSettings, open_consumer
from data_source_connectors.settings import read_settings

JVM_SOURCE = "org/apache/spark/sql/kafka010/KafkaSourceProvider.class"
FORMAT = "kafka_python"
MESSAGE_FIELDS = "key binary, value binary, partition int, offset bigint, known_us bigint"
ARROW_FIELDS = pa.schema(
    [
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("known_us", pa.int64()),
    ]
)
POLL_MS = 200
SILENCE_SECONDS = 30.0
# How far a log reaches stands in the head of each answer: its messages are not needed for that.
HEAD_BYTES = 1_024


def has_jvm_source(spark: SparkSession) -> bool:
    """Return whether the jar of Spark's own Kafka source is there (`SPARK_JARS`, or in the image)."""
    jvm: Any = spark.sparkContext._jvm
    loader = jvm.java.lang.Thread.currentThread().getContextClassLoader()
    return loader.getResource(JVM_SOURCE) is not None


def jvm_options(settings: KafkaSettings, topic: str, most_rows: int) -> dict[str, str]:
    """Return the options of Spark's own Kafka source."""
    options = {
        "kafka.bootstrap.servers": settings.bootstrap_servers,
        "kafka.security.protocol": settings.security_protocol,
        "subscribe": topic,
        "startingOffsets": "earliest",
        "failOnDataLoss": "true",
        "maxOffsetsPerTrigger": str(most_rows),
    }
    if settings.ssl_cafile:
        options |= {"kafka.ssl.truststore.type": "PEM", "kafka.ssl.truststore.location": settings.ssl_cafile}
    if settings.sasl_mechanism and settings.sasl_username and settings.sasl_password:
        module = "plain.Plain" if settings.sasl_mechanism == "PLAIN" else "scram.Scram"
        user, password = (
            text.replace("\\", "\\\\").replace('"', '\\"')
            for text in (settings.sasl_username, settings.sasl_password.get_secret_value())
        )
        options |= {
            "kafka.sasl.mechanism": settings.sasl_mechanism,
            "kafka.sasl.jaas.config": f"org.apache.kafka.common.security.{module}LoginModule required"
            f' username="{user}" password="{password}";',
        }
    return options


def read_topic(spark: SparkSession, settings: KafkaSettings, topic: str, most_rows: int) -> DataFrame:
    """Return the topic from its first message on, at most about `most_rows` messages a batch."""
    if has_jvm_source(spark):
        messages = spark.readStream.format("kafka").options(**jvm_options(settings, topic, most_rows)).load()
        known_us = (F.unix_millis("timestamp") * 1_000).alias("known_us")
        return messages.select("key", "value", "partition", "offset", known_us)
    spark.dataSource.register(KafkaPythonSource)
    return spark.readStream.format(FORMAT).options(topic=topic, most_rows=str(most_rows)).load()


class KafkaPythonSource(DataSource):
    """The data source; its options are `topic` and `most_rows`, the broker is in the environment."""

    @classmethod
    def name(cls) -> str:
        """Return the name of the format."""
        return FORMAT

    def schema(self) -> str:
        """Return the fields of a message."""
        return MESSAGE_FIELDS

    def streamReader(self, schema: StructType) -> DataSourceStreamReader:  # noqa: N802 (Spark's name)
        """Return what reads the topic."""
        return KafkaPythonReader(
            read_settings(KafkaSettings), self.options["topic"], int(self.options["most_rows"])
        )


class OffsetRange(InputPartition):
    """The messages [first, end) of one partition."""

    def __init__(self, partition: int, first: int, end: int) -> None:
        super().__init__((partition, first, end))
        self.partition, self.first, self.end = partition, first, end


class KafkaPythonReader(DataSourceStreamReader):
    """Reads a topic; offsets are `{partition: next offset}`, as JSON has them, with the partition as text."""

    def __init__(self, settings: KafkaSettings, topic: str, most_rows: int) -> None:
        self._settings, self._topic, self._most_rows = settings, topic, most_rows
        self._asking: KafkaConsumer | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the driver's connection behind when a task gets the reader."""
        return {**self.__dict__, "_asking": None}

    def initialOffset(self) -> dict[str, int]:  # noqa: N802 (Spark's name)
        """Return where the log begins."""
        consumer = self._consumer()
        begins = consumer.beginning_offsets(self._topic_partitions(consumer))
        return {str(at.partition): offset for at, offset in begins.items()}

    def getDefaultReadLimit(self) -> ReadLimit:  # noqa: N802 (Spark's name)
        """Return how many messages a batch has at most."""
        return ReadMaxRows(self._most_rows)

    def latestOffset(self, start: dict[str, int], limit: ReadLimit) -> dict[str, int]:  # noqa: N802
        """Return how far the next batch reaches: what the log holds, each partition's share at most."""
        consumer = self._consumer()
        ends = self._ends(consumer, start)
        if isinstance(limit, ReadAllAvailable):
            return ends
        share = max(1, self._most_rows // max(1, len(ends)))
        return {name: min(end, start.get(name, 0) + share) for name, end in ends.items()}

    def partitions(self, start: dict[str, int], end: dict[str, int]) -> Sequence[InputPartition]:
        """Return a task for each partition that has new messages."""
        return [
            OffsetRange(int(name), start.get(name, 0), stop)
            for name, stop in end.items()
            if stop > start.get(name, 0)
        ]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """Yield a partition's messages, in order."""
        assert isinstance(partition, OffsetRange)
        at = TopicPartition(self._topic, partition.partition)
        # Without a reset, an offset that the log has no more is an error and not a gap.
        consumer = open_consumer(self._settings, group=None, auto_offset_reset="none")
        try:
            consumer.assign([at])
            consumer.seek(at, partition.first)
            heard = time.monotonic()
            while (position := consumer.position(at)) < partition.end:
                polled = consumer.poll(timeout_ms=POLL_MS).get(at, [])
                if polled:
                    yield _record_batch([record for record in polled if record.offset < partition.end])
                if consumer.position(at) > position:
                    heard = time.monotonic()
                elif time.monotonic() - heard > SILENCE_SECONDS:
                    raise BrokerUnavailableError(
                        f"{self._topic}[{at.partition}]: nothing comes at {position}"
                    )
        finally:
            consumer.close(autocommit=False)

    def stop(self) -> None:
        """Close the driver's connection."""
        if self._asking is not None:
            self._asking.close(autocommit=False)
            self._asking = None

    def _consumer(self) -> KafkaConsumer:
        if self._asking is None:
            self._asking = open_consumer(
                self._settings, group=None, auto_offset_reset="none", max_partition_fetch_bytes=HEAD_BYTES
            )
        return self._asking

    def _topic_partitions(self, consumer: KafkaConsumer) -> list[TopicPartition]:
        deadline = time.monotonic() + SILENCE_SECONDS
        while not (numbers := consumer.partitions_for_topic(self._topic)):
            if time.monotonic() > deadline:
                raise BrokerUnavailableError(f"the broker has no topic {self._topic}")
            time.sleep(POLL_MS / 1_000)
        return [TopicPartition(self._topic, number) for number in sorted(numbers)]

    def _ends(self, consumer: KafkaConsumer, start: Mapping[str, int]) -> dict[str, int]:
        """Return the end of each partition's log as a fetch tells it; the broker's answer may be wrong."""
        every = self._topic_partitions(consumer)
        # Assigned anew, a partition has forgotten how far its log reached the last time.
        consumer.unsubscribe()
        consumer.assign(every)
        for at in every:
            consumer.seek(at, start.get(str(at.partition), 0))
        deadline = time.monotonic() + SILENCE_SECONDS
        ends: dict[str, int] = {}
        while len(ends) < len(every):
            consumer.poll(timeout_ms=POLL_MS)
            for at in every:
                if (end := consumer.highwater(at)) is not None:
                    ends[str(at.partition)] = max(end, start.get(str(at.partition), 0))
            if time.monotonic() > deadline:
                raise BrokerUnavailableError(
                    f"{self._topic}: the broker does not say how far its log reaches"
                )
        return ends


def _record_batch(records: Sequence[Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [
            pa.array([record.key for record in records], pa.binary()),
            pa.array([record.value for record in records], pa.binary()),
            pa.array([record.partition for record in records], pa.int32()),
            pa.array([record.offset for record in records], pa.int64()),
            pa.array([record.timestamp * 1_000 for record in records], pa.int64()),
        ],
        schema=ARROW_FIELDS,
    )
