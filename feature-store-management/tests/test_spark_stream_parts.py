"""The stream job without Spark: totals put down and taken up, messages read by range, options, outages."""

import threading
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from kafka import TopicPartition
from pyspark.errors import StreamingQueryException

from data_source_connectors.kafka_consumer_utils import BrokerUnavailableError, KafkaSettings
from data_transformation_pipelines.spark_jobs_feast import kafka_source, process_market_stream
from data_transformation_pipelines.spark_jobs_feast.kafka_source import (
    KafkaPythonReader,
    OffsetRange,
    jvm_options,
)
from data_transformation_pipelines.spark_jobs_feast.process_market_stream import (
    FORWARD,
    LETTER,
    RESULT_COLUMNS,
    TOTALS,
    PartitionStep,
    StreamJob,
    follow,
    is_outage,
    process,
)
from data_transformation_pipelines.spark_jobs_feast.stored_totals import StoredTotals
from data_transformation_pipelines.stream_jobs_feast.aggregation_contract import load_definition
from data_transformation_pipelines.stream_jobs_feast.rehearsal import as_messages, in_disorder, made_up_events
from data_transformation_pipelines.stream_jobs_feast.running_totals import Limits, PartitionTotals
from data_transformation_pipelines.stream_jobs_feast.stream_settings import (
    FeastSettings,
    RedisSettings,
    StreamSettings,
)
from data_transformation_pipelines.stream_jobs_feast.transaction_events import RefusedMessageError, decode

