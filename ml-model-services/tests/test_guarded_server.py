"""The server as it listens: refusals on the wire, bounds, and an end in steps. Clients are bare sockets."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from service_testkit import until
from starlette.types import Receive, Scope, Send

from common_service_libs.resilience.admission import Admission
from common_service_libs.resilience.server import HEADERS_SECONDS, Drain, is_whole_post, server_of

pytestmark = pytest.mark.anyio
POST = b"POST /predict HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n"
GET = b"GET %b HTTP/1.1\r\nhost: test\r\n\r\n"


class Served:
    def __init__(self, *, concurrent: int = 1, queued: int = 0, **options: Any) -> None:
        self.refused: list[str] = []
        self.admission = Admission(
            concurrent=concurrent, queued=queued, deadline=1, on_refusal=self.refused.append
        )
        self.drain = Drain()
        self.hold = asyncio.Event()
        self.served = 0
        self.server = server_of(
            self.app, self.admission, self.drain, host="127.0.0.1", port=0,
            **{"drain_seconds": 0.2, "max_connections": 10, "shutdown_seconds": 1} | options,
        )  # fmt: skip
        self.port = 0

    def date(self) -> str:
        """What the server's replies say of the time, in small letters."""
        return dict(self.server.server_state.default_headers)[b"date"].decode().lower()

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"] == "/predict":
            await self.hold.wait()
        self.served += 1
        answer = b"%d" % len(body)
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def reply(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(3):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await self._reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, body

    async def ended(self, seconds: float = 2) -> bool:
        async with asyncio.timeout(seconds):
            return await self._reader.read() == b""

    def close(self) -> None:
        self._writer.close()


Connect = Callable[[], Awaitable[Client]]


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[Served, Connect]]:
    served = Served(**options)
    task = asyncio.create_task(served.server._serve())
    await until(lambda: served.server.started)
    served.port = served.server.servers[0].sockets[0].getsockname()[1]
    clients: list[Client] = []

    async def connect() -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", served.port))
        clients.append(client)
        return client

    try:
        yield served, connect
    finally:
        served.hold.set()
        for client in clients:
            client.close()
        served.server.should_exit = True
        async with asyncio.timeout(5):
            await task


async def test_what_is_too_much_is_a_problem_document_and_the_connection_stays_of_use() -> None:
    async with serving() as (served, connect):
        busy, other = await connect(), await connect()
        busy.send(POST % 2 + b"{}")
        await until(lambda: served.admission.running == 1)
        other.send(POST % 5)
        other.send(b"12345")
        status, headers, body = await other.reply()
        assert (status, headers["retry-after"], headers["content-type"]) == (
            503,
            "1",
            "application/problem+json",
        )
        assert headers["x-content-type-options"] == "nosniff"
        assert json.loads(body)["type"].endswith(":overloaded")
        for path in (b"/livez", b"/readyz", b"/metrics"):
            other.send(GET % path)
            assert (await other.reply())[0] == 200, "health is never refused"
        served.hold.set()
        assert (await busy.reply())[2] == b"2"
        other.send(POST % 3 + b"abc")
        assert (await other.reply())[2] == b"3"
        assert served.refused == ["queue_full"]
        assert (served.admission.running, served.admission.waiting) == (0, 0)


async def test_requests_that_arrive_at_once_are_bounded_before_any_of_them_has_begun() -> None:
    async with serving(concurrent=2, queued=1) as (served, connect):
        clients = [await connect() for _ in range(6)]
        for client in clients:
            client.send(POST % 0)
        await until(lambda: len(served.refused) == 3)
        served.hold.set()
        statuses = [(await client.reply())[0] for client in clients]
        assert sorted(statuses) == [200] * 3 + [503] * 3
        assert served.admission.running == 0


