from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from service_testkit import CUSTOMER, PROJECT, FakeRedis, until

from common_service_libs.errors import OnlineStoreError
from common_service_libs.feast_layout import entity_key, timestamp_field
from common_service_libs.redis_link import RedisLink, _Connection, encode_command

pytestmark = pytest.mark.anyio
READ = encode_command(
    b"HMGET", entity_key("customer_id", CUSTOMER, PROJECT), timestamp_field("customer_daily")
)


def link_to(server: FakeRedis, password: str | None = "secret") -> RedisLink:
    return RedisLink("127.0.0.1", server.port, password, deadline=0.05, connect_deadline=0.3)


@pytest.fixture
async def link(redis_server: FakeRedis) -> AsyncIterator[RedisLink]:
    link = link_to(redis_server)
    await link.open()
    yield link
    await link.close()


async def test_concurrent_calls_share_the_connection_and_get_their_own_replies(link: RedisLink) -> None:
    missing = encode_command(b"HMGET", b"nobody", b"a", b"b")
    answers = await asyncio.gather(
        *(link.call(READ + missing if i % 2 else READ, 1 + i % 2) for i in range(50))
    )
    for i, replies in enumerate(answers):
        assert replies[0][0] is not None
        assert replies[1:] == ([[None, None]] if i % 2 else [])


@pytest.mark.parametrize("mode", ["silent", "drop", "garbage"])
async def test_a_server_that_fails_costs_at_most_the_deadline_and_is_found_again(
    link: RedisLink, redis_server: FakeRedis, mode: str
) -> None:
    redis_server.mode = mode
    started = time.perf_counter()
    with pytest.raises(OnlineStoreError):
        await link.call(READ, 1)
    assert time.perf_counter() - started < 0.25
    await asyncio.sleep(0)
    started = time.perf_counter()
    with pytest.raises(OnlineStoreError):
        link.call(READ, 1)
    assert time.perf_counter() - started < 0.02, "while the server is known to be away, calls fail at once"
    redis_server.mode = "answer"
    await until(lambda: link.up)
    assert (await link.call(READ, 1))[0][0] is not None


async def test_a_late_reply_is_never_taken_for_another_calls(
    link: RedisLink, redis_server: FakeRedis
) -> None:
    redis_server.mode = "silent"
    first = link.call(READ, 1)
    second = link.call(encode_command(b"PING"), 1)
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert all(isinstance(result, OnlineStoreError) for result in results)
    redis_server.mode = "answer"
    await until(lambda: link.up)
    assert await link.call(encode_command(b"PING"), 1) == [b"PONG"]


async def test_a_server_that_starts_later_is_found(redis_server: FakeRedis) -> None:
    await redis_server.stop()
    link = link_to(redis_server)
    await link.open()
    assert not link.up
    assert not await link.ping()
    await redis_server.start()
    await until(lambda: link.up)
    assert await link.ping()
    await link.close()


async def test_a_wrong_password_is_no_connection(
    redis_server: FakeRedis, caplog: pytest.LogCaptureFixture
) -> None:
    link = link_to(redis_server, password="wrong")
    await link.open()
    assert not link.up
    assert "WRONGPASS" in caplog.records[-1].reason or "WRONGPASS" in caplog.records[0].reason
    assert "wrong'" not in caplog.text
    await link.close()


async def test_a_patient_call_does_not_make_others_patient(link: RedisLink, redis_server: FakeRedis) -> None:
    redis_server.mode = "silent"
    patient = link.call(READ, 1, deadline=30)
    started = time.perf_counter()
    with pytest.raises(OnlineStoreError, match="within 50 ms"):
        await link.call(READ, 1)
    assert time.perf_counter() - started < 0.25
    with pytest.raises(OnlineStoreError):
        await patient


async def test_calls_that_were_answered_leave_later_ones_their_whole_deadline(
    link: RedisLink, redis_server: FakeRedis
) -> None:
    for _ in range(3):
        await link.call(READ, 1)
        await asyncio.sleep(0.03)
    redis_server.mode = "silent"
    started = time.perf_counter()
    with pytest.raises(OnlineStoreError):
        await link.call(READ, 1)
    assert time.perf_counter() - started >= 0.049


async def test_a_loading_server_is_an_error_of_the_call_and_keeps_the_connection(
    link: RedisLink, redis_server: FakeRedis
) -> None:
    redis_server.mode = "error"
    with pytest.raises(OnlineStoreError, match="LOADING"):
        await link.call(READ, 1)
    redis_server.mode = "answer"
    assert (await link.call(READ, 1))[0][0] is not None


