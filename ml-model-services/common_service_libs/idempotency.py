"""A request id that a client sends stands for one decision, whichever worker the repeat reaches.

The record says what was decided; until it is in the database, where every worker sees it, a claim there says
that somebody is deciding. Who finds a claim of another worker waits for its record, and answers 503 if that
takes too long: never with a decision of its own. While the database is silent only this process's own records
count, and a counter says so.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from contextlib import suppress

from common_service_libs.decision_log import DecisionLog
from common_service_libs.decision_record import DecisionRecord
from common_service_libs.errors import DecisionStoreUnavailable, DecisionUnderWay
from common_service_libs.metrics import ServiceMetrics

WAIT_SECONDS = 1.0
POLL_SECONDS = 0.025


class Repeats:
    """Finds the decision of a request id, or claims the id for this process."""

    def __init__(self, *, log: DecisionLog, metrics: ServiceMetrics) -> None:
        self._log = log
        self._metrics = metrics
        # An earlier process may have had this place. What it wrote to its spool is here or stored, so that an
        # id without a record was never acknowledged: its claims are this process's own.
        place = f"{socket.gethostname()}:{log.slot}".encode()
        self._place = f"{hashlib.sha256(place).hexdigest()[:16]}:"
        self._owner = self._place + os.urandom(8).hex()
        self._releasing: set[asyncio.Task[None]] = set()

    async def find_or_claim(self, request_id: str) -> DecisionRecord | None:
        """Return the recorded decision, or None if this process is the one to decide.

        Raises DecisionUnderWay if another worker has claimed the id and its record does not appear.
        """
        if (record := self._log.find_local(request_id)) is not None:
            return record
        try:
            record, mine = await self._log.claim(request_id, owner=self._owner, place=self._place)
        except DecisionStoreUnavailable:
            self._metrics.unchecked.inc()
            return None
        if record is not None:
            return record
        if mine:
            self._metrics.claims.at("taken").inc()
            return None
        record = await self._wait(request_id)
        self._metrics.claims.at("under_way" if record is None else "waited").inc()
        if record is None:
            raise DecisionUnderWay("another worker is deciding this request id; ask again")
        return record

    async def _wait(self, request_id: str) -> DecisionRecord | None:
        loop = asyncio.get_running_loop()
        until = loop.time() + WAIT_SECONDS
        while loop.time() < until:
            await asyncio.sleep(POLL_SECONDS)
            with suppress(DecisionStoreUnavailable):
                if (record := await self._log.find_stored(request_id)) is not None:
                    return record
        return None

    def release(self, request_id: str) -> None:
        """Give a claim up: nothing was decided, so the next who asks may."""
        task = asyncio.ensure_future(self._release(request_id))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _release(self, request_id: str) -> None:
        with suppress(DecisionStoreUnavailable):  # it ends by itself, and is this process's own until then
            await self._log.release(request_id, self._owner)
