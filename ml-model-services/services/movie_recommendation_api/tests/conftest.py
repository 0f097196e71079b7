"""The recommendation service on fakes: a tiny real bundle, a Redis server on loopback, a store in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from app.core.config import RecommendationApiConfig
from app.main import create_app
from recommender_testkit import recommender_bundle
from service_testkit import (
    NOON,
    FakeRedis,
    FakeRegistry,
    FakeStore,
    client_of,
    put_view,
    settings_for,
    until,
)

from common_service_libs.recommender_service import RecommenderRuntime

VIEWER = 42
HISTORY = [1, 5, 9, 33]


@dataclass
class Service:
    """The running service and what stands around it."""

    http: httpx.AsyncClient
    runtime: RecommenderRuntime
    redis: FakeRedis
    store: FakeStore

    async def ask(self, route: str = "recommend", headers: dict[str, str] | None = None, **body: Any) -> Any:
        response = await self.http.post(f"/{route}", json=body, headers=headers)
        assert response.status_code == 200, response.text
        return response.json()

    def metric(self, name: str, **labels: str) -> float:
        return self.runtime.metrics.registry.get_sample_value(name, labels) or 0.0

    def put_history(self, viewer: int, text: str | None) -> None:
        values = {"viewer_rated_movie_ids": text}
        put_view(self.redis.data, "viewer_id", viewer, "viewer_history", values, NOON)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    return folder, recommender_bundle(folder)


@pytest.fixture
async def service(tmp_path: Path, bundle: tuple[Path, str]) -> AsyncIterator[Service]:
    redis, registry, store = FakeRedis({}), FakeRegistry(), FakeStore()
    await redis.start()
    registry.add("movie-recommendation-model", 1, *bundle)
    settings = RecommendationApiConfig(**settings_for(tmp_path, redis))
    runtime = RecommenderRuntime(settings, registry=registry, sink=store, lookup=store)
    async with client_of(create_app(settings, runtime)) as http:
        await until(lambda: runtime.decisions.model is not None)
        made = Service(http, runtime, redis, store)
        made.put_history(VIEWER, ",".join(map(str, HISTORY)))
        yield made
    await redis.stop()
