"""A client that asks too often is told when to come again, at every route, and nobody else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from app.core.config import FraudApiConfig
from app.main import create_app
from conftest import TRANSACTION
from service_testkit import (
    KEY,
    NARROW_KEY,
    FakeRedis,
    FakeRegistry,
    FakeStore,
    client_of,
    settings_for,
    until,
)

from common_service_libs.runtime import Runtime

pytestmark = pytest.mark.anyio


async def test_a_refusal_is_a_problem_that_says_when_to_come_again(
    tmp_path: Path, redis_server: FakeRedis, bundle: tuple[Path, str]
) -> None:
    registry, store = FakeRegistry(), FakeStore()
    registry.add("fraud-detection-model", 1, *bundle)
    given = settings_for(tmp_path, redis_server, redis_password="secret")
    keys = json.loads(given["api_keys_file"].read_text())
    keys[0]["rate_limit"] = {"per_second": 0.2, "burst": 3}
    given["api_keys_file"].write_text(json.dumps(keys))
    settings = FraudApiConfig(**given)
    runtime = Runtime(settings, registry=registry, sink=store, lookup=store)
    async with client_of(create_app(settings, runtime)) as http:
        await until(lambda: runtime.decisions.model is not None)
        answers = [await http.post("/predict", json=TRANSACTION) for _ in range(4)]
        answers.append(await http.get("/model"))
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        for refused in answers[3:]:
            document = refused.json()
            assert refused.headers["content-type"] == "application/problem+json"
            assert document["type"].endswith(":rate-limited")
            assert document["status"] == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 5
            assert refused.headers["ratelimit-policy"] == '"default";q=3;w=15'
            assert refused.headers["ratelimit"] == f'"default";r=0;t={refused.headers["retry-after"]}'
            assert refused.headers["x-content-type-options"] == "nosniff"
        assert len(store.rows) <= 3, "what was refused is not decided"
        other = await http.get("/model", headers={"X-API-Key": NARROW_KEY})
        assert other.status_code == 200
        assert (await http.get("/livez", headers={"X-API-Key": KEY})).status_code == 200
        local = runtime.metrics.registry.get_sample_value("rate_limit_local_total")
        assert local, "the fake server knows no scripts, so the process kept the limit itself"
