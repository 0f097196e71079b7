from __future__ import annotations

import math

import pytest
from service_testkit import CUSTOMER, NOON, PROJECT, TERMINAL, FakeRedis, contract, put_view

from common_service_libs.feast_layout import entity_key, field_name
from common_service_libs.feature_status import STATUSES
from common_service_libs.online_store import FeatureReader, OnlineFeatures
from common_service_libs.redis_link import RedisLink

pytestmark = pytest.mark.anyio
IDS = {"customer_id": CUSTOMER, "terminal_id": TERMINAL}


async def read(server: FakeRedis, ids: dict[str, int], as_of: float = NOON) -> OnlineFeatures:
    link = RedisLink("127.0.0.1", server.port, "secret", deadline=0.2, connect_deadline=0.5)
    await link.open()
    try:
        return await FeatureReader(contract("fraud_detection_v1"), PROJECT).read(link, ids, as_of)
    finally:
        await link.close()


async def test_all_views_are_read_in_one_round_trip_with_one_command_an_entity(
    redis_server: FakeRedis,
) -> None:
    features = await read(redis_server, IDS)
    assert redis_server.reads == 2
    assert set(features.status.values()) == {"present"}
    assert features.values["customer_tx_count_full_30d"] == 4.0
    assert features.values["customer_tx_amount_sum_today"] == 61.5
    assert features.values["terminal_fraud_risk_7d"] == 0.125
    assert features.event_timestamps["customer_today"] == NOON - 600


async def test_an_unknown_entity_is_missing_and_the_other_is_still_read(redis_server: FakeRedis) -> None:
    features = await read(redis_server, IDS | {"customer_id": 1})
    assert features.status["customer_daily"] == features.status["customer_today"] == "missing"
    assert features.status["terminal_daily"] == "present"
    assert "customer_tx_count_full_1d" not in features.values
    assert not features.unavailable


async def test_a_view_is_stale_from_just_after_its_time_to_live(redis_server: FakeRedis) -> None:
    midnight = math.floor(NOON / 86400) * 86400
    assert (await read(redis_server, IDS, midnight + 86400)).status["terminal_daily"] == "present"
    stale = await read(redis_server, IDS, midnight + 86400.001)
    assert stale.status["terminal_daily"] == "stale"
    assert stale.event_timestamps["terminal_daily"] == midnight
    assert "terminal_fraud_risk_7d" not in stale.values


async def test_a_null_field_is_null_and_said_so(redis_server: FakeRedis) -> None:
    values = {"customer_tx_count_today": None, "customer_tx_amount_sum_today": 1.0, "customer_today_day": 1}
    put_view(redis_server.data, "customer_id", CUSTOMER, "customer_today", values, NOON)
    features = await read(redis_server, IDS)
    assert features.status["customer_today"] == "null"
    assert features.values["customer_tx_count_today"] is None


async def test_unreadable_bytes_spoil_their_view_only(redis_server: FakeRedis) -> None:
    key = entity_key("terminal_id", TERMINAL, PROJECT)
    redis_server.data[key][field_name("terminal_daily", "terminal_fraud_risk_7d")] = b"\x29\x00"
    features = await read(redis_server, IDS)
    assert features.status["terminal_daily"] == "invalid"
    assert "terminal_fraud_risk_1d" not in features.values
    assert features.status["terminal_today"] == "present"


@pytest.mark.parametrize("mode", ["silent", "drop", "garbage", "error"])
async def test_a_store_that_fails_is_unavailable_never_an_error(redis_server: FakeRedis, mode: str) -> None:
    link = RedisLink("127.0.0.1", redis_server.port, "secret", deadline=0.05, connect_deadline=0.5)
    await link.open()
    redis_server.mode = mode
    features = await FeatureReader(contract("fraud_detection_v1"), PROJECT).read(link, IDS, NOON)
    assert set(features.status.values()) == {"unavailable"}
    assert features.unavailable
    assert features.values == {}
    await link.close()


@pytest.mark.parametrize("mode", ["answer", "silent", "error"])
async def test_many_cases_are_one_round_trip_or_unavailable(redis_server: FakeRedis, mode: str) -> None:
    link = RedisLink("127.0.0.1", redis_server.port, "secret", deadline=0.05, connect_deadline=0.5)
    await link.open()
    redis_server.mode = mode
    ids = {"customer_id": [CUSTOMER, 1], "terminal_id": [TERMINAL, TERMINAL]}
    reader = FeatureReader(contract("fraud_detection_v1"), PROJECT)
    columns = await reader.read_many(link, ids, NOON, deadline=0.1)
    status = {name: [STATUSES[code].value for code in view.status] for name, view in columns.views.items()}
    await link.close()
    if mode == "answer":
        assert redis_server.reads == 4
        assert status["customer_daily"] == ["present", "missing"]
        assert columns.values["terminal_fraud_risk_7d"].tolist() == [0.125, 0.125]
    else:
        assert status == {view.name: ["unavailable"] * 2 for view in contract("fraud_detection_v1").views}
        assert math.isnan(columns.values["terminal_fraud_risk_7d"][0])


async def test_no_cases_are_no_question(redis_server: FakeRedis) -> None:
    link = RedisLink("127.0.0.1", redis_server.port, "secret", deadline=0.05, connect_deadline=0.5)
    reader = FeatureReader(contract("fraud_detection_v1"), PROJECT)
    assert (await reader.read_many(link, {"customer_id": [], "terminal_id": []}, NOON)).rows == 0
