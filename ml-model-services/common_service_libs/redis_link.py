"""One pipelined Redis connection for all requests of a process, which mends itself.

Every call has a deadline. A reply that is late, or not in the protocol, ends the connection: calls fail at
once until a new one has answered a PING, so a silent server costs each request nothing instead of its whole
deadline, and a late reply can never be taken for the answer to another call. One connection suffices:
commands of concurrent requests are written one after the other and answered in that order.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import hiredis

from common_service_libs.background import forever
from common_service_libs.errors import OnlineStoreError

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 0.5


class _Call:
    __slots__ = ("deadline", "expected", "future", "replies", "until")

    def __init__(
        self, future: asyncio.Future[list[Any]], expected: int, deadline: float, until: float
    ) -> None:
        self.future = future
        self.expected = expected
        self.deadline = deadline
        self.until = until
        self.replies: list[Any] = []


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._calls: deque[_Call] = deque()
        self._transport: asyncio.Transport | None = None
        self._alarm: asyncio.TimerHandle | None = None  # one for all calls; most are answered before it
        self._alarm_at = math.inf
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def call(self, payload: bytes, expected: int, deadline: float) -> asyncio.Future[list[Any]]:
        assert self._transport is not None
        until = self._loop.time() + deadline
        call = _Call(self._loop.create_future(), expected, deadline, until)
        self._calls.append(call)
        if until < self._alarm_at:
            self._set_alarm(until)
        self._transport.write(payload)
        return call.future

    def _set_alarm(self, at: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = at
        self._alarm = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        """Fail if a call has waited too long; otherwise wait for the one that is due next."""
        self._alarm, self._alarm_at = None, math.inf
        if not self._calls:
            return
        due = min(self._calls, key=lambda call: call.until)
        if due.until <= self._loop.time():
            self.fail(f"no reply within {due.deadline * 1000:.0f} ms")
        else:
            self._set_alarm(due.until)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                call = self._calls[0]
                call.replies.append(reply)
                if len(call.replies) == call.expected:
                    self._calls.popleft()
                    if not call.future.done():
                        call.future.set_result(call.replies)
        except (hiredis.ProtocolError, IndexError) as error:
            self.fail(f"not the protocol: {type(error).__name__}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail("connection lost" if exc is None else f"connection lost: {exc}")

    def fail(self, reason: str) -> None:
        """Fail every call that waits and end the connection."""
        calls, self._calls = self._calls, deque()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm, self._alarm_at = None, math.inf
        for call in calls:
            if not call.future.done():
                call.future.set_exception(OnlineStoreError(reason))
                call.future.exception()  # the waiter may be gone; the loss itself is logged once
        if self._transport is not None:
            self._transport.abort()
        if not self.lost.done():
            self.lost.set_result(None)
            logger.warning("online store connection ended", extra={"reason": reason})


class RedisLink:
    """Keeps one connection to a Redis-protocol server open and hands out pipelined calls."""

    def __init__(
        self,
        host: str,
        port: int,
        password: str | None,
        *,
        deadline: float,
        connect_deadline: float,
        on_state: Callable[[bool], None] = lambda up: None,
    ) -> None:
        self._address = (host, port)
        self._password = password
        self._deadline = deadline
        self._connect_deadline = connect_deadline
        self._on_state = on_state
        self._connection: _Connection | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        """Whether the last connection has answered and not been lost."""
        return self._connection is not None and not self._connection.lost.done()

    async def open(self) -> None:
        """Make the first attempt to connect and go on in the background; a silent server is no error."""
        first = asyncio.Event()
        self._keeper = asyncio.create_task(forever(lambda: self._keep(first)))
        with suppress(TimeoutError):
            await asyncio.wait_for(first.wait(), 2 * self._connect_deadline)

    async def close(self) -> None:
        """End the connection and stop trying."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        if self._connection is not None:
            self._connection.fail("closed")

    def call(
        self, payload: bytes, expected: int, *, deadline: float | None = None
    ) -> asyncio.Future[list[Any]]:
        """Send encoded commands and return the future of their `expected` replies.

        Raises OnlineStoreError, now or from the future, when the server is silent for longer than the
        deadline (seconds; the link's own where none is given).
        """
        connection = self._connection
        if connection is None or connection.lost.done():
            raise OnlineStoreError("not connected")
        return connection.call(payload, expected, self._deadline if deadline is None else deadline)

    async def ping(self) -> bool:
        """Return whether the server answers now."""
        try:
            return await self.call(encode_command(b"PING"), 1) == [b"PONG"]
        except OnlineStoreError:
            return False

    async def _keep(self, first: asyncio.Event) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                connection = await asyncio.wait_for(self._connect(), self._connect_deadline)
            except (OSError, TimeoutError, OnlineStoreError) as error:
                logger.warning(
                    "online store not reachable", extra={"reason": str(error) or type(error).__name__}
                )
                first.set()
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                continue
            pause = FIRST_PAUSE_SECONDS
            self._connection = connection
            self._on_state(True)
            logger.info("online store connected")
            first.set()
            await asyncio.shield(connection.lost)
            self._connection = None
            self._on_state(False)

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_connection(_Connection, *self._address)
        try:
            if self._password:
                login = encode_command(b"AUTH", self._password.encode())
                _require_ok(await connection.call(login, 1, self._connect_deadline), b"OK")
            _require_ok(await connection.call(encode_command(b"PING"), 1, self._connect_deadline), b"PONG")
        except BaseException:
            transport.abort()
            raise
        return connection


def _require_ok(replies: list[Any], wanted: bytes) -> None:
    if replies != [wanted]:
        reply = replies[0]
        # The server's message names no secret, and tells a wrong password from a server that is loading.
        raise OnlineStoreError(str(reply) if isinstance(reply, hiredis.ReplyError) else "unexpected reply")


def encode_command(*parts: bytes) -> bytes:
    r"""Return one command as bytes of the Redis protocol.

    >>> encode_command(b"PING")
    b'*1\r\n$4\r\nPING\r\n'
    """
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
