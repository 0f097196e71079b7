"""What goes the direct way and what does not, and that a connection behaves the same either way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from service_testkit import until
from test_guarded_server import serving

from common_service_libs.direct_way import KNOWN_HEADS, DirectWay, Reply, begin
from common_service_libs.resilience import server

pytestmark = pytest.mark.anyio
FIELDS = b"host: test\r\nx-api-key: k\r\ncontent-type: application/json\r\n"
POST = b"POST /predict HTTP/1.1\r\n" + FIELDS


class Route:
    """Answers with the body it was sent, once it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.asked: list[bytes] = []

    async def direct(self, headers: Mapping[bytes, bytes], body: bytes, reply: Reply) -> None:
        self.asked.append(body)
        await self.may.wait()
        await reply(200, [(b"content-length", b"%d" % len(body)), (b"x-way", b"direct")], body)


def way(max_bytes: int = 1000) -> DirectWay:
    return DirectWay({"/predict": Route()}, max_bytes)


def post(body: bytes, more: bytes = b"", head: bytes = POST) -> bytes:
    return head + more + b"content-length: %d\r\n\r\n%b" % (len(body), body)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_a_plain_request_is_read_and_the_first_of_two_headers_counts() -> None:
    head, body = way().head_of(post(b"{}", b"X-Api-Key:  other \r\nConnection: Keep-Alive\r\nAccept:\r\n"))
    assert body == b"{}"
    assert head.headers[b"x-api-key"] == b"k"
    assert head.headers[b"accept"] == b""
    assert head.headers[b"connection"] == b"Keep-Alive"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(post(b"{}")[:-1], id="not whole"),
        pytest.param(post(b"{}") + b"P", id="more than one request"),
        pytest.param(POST + b"\r\n{}", id="no length"),
        pytest.param(post(b"{}", b"content-length: 2\r\n"), id="two lengths, equal"),
        pytest.param(post(b"{}", b"content-length: 9\r\n"), id="two lengths, different"),
        pytest.param(POST + b"content-length: +2\r\n\r\n{}", id="a length with a sign"),
        pytest.param(POST + b"content-length: 2, 2\r\n\r\n{}", id="a list of lengths"),
        pytest.param(POST + b"content-length: " + b"0" * 5000 + b"2\r\n\r\n{}", id="5,000 digits"),
        pytest.param(post(b"{" + b" " * 1000 + b"}"), id="too large"),
        pytest.param(post(b"{}", b"transfer-encoding: chunked\r\n"), id="chunked"),
        pytest.param(post(b"{}", b"transfer-encoding: keep-alive\r\n"), id="an unknown coding"),
        pytest.param(post(b"{}", b"connection: close\r\n"), id="the last request"),
        pytest.param(post(b"{}", b"connection: keep-alive, upgrade\r\n"), id="two options"),
        pytest.param(post(b"{}", b"connection: keep-alive\r\nconnection: close\r\n"), id="two connections"),
        pytest.param(post(b"{}", b"expect: 100-continue\r\n"), id="waits for a word"),
        pytest.param(post(b"{}", b"upgrade: websocket\r\n"), id="another protocol"),
        pytest.param(post(b"{}", b"content-length : 2\r\n"), id="a space before the colon"),
        pytest.param(post(b"{}", b"x: 1\r\n folded\r\n"), id="a folded line"),
        pytest.param(post(b"{}", b"x: 1\n"), id="a bare line feed"),
        pytest.param(post(b"{}", b"x: a\x00b\r\n"), id="a null byte"),
        pytest.param(post(b"{}", b"x: a\rb\r\n"), id="a bare carriage return"),
        pytest.param(post(b"{}", b": 1\r\n"), id="no name"),
        pytest.param(post(b"{}", b"no colon\r\n"), id="no colon"),
        pytest.param(post(b"{}").replace(b"application/json", b"text/plain"), id="another media type"),
        pytest.param(post(b"{}").replace(b"/predict", b"/predict?x=1"), id="a query"),
        pytest.param(post(b"{}").replace(b"/predict", b"/predict/batch"), id="another path"),
        pytest.param(post(b"{}").replace(b"/predict", b"http://test/predict"), id="a whole address"),
        pytest.param(post(b"{}").replace(b"/predict", b"/pre%64ict"), id="an encoded path"),
        pytest.param(post(b"{}").replace(b"POST", b"GET"), id="another method"),
        pytest.param(post(b"{}").replace(b"POST", b"post"), id="a small method"),
        pytest.param(post(b"{}").replace(b"HTTP/1.1", b"HTTP/1.0"), id="an older protocol"),
        pytest.param(b"\r\n" + post(b"{}"), id="an empty line before it"),
    ],
)  # fmt: skip
def test_what_is_out_of_the_ordinary_is_left_to_the_parser(data: bytes) -> None:
    assert way().head_of(data) is None