DEFINITION = load_definition()
CUSTOMERS, TERMINALS = DEFINITION.views
KAFKA = KafkaSettings(bootstrap_servers="broker:9092")
JOB = StreamJob(DEFINITION, KAFKA, RedisSettings(host="nowhere"), FeastSettings(), StreamSettings())
EVENTS = made_up_events(600, 6, customers=9, terminals=12, seed=3)
MESSAGES = list(as_messages(in_disorder(EVENTS, seed=4)))
KNOWN_US = int(EVENTS["tx_datetime"].max().value // 1_000)


def add(totals: PartitionTotals, offset: int) -> Any:
    event, time_us = decode(MESSAGES[offset][1])
    try:
        return totals.add(event, time_us, KNOWN_US, offset)
    except RefusedMessageError as error:
        return error.reason


def test_totals_put_down_and_taken_up_anywhere_give_the_same_rows():
    """Over six days, so that days end and late events are refused on either side."""
    whole = PartitionTotals(CUSTOMERS, DEFINITION.window, Limits())
    expected = [add(whole, offset) for offset in range(len(MESSAGES))]
    stored, rows = None, []
    for offset in range(len(MESSAGES)):
        if offset % 7 == 0:
            totals = StoredTotals(CUSTOMERS, DEFINITION.window, Limits(), stored)
        rows.append(add(totals, offset))
        if offset % 7 == 6:
            stored = totals.stored()
    assert rows == expected
    assert None in expected  # duplicates
    assert totals.first_offsets == whole.first_offsets
    assert list(totals.newest_rows()) == list(whole.newest_rows())


class State:
    """Spark's state of one group."""

    def __init__(self) -> None:
        self.get: tuple[Any, ...] = ()

    @property
    def exists(self) -> bool:
        return bool(self.get)

    def update(self, value: tuple[Any, ...]) -> None:
        self.get = value


def frame(messages: list[tuple[bytes | None, bytes | None]], first: int) -> pd.DataFrame:
    rows = [(key, value, 0, first + at, KNOWN_US) for at, (key, value) in enumerate(messages)]
    return pd.DataFrame(rows, columns=["key", "value", "partition", "offset", "known_us"])


def run_step(step: PartitionStep, batches: list[list[Any]]) -> list[pd.DataFrame]:
    """Return what the step makes of the batches; each comes in two parts, in the wrong order."""
    state, results, first = State(), [], 0
    for batch in batches:
        whole = frame(batch, first)
        middle = len(whole) // 2
        results += list(step.count((0,), iter([whole[middle:], whole[:middle]]), state))  # type: ignore[arg-type]
        first += len(batch)
    return results


def test_a_partition_is_counted_in_the_order_of_its_log_and_forwarded_once():
    step = PartitionStep(JOB, CUSTOMERS, {"terminal_id": 3})
    results = run_step(step, [MESSAGES[:250], MESSAGES[250:]])
    whole = PartitionTotals(CUSTOMERS, DEFINITION.window, Limits())
    rows = [add(whole, offset) for offset in range(len(MESSAGES))]
    assert all(list(result.columns) == RESULT_COLUMNS for result in results)
    last = results[-1][results[-1]["kind"] == TOTALS].set_index("entity")
    for row in whole.newest_rows():
        assert last.loc[row.entity, ["event_us", "day", "events", "cents"]].tolist() == [
            row.event_us,
            row.day,
            row.events,
            row.cents,
        ]
    forwarded = pd.concat(results)
    forwarded = forwarded[forwarded["kind"] == FORWARD]
    assert forwarded["offset"].tolist() == [
        at for at, row in enumerate(rows) if row is not None and not isinstance(row, str)
    ]
    assert forwarded["target"].between(0, 2).all()
    assert forwarded.groupby("key")["target"].nunique().max() == 1


def test_refused_messages_keep_their_bytes_and_say_why():
    results = run_step(
        PartitionStep(JOB, CUSTOMERS, {}), [[(b"7", b"no json"), (None, None), (b"7", MESSAGES[0][1])]]
    )
    found = results[0]
    assert found["kind"].tolist() == [LETTER] * 3
    assert found["value"].tolist() == [b"no json", None, MESSAGES[0][1]]
    assert [reason.split(":")[0] for reason in found["reason"]] == ["not_json", "empty", "wrong_key"]


# The source in Python.


class Consumer:
    """A topic of two partitions; what a fetch brings is at most three messages of one of them."""

    def __init__(self, ends: dict[int, int | None]) -> None:
        self.ends, self.positions, self.assigned = ends, dict.fromkeys(ends, 0), []
        self.fetched: set[int] = set()
        self.closed = False

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(self.ends)

    def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 5)

    def unsubscribe(self) -> None:
        self.fetched.clear()

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.assigned = [at.partition for at in partitions]

    def seek(self, at: TopicPartition, offset: int) -> None:
        self.positions[at.partition] = offset

    def position(self, at: TopicPartition) -> int:
        return self.positions[at.partition]

    def highwater(self, at: TopicPartition) -> int | None:
        return self.ends[at.partition] if at.partition in self.fetched else None

    def poll(self, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        number = next((each for each in self.assigned if each not in self.fetched), self.assigned[0])
        self.fetched.add(number)
        end, position = self.ends[number], self.positions[number]
        if end is None:
            return {}
        offsets = range(position, min(end, position + 3))
        self.positions[number] = offsets.stop
        records = [
            SimpleNamespace(key=b"k", value=b"%d" % at, partition=number, offset=at, timestamp=1_000)
            for at in offsets
        ]
        return {TopicPartition("t", number): records} if records else {}

    def close(self, *, autocommit: bool) -> None:
        self.closed = True


def reader(monkeypatch: pytest.MonkeyPatch, consumer: Consumer, most_rows: int = 100) -> KafkaPythonReader:
    monkeypatch.setattr(kafka_source, "open_consumer", lambda *_, **__: consumer)
    monkeypatch.setattr(kafka_source, "SILENCE_SECONDS", 0.05)
    return KafkaPythonReader(KAFKA, "t", most_rows)


def test_a_log_ends_where_a_fetch_says_and_a_batch_takes_its_share(monkeypatch: pytest.MonkeyPatch):
    asked = reader(monkeypatch, Consumer({0: 50, 1: 7}), most_rows=20)
    limit = asked.getDefaultReadLimit()
    assert asked.initialOffset() == {"0": 5, "1": 5}
    assert asked.latestOffset({"0": 5, "1": 5}, limit) == {"0": 15, "1": 7}
    assert asked.latestOffset({"0": 45, "1": 7}, limit) == {"0": 50, "1": 7}
    assert asked.latestOffset({"0": 5, "1": 5}, kafka_source.ReadAllAvailable()) == {"0": 50, "1": 7}


def test_only_partitions_with_new_messages_get_a_task(monkeypatch: pytest.MonkeyPatch):
    asked = reader(monkeypatch, Consumer({}))
    ranges = asked.partitions({"0": 5, "1": 7}, {"0": 9, "1": 7, "2": 3})
    assert [(each.partition, each.first, each.end) for each in ranges] == [(0, 5, 9), (2, 0, 3)]


def test_a_range_is_read_exactly(monkeypatch: pytest.MonkeyPatch):
    consumer = Consumer({0: 50})
    batches = list(reader(monkeypatch, consumer).read(OffsetRange(0, 5, 13)))
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert [row["offset"] for row in rows] == list(range(5, 13))
    assert rows[0] == {"key": b"k", "value": b"5", "partition": 0, "offset": 5, "known_us": 1_000_000}
    assert consumer.closed


def test_a_silent_broker_is_an_error_and_no_end_of_the_log(monkeypatch: pytest.MonkeyPatch):
    silent = reader(monkeypatch, Consumer({0: None}))
    with pytest.raises(BrokerUnavailableError, match="nothing comes at 5"):
        list(silent.read(OffsetRange(0, 5, 13)))
    with pytest.raises(BrokerUnavailableError, match="how far its log reaches"):
        silent.latestOffset({"0": 5}, silent.getDefaultReadLimit())
    with pytest.raises(BrokerUnavailableError, match="no topic t"):
        reader(monkeypatch, Consumer({})).initialOffset()


def test_sparks_own_source_is_told_how_to_log_in():
    settings = KafkaSettings(
        bootstrap_servers="a:1,b:2",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="job",
        sasl_password='se"cret',
        ssl_cafile="/etc/ca.pem",
    )
    options = jvm_options(settings, "transactions.v1", 500)
    assert options["kafka.bootstrap.servers"] == "a:1,b:2"
    assert options["startingOffsets"] == "earliest"
    assert options["failOnDataLoss"] == "true"
    assert options["maxOffsetsPerTrigger"] == "500"
    assert options["kafka.ssl.truststore.location"] == "/etc/ca.pem"
    assert options["kafka.sasl.jaas.config"].endswith(
        'ScramLoginModule required username="job" password="se\\"cret";'
    )
    assert not [name for name in jvm_options(KAFKA, "t", 1) if "sasl" in name or "ssl" in name]


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("redis.exceptions.ConnectionError: refused", True),
        ("kafka.errors.KafkaTimeoutError", True),
        ("data_source_connectors.kafka_consumer_utils.BrokerUnavailableError: t[0]", True),
        ("TypeError: a fault of the code", False),
        ("kafka offset: OffsetOutOfRange", False),
    ],
)
def test_outages_are_waited_out_and_faults_are_not(text: str, passes: bool):
    assert is_outage(Exception(text)) is passes


