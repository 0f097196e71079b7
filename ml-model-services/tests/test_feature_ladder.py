from __future__ import annotations

import math
from collections.abc import AsyncIterator

import pytest
from service_testkit import CUSTOMER, NOON, PROJECT, SUBSCRIBER, TERMINAL, FakeRedis, contract, put_view

from common_service_libs.feature_vector import VectorBuilder
from common_service_libs.online_store import FeatureReader, Source
from common_service_libs.redis_link import RedisLink, encode_command
from common_service_libs.resilience.hot_snapshot import HotSnapshot
from common_service_libs.resilience.ladder import FeatureLadder

pytestmark = pytest.mark.anyio
IDS = {"customer_id": CUSTOMER, "terminal_id": TERMINAL}
FRAUD = contract("fraud_detection_v1")
MIDNIGHT = math.floor(NOON / 86400) * 86400


class Ladder:
    def __init__(self, link: RedisLink, server: FakeRedis) -> None:
        self.server = server
        self.snapshot = HotSnapshot(100)
        self._ladder = FeatureLadder(link, self.snapshot)
        self.reader = FeatureReader(FRAUD, PROJECT)

    async def read(self, ids: dict[str, int] = IDS, as_of: float = NOON, reader: FeatureReader | None = None):
        found, _ = await self._ladder.read(reader or self.reader, ids, as_of)
        return found

    async def with_commands(self, *commands: bytes):
        return await self._ladder.read(self.reader, IDS, NOON, commands)


@pytest.fixture
async def ladder(redis_server: FakeRedis) -> AsyncIterator[Ladder]:
    link = RedisLink("127.0.0.1", redis_server.port, "secret", deadline=0.03, connect_deadline=0.3)
    await link.open()
    yield Ladder(link, redis_server)
    await link.close()


@pytest.mark.parametrize("mode", ["silent", "drop", "garbage", "error"])
async def test_a_silent_store_is_answered_for_by_what_it_said_last(ladder: Ladder, mode: str) -> None:
    online = await ladder.read()
    assert online.source is Source.ONLINE
    ladder.server.mode = mode
    known = await ladder.read()
    assert known.source is Source.SNAPSHOT
    assert not known.unavailable
    assert set(known.status.values()) == {"snapshot"}
    assert known.values == online.values
    assert known.event_timestamps == online.event_timestamps
    vectors = VectorBuilder(FRAUD)
    request = {"tx_amount": 57.0, "tx_timestamp": NOON}
    assert vectors.build(known, request).values == vectors.build(online, request).values
    status = dict(zip(FRAUD.feature_names, vectors.build(known, request).status, strict=True))
    assert status.pop("tx_amount") == "present", "what the request says is known"
    assert "snapshot" in status.values()
    assert set(status.values()) <= {"snapshot", "present"}


async def test_times_to_live_count_for_the_snapshot_too(ladder: Ladder) -> None:
    await ladder.read()
    ladder.server.mode = "silent"
    assert (await ladder.read(as_of=MIDNIGHT + 86400)).status["terminal_daily"] == "snapshot"
    late = await ladder.read(as_of=MIDNIGHT + 86400.001)
    assert late.status["terminal_daily"] == "stale"
    assert "terminal_fraud_risk_7d" not in late.values
    assert late.stale_values["terminal_fraud_risk_7d"] == 0.125


async def test_an_entity_that_was_never_read_is_unavailable_and_the_other_is_known(ladder: Ladder) -> None:
    await ladder.read()
    ladder.server.mode = "silent"
    half = await ladder.read(IDS | {"customer_id": 1})
    assert half.unavailable
    assert half.source is Source.SNAPSHOT
    assert half.status["customer_daily"] == half.status["customer_today"] == "unavailable"
    assert half.status["terminal_daily"] == "snapshot"
    nobody = await ladder.read({"customer_id": 1, "terminal_id": 2})
    assert nobody.source is Source.UNAVAILABLE
    assert set(nobody.status.values()) == {"unavailable"}


async def test_ids_that_nobody_has_take_no_room_and_known_gaps_stay_gaps(ladder: Ladder) -> None:
    for stranger in range(50):
        await ladder.read({"customer_id": 10_000 + stranger, "terminal_id": 2})
    assert len(ladder.snapshot) == 0
    values = {"customer_tx_count_today": None, "customer_tx_amount_sum_today": 1.0, "customer_today_day": 1}
    put_view(ladder.server.data, "customer_id", CUSTOMER, "customer_today", values, NOON)
    assert (await ladder.read(IDS | {"terminal_id": 2})).status["customer_today"] == "null"
    assert len(ladder.snapshot) == 1
    ladder.server.mode = "silent"
    known = await ladder.read(IDS | {"terminal_id": 2})
    assert known.status["customer_today"] == "null"
    assert known.status["customer_daily"] == "snapshot"


async def test_the_newest_reply_is_what_is_remembered(ladder: Ladder) -> None:
    await ladder.read()
    put_view(
        ladder.server.data, "terminal_id", TERMINAL, "terminal_today",
        {"terminal_tx_count_today": 9, "terminal_today_day": 1}, NOON - 1,
    )  # fmt: skip
    await ladder.read()
    ladder.server.mode = "silent"
    assert (await ladder.read()).values["terminal_tx_count_today"] == 9


async def test_another_contract_has_rows_of_its_own(ladder: Ladder) -> None:
    await ladder.read()
    other = FeatureReader(contract("customer_churn_v1"), PROJECT)
    ids = {"subscriber_id": SUBSCRIBER}
    await ladder.read(ids, reader=other)
    ladder.server.mode = "silent"
    known = await ladder.read(ids, reader=other)
    assert known.status == {"subscriber_profile": "snapshot"}
    assert known.values["subscriber_contract"] == "Month-to-month"
    assert (await ladder.read(reader=FeatureReader(FRAUD, "another_project"))).source is Source.UNAVAILABLE


async def test_other_commands_share_the_round_trip_and_are_not_answered_from_a_snapshot(
    ladder: Ladder,
) -> None:
    online, replies = await ladder.with_commands(encode_command(b"PING", b"x"), encode_command(b"PING"))
    assert online.complete is not None
    assert list(replies) == [b"x", b"PONG"]
    ladder.server.mode = "silent"
    known, replies = await ladder.with_commands(encode_command(b"PING"))
    assert known.source is Source.SNAPSHOT
    assert list(replies) == []
