"""A request id that a client sends stands for one decision, whichever worker the repeat reaches.

The record says what was decided; until it is where every worker sees it, a claim in Redis says that somebody
is deciding. Who finds a claim of another worker waits for its record, and answers 503 if that takes too
long: never with a decision of its own. While Redis is silent only the records count, while PostgreSQL is
silent only the claims; counters say so.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from contextlib import suppress
from typing import Any

from common_service_libs.decision_log import DecisionLog
from common_service_libs.decision_record import DecisionRecord
from common_service_libs.errors import DecisionStoreUnavailable, DecisionUnderWay, OnlineStoreError
from common_service_libs.metrics import ServiceMetrics
from common_service_libs.redis_link import RedisLink, encode_command

CLAIM_SECONDS = 60
WAIT_SECONDS = 1.0
POLL_SECONDS = 0.025


class Repeats:
    """Finds the decision of a request id, or claims the id for this process."""

    def __init__(self, service: str, *, link: RedisLink, log: DecisionLog, metrics: ServiceMetrics) -> None:
        self._service = service
        self._link = link
        self._log = log
        self._metrics = metrics
        place = f"{socket.gethostname()}:{log.slot}".encode()
        self._place = hashlib.sha256(place).hexdigest()[:16].encode()
        self._token = self._place + b":" + os.urandom(8).hex().encode()

    async def find_or_claim(self, request_id: str) -> DecisionRecord | None:
        """Return the recorded decision, or None if this process is the one to decide.

        Raises DecisionUnderWay if another worker has claimed the id and its record does not appear.
        """
        if (record := self._log.find_local(request_id)) is not None:
            return record
        claim = self._send(
            encode_command(b"SET", self._key(request_id), self._token, b"NX", b"EX", b"%d" % CLAIM_SECONDS)
            + encode_command(b"GET", self._key(request_id)),
            2,
        )
        stored = True
        try:
            record = await self._log.find_stored(request_id)
        except DecisionStoreUnavailable:
            stored = False
            self._metrics.unchecked.inc()
        if record is not None:
            return record
        replies = await _replies(claim)
        if replies is None or not isinstance(replies[1], bytes):
            self._metrics.claims.at("unavailable").inc()
            return None
        return await self._claimed(request_id, replies[1], fresh=replies[0] is not None, stored=stored)

    async def _claimed(
        self, request_id: str, owner: bytes, *, fresh: bool, stored: bool
    ) -> DecisionRecord | None:
        if owner == self._token and fresh:
            self._metrics.claims.at("taken").inc()
            return None
        # An earlier process had this place: what it wrote to its spool is here or stored, so that an id
        # without a record was never acknowledged.
        if owner.partition(b":")[0] == self._place and stored:
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
            with suppress(DecisionStoreUnavailable):
                if (record := await self._log.find_stored(request_id)) is not None:
                    return record
            await asyncio.sleep(POLL_SECONDS)
        return None

    def release(self, request_id: str) -> None:
        """Give a claim up: nothing was decided, so the next who asks may."""
        self._send(encode_command(b"DEL", self._key(request_id)), 1)

    def _key(self, request_id: str) -> bytes:
        return f"decision-claim:{self._service}:{request_id}".encode()

    def _send(self, commands: bytes, expected: int) -> asyncio.Future[list[Any]] | None:
        try:
            return self._link.call(commands, expected)
        except OnlineStoreError:
            return None


async def _replies(call: asyncio.Future[list[Any]] | None) -> list[Any] | None:
    if call is None:
        return None
    try:
        return await call
    except OnlineStoreError:
        return None
