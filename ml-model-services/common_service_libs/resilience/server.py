"""The HTTP server of a service: what is too much is turned away cheaply, and an end loses no request.

uvicorn serves. What is added: the direct way to hot routes (`direct_way.py`); a bound on connections;
refusals written by the protocol itself, from bytes built once, without a task or the application; and an end
in steps. After the first SIGTERM `/readyz` says 503 and every reply ends its connection, while all requests
are still answered, for as long as a load balancer needs to notice (`drain_seconds`); then nothing more is
accepted and what is under way is finished. A second signal ends the first step.
"""

from __future__ import annotations

import asyncio
import math
import re
import resource
import signal
import time
from collections import deque
from types import FrameType
from typing import Any, cast

import msgspec
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from common_service_libs.direct_way import DirectCycle, DirectWay, Head, Outbox, begin
from common_service_libs.error_handlers import MEDIA_TYPE, PROBLEMS, TYPE_PREFIX
from common_service_libs.errors import Overloaded
from common_service_libs.monitoring_middleware import SECURITY_HEADERS
from common_service_libs.one_write import OneWrite
from common_service_libs.resilience.admission import Admission

HEALTH = frozenset({"/livez", "/readyz", "/metrics"})
_HEALTH_URLS = tuple(path.encode() for path in HEALTH)
KEEP_ALIVE_SECONDS = 75
BACKLOG = 512
IDLE_GRACE_SECONDS = 0.15
RESERVED_DESCRIPTORS = 128
_CONTENT_LENGTH = len("content-length")
HEADERS_SECONDS = 10.0
REFUSALS_A_SECOND = 4000
REFUSALS_A_REQUEST = 1.0  # for each that is finished
TICK_SECONDS = 0.01
LATE_SECONDS = 0.003
A_TICK = round(REFUSALS_A_SECOND * TICK_SECONDS)
LEAST_A_TICK = 2
_MAX_WRITE_BUFFER = 1 << 16
_MAX_DROPPED_BYTES = 1 << 16
_EXPECTED = "admission.expected"
_CLOSE = [(b"connection", b"close")]
_CLOSE_LINE = [b"connection: close\r\n"]
_FRAMING = re.compile(
    rb"\r\n(content-length|transfer-encoding|connection|expect|upgrade)[ \t]*:[ \t]*([^\r]*)", re.IGNORECASE
)


def _problem() -> tuple[bytes, list[tuple[bytes, bytes]]]:
    kind = PROBLEMS[Overloaded]
    body = msgspec.json.encode(
        {
            "type": TYPE_PREFIX + kind.slug,
            "title": kind.title,
            "status": kind.status,
            "detail": "the service has more to do than it can; try again",
        }
    )
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"retry-after", str(Overloaded.retry_after_seconds).encode()),
        (b"content-length", str(len(body)).encode()),
        *SECURITY_HEADERS,
    ]
    return body, headers


_BODY, _HEADERS = _problem()


def _reply(*, closing: bool) -> bytes:
    fields = [*_HEADERS, *_CLOSE] if closing else _HEADERS
    lines = b"".join(b"%b: %b\r\n" % field for field in fields)
    return b"HTTP/1.1 503 Service Unavailable\r\n" + lines + b"\r\n" + _BODY


REFUSAL = _reply(closing=False)
LAST_REFUSAL = _reply(closing=True)


def is_whole_post(data: bytes) -> bool:
    """Return whether `data` is one POST, whole and plainly framed; of whatever is out of the ordinary, not.

    >>> is_whole_post(b"POST /predict HTTP/1.1\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
    True
    """
    if not data.startswith(b"POST /"):
        return False
    end = data.find(b"\r\n\r\n")
    line = data.find(b" HTTP/1.1\r\n", 0, end + 2)
    if line < 0 or data.find(b"\r\n") != line + 9:
        return False
    head = data[: end + 2]
    if head.count(b"\n") != head.count(b"\r\n"):
        return False
    lengths = 0
    for name, value in _FRAMING.findall(head):
        if len(name) == _CONTENT_LENGTH:
            lengths += 1
            if not value.isdigit() or end + 4 + int(value) != len(data):
                return False
        elif value.lower() != b"keep-alive":
            return False
    return lengths == 1


class Drain:
    """Whether the end has begun; shared by server, protocol and readiness."""

    def __init__(self) -> None:
        self.begun = False


class GuardedApp:
    """The application behind an admission; health routes are never refused."""

    def __init__(self, app: ASGIApp, admission: Admission, drain: Drain) -> None:
        self._app = app
        self.admission = admission
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if self.drain.begun and scope["type"] == "http":
            send = _closing(send)
        if scope["type"] != "http" or scope["path"] in HEALTH:
            await self._app(scope, receive, send)
            return
        if not await self.admission.enter(expected=scope.pop(_EXPECTED, False)):
            await send({"type": "http.response.start", "status": 503, "headers": list(_HEADERS)})
            await send({"type": "http.response.body", "body": _BODY})
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self.admission.leave()


def _closing(send: Send) -> Send:
    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_CLOSE]
        await send(message)

    return send_and_close


