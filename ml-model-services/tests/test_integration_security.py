"""Rate limits on the stack's Redis, and the small versions of the fuzzing and access runs."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from faults import access_matrix, mutated_bodies, schemathesis_run
from stack_testkit import redis_client, setting, unique

from common_service_libs.auth_utils import Client, RateLimit
from common_service_libs.errors import RateLimited
from common_service_libs.redis_link import RedisLink
from common_service_libs.security.rate_limit import RateLimiter

pytestmark = pytest.mark.integration


async def _spend(limiters: list[RateLimiter], client: Client, seconds: float) -> tuple[int, int]:
    """Return how many of as many requests as possible passed, and how many were refused."""
    passed = refused = 0
    deadline = time.monotonic() + seconds

    async def ask(limiter: RateLimiter) -> None:
        nonlocal passed, refused
        while time.monotonic() < deadline:
            try:
                if not limiter.take(client):
                    await limiter.wait(client)
                passed += 1
            except RateLimited:
                refused += 1
            await asyncio.sleep(0)

    await asyncio.gather(*(ask(limiter) for limiter in limiters for _ in range(4)))
    return passed, refused


async def _limits(per_second: float, burst: int) -> None:
    password = setting("REDIS_PASSWORD")
    links = [
        RedisLink(
            setting("REDIS_HOST"), int(setting("REDIS_PORT")), password, deadline=1.0, connect_deadline=2.0
        )
        for _ in range(3)
    ]  # fmt: skip
    service, limit, local = unique("limits"), RateLimit(per_second, burst), 0

    def count() -> None:
        nonlocal local
        local += 1

    limiters = [RateLimiter(service, limit, on_local=count) for _ in links]
    try:
        for link, limiter in zip(links, limiters, strict=True):
            await link.open()
            limiter.connect(link)
        began = time.monotonic()
        passed, refused = await _spend(limiters, Client("desk", "0" * 64, frozenset()), 1.5)
        seconds = time.monotonic() - began
    finally:
        for link in links:
            await link.close()
    [key] = redis_client().keys(f"rate_limit:{service}:*")
    assert redis_client().pttl(key) > 0, "a bucket that nobody uses is forgotten"
    redis_client().delete(key)
    assert local == 0
    assert refused > 0
    assert burst <= passed <= burst + per_second * seconds + 1
    assert passed >= 0.8 * (burst + per_second * seconds) - 10


@pytest.mark.parametrize(("per_second", "burst"), [(5.0, 20), (400.0, 200)])
def test_three_processes_share_a_bucket_exactly(per_second: float, burst: int) -> None:
    asyncio.run(_limits(per_second, burst))


@pytest.mark.parametrize(
    "module", [access_matrix, mutated_bodies, schemathesis_run], ids=lambda m: m.__name__
)
def test_a_small_run_meets_every_target(module: Any) -> None:
    results = module.run("small")["results"]
    assert results
    assert [line for line in results if not line["met"]] == []
