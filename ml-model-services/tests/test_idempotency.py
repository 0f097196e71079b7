"""What becomes of a request id that is sent again, to this process or to another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from service_testkit import FakeStore, until
from test_decision_log import log_on, record

from common_service_libs import idempotency
from common_service_libs.decision_log import DecisionLog
from common_service_libs.errors import DecisionUnderWay
from common_service_libs.idempotency import Repeats
from common_service_libs.metrics import ServiceMetrics

pytestmark = pytest.mark.anyio


@dataclass
class Worker:
    """One process of a service, as far as repeats go."""

    log: DecisionLog
    repeats: Repeats
    metrics: ServiceMetrics

    async def close(self) -> None:
        await self.log.close(0.05)


async def worker(folder: Path, store: FakeStore) -> Worker:
    metrics, log = ServiceMetrics(), log_on(folder, store)
    await log.open()
    return Worker(log, Repeats(log=log, metrics=metrics), metrics)


@pytest.fixture
async def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
async def workers(tmp_path: Path, store: FakeStore) -> AsyncIterator[tuple[Worker, Worker]]:
    pair = (
        await worker(tmp_path / "one", store),
        await worker(tmp_path / "two", store),
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


async def test_a_decision_that_failed_frees_its_id(workers: tuple[Worker, Worker], store: FakeStore) -> None:
    one, two = workers
    assert await one.repeats.find_or_claim("a") is None
    one.repeats.release("a")
    await until(lambda: not store.claims)
    assert await two.repeats.find_or_claim("a") is None


async def test_a_process_that_was_killed_leaves_no_claim_to_its_successor(
    tmp_path: Path, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "WAIT_SECONDS", 0.1)
    killed = await worker(tmp_path, store)
    assert await killed.repeats.find_or_claim("a") is None
    await killed.close()
    successor = await worker(tmp_path, store)
    assert await successor.repeats.find_or_claim("a") is None
    await successor.close()


async def test_while_the_database_is_silent_only_own_records_count(
    workers: tuple[Worker, Worker], store: FakeStore
) -> None:
    one, _ = workers
    store.silent = True
    assert await one.repeats.find_or_claim("a") is None
    assert one.metrics.registry.get_sample_value("decision_repeats_unchecked_total") == 1
    await one.log.append(record("a"))
    assert await one.repeats.find_or_claim("a") == record("a")