class Query:
    """A query that ends when told to."""

    def __init__(self, calls: list[str], name: str) -> None:
        self.calls, self.name = calls, name

    def processAllAvailable(self) -> None:  # noqa: N802 (Spark's name)
        self.calls.append(f"{self.name} caught up")

    @property
    def isActive(self) -> bool:  # noqa: N802 (Spark's name)
        return self.name != "terminals"

    def awaitTermination(self) -> None:  # noqa: N802 (Spark's name)
        raise StreamingQueryException("redis.exceptions.ConnectionError: refused")

    def stop(self) -> None:
        self.calls.append(f"{self.name} stopped")


def test_views_catch_up_in_order_before_any_is_stopped():
    calls: list[str] = []
    queries: Any = [Query(calls, "customers"), Query(calls, "terminals")]
    follow(queries, threading.Event(), until_caught_up=True)
    assert calls == [
        "customers caught up",
        "terminals caught up",
        "customers stopped",
        "terminals stopped",
    ]


def test_what_ends_one_view_ends_all_and_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process_market_stream, "CHECK_SECONDS", 0.01)
    calls: list[str] = []
    queries: Any = [Query(calls, "customers"), Query(calls, "terminals")]
    with pytest.raises(StreamingQueryException, match="refused"):
        follow(queries, threading.Event(), until_caught_up=False)
    assert calls == ["customers stopped", "terminals stopped"]


def test_after_an_outage_the_queries_begin_again_and_after_a_fault_they_do_not(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(process_market_stream, "waiting_seconds", lambda attempt: 0.01 * attempt)
    begun: list[int] = []

    class Ending:
        """Each life ends otherwise: an outage, an outage, a fault."""

        lastProgress = None  # noqa: N815 (Spark's name)

        def processAllAvailable(self) -> None:  # noqa: N802 (Spark's name)
            reason = "kafka.errors.KafkaTimeoutError" if len(begun) < 3 else "TypeError"
            raise StreamingQueryException(reason)

        def stop(self) -> None:
            begun.append(-1)

    def begin() -> Any:
        begun[:] = [each for each in begun if each > 0]
        begun.append(len(begun) + 1)
        return [Ending()]

    with pytest.raises(StreamingQueryException, match="TypeError"):
        process(begin, threading.Event(), until_caught_up=True)
    assert [each for each in begun if each > 0] == [1, 2, 3]