class Pace:
    """Lets refusals go out at a bounded rate, so that refusing never takes the time from serving.

    While the event loop has time, that is `REFUSALS_A_SECOND`; while it has not, one for each request that is
    finished. A client that is refused sends no more on its connection before it has read so: what is
    offered beyond the rate is held up with it.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._left = A_TICK
        self._owing: deque[GuardedProtocol] = deque()
        self._ticking = False
        self._due = 0.0
        self._finished = 0

    def answer(self, client: GuardedProtocol) -> None:
        """Refuse a client, now or in its turn."""
        if not self._ticking:
            self._ticking, self._left, self._finished = True, A_TICK, self._admission.finished
            self._next_tick(client.loop)
        if self._left:
            self._left -= 1
            client.refuse()
        else:
            client.owed = True
            self._owing.append(client)

    def _next_tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + TICK_SECONDS
        loop.call_at(self._due, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        finished, self._finished = self._admission.finished - self._finished, self._admission.finished
        busy = loop.time() - self._due > LATE_SECONDS
        left = min(A_TICK, LEAST_A_TICK + int(REFUSALS_A_REQUEST * finished)) if busy else A_TICK
        quiet = self._left == A_TICK
        while self._owing and left:
            client = self._owing.popleft()
            if client.owed:
                left -= 1
                quiet = False
                client.refuse()
        self._left = left
        self._ticking = not quiet
        if self._ticking:
            self._next_tick(loop)


class GuardedProtocol(HttpToolsProtocol):
    """Refuses requests and connections before they cost more than reading them.

    `guard`, `pace`, `outbox` and `max_connections` are set on the subclass that a server makes for itself.
    `owed` says that a refusal waits for its turn.
    """

    guard: GuardedApp
    pace: Pace
    max_connections: int
    direct: DirectWay | None = None
    outbox: Outbox
    owed = False

    _midway = False
    _last = False
    _refused = False
    _dropped = 0
    _ending = False
    _seen: object = None
    _seen_at = 0.0
    _idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or turn it away where there are too many."""
        super().connection_made(cast(asyncio.Transport, OneWrite(transport)))
        if len(self.connections) > self.max_connections:
            self.guard.admission.refuse_connection()
            transport.write(LAST_REFUSAL)
            transport.close()
            return
        # A connection on which nothing is ever asked ends like one on which nothing more is.
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        """Take what has arrived; a request that comes whole and has no room is refused without parsing it."""
        admission = self.guard.admission
        if self.owed:  # whoever does not wait for the reply gets it first
            self.refuse()
        saturated = admission.saturated
        refusable = saturated and not self._midway and self._refusable(data)
        if refusable and admission.refuse():
            self.pace.answer(self)
            return
        if self.direct is not None and (refusable or not saturated) and self._between_requests():
            asked = self.direct.head_of(data)
            if asked is not None:
                self._serve_directly(*asked, queued=saturated)
                return
        super().data_received(data)

    def _between_requests(self) -> bool:
        """Return whether nothing is under way, half arrived, held back or about to end on the connection."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self._midway
            and not self._ending
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def _serve_directly(self, head: Head, body: bytes, *, queued: bool) -> None:
        self.cycle = cycle = cast(Any, DirectCycle())
        serve = self._served_in_turn if queued else self._served_directly
        if queued:
            self.guard.admission.expect()
        else:
            self.guard.admission.enter_now()
        task = begin(serve(head, body, cycle), self.loop)
        if task is not None:
            task.add_done_callback(self.tasks.discard)
            self.tasks.add(task)

    async def _served_in_turn(self, head: Head, body: bytes, cycle: DirectCycle) -> None:
        if await self.guard.admission.enter(expected=True):
            await self._served_directly(head, body, cycle)
        else:
            self._write_reply(cycle, 503, _HEADERS, _BODY)

    async def _served_directly(self, head: Head, body: bytes, cycle: DirectCycle) -> None:
        async def reply(status: int, fields: list[tuple[bytes, bytes]], content: bytes) -> None:
            self._write_reply(cycle, status, fields, content)

        try:
            await head.route.direct(head.headers, body, reply)
        except Exception:
            self.logger.exception("an error that was not foreseen")
        finally:
            self.guard.admission.leave()
            if not cycle.answered:  # given up: nobody is to wait for it
                self.transport.close()

    def _write_reply(
        self, cycle: DirectCycle, status: int, fields: list[tuple[bytes, bytes]], content: bytes
    ) -> None:
        cycle.answered = True
        parts = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *fields):
            parts += name, b": ", value, b"\r\n"
        parts += b"\r\n", content
        if self.guard.admission.running > 1:
            self.outbox.put(self.loop, lambda: self._send_reply(cycle, parts))
        else:
            self._send_reply(cycle, parts)

    def _send_reply(self, cycle: DirectCycle, parts: list[bytes]) -> None:
        if cycle.disconnected or self.transport.is_closing():
            return
        closing = self.guard.drain.begun or not cycle.keep_alive
        if closing:
            parts[-2:-2] = _CLOSE_LINE
        self.transport.write(b"".join(parts))
        cycle.response_complete = True
        if closing:
            self.transport.close()
        self._idle_since = self.loop.time()
        if self.pipeline or self.timeout_keep_alive_task is None:
            self.on_response_complete()
        else:  # the alarm of the time before goes on, and looks how long the connection has been idle
            self.server_state.total_requests += 1

    def timeout_keep_alive_handler(self) -> None:
        """End a connection on which nothing has been asked for long, or go on waiting until it is so."""
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if self.cycle is not None and not self.cycle.response_complete:
            left = self.timeout_keep_alive
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _refusable(self, data: bytes) -> bool:
        """Return whether `data` is a request, nothing is under way, and the connection may go on."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self._ending
            and not self.guard.drain.begun
            and self.transport.get_write_buffer_size() == 0
            and is_whole_post(data)
        )

    def on_message_begin(self) -> None:
        """Note that a request has begun to arrive."""
        self._midway = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Begin a request, unless there is no room for it."""
        if self.cycle is None or self.cycle.response_complete:
            admission = self.guard.admission
            if not self.url.startswith(_HEALTH_URLS):
                if admission.saturated and admission.refuse():
                    self._refused, self._dropped = True, 0
                    if self.expect_100_continue:
                        self._refuse_and_close()
                    return
                admission.expect()
                cast(dict[str, Any], self.scope)[_EXPECTED] = True
        super().on_headers_complete()
        if self._ending:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a part of the body; that of a refused request is dropped."""
        if not self._refused:
            super().on_body(body)
            return
        self._dropped += len(body)
        if self._dropped > _MAX_DROPPED_BYTES and not self.transport.is_closing():
            self._refuse_and_close()

    def on_message_complete(self) -> None:
        """End a request: a refused one is answered now."""
        self._midway = False
        if not self._refused:
            super().on_message_complete()
            return
        self._refused = False
        self._last = not self.parser.should_keep_alive()
        if not self.transport.is_closing():
            self.pace.answer(self)

    def refuse(self) -> None:
        """Write the refusal of a request that has arrived whole."""
        self.owed = False
        if self.transport.is_closing():
            return
        # A client that sends and never reads is not written to for ever.
        deaf = self.transport.get_write_buffer_size() > _MAX_WRITE_BUFFER
        if deaf or self.guard.drain.begun or self._ending or self._last:
            self._refuse_and_close()
            return
        self.transport.write(REFUSAL)
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _refuse_and_close(self) -> None:
        self.transport.write(LAST_REFUSAL)
        self.transport.close()

    def sweep(self, now: float) -> None:
        """End the connection if the head of a request, or a body nobody wants, takes too long to arrive."""
        arriving = self.timeout_keep_alive_task is None and (
            self.cycle is None or self.cycle.response_complete
        )
        if not arriving or self.scope is not self._seen:
            self._seen, self._seen_at = self.scope if arriving else None, now
        elif now - self._seen_at > HEADERS_SECONDS:
            self.transport.close()

    def shutdown(self) -> None:
        """End the connection after the request under way, or one that is on its way just now."""
        self._ending = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(IDLE_GRACE_SECONDS, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if self.owed:
            self.refuse()
        elif self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class GuardedServer(uvicorn.Server):
    """A server that ends in steps; see the module."""

    def __init__(self, config: uvicorn.Config, drain: Drain, drain_seconds: float) -> None:
        super().__init__(config)
        self._drain = drain
        self._drain_seconds = drain_seconds
        self._drain_until = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end at the first signal; at the second stop waiting for others to notice."""
        if self._drain.begun or not self._drain_seconds or not self.started or sig == signal.SIGINT:
            self._drain.begun = True
            super().handle_exit(sig, frame)
            return
        self._drain.begun = True
        self._drain_until = time.monotonic() + self._drain_seconds
        self._captured_signals.append(sig)

    async def on_tick(self, counter: int) -> bool:
        """Do what is due ten times a second; return whether to end now."""
        now = time.monotonic()
        if now >= self._drain_until:
            self.should_exit = True
        if counter % 10 == 0:
            for connection in list(self.server_state.connections):
                cast(GuardedProtocol, connection).sweep(now)
        return await super().on_tick(counter)


def server_of(
    app: ASGIApp,
    admission: Admission,
    drain: Drain,
    *,
    drain_seconds: float,
    max_connections: int,
    shutdown_seconds: float,
    direct: DirectWay | None = None,
    **options: Any,
) -> uvicorn.Server:
    """Return the server of a service; `options` are further ones of `uvicorn.Config`."""
    guard = GuardedApp(app, admission, drain)
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    bound = min(max_connections, max(1, allowed - RESERVED_DESCRIPTORS))
    own = {
        "guard": guard,
        "pace": Pace(admission),
        "max_connections": bound,
        "direct": direct,
        "outbox": Outbox(),
    }
    protocol = type("Protocol", (GuardedProtocol,), own)
    config = uvicorn.Config(
        guard,
        http=cast(type[asyncio.Protocol], protocol),
        ws="none",
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(shutdown_seconds) + 1,
        **options,
    )
    return GuardedServer(config, drain, drain_seconds)
