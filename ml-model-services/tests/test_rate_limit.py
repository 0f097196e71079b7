from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import hiredis
import pytest

from common_service_libs.auth_utils import Client, RateLimit
from common_service_libs.error_handlers import _limit_headers
from common_service_libs.errors import OnlineStoreError, RateLimited
from common_service_libs.redis_link import encode_command
from common_service_libs.security import rate_limit
from common_service_libs.security.rate_limit import RateLimiter

pytestmark = pytest.mark.anyio


def client(name: str = "desk", limit: RateLimit | None = None) -> Client:
    return Client(name, "0" * 64, frozenset({"s"}), rate_limit=limit)


class ScriptedRedis:
    """A server that runs the script's rule (a token bucket) with a clock of its own."""

    def __init__(self) -> None:
        self.now = 1e15
        self.full: dict[bytes, float] = {}
        self.loaded = False
        self.silent = False
        self.calls: list[list[bytes]] = []

    def call(self, payload: bytes, expected: int) -> asyncio.Future[list[Any]]:
        assert expected == 1
        parser = hiredis.Reader()
        parser.feed(payload)
        command = parser.gets()
        self.calls.append(command)
        if self.silent:
            raise OnlineStoreError("silent")
        answer = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: answer.set_result([self._run(command)]))
        return answer

    def _run(self, command: list[bytes]) -> Any:
        if command[0] == b"EVALSHA" and not self.loaded:
            return hiredis.ReplyError("NOSCRIPT No matching script.")
        self.loaded = True
        key, step, burst, wanted = command[3], float(command[4]), int(command[5]), int(command[6])
        full = max(self.full.get(key, 0.0), self.now)
        granted = min(wanted, math.floor((self.now + burst * step - full) / step + 1e-6))
        if granted < 1:
            return [0, math.ceil(full + step - self.now - burst * step)]
        self.full[key] = full + granted * step
        return [granted, 0]


async def admitted(limiter: RateLimiter, who: Client, requests: int) -> int:
    passed = 0
    for _ in range(requests):
        try:
            if not limiter.take(who):
                await limiter.wait(who)
            passed += 1
        except RateLimited:
            pass
    return passed


async def test_a_client_gets_its_burst_and_then_a_refusal_that_says_when_to_come_again() -> None:
    redis, limiter = ScriptedRedis(), RateLimiter("s", RateLimit(2, 10))
    limiter.connect(redis)
    assert await admitted(limiter, client(), 25) == 10
    with pytest.raises(RateLimited) as caught:
        await limiter.wait(client())
    assert 0 < caught.value.retry_after_seconds <= 0.5
    assert _limit_headers(caught.value) == {
        "Retry-After": "1",
        "RateLimit-Policy": '"default";q=10;w=5',
        "RateLimit": '"default";r=0;t=1',
    }
    calls = len(redis.calls)
    await admitted(limiter, client(), 25)
    assert len(redis.calls) == calls, "refusals cost no round trip until a token can be there"
    assert await admitted(limiter, client("another"), 25) == 10


async def test_several_processes_together_never_admit_more_than_the_bucket_gives() -> None:
    redis = ScriptedRedis()
    limiters = [RateLimiter("s", RateLimit(1000, 400)) for _ in range(4)]
    for limiter in limiters:
        limiter.connect(redis)
    passed = sum(await asyncio.gather(*(admitted(limiter, client(), 300) for limiter in limiters)))
    leased_unspent = sum(limiter._buckets["desk"].left for limiter in limiters)
    assert passed + leased_unspent == 400
    assert passed >= 300
    assert len(redis.calls) < 60, "tokens are leased by the dozen"


async def test_waiting_requests_share_one_question() -> None:
    redis, limiter = ScriptedRedis(), RateLimiter("s", RateLimit(10, 5))
    redis.loaded = True
    limiter.connect(redis)
    passed = sum(await asyncio.gather(*(admitted(limiter, client(), 1) for _ in range(8))))
    assert passed == 5
    assert len(redis.calls) <= 4


async def test_tokens_that_lay_too_long_are_lost_but_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    redis, limiter = ScriptedRedis(), RateLimiter("s", RateLimit(1000, 1000))
    limiter.connect(redis)
    assert await admitted(limiter, client(), 1) == 1
    bucket = limiter._buckets["desk"]
    assert bucket.left > 10
    bucket.until = time.monotonic() - 1
    redis.silent = True
    assert limiter.take(client()), "nobody waits for what he was promised"
    assert len(redis.calls) == 3


async def test_a_silent_redis_leaves_each_process_its_own_bucket() -> None:
    redis, limiter = ScriptedRedis(), RateLimiter("s", RateLimit(1, 6))
    assert await admitted(limiter, client(), 20) == 6
    local = 0

    def count() -> None:
        nonlocal local
        local += 1

    limiter = RateLimiter("s", RateLimit(1, 6), on_local=count)
    limiter.connect(redis)
    redis.silent = True
    assert await admitted(limiter, client(), 20) == 6
    assert local > 0
    redis.silent = False
    limiter._buckets["desk"].blocked_until = 0.0
    assert await admitted(limiter, client(), 1) == 1


async def test_a_store_that_answers_nonsense_is_as_good_as_silent() -> None:
    class Nonsense(ScriptedRedis):
        def _run(self, command: list[bytes]) -> Any:
            return b"another client's reply"

    limiter = RateLimiter("s", RateLimit(1, 6))
    limiter.connect(Nonsense())
    assert await admitted(limiter, client(), 20) == 6


async def test_a_key_may_have_a_limit_of_its_own_and_a_new_one_counts_at_once() -> None:
    redis, limiter = ScriptedRedis(), RateLimiter("s", RateLimit(1, 1))
    limiter.connect(redis)
    assert await admitted(limiter, client(limit=RateLimit(1, 12)), 20) == 12
    assert await admitted(limiter, client("free", RateLimit(0, 1)), 500) == 500
    redis.full.clear()
    assert await admitted(limiter, client(limit=RateLimit(1, 3)), 20) == 3


async def test_clients_that_no_longer_come_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "MAX_BUCKETS", 10)
    limiter = RateLimiter("s", RateLimit(1, 1))
    for number in range(100):
        await admitted(limiter, client(f"c{number}"), 1)
    assert len(limiter._buckets) <= 10


def test_a_bucket_is_not_named_after_its_client() -> None:
    limiter = RateLimiter("s", RateLimit(1, 1))
    assert b"desk" not in limiter._bucket(client()).key
    assert encode_command(b"PING")
