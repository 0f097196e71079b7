"""One pipelined Redis connection for all requests of a process, which mends itself.

Every call has a deadline. A reply that is late, or not in the protocol, ends the connection: calls fail at
once until a new one has answered a PING, so a silent server costs each request nothing instead of its whole
deadline, and a late reply can never be taken for the answer to another call. One connection suffices:
commands of concurrent requests are written one after the other and answered in that order.

That order is not trusted. The commands of a call are one transaction that ends in a PING with a number used
once, so their replies come back as one message that says whose they are. A reply with another number, or of
another form, also ends the connection, whatever stands between here and the server.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import hiredis

from common_service_libs.background import forever
from common_service_libs.errors import OnlineStoreError
from common_service_libs.resilience.breaker import CircuitBreaker, State

logger = logging.getLogger(__name__)

FIRST_PROBE_SECONDS = 0.05
LATE_SECONDS = 0.005
GRACE_SECONDS = 0.001

_MULTI = b"*1\r\n$5\r\nMULTI\r\n"
_NONCE = struct.Struct("<Q")
_PING_HEAD = b"*2\r\n$4\r\nPING\r\n$8\r\n"
_EXEC = b"\r\n*1\r\n$4\r\nEXEC\r\n"


def in_transaction(payload: bytes, nonce: bytes) -> bytes:
    """Return encoded commands as a transaction that ends in a PING with `nonce`, eight bytes."""
    return b"".join((_MULTI, payload, _PING_HEAD, nonce, _EXEC))


class _Call:
    __slots__ = ("deadline", "future", "left", "nonce", "until", "width")

    def __init__(
        self, future: asyncio.Future[list[Any]], nonce: bytes, width: int, deadline: float, until: float
    ) -> None:
        self.future = future
        self.nonce = nonce
        self.width = width
        self.left = width + 1  # replies before the one to EXEC: OK, and QUEUED for each command
        self.deadline = deadline
        self.until = until


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._calls: deque[_Call] = deque()
        self._transport: asyncio.Transport | None = None
        self._alarm: asyncio.TimerHandle | None = None  # one for all calls; most are answered before it
        self._alarm_at = math.inf
        self._number = int.from_bytes(os.urandom(7), "little")  # no number of an earlier connection
        self._login: asyncio.Future[Any] | None = None
        self._gathered: list[bytes] = []
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def call(self, payload: bytes, expected: int, deadline: float) -> asyncio.Future[list[Any]]:
        assert self._transport is not None
        until = self._loop.time() + deadline
        self._number = number = self._number + 1
        nonce = _NONCE.pack(number)
        call = _Call(self._loop.create_future(), nonce, expected + 1, deadline, until)
        alone = not self._calls
        self._calls.append(call)
        if until < self._alarm_at:
            self._set_alarm(until)
        commands = in_transaction(payload, nonce)
        if alone:
            self._transport.write(commands)
        else:
            if not self._gathered:
                self._loop.call_soon(self._write_gathered)
            self._gathered.append(commands)
        return call.future

    def _write_gathered(self) -> None:
        """Write the commands of all calls of this turn of the loop at once: each write takes its time."""
        gathered, self._gathered = self._gathered, []
        if gathered and self._transport is not None:
            self._transport.write(b"".join(gathered))

    def log_in(self, password: str) -> asyncio.Future[Any]:
        """Send the password before any call; return the future of the reply."""
        assert self._transport is not None
        self._login = self._loop.create_future()
        self._transport.write(encode_command(b"AUTH", password.encode()))
        return self._login

    def _set_alarm(self, at: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = at
        self._alarm = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        """Fail if a call has waited too long; otherwise wait for the one that is due next."""
        late = self._loop.time() - self._alarm_at > LATE_SECONDS
        self._alarm, self._alarm_at = None, math.inf
        if not self._calls:
            return
        if late:
            # This process was busy: what has been answered meanwhile is still to be read.
            self._set_alarm(self._loop.time() + GRACE_SECONDS)
            return
        due = min(self._calls, key=lambda call: call.until)
        if due.until <= self._loop.time():
            self.fail(f"no reply within {due.deadline * 1000:.0f} ms")
        else:
            self._set_alarm(due.until)

    def data_received(self, data: bytes) -> None:
        calls, gets = self._calls, self._reader.gets
        try:
            self._reader.feed(data)
            while (reply := gets()) is not False:
                if self._login is not None:
                    if not self._login.done():
                        self._login.set_result(reply)
                    self._login = None
                    continue
                call = calls[0]
                if call.left:  # OK and QUEUED, or why not
                    call.left -= 1
                    continue
                if type(reply) is not list:
                    # Of a transaction that was refused, such as "loading the dataset": nobody's values.
                    if not isinstance(reply, hiredis.ReplyError):
                        self.fail("not the reply to a transaction")
                        return
                    del calls[0]
                    if not call.future.done():
                        call.future.set_exception(OnlineStoreError(str(reply)))
                        call.future.exception()
                elif len(reply) == call.width and reply.pop() == call.nonce:
                    del calls[0]
                    if not call.future.done():
                        call.future.set_result(reply)
                else:
                    self.fail("the reply to another call")
                    return
        except (hiredis.ProtocolError, IndexError) as error:
            self.fail(f"not the protocol: {type(error).__name__}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail("connection lost" if exc is None else f"connection lost: {exc}")

    def fail(self, reason: str) -> None:
        """Fail every call that waits and end the connection."""
        calls, self._calls = self._calls, deque()
        self._gathered.clear()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm, self._alarm_at = None, math.inf
        waiting: list[asyncio.Future[Any]] = [call.future for call in calls]
        if self._login is not None:
            waiting.append(self._login)
        for future in waiting:
            if not future.done():
                future.set_exception(OnlineStoreError(reason))
                future.exception()  # the waiter may be gone; the loss itself is logged once
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
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self._breaker = breaker or CircuitBreaker(first_probe_seconds=FIRST_PROBE_SECONDS)
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
        deadline (seconds; the link's own where none is given), refuses the commands, or answers with what
        belongs to another call. The commands are one transaction: none of another call's runs between them.
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
        breaker = self._breaker
        while True:
            probe = breaker.state is not State.CLOSED
            if not breaker.allow():
                await asyncio.sleep(breaker.probe_in)
                continue
            try:
                connection = await asyncio.wait_for(self._connect(probe), self._connect_deadline)
            except (OSError, TimeoutError, OnlineStoreError) as error:
                logger.warning(
                    "online store not reachable", extra={"reason": str(error) or type(error).__name__}
                )
                breaker.failed()
                first.set()
                continue
            breaker.succeeded()
            self._connection = connection
            self._on_state(True)
            logger.info("online store connected")
            first.set()
            await asyncio.shield(connection.lost)
            self._connection = None
            breaker.failed()
            self._on_state(False)

    async def _connect(self, probe: bool) -> _Connection:
        """Return a connection that has answered; one after an outage must answer as fast as a call."""
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_connection(_Connection, *self._address)
        try:
            if self._password and (reply := await connection.log_in(self._password)) != b"OK":
                # The message names no secret, and tells a wrong password from a server that is loading.
                refused = isinstance(reply, hiredis.ReplyError)
                raise OnlineStoreError(str(reply) if refused else "unexpected reply to the login")
            deadline = self._deadline if probe else self._connect_deadline
            if await connection.call(encode_command(b"PING"), 1, deadline) != [b"PONG"]:
                raise OnlineStoreError("unexpected reply")
        except BaseException:
            transport.abort()
            raise
        return connection


def encode_command(*parts: bytes) -> bytes:
    r"""Return one command as bytes of the Redis protocol.

    >>> encode_command(b"PING")
    b'*1\r\n$4\r\nPING\r\n'
    """
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