def test_what_is_known_of_heads_is_bounded_and_holds_nothing_of_one_request() -> None:
    one = way()
    for number in range(3 * KNOWN_HEADS):
        assert one.head_of(post(b"{}", b"x: %d\r\n" % number))
        assert one.head_of(post(b"{}", b"idempotency-key: %d\r\n" % number))
    assert 0 < len(one._known) <= KNOWN_HEADS
    assert not any(b"idempotency-key" in known for known in one._known)
    one._known.clear()
    assert one.head_of(post(b"{}", b"x: %b\r\n" % (b"y" * 4000)))
    assert not one._known


async def test_work_begins_at_once_and_goes_on_as_a_task_that_can_be_cancelled() -> None:
    said: list[Any] = []

    async def work(future: asyncio.Future[str]) -> None:
        said.append("begun")
        try:
            said.append(await future)
            await asyncio.sleep(0)
            async with asyncio.timeout(1):
                said.append(await asyncio.sleep(0, "slept"))
        except asyncio.CancelledError:
            said.append("cancelled")
            raise

    loop = asyncio.get_running_loop()
    first: asyncio.Future[str] = loop.create_future()
    task = begin(work(first), loop)
    assert task is not None
    assert said == ["begun"]
    first.set_result("answer")
    await task
    assert said == ["begun", "answer", "slept"]

    task = begin(work(loop.create_future()), loop)
    assert task is not None
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert said[3:] == ["begun", "cancelled"]

    failing: asyncio.Future[str] = loop.create_future()
    task = begin(work(failing), loop)
    assert task is not None
    failing.set_exception(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await task

    async def nothing_to_wait_for() -> None:
        said.append("done")

    assert begin(nothing_to_wait_for(), loop) is None
    assert said[-1] == "done"


def directly(route: Route) -> dict[str, Any]:
    return {"concurrent": 2, "direct": DirectWay({"/predict": route}, 1000)}


async def test_requests_are_answered_in_their_order_whichever_way_each_goes() -> None:
    route = Route()
    route.may.clear()
    async with serving(**directly(route)) as (served, connect):
        served.hold.set()
        client = await connect()
        client.send(post(b"1"))
        await until(lambda: route.asked == [b"1"])
        client.send(post(b"22") + post(b"333"))  # before the reply: these are parsed and wait
        await asyncio.sleep(0.05)
        assert served.served == 0
        route.may.set()
        assert [await client.reply() for _ in range(3)] == [
            (200, {"content-length": "1", "x-way": "direct", "date": date}, b"1") for date in [served.date()]
        ] + [(200, {"content-length": "1", "date": served.date()}, body) for body in (b"2", b"3")]
        client.send(post(b"4444")[:60])
        await asyncio.sleep(0.02)
        client.send(post(b"4444")[60:])
        assert (await client.reply())[2] == b"4", "in two parts: by the parser"
        client.send(post(b"55555"))
        assert (await client.reply())[2] == b"55555"
        assert route.asked == [b"1", b"55555"]
        assert (served.admission.running, served.admission.finished) == (0, 5)


async def test_replies_of_one_turn_wait_for_its_end_and_none_is_overtaken() -> None:
    route = Route()
    route.may.clear()
    async with serving(**directly(route), queued=5) as (served, connect):
        clients = [await connect() for _ in range(2)]
        for client in clients:
            client.send(post(b"first"))
        await until(lambda: len(route.asked) == 2)
        protocols = list(served.server.server_state.connections)
        put, states = protocols[0].outbox.put, []
        protocols[0].outbox.put = lambda loop, send: (put(loop, send), states.append(
            [protocol.cycle.response_complete for protocol in protocols]
        ))  # fmt: skip
        route.may.set()
        for client in clients:
            assert (await client.reply())[2] == b"first"
        assert states == [[False, False]], "the first waited while another was under way; the last did not"
        clients[0].send(post(b"next"))
        assert (await clients[0].reply())[2] == b"next"


async def test_what_there_is_no_room_for_does_not_go_the_direct_way() -> None:
    route = Route()
    route.may.clear()
    async with serving(**directly(route)) as (served, connect):
        clients = [await connect() for _ in range(3)]
        for client in clients:
            client.send(post(b"{}"))
        assert (await clients[2].reply())[0] == 503
        assert (served.admission.running, served.refused) == (2, ["queue_full"])
        route.may.set()
        assert [(await client.reply())[0] for client in clients[:2]] == [200, 200]
        assert served.admission.running == 0


async def test_what_waits_for_room_goes_the_direct_way_in_its_turn_or_is_told_that_it_took_too_long() -> None:
    route = Route()
    route.may.clear()
    async with serving(**directly(route), queued=3) as (served, connect):
        clients = [await connect() for _ in range(4)]
        for number, client in enumerate(clients):
            client.send(post(b"%d" % number))
            await until(
                lambda number=number: served.admission.running + served.admission.waiting == number + 1
            )
        assert (served.admission.running, served.admission.waiting, route.asked) == (2, 2, [b"0", b"1"])
        clients[3].close()
        route.may.set()
        assert [(await client.reply())[2] for client in clients[:3]] == [b"0", b"1", b"2"]
        await until(lambda: served.admission.running == 0)
        assert route.asked[:3] == [b"0", b"1", b"2"]
        route.may.clear()
        late = [await connect() for _ in range(3)]
        for client in late:
            client.send(post(b"late"))
        await until(lambda: served.admission.waiting == 1)
        await asyncio.sleep(1.1)  # the deadline
        route.may.set()
        replies = sorted([(await client.reply())[0] for client in late])
        assert replies == [200, 200, 503]
        assert served.refused == ["deadline"]
        assert served.admission.running == 0


async def test_a_client_that_leaves_makes_room_once_its_request_is_decided() -> None:
    route = Route()
    route.may.clear()
    async with serving(**directly(route)) as (served, connect):
        client = await connect()
        client.send(post(b"{}"))
        await until(lambda: bool(route.asked))
        client.close()
        await until(lambda: not served.server.server_state.connections)
        assert served.admission.running == 1, "what was asked is still decided and recorded"
        route.may.set()
        await until(lambda: served.admission.running == 0)


async def test_an_end_waits_for_the_decision_and_says_that_the_connection_ends() -> None:
    route = Route()
    route.may.clear()
    async with serving(**directly(route)) as (served, connect):
        busy, idle = await connect(), await connect()
        busy.send(post(b"{}"))
        await until(lambda: bool(route.asked))
        served.server.should_exit = True
        assert await idle.ended()
        route.may.set()
        status, headers, _ = await busy.reply()
        assert (status, headers["connection"]) == (200, "close")
        assert await busy.ended()


async def test_while_it_is_about_to_end_replies_say_so() -> None:
    route = Route()
    async with serving(**directly(route)) as (served, connect):
        client = await connect()
        client.send(post(b"{}"))
        assert "connection" not in (await client.reply())[1]
        served.drain.begun = True
        client.send(post(b"{}"))
        assert (await client.reply())[1]["connection"] == "close"
        assert await client.ended()


async def test_an_idle_connection_ends_counted_from_its_last_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", 0.4)
    route = Route()
    async with serving(**directly(route)) as (_, connect):
        client = await connect()
        loop = asyncio.get_running_loop()
        for _ in range(3):
            client.send(post(b"{}"))
            assert (await client.reply())[0] == 200
            last = loop.time()
            await asyncio.sleep(0.3)
        assert await client.ended()
        assert 0.35 < loop.time() - last < 0.6
        route.may.clear()
        slow = await connect()
        slow.send(post(b"{}"))
        await asyncio.sleep(0.9)
        route.may.set()
        assert (await slow.reply())[0] == 200, "a decision under way is no idleness"


async def test_a_route_that_fails_without_a_reply_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Route):
        async def direct(self, headers: Mapping[bytes, bytes], body: bytes, reply: Reply) -> None:
            raise ZeroDivisionError

    async with serving(**directly(Broken())) as (served, connect):
        client = await connect()
        client.send(post(b"{}"))
        assert await client.ended()
        assert served.admission.running == 0
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]
