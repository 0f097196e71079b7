"""The fraud service on fakes: a tiny real bundle, a Redis server on loopback, a decision store in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from app.core.config import FraudApiConfig
from app.main import create_app
from service_testkit import (
    CUSTOMER,
    TERMINAL,
    FakeRedis,
    FakeRegistry,
    FakeStore,
    client_of,
    fraud_bundle,
    known_store,
    settings_for,
    until,
)

from common_service_libs.runtime import Runtime

TRANSACTION = {
    "customer_id": CUSTOMER,
    "terminal_id": TERMINAL,
    "tx_amount": 57.16,
    "tx_datetime": "2026-01-31T12:00:00Z",
}


@dataclass
class Service:
    """The running service and what stands around it."""

    http: httpx.AsyncClient
    runtime: Runtime
    redis: FakeRedis
    registry: FakeRegistry
    store: FakeStore
    folder: Path

    async def predict(self, headers: dict[str, str] | None = None, **changes: object) -> httpx.Response:
        return await self.http.post("/predict", json=TRANSACTION | changes, headers=headers)

    def metric(self, name: str, **labels: str) -> float:
        return self.runtime.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    return folder, fraud_bundle(folder)


@pytest.fixture
async def redis_server() -> AsyncIterator[FakeRedis]:
    server = FakeRedis(known_store(), password="secret")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def service(
    tmp_path: Path, bundle: tuple[Path, str], redis_server: FakeRedis
) -> AsyncIterator[Service]:
    registry, store = FakeRegistry(), FakeStore()
    registry.add("fraud-detection-model", 1, *bundle)
    settings = FraudApiConfig(**settings_for(tmp_path, redis_server, redis_password="secret"))
    runtime = Runtime(settings, registry=registry, sink=store, lookup=store)
    async with client_of(create_app(settings, runtime)) as http:
        await until(lambda: runtime.decisions.model is not None)
        yield Service(http, runtime, redis_server, registry, store, tmp_path)
