"""The topic of decisions at both ends: what the service publishes, and what a reader of it may rely on."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import jsonschema
import pytest
from kafka import KafkaConsumer
from service_testkit import CONTRACTS
from stack_testkit import setting, unique
from test_decision_log import record

from common_service_libs.decision_record import decode, encode
from common_service_libs.decision_store import RejectedRecords
from common_service_libs.decision_topic import MAX_RECORD_BYTES, DecisionTopic
from common_service_libs.errors import DecisionTopicUnavailable

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


def messages(topic: str, wanted: int, seconds: float = 20) -> list[Any]:
    """Return what a consumer reads of the topic from its beginning, at least `wanted` messages."""
    consumer = KafkaConsumer(
        topic, bootstrap_servers=setting("KAFKA_BOOTSTRAP_SERVERS"), auto_offset_reset="earliest"
    )
    found: list[Any] = []
    try:
        deadline = time.monotonic() + seconds
        while len(found) < wanted and time.monotonic() < deadline:
            for part in consumer.poll(500).values():
                found += part
    finally:
        consumer.close()
    return found


async def test_a_consumer_reads_what_was_recorded_as_the_contract_says() -> None:
    name = unique("decisions-test")
    topics = [DecisionTopic(setting("KAFKA_BOOTSTRAP_SERVERS"), name) for _ in range(2)]
    records = [
        record(f"{name}-{i}", score=None if i == 0 else 0.1 + i / 7, features={"x": float("nan"), "y": "No"})
        for i in range(30)
    ]
    try:
        await asyncio.gather(
            topics[0].insert([encode(r) for r in records[:20]]),
            topics[1].insert([encode(r) for r in records[15:]]),
        )
    finally:
        for topic in topics:
            await topic.close()
    found = await asyncio.to_thread(messages, name, 35)
    assert len(found) == 35, "at least once: a repeat is told by its key"
    assert {m.key.decode() for m in found} == {r.request_id for r in records}
    assert {m.partition for m in found} > {0}, "spread over the partitions by key"
    expected = {r.request_id: encode(r) for r in records}
    schema = json.loads((CONTRACTS / "schemas" / "decisions.v1.schema.json").read_text())
    for message in found:
        assert message.value == expected[message.key.decode()]
        jsonschema.validate(json.loads(message.value), schema)
        assert decode(message.value).request_id == message.key.decode()


async def test_a_broker_that_is_away_is_said_and_a_record_too_large_is_told_from_it() -> None:
    away = DecisionTopic("127.0.0.1:9", unique("decisions-test"))
    with pytest.raises(DecisionTopicUnavailable):
        await away.insert([encode(record("1"))])
    with pytest.raises(RejectedRecords):
        await away.insert([encode(record("1", features={"text": "x" * MAX_RECORD_BYTES}))])
    await away.close()
