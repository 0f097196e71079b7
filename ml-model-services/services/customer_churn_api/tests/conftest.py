"""The churn service on fakes: a tiny real bundle, a Redis server on loopback, a decision store in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from app.core.config import ChurnApiConfig
from app.main import create_app
from service_testkit import (
    FakeRedis,
    FakeRegistry,
    FakeStore,
    churn_bundle,
    client_of,
    known_store,
    settings_for,
    until,
)

from common_service_libs.runtime import Runtime


@dataclass
class Service:
    """The running service and what stands around it."""

    http: httpx.AsyncClient
    runtime: Runtime
    redis: FakeRedis
    store: FakeStore


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    return folder, churn_bundle(folder)


@pytest.fixture
async def service(tmp_path: Path, bundle: tuple[Path, str]) -> AsyncIterator[Service]:
    redis, registry, store = FakeRedis(known_store()), FakeRegistry(), FakeStore()
    await redis.start()
    registry.add("churn-prediction-model", 1, *bundle)
    settings = ChurnApiConfig(**settings_for(tmp_path, redis))
    runtime = Runtime(settings, registry=registry, sink=store, lookup=store)
    async with client_of(create_app(settings, runtime)) as http:
        await until(lambda: runtime.decisions.model is not None)
        yield Service(http, runtime, redis, store)
    await redis.stop()
