"""What becomes of a request id that is sent again, to this process or to another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from service_testkit import FakeRedis, FakeStore, until
from test_decision_log import log_on, record

from common_service_libs import idempotency
from common_service_libs.decision_log import DecisionLog
from common_service_libs.errors import DecisionUnderWay
from common_service_libs.idempotency import Repeats
from common_service_libs.metrics import ServiceMetrics
from common_service_libs.redis_link import RedisLink

pytestmark = pytest.mark.anyio


@dataclass
class Worker:
    """One process of a service, as far as repeats go."""

    log: DecisionLog
    link: RedisLink
    repeats: Repeats
    metrics: ServiceMetrics

    async def close(self) -> None:
        await self.link.close()
        await self.log.close(0.05)


async def worker(folder: Path, store: FakeStore, redis: FakeRedis) -> Worker:
    metrics, log = ServiceMetrics(), log_on(folder, store)
    link = RedisLink("127.0.0.1", redis.port, "secret", deadline=0.5, connect_deadline=0.5)
    await log.open()
    await link.open()
    await until(lambda: link.up)
    return Worker(log, link, Repeats("fraud_detection_api", link=link, log=log, metrics=metrics), metrics)


@pytest.fixture
async def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
async def workers(
    tmp_path: Path, store: FakeStore, redis_server: FakeRedis
) -> AsyncIterator[tuple[Worker, Worker]]:
    pair = (
        await worker(tmp_path / "one", store, redis_server),
        await worker(tmp_path / "two", store, redis_server),
    )
    yield pair
    for one in pair:
        await one.close()


async def test_of_two_workers_one_decides_and_the_other_gives_its_record(
    workers: tuple[Worker, Worker],
) -> None:
    one, two = workers
    assert await one.repeats.find_or_claim("a") is None
    waiting = asyncio.create_task(two.repeats.find_or_claim("a"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await one.log.append(record("a"))
    assert await waiting == record("a")
    assert await one.repeats.find_or_claim("a") == record("a")


async def test_a_record_that_does_not_appear_is_never_replaced_by_another_decision(
    workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch, store: FakeStore
) -> None:
    monkeypatch.setattr(idempotency, "WAIT_SECONDS", 0.1)
    one, two = workers
    assert await one.repeats.find_or_claim("a") is None
    with pytest.raises(DecisionUnderWay):
        await two.repeats.find_or_claim("a")
    store.silent = True
    with pytest.raises(DecisionUnderWay):
        await two.repeats.find_or_claim("a")


async def test_a_decision_that_failed_frees_its_id(workers: tuple[Worker, Worker]) -> None:
    one, two = workers
    assert await one.repeats.find_or_claim("a") is None
    one.repeats.release("a")
    await until(lambda: one.link.up)
    await one.link.ping()
    assert await two.repeats.find_or_claim("a") is None


async def test_a_process_that_was_killed_leaves_no_claim_to_its_successor(
    tmp_path: Path, store: FakeStore, redis_server: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "WAIT_SECONDS", 0.1)
    killed = await worker(tmp_path, store, redis_server)
    assert await killed.repeats.find_or_claim("a") is None
    await killed.close()
    successor = await worker(tmp_path, store, redis_server)
    store.silent = True
    with pytest.raises(DecisionUnderWay):
        await successor.repeats.find_or_claim("a")
    store.silent = False
    assert await successor.repeats.find_or_claim("a") is None
    await successor.close()


async def test_without_redis_or_without_the_database_the_other_counts(
    workers: tuple[Worker, Worker], store: FakeStore, redis_server: FakeRedis
) -> None:
    one, two = workers
    store.silent = True
    assert await one.repeats.find_or_claim("a") is None
    assert one.metrics.registry.get_sample_value("decision_repeats_unchecked_total") == 1
    store.silent = False
    redis_server.mode = "error"
    assert await one.repeats.find_or_claim("b") is None
    await one.log.append(record("b"))
    await until(lambda: "b" in store.rows)
    assert await two.repeats.find_or_claim("b") == record("b")
    unavailable = one.metrics.registry.get_sample_value("decision_claims_total", {"outcome": "unavailable"})
    assert unavailable == 1
