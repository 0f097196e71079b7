"""The topic of decisions: every record as a message, at least once; its key, the request id, tells repeats.

The client is librdkafka: what it does for a message is done outside the interpreter, which the requests need.
Waiting for the broker and importing the library happen in one thread of its own. A producer that failed is
thrown away: what it held is sent again by the next one, from the spool.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from common_service_libs.decision_store import RejectedRecords
from common_service_libs.errors import DecisionTopicUnavailable

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

logger = logging.getLogger(__name__)

PARTITIONS = 3
REQUEST_TIMEOUT_MS = 5_000
DELIVERY_TIMEOUT_MS = 8_000
ANSWER_SECONDS = 5.0
MAX_RECORD_BYTES = 1 << 20


class _Key(msgspec.Struct):
    request_id: str


_key = msgspec.json.Decoder(_Key)


class DecisionTopic:
    """Publishes encoded records and returns when all in-sync replicas have them."""

    def __init__(self, servers: str, topic: str) -> None:
        self._servers = servers
        self._topic = topic
        self._producer: Producer | None = None
        self._thread = ThreadPoolExecutor(1, "decision-topic")

    async def insert(self, records: Sequence[bytes]) -> int:
        """Publish records and return their number.

        Raises DecisionTopicUnavailable if it is not known whether all of them arrived, RejectedRecords if one
        of them is too large ever to be taken.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._publish, list(records))

    async def close(self) -> None:
        """Give the connection up; what is on its way stays in the spool."""
        with suppress(RuntimeError):  # closed already
            self._thread.submit(self._drop)
        self._thread.shutdown(wait=False)

    def _publish(self, records: list[bytes]) -> int:
        from confluent_kafka import KafkaError, KafkaException  # noqa: PLC0415 (slow to import)

        if any(len(record) > MAX_RECORD_BYTES for record in records):
            raise RejectedRecords(f"a record is larger than {MAX_RECORD_BYTES} bytes")
        failures: list[KafkaError] = []
        messages: list[dict[str, Any]] = [
            {"key": _key.decode(record).request_id, "value": record} for record in records
        ]

        def failed(failure: KafkaError | None, _: Message) -> None:
            if failure is not None:
                failures.append(failure)

        try:
            producer = self._connected()
            producer.produce_batch(self._topic, messages, on_delivery=failed)
            failures += [message["_error"] for message in messages if "_error" in message]
            lost = producer.flush((DELIVERY_TIMEOUT_MS + REQUEST_TIMEOUT_MS) / 1000)
        except (KafkaException, BufferError) as error:
            self._drop()
            raise DecisionTopicUnavailable("the broker does not answer") from error
        if any(failure.code() == KafkaError.MSG_SIZE_TOO_LARGE for failure in failures):
            raise RejectedRecords("a record is larger than the broker takes")
        if failures or lost:
            self._drop()
            reason = failures[0].str() if failures else f"{lost} records without an answer"
            raise DecisionTopicUnavailable("the broker does not answer") from OSError(reason)
        return len(records)

    def _connected(self) -> Producer:
        if self._producer is None:
            from confluent_kafka import Producer  # noqa: PLC0415 (slow to import)

            options = {"bootstrap.servers": self._servers, "logger": logger}
            self._create(options)
            self._producer = Producer(
                {
                    **options,
                    "acks": "all",
                    # Repeats are told by their key; a sequence would tie us to what the broker remembers.
                    "enable.idempotence": False,
                    "request.timeout.ms": REQUEST_TIMEOUT_MS,
                    "message.timeout.ms": DELIVERY_TIMEOUT_MS,
                    "message.max.bytes": 2 * MAX_RECORD_BYTES,
                    "partitioner": "murmur2_random",  # as every other client of Kafka spreads keys
                    "delivery.report.only.error": True,  # nothing of ours runs for what arrived
                    "linger.ms": 0,  # what is given is a batch already
                }
            )
        return self._producer

    def _create(self, options: dict[str, Any]) -> None:
        """Create the topic if it is not there, replicated as the broker does by default."""
        from confluent_kafka import KafkaError, KafkaException  # noqa: PLC0415 (slow to import)
        from confluent_kafka.admin import AdminClient, NewTopic  # noqa: PLC0415 (slow to import)

        admin = AdminClient(options)
        if self._topic in admin.list_topics(timeout=ANSWER_SECONDS).topics:
            return
        created = admin.create_topics([NewTopic(self._topic, PARTITIONS)], request_timeout=ANSWER_SECONDS)
        try:
            created[self._topic].result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another worker was faster
                raise

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()
