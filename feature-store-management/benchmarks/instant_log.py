"""A log in memory whose messages are there the moment they arrive: what a broker without delay would be.

It stands in for kafka-python's consumer and producer in a `Session`, with as much of their interface as that
uses. Messages of the source arrive at a steady rate; what is forwarded can be read at once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.partitioner import murmur2

NAP_SECONDS = 0.0002
LEAD_SECONDS = 0.5


class _Taken(NamedTuple):
    """Where the log has a message."""

    offset: int


class _Sent(NamedTuple):
    """What a producer returns for a message; here it is in the log already."""

    value: _Taken

    def add_errback(self, _report: Any) -> None:
        """Nothing fails here."""


class InstantLog:
    """The topics of one processor, and its consumer and producer at once."""

    def __init__(
        self, source: str, messages: Sequence[tuple[bytes, bytes]], rate: float, partitions: int
    ) -> None:
        self._source, self._messages, self._rate, self._count = source, messages, rate, partitions
        self._partition_of = [(murmur2(key) & 0x7FFFFFFF) % partitions for key, _ in messages]
        self._began: float | None = None
        self._arrived = 0
        self._ends: dict[TopicPartition, int] = {}
        self._forwarded: list[ConsumerRecord] = []
        self._waiting: Counter[TopicPartition] = Counter()
        self._listener: ConsumerRebalanceListener | None = None

    @property
    def exhausted(self) -> bool:
        """Whether every message was read, the forwarded ones as well."""
        return self._arrived == len(self._messages) and not self._forwarded

    # As a consumer.

    def subscribe(self, topics: Iterable[str], listener: ConsumerRebalanceListener) -> None:
        """Own every partition of the topics from the next poll on."""
        self._ends = {TopicPartition(topic, n): 0 for topic in topics for n in range(self._count)}
        self._listener = listener

    def assignment(self) -> set[TopicPartition]:
        """Return all partitions."""
        return set(self._ends)

    def poll(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        """Return what has arrived by now, waiting for the first message where there is none."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            listener.on_partitions_assigned(self.assignment())
            return {}
        if self._began is None:
            self._began = time.time() + LEAD_SECONDS
        deadline = time.monotonic() + timeout_ms / 1_000
        while not (polled := self._take(max_records)) and time.monotonic() < deadline:
            time.sleep(NAP_SECONDS)
        return polled

    def _take(self, most: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        polled: dict[TopicPartition, list[ConsumerRecord]] = {}
        assert self._began is not None
        due = min(len(self._messages), max(0, int((time.time() - self._began) * self._rate)))
        upto = min(due, self._arrived + most)
        records = [self._arrival(number) for number in range(self._arrived, upto)]
        self._arrived = upto
        forwarded, self._forwarded = self._forwarded[:most], self._forwarded[most:]
        self._waiting.subtract(TopicPartition(record.topic, record.partition) for record in forwarded)
        for record in [*records, *forwarded]:
            at = TopicPartition(record.topic, record.partition)
            polled.setdefault(at, []).append(record._replace(offset=self._ends[at]))
            self._ends[at] += 1
        return polled

    def _arrival(self, number: int) -> ConsumerRecord:
        assert self._began is not None
        key, value = self._messages[number]
        at_ms = int((self._began + number / self._rate) * 1_000)
        return _record(self._source, self._partition_of[number], at_ms, key, value)

    def position(self, at: TopicPartition) -> int:
        """Return the offset of the next message."""
        return self._ends[at]

    def highwater(self, at: TopicPartition) -> int:
        """Return where the log ends: at what was read last, for nothing waits."""
        return self._ends[at]

    def seek(self, at: TopicPartition, offset: int) -> None:
        """Begin at the log's beginning, where alone this log can."""
        if offset != self._ends[at]:
            raise ValueError(f"{at} stands at {self._ends[at]}, not at {offset}")

    def pause(self, *_partitions: TopicPartition) -> None:
        """Nothing is fetched ahead."""

    def resume(self, *_partitions: TopicPartition) -> None:
        """Nothing is fetched ahead."""

    def paused(self) -> Collection[TopicPartition]:
        """Return no partition."""
        return ()

    def close(self, *_arguments: Any, **_options: Any) -> None:
        """Nothing is open."""

    # As a producer.

    def partitions_for(self, _topic: str) -> set[int]:
        """Return the partitions' numbers."""
        return set(range(self._count))

    def send(
        self, topic: str, *, value: bytes, key: bytes, partition: int = 0, timestamp_ms: int = 0, **_: Any
    ) -> _Sent:
        """Append a message that can be read at once."""
        at = TopicPartition(topic, partition)
        offset = self._ends[at] + self._waiting[at]
        self._waiting[at] += 1
        self._forwarded.append(_record(topic, partition, timestamp_ms, key, value))
        return _Sent(_Taken(offset))

    def flush(self, timeout: float | None = None) -> None:
        """Everything is in the log already."""


def _record(topic: str, partition: int, at_ms: int, key: bytes, value: bytes) -> ConsumerRecord:
    return ConsumerRecord(topic, partition, -1, 0, at_ms, 0, key, value, [], None, len(key), len(value), -1)
