"""Head and body leave together, and nothing is ever kept back for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from common_service_libs.one_write import OneWrite

pytestmark = pytest.mark.anyio
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class Recorder:
    """A transport that notes what is written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> None:
        return None


def written(*parts: bytes) -> list[bytes]:
    transport = Recorder()
    one: Any = OneWrite(transport)  # type: ignore[arg-type]
    for part in parts:
        one.write(part)
    one.close()
    assert transport.closed
    return transport.writes


def test_a_head_waits_for_its_body() -> None:
    assert written(HEAD, b"{}") == [HEAD + b"{}"]
    assert written(HEAD, b"") == [HEAD]
    assert written(HEAD, b"a", b"b") == [HEAD + b"a", b"b"]
    assert written(HEAD, b"{}", HEAD, b"[]") == [HEAD + b"{}", HEAD + b"[]"]


def test_what_is_no_head_goes_at_once() -> None:
    going_on = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert written(going_on, HEAD, b"x") == [going_on, HEAD + b"x"]
    assert written(HEAD + b"{}") == [HEAD + b"{}"]
    assert written(b"ends so\r\n\r\n") == [b"ends so\r\n\r\n"]


def test_a_head_without_a_body_leaves_with_the_connection() -> None:
    assert written(HEAD) == [HEAD]


class Protocol(HttpToolsProtocol):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(OneWrite(transport))  # type: ignore[arg-type]


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[int]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=Protocol, lifespan="off", log_config=None))
    task = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


def length(body: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-length", b"%d" % len(body))]


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/empty":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
    elif scope["path"] == "/parts":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"one", b"two", b""):
            await send({"type": "http.response.body", "body": part, "more_body": part != b""})
    else:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": length(body)})
        await send({"type": "http.response.body", "body": body})


async def test_a_server_on_it_answers_as_ever() -> None:
    async with serving(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(3):
            body = b"x" * (number * 70_000)
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(int(head.split(b"content-length: ")[1].split()[0])) is not None
        writer.write(b"GET /empty HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        writer.write(b"GET /parts HTTP/1.1\r\nhost: a\r\n\r\n")
        assert b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n" in (await reader.readuntil(b"0\r\n\r\n"))
        writer.write(b"HEAD / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
