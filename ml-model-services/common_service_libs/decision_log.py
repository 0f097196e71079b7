"""The decision log: a decision is in the spool before its reply, and soon after wherever it has to be.

`append` returns when the record would survive the end of this process (or, with `spool_sync=always`, of the
machine). A background task a sink moves records on in order: to PostgreSQL exactly once (what is there is
skipped, so a batch that was written but not acknowledged may be written again) and, where there is a topic of
decisions, to it at least once. No sink waits for another; a record leaves the spool when all of them have it.
While one is silent the spool grows, up to its limit.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import Counter, OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from common_service_libs.background import forever
from common_service_libs.decision_record import DecisionRecord, decode, encode
from common_service_libs.decision_schema import Maintained
from common_service_libs.decision_store import RejectedRecords
from common_service_libs.errors import DecisionStoreUnavailable, DecisionTopicUnavailable, SpoolUnavailable
from common_service_libs.metrics import Labelled, ServiceMetrics
from common_service_libs.recent_decisions import Cursor
from common_service_libs.spool import Position, Spool

logger = logging.getLogger(__name__)

BATCH_RECORDS = 500
STORE_GATHER_SECONDS = 0.05
TOPIC_GATHER_SECONDS = 0.5  # a broker writes each batch for itself, and who reads the topic looks in seconds
HELD_RECORDS = 2000  # of each queue are sent from memory; what waits behind them is read from the spool
DRAIN_POLL_SECONDS = 0.02
SYNC_SECONDS = 0.02
FAST_SYNC_SECONDS = 0.0005
SLOW_SYNCS = 3  # one behind the other are no chance
TRY_DISK_SECONDS = 1.0
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 1.0
RECENT_RECORDS = 5000
EMPTY_ACTIVE_ABOVE_BYTES = 4 << 20
FIRST_MAINTENANCE_SECONDS = 60.0
MAINTENANCE_SECONDS = 86400.0
RETRY_SECONDS = 600.0
NEIGHBOUR_SECONDS = 0.15
SWEEP_SECONDS = 15.0
WARM_UP_TRIES = 4


class Sink(Protocol):
    """Where records go; see DecisionStore and DecisionTopic."""

    async def insert(self, records: list[bytes]) -> int:
        """Take records, and return how many of them were new."""

    async def close(self) -> None:
        """Give the connection up."""


class RecordStore(Sink, Protocol):
    """Where records end up and are found; see DecisionStore."""

    async def find(self, request_id: str, service: str) -> DecisionRecord | None:
        """Return one record."""

    async def recent(self, service: str, cursor: Cursor, limit: int) -> list[dict[str, Any]]:
        """Return the newest decisions before the cursor, in short."""

    async def claim(
        self, request_id: str, service: str, *, owner: str, place: str
    ) -> tuple[DecisionRecord | None, bool]:
        """Return the record of an id and, without one, whether `owner` may decide now."""

    async def release(self, request_id: str, service: str, owner: str) -> None:
        """Give a claim up."""

    async def sweep(self) -> None:
        """Take old claims away."""

    async def maintain(self) -> Maintained:
        """Prepare for the days to come, and drop what is too old."""


Entry = tuple[str, Position, bytes | None]
"""Request id and place of a record, and itself while few wait."""


@dataclass
class _Queue:
    """What one sink has not got yet, in order."""

    name: str
    sink: Sink
    gather: float
    flushes: Labelled
    flushed: Labelled
    waiting: deque[Entry] = field(default_factory=deque)
    appended: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, request_id: str, position: Position, payload: bytes) -> None:
        held = payload if len(self.waiting) < HELD_RECORDS else None
        self.waiting.append((request_id, position, held))
        self.appended.set()


def _not_synced(error: OSError) -> SpoolUnavailable:
    logger.error("the spool cannot be synced", extra={"reason": error.strerror})
    return SpoolUnavailable("the spool of decisions cannot be written")


def _tell(written: asyncio.Future[None], error: SpoolUnavailable | None = None) -> None:
    if written.done():  # its client gave up
        return
    if error is None:
        written.set_result(None)
    else:
        written.set_exception(error)


class DecisionLog:
    """Appends to the spool, drains it into the sinks, and finds a record wherever it is by now."""

    def __init__(
        self,
        service: str,
        spool: Spool,
        *,
        sink: RecordStore,
        lookup: RecordStore,
        metrics: ServiceMetrics,
        sync: Literal["interval", "always"],
        rejected_file: Path,
        topic: Sink | None = None,
    ) -> None:
        self._service = service
        self._spool = spool
        self._store = sink
        self._lookup = lookup
        self._metrics = metrics
        self._always = sync == "always"
        self._rejected_file = rejected_file
        self._to_store = _Queue("store", sink, STORE_GATHER_SECONDS, metrics.flushes, metrics.flushed)
        self._queues = [self._to_store]
        if topic is not None:
            self._queues.append(
                _Queue("topic", topic, TOPIC_GATHER_SECONDS, metrics.topic_flushes, metrics.topic_flushed)
            )
        metrics.spool(lambda: self.pending, lambda: spool.size_bytes)
        self._positions: dict[str, Position] = {}
        self._outstanding: Counter[int] = Counter()
        self._tight = False
        self._claimed = False
        self.neighbours = False
        """Whether other workers of the service spool records that this one cannot see yet."""
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._gathered: list[tuple[tuple[str, bytes], asyncio.Future[None]]] = []
        self._unsynced = asyncio.Event()
        self._synced: asyncio.Future[None] | None = None
        self._slow_syncs, self._disk_tried = 0, 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._syncing = ThreadPoolExecutor(1, "spool-sync")

    @property
    def full(self) -> bool:
        """Whether the next record would be refused."""
        return self._spool.full

    @property
    def pending(self) -> int:
        """How many records are not in every sink yet."""
        return max(len(queue.waiting) for queue in self._queues)

    @property
    def slot(self) -> str:
        """The folder of the spool, this process's own; who has it next takes its records over."""
        return str(self._spool.folder)

    async def open(self) -> None:
        """Take over what an earlier process left in the spool and begin to drain it."""
        for position, payload in self._spool.recover():
            try:
                self._remember(decode(payload).request_id, position, payload)
            except ValueError:  # msgspec.DecodeError is one
                self._reject(payload, "not a decision record", self._to_store)
        if self.pending:
            logger.info("decisions left in the spool", extra={"records": self.pending})
        work = [self._sync, self._maintain, self._sweep]
        work += [functools.partial(self._drain, queue) for queue in self._queues]
        self._tasks = [asyncio.create_task(forever(one)) for one in work]
        await self._warm_up()

    async def _warm_up(self) -> None:
        """Connect before the first request asks, as that would not wait; a silent database is no obstacle."""
        for _ in range(WARM_UP_TRIES):
            try:
                await self._lookup.find("", self._service)
            except DecisionStoreUnavailable:
                continue
            return

    async def close(self, deadline: float) -> None:
        """Drain for at most `deadline` seconds; what is left stays in the spool for the next process."""
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                while self.pending:
                    await asyncio.sleep(DRAIN_POLL_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._syncing.shutdown()
        self._release_done(closing=True)
        self._spool.syncer()()
        self._spool.close()
        for queue in self._queues:
            await queue.sink.close()
        await self._lookup.close()

    async def append(self, record: DecisionRecord, *, alone: bool = False) -> None:
        """Make the record durable; raises SpoolUnavailable, and then no reply may be given.

        The records of one turn of the loop are written at once; one that is known to be `alone` now. If the
        disk failed only after the record was written, it may still be recorded: a repeat finds it.
        """
        content = encode(record)
        if alone and not self._gathered:
            self._write((record.request_id, content))
            if self._always and self._disk_is_fast():
                self._sync_here()
                return
        else:
            loop = asyncio.get_running_loop()
            if not self._gathered:
                loop.call_soon(self._write_gathered)
            written = loop.create_future()
            self._gathered.append(((record.request_id, content), written))
            await written
        if self._always:
            await self._next_sync()

    def _write_gathered(self) -> None:
        gathered, self._gathered = self._gathered, []
        with suppress(SpoolUnavailable):  # there may be room for some of them
            self._write(*[entry for entry, _ in gathered])
            for _, written in gathered:
                _tell(written)
            return
        for entry, written in gathered:
            try:
                self._write(entry)
            except SpoolUnavailable as error:
                _tell(written, error)
            else:
                _tell(written)

    def _write(self, *entries: tuple[str, bytes]) -> None:
        contents = [content for _, content in entries]
        try:
            positions = self._spool.append(*contents)
        except SpoolUnavailable:
            # The disk may be full of what every sink has by now.
            self._tight = True
            if not self._release_done():
                raise
            positions = self._spool.append(*contents)
        for (request_id, content), position in zip(entries, positions, strict=True):
            self._remember(request_id, position, content)
        if not self._always:
            self._unsynced.set()

    async def find(self, request_id: str) -> DecisionRecord | None:
        """Return the record of that id, if any; raises DecisionStoreUnavailable if nobody can tell."""
        record = self.find_local(request_id) or await self.find_stored(request_id)
        if record is None and self.neighbours:
            await asyncio.sleep(NEIGHBOUR_SECONDS)
            record = await self.find_stored(request_id)
        return record

    async def find_stored(self, request_id: str) -> DecisionRecord | None:
        """Return the record of that id from the store; raises DecisionStoreUnavailable."""
        return await self._lookup.find(request_id, self._service)

    async def claim(self, request_id: str, *, owner: str, place: str) -> tuple[DecisionRecord | None, bool]:
        """Return the stored record of an id and, without one, whether `owner` may decide now."""
        self._claimed = True
        return await self._lookup.claim(request_id, self._service, owner=owner, place=place)

    async def release(self, request_id: str, owner: str) -> None:
        """Give a claim up; raises DecisionStoreUnavailable."""
        await self._lookup.release(request_id, self._service, owner)

    async def recent(self, cursor: Cursor, limit: int) -> list[dict[str, Any]]:
        """Return the newest decisions that are in the store; raises DecisionStoreUnavailable."""
        return await self._lookup.recent(self._service, cursor, limit)

    def find_local(self, request_id: str) -> DecisionRecord | None:
        """Return the record if this process still holds it."""
        if (position := self._positions.get(request_id)) is not None:
            return decode(self._spool.read(position))
        if (content := self._recent.get(request_id)) is not None:
            return decode(content)
        return None

    def _remember(self, request_id: str, position: Position, payload: bytes) -> None:
        self._positions[request_id] = position
        self._outstanding[position.segment] += len(self._queues)
        for queue in self._queues:
            queue.add(request_id, position, payload)

    async def _drain(self, queue: _Queue) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            await queue.appended.wait()
            await asyncio.sleep(queue.gather)
            queue.appended.clear()
            while queue.waiting:
                try:
                    await self._flush(queue, list(islice(queue.waiting, BATCH_RECORDS)))
                    pause = FIRST_PAUSE_SECONDS
                    if len(queue.waiting) < BATCH_RECORDS:
                        break  # what has come meanwhile gathers too: it is batches that cost the sinks
                except (DecisionStoreUnavailable, DecisionTopicUnavailable) as error:
                    logger.warning(
                        "decisions stay in the spool",
                        extra={"sink": queue.name, "reason": str(error.__cause__ or error)},
                    )
                    queue.flushes.at("unavailable").inc()
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            if queue.waiting:
                queue.appended.set()

    async def _flush(self, queue: _Queue, batch: list[Entry]) -> None:
        payloads = [self._spool.read(position) if held is None else held for _, position, held in batch]
        try:
            inserted = await queue.sink.insert(payloads)
            queue.flushed.at("inserted").inc(inserted)
            queue.flushed.at("already_there").inc(len(batch) - inserted)
        except RejectedRecords:
            await self._insert_one_by_one(queue, payloads)
        queue.flushes.at("done").inc()
        for (request_id, position, _), payload in zip(batch, payloads, strict=True):
            queue.waiting.popleft()
            self._outstanding[position.segment] -= 1
            if queue is self._to_store:
                if self._positions.get(request_id) == position:
                    del self._positions[request_id]
                self._recent[request_id] = payload
        while len(self._recent) > RECENT_RECORDS:
            self._recent.popitem(last=False)
        self._release_done()

    async def _insert_one_by_one(self, queue: _Queue, payloads: list[bytes]) -> None:
        """Insert what the sink takes; set aside what it never will, so that the rest is not held up."""
        for payload in payloads:
            try:
                await queue.sink.insert([payload])
                queue.flushed.at("inserted").inc()
            except RejectedRecords as error:
                self._reject(payload, str(error).splitlines()[0], queue)

    def _reject(self, payload: bytes, reason: str, queue: _Queue) -> None:
        logger.error(
            "a decision record was refused and set aside", extra={"sink": queue.name, "reason": reason}
        )
        queue.flushed.at("rejected").inc()
        with self._rejected_file.open("ab") as file:
            file.write(payload + b"\n")

    def _release_done(self, *, closing: bool = False) -> bool:
        """Give up the segments that every sink has, and return whether there were any.

        The active one is emptied only where that matters, as it costs milliseconds.
        """
        released = False
        for segment in [segment for segment, count in self._outstanding.items() if count <= 0]:
            large = self._spool.size_bytes > EMPTY_ACTIVE_ABOVE_BYTES or self._spool.full or self._tight
            if segment != self._spool.active_segment or large or closing:
                self._spool.release(segment)
                del self._outstanding[segment]
                released, self._tight = True, False
        return released

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            if self._claimed:
                self._claimed = False
                with suppress(DecisionStoreUnavailable):  # the next sweep takes them
                    await self._store.sweep()

    async def _maintain(self) -> None:
        await asyncio.sleep(FIRST_MAINTENANCE_SECONDS)
        while True:
            try:
                done = await self._store.maintain()
            except DecisionStoreUnavailable as error:
                logger.warning("decision tables not maintained", extra={"reason": str(error.__cause__)})
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if done.partitions_dropped:
                logger.info("old decisions dropped", extra={"partitions": list(done.partitions_dropped)})
            await asyncio.sleep(MAINTENANCE_SECONDS)

    # --- bringing the spool to the disk ---------------------------------------------------------------------

    async def _next_sync(self) -> None:
        """Wait for a sync that begins after this call: requests that arrive during one share the next."""
        if self._synced is None:
            self._synced = asyncio.get_running_loop().create_future()
            self._unsynced.set()
        await asyncio.shield(self._synced)

    async def _sync(self) -> None:
        while True:
            await self._unsynced.wait()
            if not self._always:
                await asyncio.sleep(SYNC_SECONDS)
            self._unsynced.clear()
            waiters, self._synced = self._synced, None
            try:
                await asyncio.get_running_loop().run_in_executor(self._syncing, self._spool.syncer())
            except OSError as error:
                failure = _not_synced(error)
                if waiters is not None:
                    waiters.set_exception(failure)
                continue
            if waiters is not None:
                waiters.set_result(None)

    def _disk_is_fast(self) -> bool:
        """Return whether a lone record is synced here: handing that to a thread and back takes longer.

        Whether a disk that was slow has become fast is tried now and then.
        """
        return self._slow_syncs < SLOW_SYNCS or time.perf_counter() > self._disk_tried + TRY_DISK_SECONDS

    def _sync_here(self) -> None:
        began = time.perf_counter()
        try:
            self._spool.syncer()()
        except OSError as error:
            raise _not_synced(error) from None
        self._disk_tried = time.perf_counter()
        slow = self._disk_tried - began > FAST_SYNC_SECONDS
        self._slow_syncs = self._slow_syncs + 1 if slow else 0
