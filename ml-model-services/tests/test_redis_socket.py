from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from service_testkit import CUSTOMER, NOON, PROJECT, TERMINAL, FakeRedis, contract

from common_service_libs.errors import OnlineStoreError
from common_service_libs.online_feature_reader import ROWS_A_ROUND_TRIP, OnlineFeatureReader
from common_service_libs.redis_link import encode_command
from common_service_libs.redis_socket import RedisSocket

pytestmark = pytest.mark.anyio
PING = encode_command(b"PING")


@pytest.fixture
def store(redis_server: FakeRedis) -> Iterator[RedisSocket]:
    with RedisSocket("127.0.0.1", redis_server.port, "secret", timeout_seconds=0.2) as store:
        yield store


async def test_replies_to_pipelined_commands_come_in_order(store: RedisSocket) -> None:
    missing = encode_command(b"HMGET", b"nobody", b"a")
    replies = await asyncio.to_thread(store.call, PING + missing + PING, 3)
    assert replies == [b"PONG", [None], b"PONG"]


@pytest.mark.parametrize("mode", ["silent", "drop", "garbage"])
async def test_a_server_that_fails_is_an_error_and_the_next_call_connects_anew(
    store: RedisSocket, redis_server: FakeRedis, mode: str
) -> None:
    await asyncio.to_thread(store.call, PING, 1)
    redis_server.mode = mode
    started = time.perf_counter()
    with pytest.raises(OnlineStoreError, match="does not answer"):
        await asyncio.to_thread(store.call, PING, 1)
    assert time.perf_counter() - started < 1
    redis_server.mode = "answer"
    assert await asyncio.to_thread(store.call, PING, 1) == [b"PONG"]


async def test_a_wrong_password_is_said_and_not_repeated(redis_server: FakeRedis) -> None:
    store = RedisSocket("127.0.0.1", redis_server.port, "not-it")
    with pytest.raises(OnlineStoreError, match="WRONGPASS") as caught:
        await asyncio.to_thread(store.call, PING, 1)
    assert "not-it" not in str(caught.value)


@pytest.fixture
def reader(store: RedisSocket) -> OnlineFeatureReader:
    return OnlineFeatureReader(contract("fraud_detection_v1"), PROJECT, store)


async def test_one_case_and_many_cases_over_several_round_trips(
    reader: OnlineFeatureReader, redis_server: FakeRedis
) -> None:
    request = {"tx_amount": 9.25, "tx_timestamp": NOON}
    vector = await asyncio.to_thread(
        reader.read, {"customer_id": CUSTOMER, "terminal_id": TERMINAL}, NOON, request
    )
    rows = ROWS_A_ROUND_TRIP + 3
    ids = {"customer_id": [CUSTOMER] * rows, "terminal_id": [TERMINAL] * (rows - 1) + [1]}
    table = await asyncio.to_thread(reader.read_many, ids, NOON, request)
    assert table.rows == rows
    assert table.matrix()[0].tolist() == table.matrix()[rows - 2].tolist() == list(vector.values)
    assert table.status_names("terminal_fraud_risk_7d")[-2:] == ["present", "defaulted"]
    assert redis_server.reads == 2 + 2 * rows


async def test_an_error_reply_is_an_error_not_a_vector_of_defaults(
    reader: OnlineFeatureReader, redis_server: FakeRedis
) -> None:
    ids = {"customer_id": CUSTOMER, "terminal_id": TERMINAL}
    await asyncio.to_thread(reader.read, ids, NOON, {"tx_amount": 1.0, "tx_timestamp": NOON})
    redis_server.mode = "error"
    with pytest.raises(OnlineStoreError, match="error"):
        await asyncio.to_thread(reader.read, ids, NOON, {"tx_amount": 1.0, "tx_timestamp": NOON})
    with pytest.raises(OnlineStoreError, match="LOADING"):
        await asyncio.to_thread(reader.read_many, {key: [value] for key, value in ids.items()}, NOON)


async def test_values_that_do_not_fit_together_are_refused(reader: OnlineFeatureReader) -> None:
    with pytest.raises(ValueError, match="one value of each join key"):
        reader.read_many({"customer_id": [1, 2], "terminal_id": [1]}, NOON)
    with pytest.raises(ValueError, match="tx_amount"):
        reader.read_many({"customer_id": [1, 2], "terminal_id": [1, 2]}, NOON, {"tx_amount": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="customer_id"):
        reader.read_many({"customer_id": ["596"], "terminal_id": [1]}, NOON)
