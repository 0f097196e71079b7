"""The stream on real Spark: the same events to both processors leave the same bytes in Redis."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from common_test_utils import require_stack
from kafka import TopicPartition

from data_source_connectors.kafka_consumer_utils import open_consumer, open_producer
from data_transformation_pipelines.spark_jobs_feast import process_market_stream
from data_transformation_pipelines.spark_jobs_feast.spark_session import SparkSettings, spark_session
from data_transformation_pipelines.stream_jobs_feast import process_transaction_stream
from data_transformation_pipelines.stream_jobs_feast.aggregation_contract import load_definition
from data_transformation_pipelines.stream_jobs_feast.batch_oracle import compare
from data_transformation_pipelines.stream_jobs_feast.rehearsal import (
    Rehearsal,
    as_messages,
    in_disorder,
    made_up_events,
    rehearse,
    source_topic,
)
from data_transformation_pipelines.stream_jobs_feast.transaction_events import encode

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

DEFINITION = load_definition()
EVENTS = made_up_events(1_500, 2, customers=80, terminals=120, seed=5)
NEWEST = EVENTS["tx_datetime"].max()
MOMENT = NEWEST.to_pydatetime()
Message = tuple[bytes | None, bytes | None]

POISON: list[Message] = [
    (b"7", b"no json"),
    (b"7", None),
    (b"7", b'{"transaction_id": 1}'),
    (b"8", encode(900_001, MOMENT, 7, 7, 1.0)),  # the key is another's
    (b"7", encode(900_002, MOMENT - pd.Timedelta(days=9), 7, 7, 1.0)),  # too late
    (b"7", encode(900_003, MOMENT + pd.Timedelta(days=9), 7, 7, 1.0)),  # from the future
]


@pytest.fixture(scope="module", autouse=True)
def spark() -> Iterator[Any]:
    """One JVM for the module; the command uses the session that runs."""
    require_stack()
    with spark_session("test", SparkSettings(driver_memory="1g", shuffle_partitions=2)) as session:
        yield session


def send(rehearsal: Rehearsal, messages: list[Message]) -> None:
    producer = open_producer(rehearsal.settings.kafka)
    for key, value in messages:
        producer.send(source_topic(rehearsal.settings.stream, DEFINITION), key=key, value=value)
    producer.flush()
    producer.close()


def hashes(rehearsal: Rehearsal) -> dict[bytes, dict[bytes, bytes]]:
    """Return all that the rehearsal has in Redis, by key without the project."""
    project = rehearsal.project.encode()
    return {
        key.removesuffix(project): rehearsal.redis.hgetall(key)
        for key in rehearsal.redis.scan_iter(count=10_000)
        if key.endswith(project)
    }


def letters(rehearsal: Rehearsal) -> list[tuple[bytes | None, bytes | None, bytes]]:
    """Return the dead letters: key, value and reason."""
    consumer = open_consumer(rehearsal.settings.kafka, group=None)
    at = TopicPartition(rehearsal.settings.stream.dead_letter_topic(DEFINITION), 0)
    consumer.assign([at])
    found = []
    try:
        while consumer.highwater(at) is None or consumer.position(at) < consumer.highwater(at):
            for record in consumer.poll(timeout_ms=200).get(at, []):
                found.append((record.key, record.value or None, dict(record.headers)["reason"]))
    finally:
        consumer.close()
    return sorted(found, key=repr)


def run(module: Any, rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    for name, value in rehearsal.environment.items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)
    assert module.main(["--until-caught-up", *options]) == 0


def crash_before_the_position(checkpoint: Path) -> None:
    """Leave the checkpoint as a crash does between the last batch's rows and the note that they are there."""
    for view in DEFINITION.views:
        commits = checkpoint / view.view / "commits"
        newest = max((path.name for path in commits.iterdir() if path.name.isdigit()), key=int)
        (commits / newest).unlink()
        (commits / f".{newest}.crc").unlink(missing_ok=True)


def test_both_processors_leave_the_same_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Duplicates, disorder, poison; several batches and a crash between two; then a lost checkpoint."""
    disorderly = list(as_messages(in_disorder(EVENTS, seed=6)))
    half = len(disorderly) // 2
    parts: list[list[Message]] = [[*disorderly[:half], *POISON[:3]], [*disorderly[half:], *POISON[3:]]]
    kept = ("--checkpoint", str(tmp_path / "checkpoint"), "--batch-rows", "600")
    with (
        rehearse(DEFINITION, name="spark", partitions=2) as by_spark,
        rehearse(DEFINITION, name="kafka", partitions=2) as by_kafka,
    ):
        send(by_spark, parts[0])
        run(process_market_stream, by_spark, monkeypatch, *kept)
        crash_before_the_position(tmp_path / "checkpoint")
        send(by_spark, parts[1])
        run(process_market_stream, by_spark, monkeypatch, *kept)
        for part in parts:
            send(by_kafka, part)
        run(process_transaction_stream, by_kafka, monkeypatch)

        found = compare(by_spark.redis, EVENTS, by_spark.project)
        assert found["entities"] == 200
        assert found["mismatches"] == 0, found
        held = hashes(by_spark)
        assert held == hashes(by_kafka)
        # A batch that is done again sends its dead letters again.
        assert set(letters(by_spark)) == set(letters(by_kafka))
        assert len(letters(by_kafka)) == len(POISON)

        # Redis and the checkpoint are lost; one more event came.
        by_spark.redis.delete(*(key + by_spark.project.encode() for key in held))
        send(by_spark, [(b"7", encode(900_010, MOMENT, 7, 7, 0.01))])
        run(process_market_stream, by_spark, monkeypatch, "--checkpoint", str(tmp_path / "another"))
        assert len(differing(hashes(by_spark), held)) == 2


def differing(left: dict[bytes, Any], right: dict[bytes, Any]) -> set[bytes]:
    return {key for key in left.keys() | right.keys() if left.get(key) != right.get(key)}