async def test_a_server_that_stays_away_is_tried_about_once_a_second(redis_server: FakeRedis) -> None:
    attempts = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.close()

    await redis_server.stop()
    server = await asyncio.start_server(refuse, "127.0.0.1", redis_server.port)
    link = link_to(redis_server)
    await link.open()
    await asyncio.sleep(0.5)
    assert attempts == 2, "the first, one soon after, and then one a second"
    await link.close()
    server.close()
    await redis_server.start()


async def test_a_reply_that_waits_to_be_read_is_not_late(link: RedisLink) -> None:
    call = link.call(READ, 1)
    await asyncio.sleep(0)
    time.sleep(0.12)  # this process is busy, beyond the deadline, while the answer lies ready
    assert (await call)[0][0] is not None
    assert link.up


# --- replies that are not one's own ---------------------------------------------------------------------


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


class _Written(asyncio.Transport):
    """Takes what is written, and answers it as a server in which each key's field holds the key."""

    def __init__(self) -> None:
        super().__init__()
        self.replies: list[list[bytes]] = []  # by call
        self.aborted = False
        self._parser = hiredis.Reader()

    def write(self, data: bytes) -> None:
        self._parser.feed(data)
        queued: list[bytes] = []
        replies: list[bytes] = []
        while (command := self._parser.gets()) is not False:
            if command[0] == b"MULTI":
                replies.append(b"+OK\r\n")
            elif command[0] == b"EXEC":
                replies.append(b"*%d\r\n" % len(queued) + b"".join(queued))
                self.replies.append(replies)
                queued, replies = [], []
            else:
                queued.append(_bulk(command[1]) if command[0] == b"PING" else b"*1\r\n" + _bulk(command[1]))
                replies.append(b"+QUEUED\r\n")

    def abort(self) -> None:
        self.aborted = True


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_becomes_of_the_replies_nobody_gets_anothers(data: st.DataObject) -> None:
    """Replies swapped, sent twice, lost, cut and joined to garbage, within calls and across them."""

    async def exchange() -> None:
        connection, transport = _Connection(), _Written()
        connection.connection_made(transport)
        keys = [[b"%d-%d" % (call, number) for number in range(1 + call % 3)] for call in range(4)]
        futures = [
            connection.call(b"".join(encode_command(b"HMGET", key, b"f") for key in of), len(of), 60)
            for of in keys
        ]
        assert len(transport.replies) == 1, "what is asked beside it is written at the end of the turn"
        await asyncio.sleep(0)
        assert len(transport.replies) == len(keys)
        units = transport.replies
        if data.draw(st.booleans(), "reply by reply"):
            units = [[reply] for replies in transport.replies for reply in replies]
        right = [b"".join(unit) for unit in units]
        sent = data.draw(
            st.one_of(
                st.just(right),
                st.permutations(right),
                st.lists(
                    st.sampled_from([*right, b"+OK\r\n", b"*2\r\n", b"\x00", b"-ERR no\r\n"]), max_size=40
                ),
            )
        )
        stream = b"".join(sent)
        if data.draw(st.booleans(), "cut"):
            stream = stream[: data.draw(st.integers(0, len(stream)))]
        step = data.draw(st.integers(1, 64))
        for at in range(0, len(stream), step):
            connection.data_received(stream[at : at + step])
        for of, future in zip(keys, futures, strict=True):
            if future.done() and future.exception() is None:
                assert future.result() == [[key] for key in of]
            else:
                assert sent != right or stream != b"".join(right)
        connection.fail("end of the test")

    asyncio.run(exchange())


async def test_what_is_asked_in_one_turn_is_written_at_once_and_a_lone_call_without_delay() -> None:
    connection, transport = _Connection(), _Written()
    written: list[bytes] = []
    transport.write = written.append  # type: ignore[method-assign, assignment]
    connection.connection_made(transport)
    ping = encode_command(b"PING")
    futures = [connection.call(ping, 1, 60) for _ in range(5)]
    assert len(written) == 1
    await asyncio.sleep(0)
    assert [one.count(b"MULTI") for one in written] == [1, 4]
    connection.call(ping, 1, 60)
    connection.fail("the end")
    await asyncio.sleep(0)
    assert len(written) == 2, "nothing is written to a connection that has ended"
    assert all(isinstance(future.exception(), OnlineStoreError) for future in futures)
