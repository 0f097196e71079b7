from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from service_testkit import CUSTOMER, PROJECT, FakeRedis, until

from common_service_libs.errors import OnlineStoreError
from common_service_libs.feast_layout import entity_key, timestamp_field
from common_service_libs.redis_link import RedisLink, encode_command

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
