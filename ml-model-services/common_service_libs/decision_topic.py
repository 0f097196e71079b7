"""The topic of decisions: every record as a message, at least once; its key, the request id, tells repeats.

The client library blocks and is slow to import, so both happen in one thread of its own. A producer that
failed is thrown away: what it held is sent again by the next one, from the spool.
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
    from kafka import KafkaProducer

logger = logging.getLogger(__name__)

PARTITIONS = 3
REQUEST_TIMEOUT_MS = 5_000
DELIVERY_TIMEOUT_MS = 8_000
MAX_RECORD_BYTES = 1 << 20
BATCH_BYTES = 256 << 10


class _Key(msgspec.Struct):
    request_id: str


_key = msgspec.json.Decoder(_Key)


class DecisionTopic:
    """Publishes encoded records and returns when all in-sync replicas have them."""

    def __init__(self, servers: str, topic: str) -> None:
        self._servers = servers.split(",")
        self._topic = topic
        self._producer: KafkaProducer | None = None
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
        from kafka.errors import KafkaError, MessageSizeTooLargeError  # noqa: PLC0415 (slow to import)

        if any(len(record) > MAX_RECORD_BYTES for record in records):
            raise RejectedRecords(f"a record is larger than {MAX_RECORD_BYTES} bytes")
        try:
            producer = self._connected()
            sent = [
                producer.send(self._topic, key=_key.decode(record).request_id.encode(), value=record)
                for record in records
            ]
            producer.flush(DELIVERY_TIMEOUT_MS / 1000)
            for future in sent:
                future.get(0)
        except MessageSizeTooLargeError as error:
            raise RejectedRecords(str(error)) from None
        except (KafkaError, OSError, TimeoutError) as error:
            self._drop()
            raise DecisionTopicUnavailable("the broker does not answer") from error
        return len(records)

    def _connected(self) -> KafkaProducer:
        if self._producer is None:
            from kafka import KafkaProducer  # noqa: PLC0415 (slow to import)

            options: dict[str, Any] = {
                "bootstrap_servers": self._servers,
                "bootstrap_timeout_ms": REQUEST_TIMEOUT_MS,
                "request_timeout_ms": REQUEST_TIMEOUT_MS,
            }
            self._create(options)
            self._producer = KafkaProducer(
                **options,
                acks="all",
                # Repeats are told by their key; a sequence would only tie us to what the broker remembers.
                enable_idempotence=False,
                delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
                max_block_ms=REQUEST_TIMEOUT_MS,
                max_request_size=2 * MAX_RECORD_BYTES,
                batch_size=BATCH_BYTES,
                metrics_enabled=False,
            )
        return self._producer

    def _create(self, options: dict[str, Any]) -> None:
        """Create the topic if it is not there, replicated as the broker does by default."""
        from kafka.admin import KafkaAdminClient, NewTopic  # noqa: PLC0415 (slow to import)
        from kafka.errors import TopicAlreadyExistsError  # noqa: PLC0415 (slow to import)

        admin = KafkaAdminClient(**options)
        try:
            if self._topic not in admin.list_topics():
                with suppress(TopicAlreadyExistsError):  # another worker was faster
                    admin.create_topics([NewTopic(self._topic, PARTITIONS)])
        finally:
            admin.close()

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(Exception):  # a broken producer may fail to close in ways of its own
                producer.close(timeout=0)
