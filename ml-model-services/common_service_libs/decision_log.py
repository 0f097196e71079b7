"""The decision log: a decision is in the spool before its reply, and in PostgreSQL soon after, exactly once.

`append` returns when the record would survive the end of this process (or, with `spool_sync=always`, of the
machine). A background task moves records to PostgreSQL in order; what is already there is skipped, so a batch
that was written but not acknowledged may be written again. While PostgreSQL is silent the spool grows, up to
its limit.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from common_service_libs.background import forever
from common_service_libs.decision_record import DecisionRecord, decode, encode
from common_service_libs.decision_store import RejectedRecords
from common_service_libs.errors import DecisionStoreUnavailable, SpoolUnavailable
from common_service_libs.metrics import ServiceMetrics
from common_service_libs.recent_decisions import Cursor
from common_service_libs.spool import Position, Spool

logger = logging.getLogger(__name__)

BATCH_RECORDS = 500
GATHER_SECONDS = 0.02
SYNC_SECONDS = 0.02
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 1.0
RECENT_RECORDS = 5000
EMPTY_ACTIVE_ABOVE_BYTES = 4 << 20


class RecordStore(Protocol):
    """Where records end up; see DecisionStore."""

    async def insert(self, records: list[bytes]) -> int:
        """Insert what is new and return its number."""

    async def find(self, request_id: str, service: str) -> DecisionRecord | None:
        """Return one record."""

    async def recent(self, service: str, cursor: Cursor, limit: int) -> list[dict[str, Any]]:
        """Return the newest decisions before the cursor, in short."""

    async def close(self) -> None:
        """Give the connection up."""


class DecisionLog:
    """Appends to the spool, drains it into the store, and finds a record wherever it is by now."""

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
    ) -> None:
        self._service = service
        self._spool = spool
        self._sink = sink
        self._lookup = lookup
        self._metrics = metrics
        self._always = sync == "always"
        self._rejected_file = rejected_file
        self._pending: deque[tuple[str, Position]] = deque()
        self._positions: dict[str, Position] = {}
        self._outstanding: Counter[int] = Counter()
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._appended = asyncio.Event()
        self._unsynced = asyncio.Event()
        self._synced: asyncio.Future[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._syncing = ThreadPoolExecutor(1, "spool-sync")

    @property
    def full(self) -> bool:
        """Whether the next record would be refused."""
        return self._spool.full

    @property
    def pending(self) -> int:
        """How many records are not in the store yet."""
        return len(self._pending)

    async def open(self) -> None:
        """Take over what an earlier process left in the spool and begin to drain it."""
        for position, payload in self._spool.recover():
            try:
                self._remember(decode(payload).request_id, position)
            except ValueError:  # msgspec.DecodeError is one
                self._reject(payload, "not a decision record")
        if self._pending:
            logger.info("decisions left in the spool", extra={"records": len(self._pending)})
            self._appended.set()
        self._tasks = [asyncio.create_task(forever(work)) for work in (self._drain, self._sync)]

    async def close(self, deadline: float) -> None:
        """Drain for at most `deadline` seconds; what is left stays in the spool for the next process."""
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                while self._pending:
                    await asyncio.sleep(GATHER_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._syncing.shutdown()
        self._release_done(closing=True)
        self._spool.syncer()()
        self._spool.close()
        await self._sink.close()
        await self._lookup.close()

    async def append(self, record: DecisionRecord) -> None:
        """Make the record durable; raises SpoolUnavailable, and then nothing is recorded."""
        self._remember(record.request_id, self._spool.append(encode(record)))
        self._appended.set()
        self._unsynced.set()
        if self._always:
            await self._next_sync()

    async def find(self, request_id: str) -> DecisionRecord | None:
        """Return the record of that id, if any; raises DecisionStoreUnavailable if nobody can tell."""
        return self.find_local(request_id) or await self._lookup.find(request_id, self._service)

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

    def _remember(self, request_id: str, position: Position) -> None:
        self._pending.append((request_id, position))
        self._positions[request_id] = position
        self._outstanding[position.segment] += 1
        self._metrics.spool(len(self._pending), self._spool.size_bytes)

    async def _drain(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            await self._appended.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._appended.clear()
            while self._pending:
                batch = list(islice(self._pending, BATCH_RECORDS))
                try:
                    await self._flush(batch)
                    pause = FIRST_PAUSE_SECONDS
                except DecisionStoreUnavailable as error:
                    logger.warning(
                        "decisions stay in the spool", extra={"reason": str(error.__cause__ or error)}
                    )
                    self._metrics.flushes.at("unavailable").inc()
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _flush(self, batch: list[tuple[str, Position]]) -> None:
        payloads = [self._spool.read(position) for _, position in batch]
        try:
            inserted = await self._sink.insert(payloads)
            self._metrics.flushed.at("inserted").inc(inserted)
            self._metrics.flushed.at("already_there").inc(len(batch) - inserted)
        except RejectedRecords:
            await self._insert_one_by_one(payloads)
        self._metrics.flushes.at("done").inc()
        for (request_id, position), payload in zip(batch, payloads, strict=True):
            self._pending.popleft()
            if self._positions.get(request_id) == position:
                del self._positions[request_id]
            self._recent[request_id] = payload
            self._outstanding[position.segment] -= 1
        while len(self._recent) > RECENT_RECORDS:
            self._recent.popitem(last=False)
        self._release_done()
        self._metrics.spool(len(self._pending), self._spool.size_bytes)

    async def _insert_one_by_one(self, payloads: list[bytes]) -> None:
        """Insert what the store takes; set aside what it never will, so that the rest is not held up."""
        for payload in payloads:
            try:
                await self._sink.insert([payload])
                self._metrics.flushed.at("inserted").inc()
            except RejectedRecords as error:
                self._reject(payload, str(error).splitlines()[0])

    def _reject(self, payload: bytes, reason: str) -> None:
        logger.error("a decision record was refused and set aside", extra={"reason": reason})
        self._metrics.flushed.at("rejected").inc()
        with self._rejected_file.open("ab") as file:
            file.write(payload + b"\n")

    def _release_done(self, *, closing: bool = False) -> None:
        """Give up the segments that are wholly in the store; emptying the active one costs milliseconds."""
        for segment in [segment for segment, count in self._outstanding.items() if count <= 0]:
            large = self._spool.size_bytes > EMPTY_ACTIVE_ABOVE_BYTES or self._spool.full
            if segment != self._spool.active_segment or large or closing:
                self._spool.release(segment)
                del self._outstanding[segment]

    # --- bringing the spool to the disk ---------------------------------------------------------------------

    async def _next_sync(self) -> None:
        """Wait for a sync that begins after this call: requests that arrive during one share the next."""
        if self._synced is None:
            self._synced = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._synced)

    async def _sync(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._unsynced.wait()
            if not self._always:
                await asyncio.sleep(SYNC_SECONDS)
            self._unsynced.clear()
            waiters, self._synced = self._synced, None
            try:
                await loop.run_in_executor(self._syncing, self._spool.syncer())
            except OSError as error:
                logger.error("the spool cannot be synced", extra={"reason": error.strerror})
                if waiters is not None:
                    waiters.set_exception(SpoolUnavailable("the spool of decisions cannot be written"))
                continue
            if waiters is not None:
                waiters.set_result(None)