@pytest.mark.parametrize(
    ("request_bytes", "whole"),
    [
        (POST % 2 + b"{}", True),
        (b"POST /x HTTP/1.1\r\nContent-Length:0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (POST % 2 + b"{", False),
        (POST % 2 + b"{}POST", False),
        (GET % b"/livez", False),
        (b"POST /x HTTP/1.0\r\ncontent-length: 0\r\n\r\n", False),
        (b"POST /x HTTP/1.1\r\ncontent-length: 0\r\ncontent-length: 0\r\n\r\n", False),
        (b"POST /x HTTP/1.1\r\ncontent-length: +0\r\n\r\n", False),
        (b"POST /x HTTP/1.1\r\nhost: x\r\n\r\n", False),
        (b"POST /x HTTP/1.1\r\ncontent-length: 0\r\ntransfer-encoding: chunked\r\n\r\n", False),
        (b"POST /x HTTP/1.1\r\na: b\ntransfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n", False),
        (b"POST /x HTTP/1.1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", False),
        (b"POST /x HTTP/1.1\r\ncontent-length: 0\r\nexpect: 100-continue\r\n\r\n", False),
        (b"POST /x\r\nx: HTTP/1.1\r\ncontent-length: 0\r\n\r\n", False),
        (b"POST /x HTTP/1.1\r\ncontent-length: 0\r\n", False),
        (b"", False),
    ],
)
def test_only_a_whole_and_plain_request_is_refused_unparsed(request_bytes: bytes, whole: bool) -> None:
    assert is_whole_post(request_bytes) is whole


async def test_refused_with_or_without_parsing_the_connection_stays_in_step() -> None:
    async with serving() as (served, connect):
        busy, other = await connect(), await connect()
        busy.send(POST % 0)
        await until(lambda: served.admission.running == 1)
        for _ in range(3):
            other.send(POST % 5 + b"whole")
            assert (await other.reply())[0] == 503
            other.send(POST % 5 + b"par")
            await asyncio.sleep(0.01)
            other.send(b"ts")
            assert (await other.reply())[0] == 503
            other.send(POST % 3 + b"one" + POST % 3 + b"two")  # pipelined
            assert [(await other.reply())[0] for _ in range(2)] == [503, 503]
        hidden = POST % 0
        other.send(POST % len(hidden))
        await asyncio.sleep(0.01)
        other.send(hidden)  # what looks like a request is the body of one
        assert (await other.reply())[0] == 503
        served.hold.set()
        assert (await busy.reply())[0] == 200
        other.send(POST % 4 + b"last")
        assert (await other.reply())[2] == b"4"
        assert len(served.refused) == 13


async def test_a_body_that_nobody_wants_is_not_read_for_ever_nor_asked_for() -> None:
    async with serving() as (served, connect):
        busy, large, polite = await connect(), await connect(), await connect()
        busy.send(POST % 0)
        await until(lambda: served.admission.running == 1)
        large.send(POST % 10_000_000 + b"x" * 200_000)
        status, headers, _ = await large.reply()
        assert (status, headers["connection"]) == (503, "close")
        polite.send(POST[:-2] % 10 + b"expect: 100-continue\r\n\r\n")
        assert (await polite.reply())[0] == 503
        assert await polite.ended()


async def test_connections_beyond_the_bound_are_turned_away() -> None:
    async with serving(max_connections=2) as (served, connect):
        first, second = await connect(), await connect()
        for client in (first, second):
            client.send(GET % b"/livez")
            assert (await client.reply())[0] == 200
        third = await connect()
        assert (await third.reply())[0] == 503
        assert await third.ended()
        assert served.refused == ["connections"]
        second.close()
        await until(lambda: len(served.server.server_state.connections) == 1)
        fourth = await connect()
        fourth.send(GET % b"/livez")
        assert (await fourth.reply())[0] == 200


async def test_half_a_head_is_not_waited_for() -> None:
    async with serving() as (served, connect):
        slow, idle = await connect(), await connect()
        slow.send(b"POST /predict HTTP/1.1\r\nhost:")
        open_ones = served.server.server_state.connections
        await until(lambda: len(open_ones) == 2 and any(not c.timeout_keep_alive_task for c in open_ones))
        for later in (0, HEADERS_SECONDS, HEADERS_SECONDS + 0.1):
            for connection in list(open_ones):
                connection.sweep(later)
            assert len([c for c in open_ones if c.transport.is_closing()]) == (later > HEADERS_SECONDS)
        assert await slow.ended()
        idle.send(GET % b"/livez")
        assert (await idle.reply())[0] == 200, "one that has said nothing may still ask"


async def test_an_end_lets_everyone_leave() -> None:
    """At first all is answered, and every reply ends its connection; then only what is under way is."""
    async with serving(concurrent=5) as (served, connect):
        busy, kept, late = await connect(), await connect(), await connect()
        kept.send(GET % b"/livez")
        assert "connection" not in (await kept.reply())[1]
        busy.send(POST % 1 + b"x")
        await until(lambda: served.admission.running == 1)
        served.server.handle_exit(signal.SIGTERM, None)
        assert served.drain.begun
        assert not served.server.should_exit
        kept.send(GET % b"/livez")
        status, headers, _ = await kept.reply()
        assert (status, headers["connection"]) == (200, "close")
        assert await kept.ended()
        newcomer = await connect()
        newcomer.send(GET % b"/livez")
        assert (await newcomer.reply())[0] == 200, "whoever has not heard of the end yet is still answered"
        await until(lambda: served.server.should_exit)
        late.send(GET % b"/livez")  # on its way while the listener closes
        assert (await late.reply())[0] == 200
        served.hold.set()
        status, headers, body = await busy.reply()
        assert (status, headers["connection"], body) == (200, "close", b"1")


async def test_a_second_signal_hastens_the_end() -> None:
    async with serving(drain_seconds=60) as (served, _):
        served.server.handle_exit(signal.SIGTERM, None)
        assert not served.server.should_exit
        served.server.handle_exit(signal.SIGTERM, None)
        assert served.server.should_exit
