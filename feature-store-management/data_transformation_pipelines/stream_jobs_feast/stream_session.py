"""One life of the processor: from its connections to an outage, a stop or the end of the log.

A session remembers nothing that the log and the table of positions can't give back. Whatever goes wrong ends
it; the next one rebuilds its state and goes on, and everything it writes a second time is the same.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.partitioner import murmur2

from data_source_connectors.database_connector import DatabaseSettings
from data_source_connectors.kafka_consumer_utils import (
    KafkaSettings,
    behind,
    ensure_topics,
    open_consumer,
    open_producer,
)

from .aggregation_contract import StreamDefinition, StreamedView
from .offline_rows import Advance, LostPartitionError, OfflineRows, Position
from .online_rows import OnlineRows
from .partition_alignment import Alignment, Silence
from .running_totals import PartitionTotals, TotalsRow
from .stream_metrics import StreamMetrics
from .stream_settings import FeastSettings, RedisSettings, StreamSettings
from .transaction_events import RefusedMessageError, Transaction, check_key, decode

log = logging.getLogger("transaction_stream")

POLL_MS = 200
POLL_RECORDS = 2_000
# So many events share one round trip to Redis.
CHUNK = 250
# A partition that is ahead of the others is not read further than this.
MOST_WAITING = 20_000
FLUSH_SECONDS = 40
CLOSE_MS = 3_000
GAUGE_SECONDS = 1.0
# After so long a partition that has more and gives nothing ends the session; the next one reads it.
SILENT_SECONDS = 45.0


class StalledError(Exception):
    """The process was held up for longer than its group waits: another may have its partitions."""


class LogLostError(Exception):
    """The log ends before the position that is remembered, or begins after the days that are kept."""


@dataclass(frozen=True)
class Settings:
    """All that a processor is told."""

    kafka: KafkaSettings
    redis: RedisSettings
    database: DatabaseSettings
    feast: FeastSettings
    stream: StreamSettings


class _Partition:
    """A partition that this processor owns."""

    def __init__(
        self, at: TopicPartition, view: StreamedView, totals: PartitionTotals, position: Position | None
    ) -> None:
        self.at, self.view, self.totals = at, view, totals
        self.durable: int | None = position.next_offset if position else None
        # Below this everything was written before: it is read to rebuild the totals alone.
        self.live_from = position.next_offset if position else 0
        self.next_offset = self.fetched = position.rebuild_from if position else 0
        self.rebuilding = self.next_offset < self.live_from
        self.checked_start = not self.rebuilding

    def may_go_on_at(self, durable: int) -> bool:
        """Whether the totals are those of the position that is remembered, or on the way there."""
        return self.durable == durable and (self.rebuilding or self.next_offset == durable)


class _Listener(ConsumerRebalanceListener):
    def __init__(self, session: Session) -> None:
        self._session = session

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._session.before_rebalance()

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._session.after_rebalance()


class Session:
    """Reads the stream's topics and writes totals, forwarded messages and dead letters until told to stop."""

    def __init__(
        self, settings: Settings, definition: StreamDefinition, metrics: StreamMetrics, stop: threading.Event
    ) -> None:
        self._settings, self._definition, self._metrics, self._stop = settings, definition, metrics, stop
        stream = settings.stream
        self._views = {stream.topic(view.topic): view for view in definition.views}
        self._source = stream.topic(definition.views[0].topic)
        self._forwarded_to = [
            (topic, view.entity_key) for topic, view in self._views.items() if topic != self._source
        ]
        self._dead_letters = stream.dead_letter_topic(definition)
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._kept: dict[TopicPartition, _Partition] = {}
        self._alignment = Alignment(time.monotonic)
        self._silence = Silence(time.monotonic, SILENT_SECONDS)
        self._assigned: bool | None = None
        self._rebalance_error: Exception | None = None
        self._rows: dict[str, dict[tuple[int, int, int], TotalsRow]] = {
            view.view: {} for view in definition.views
        }
        self._forwards: list[tuple[ConsumerRecord, Transaction]] = []
        self._refused: list[tuple[ConsumerRecord, RefusedMessageError]] = []
        self._dirty = False
        self._committing: Future[None] | None = None
        self._committed_at = self._gauged_at = time.monotonic()
        self._send_error: BaseException | None = None
        self._last_sent: dict[tuple[str, int], Any] = {}
        self._partition_of: dict[tuple[str, int], int] = {}
        self._alive_at = self._polled_wall = 0.0
        self._stack = ExitStack()

    # Connections.

    def run(self, *, until_caught_up: bool, on_ready: Callable[[], None]) -> None:
        """Process until `stop` is set or, if so asked, all that the log holds is processed."""
        try:
            self._open()
            while not self._stop.is_set():
                if self._step(until_caught_up):
                    on_ready()
                    break
                if self._assigned is False:
                    on_ready()
            self._commit(wait=True)
        except BaseException:
            # Leaving the group asks to make durable what was done, and this was done by half.
            self._discard()
            raise
        finally:
            self._stack.close()

    def _open(self) -> None:
        settings = self._settings
        self._online = OnlineRows(settings.redis, settings.feast.feast_project, self._definition)
        self._stack.callback(self._online.close)
        self._online.check()
        self._offline = OfflineRows(
            settings.database,
            settings.feast.feature_store_schema_prefix,
            settings.stream.consumer_group,
            self._definition,
        )
        self._stack.callback(self._offline.close)
        ensure_topics(settings.kafka, settings.stream.topics(self._definition))
        self._producer = open_producer(settings.kafka)
        self._stack.callback(self._producer.close, 0)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self._stack.callback(self._worker.shutdown)
        self._consumer = open_consumer(settings.kafka, group=settings.stream.consumer_group)
        self._stack.callback(self._consumer.close, autocommit=False, timeout_ms=CLOSE_MS)
        self._consumer.subscribe(list(self._views), listener=_Listener(self))

    # Rebalances. The group calls these from within a poll.

    def before_rebalance(self) -> None:
        """Make durable what was done, so that whoever gets the partitions goes on from here."""
        try:
            self._commit(wait=True)
        except Exception as error:  # handed to the main loop: the client would only log it
            self._rebalance_error = error
        self._kept, self._partitions = self._partitions, {}
        self._alignment.reset([])

    def after_rebalance(self) -> None:
        """Read nothing of the new partitions before it is known from where."""
        self._consumer.pause(*self._consumer.assignment())
        self._assigned = True

    def _load_positions(self) -> None:
        self._assigned = False
        assignment = sorted(self._consumer.assignment())
        self._discard()
        for at in assignment:
            partition = self._partitions[at] = self._partition(at)
            self._consumer.seek(at, partition.next_offset)
            self._consumer.resume(at)
            if partition.rebuilding:
                log.info("%s[%d]: rebuilding %d to %d", *at, partition.next_offset, partition.live_from)
        self._kept = {}
        self._alignment.reset(at.partition for at in assignment if at.topic == self._source)
        log.info("reading %s", ", ".join(f"{at.topic}[{at.partition}]" for at in assignment) or "nothing")

    def _partition(self, at: TopicPartition) -> _Partition:
        """Return a partition as it was left if nobody else has gone on with it, else one to be rebuilt."""
        position = self._offline.position(at.topic, at.partition)
        kept = self._kept.get(at)
        if kept is not None and position is not None and kept.may_go_on_at(position.next_offset):
            kept.fetched = kept.next_offset
            return kept
        view = self._views[at.topic]
        totals = PartitionTotals(view, self._definition.window, self._settings.stream.limits)
        partition = _Partition(at, view, totals, position)
        if partition.rebuilding:
            self._metrics.rebuilds.add(view.view)
        return partition

    def _discard(self) -> None:
        """Forget all that is not durable; it is read again."""
        if self._committing is not None:
            self._committing.exception()
            self._committing = None
        self._partitions = {}
        for rows in self._rows.values():
            rows.clear()
        self._forwards, self._refused = [], []
        self._dirty = False

    # The loop.

    def _step(self, until_caught_up: bool) -> bool:
        """Read and process once; return whether the log's end was reached and waited for."""
        polled = self._consumer.poll(timeout_ms=POLL_MS, max_records=POLL_RECORDS)
        self._alive_at, self._polled_wall = time.monotonic(), time.time()
        if self._rebalance_error is not None:
            raise self._rebalance_error
        if self._send_error is not None:
            raise self._send_error
        if self._assigned:
            self._load_positions()
            return False
        try:
            self._process(polled)
            self._commit(wait=False)
            ended = until_caught_up and not polled and self._assigned is False and self._caught_up()
        except LostPartitionError as error:
            log.warning("%s; reading again from where it stands", error)
            self._kept = {}
            self._consumer.pause(*self._consumer.assignment())
            self._assigned = True
            return False
        self._update_gauges()
        return ended

    def _process(self, polled: dict[TopicPartition, list[ConsumerRecord]]) -> None:
        ready: list[ConsumerRecord] = []
        live: dict[int, list[ConsumerRecord]] = {}
        for at, records in polled.items():
            partition = self._partitions.get(at)
            if partition is None:
                # Between two assignments; whoever has it next reads them.
                continue
            self._check_log(partition, records[0].offset)
            partition.fetched = records[-1].offset + 1
            # What only rebuilds is forwarded nowhere; all else of the source waits for its turn, also where a
            # fetch holds both: it may hold days.
            old = sum(record.offset < partition.live_from for record in records)
            ready += records if at.topic != self._source else records[:old]
            if at.topic == self._source:
                live[at.partition] = records[old:]
        paused = self._consumer.paused()
        for at, partition in self._partitions.items():
            lag = self._lag(partition)
            if at in polled or at in paused or not lag:
                self._silence.heard(at)
            elif self._silence.too_long(at):
                raise StalledError(f"{at.topic}[{at.partition}] gives nothing of the {lag} messages it has")
            if at.topic == self._source:
                self._alignment.put(at.partition, live.get(at.partition, []), lag)
        ready += self._alignment.take()
        for start in range(0, len(ready), CHUNK):
            self._process_chunk(ready[start : start + CHUNK])
        self._send_outgoing()
        for partition in self._partitions.values():
            if partition.rebuilding and partition.next_offset >= partition.live_from:
                self._finish_rebuild(partition)
        self._hold_back()

    def _check_log(self, partition: _Partition, first: int) -> None:
        if not partition.checked_start:
            if first > partition.next_offset:
                raise LogLostError(
                    f"{partition.at.topic}[{partition.at.partition}] begins at {first}, but the days kept "
                    f"began at {partition.next_offset}: totals would be too small; keep more of it"
                )
            partition.checked_start = True

    def _lag(self, partition: _Partition) -> int | None:
        end = self._consumer.highwater(partition.at)
        if end is None:
            return None
        if end < partition.live_from:
            raise LogLostError(
                f"{partition.at.topic}[{partition.at.partition}] ends at {end}, but was processed up to "
                f"{partition.live_from}: it is another log. Give the processor a new STREAM_CONSUMER_GROUP"
            )
        if partition.fetched >= end:
            return 0
        # Beyond the last message there may be marks of transactions, which only the client sees.
        return max(0, end - self._consumer.position(partition.at))

    def _hold_back(self) -> None:
        for at in self._partitions:
            if at.topic == self._source:
                waiting = self._alignment.waiting(at.partition)
                if waiting > MOST_WAITING:
                    self._consumer.pause(at)
                elif waiting < MOST_WAITING // 2 and at in self._consumer.paused():
                    self._consumer.resume(at)

    def _process_chunk(self, records: list[ConsumerRecord]) -> None:
        self._refuse_if_stalled()
        newest: dict[str, dict[int, TotalsRow]] = {name: {} for name in self._rows}
        arrivals: dict[str, list[int]] = {name: [] for name in self._rows}
        for record in records:
            partition = self._partitions[TopicPartition(record.topic, record.partition)]
            view, offset = partition.view, record.offset
            live = offset >= partition.live_from
            if live and partition.rebuilding:
                self._finish_rebuild(partition)
            partition.next_offset = offset + 1
            try:
                event, time_us = decode(record.value)
                check_key(record.key, getattr(event, view.entity_key), view.entity_key)
                row = partition.totals.add(event, time_us, record.timestamp * 1_000, offset)
            except RefusedMessageError as error:
                if live:
                    self._refused.append((record, error))
                continue
            if not live:
                continue
            if row is None:
                self._metrics.duplicates.add(view.view)
                continue
            self._rows[view.view][row.entity, row.event_us, row.created_us] = row
            arrivals[view.view].append(record.timestamp)
            if row.online:
                newest[view.view][row.entity] = row
            else:
                self._metrics.late.add(view.view)
            if record.topic == self._source:
                self._forwards.append((record, event))
        self._write_online(newest, arrivals)
        self._dirty = True

    def _finish_rebuild(self, partition: _Partition) -> None:
        """Bring Redis to the rebuilt totals: it may have lost rows, or never got them before a crash."""
        partition.rebuilding = False
        rows = list(partition.totals.newest_rows())
        if rows:
            self._refuse_if_stalled()
            self._online.write(partition.view, rows)
        log.info("%s[%d]: rebuilt, %d rows", partition.at.topic, partition.at.partition, len(rows))

    def _write_online(self, newest: dict[str, dict[int, TotalsRow]], arrivals: dict[str, list[int]]) -> None:
        for view in self._definition.views:
            rows = newest[view.view]
            if not arrivals[view.view]:
                continue
            if rows:
                self._refuse_if_stalled()
                self._online.write(view, list(rows.values()))
            now, arrived = time.time(), np.array(arrivals[view.view], dtype=np.float64) / 1_000
            self._metrics.events.add(view.view, count=len(arrived))
            self._metrics.freshness.observe(view.view, np.maximum(now - arrived, 0.0))
            self._metrics.processing.observe(
                view.view, np.full(len(arrived), max(0.0, now - self._polled_wall))
            )

    def _refuse_if_stalled(self) -> None:
        """Raise StalledError where nothing was done for so long that the group has given up this process.

        Called every few milliseconds of work; work itself, however long, is no stall.
        """
        held_up, self._alive_at = time.monotonic() - self._alive_at, time.monotonic()
        if held_up * 1_000 > self._settings.kafka.session_timeout_ms:
            raise StalledError(f"held up for {held_up:.1f} s between a poll and its rows")

    # Messages out.

    def _send_outgoing(self) -> None:
        """Send what a poll brought forth, after Redis has all of it: together, so that batches are large."""
        for record, event in self._forwards:
            self._forward(record, event)
        for record, refusal in self._refused:
            self._refuse(record, refusal)
        self._forwards, self._refused = [], []

    def _forward(self, record: ConsumerRecord, event: Transaction) -> None:
        for topic, key in self._forwarded_to:
            entity = getattr(event, key)
            self._send(topic, entity, key=b"%d" % entity, value=record.value, timestamp_ms=record.timestamp)

    def _send(self, topic: str, entity: int, *, key: bytes, value: bytes, timestamp_ms: int) -> None:
        partition = self._partition_of.get((topic, entity))
        if partition is None:
            # As every client's default partitioner does; remembered, for it costs more than all
            # the rest of an event.
            count = len(self._producer.partitions_for(topic))
            partition = self._partition_of[topic, entity] = (murmur2(key) & 0x7FFFFFFF) % count
        sent = self._producer.send(
            topic, value=value, key=key, partition=partition, timestamp_ms=timestamp_ms
        )
        sent.add_errback(self._sending_failed)
        self._last_sent[topic, partition] = sent

    def _refuse(self, record: ConsumerRecord, error: RefusedMessageError) -> None:
        self._metrics.rejected.add(record.topic, error.reason)
        headers = [
            ("reason", str(error)[:500].encode()),
            ("topic", record.topic.encode()),
            ("partition", b"%d" % record.partition),
            ("offset", b"%d" % record.offset),
        ]
        # A message must have a key or a value.
        value = b"" if record.key is None and record.value is None else record.value
        sent = self._producer.send(self._dead_letters, value=value, key=record.key, headers=headers)
        sent.add_errback(self._sending_failed)

    def _sending_failed(self, error: BaseException) -> None:
        self._send_error = error

    # Durability.

    def _commit(self, *, wait: bool) -> None:
        """Hand over what was done to be made durable, if the last time is over; with `wait`, see it done."""
        if self._committing is not None and (wait or self._committing.done()):
            done, self._committing = self._committing, None
            done.result()
        due = time.monotonic() - self._committed_at >= self._settings.stream.commit_interval_ms / 1_000
        if self._committing is not None or not self._dirty or not (due or wait):
            return
        steps = []
        for partition in self._partitions.values():
            if not partition.rebuilding and partition.next_offset != partition.durable:
                position = Position(partition.next_offset, partition.totals.first_offsets)
                steps.append(Advance(partition.at.topic, partition.at.partition, partition.durable, position))
                partition.durable = partition.next_offset
        rows = {name: list(some.values()) for name, some in self._rows.items()}
        self._rows = {name: {} for name in self._rows}
        self._dirty = False
        self._committed_at = time.monotonic()
        sent, self._last_sent = self._last_sent, {}
        self._committing = self._worker.submit(self._make_durable, rows, steps, sent)
        if wait:
            self._commit(wait=True)

    def _make_durable(
        self, rows: dict[str, list[TotalsRow]], steps: list[Advance], sent: dict[tuple[str, int], Any]
    ) -> None:
        # What was forwarded must be in the log before the position says that it was.
        self._producer.flush(timeout=FLUSH_SECONDS)
        if self._send_error is not None:
            raise self._send_error
        self._offline.advance(rows, steps, {at: last.get().offset + 1 for at, last in sent.items()})

    # Where the log ends.

    def _caught_up(self) -> bool:
        if len(self._alignment):
            return False
        for partition in self._partitions.values():
            if behind(self._consumer, partition.at) != 0:
                return False
            if partition.rebuilding:
                self._finish_rebuild(partition)
        self._commit(wait=True)
        # The log may show a message later than it took it: what was forwarded says how far to read.
        forwarded = self._offline.forwarded()
        if any(
            self._consumer.position(at) < forwarded.get((at.topic, at.partition), 0)
            for at in self._partitions
        ):
            return False
        return not self._dirty

    def _update_gauges(self) -> None:
        if time.monotonic() - self._gauged_at < GAUGE_SECONDS:
            return
        self._gauged_at = time.monotonic()
        self._metrics.lag.values = {
            (at.topic, at.partition): max(0, end - partition.next_offset)
            for at, partition in self._partitions.items()
            if (end := self._consumer.highwater(at)) is not None
        }
