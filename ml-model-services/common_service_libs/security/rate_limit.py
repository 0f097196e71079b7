"""Rate limits per client, exact over all processes, without a round trip per request.

The bucket of a client stands in Redis (GCRA: one number, the time at which it would be full again). A process
leases a few tokens at a time with one atomic script, spends them on requests, and asks for more in the
background before they run out. So no more is ever admitted than the bucket gave; what a process leases and
does not use within a second is lost. While Redis is silent each process limits by a bucket of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Any, Protocol

import hiredis

from common_service_libs.auth_utils import Client, RateLimit
from common_service_libs.errors import OnlineStoreError, RateLimited
from common_service_libs.redis_link import encode_command

LEASE_SECONDS = 1.0
LEASED_SHARE = 0.05  # of a second's requests, and at most
LARGEST_PART = 8  # this part of the burst
MAX_BUCKETS = 10_000

# KEYS: the bucket. ARGV: microseconds between two tokens, burst, tokens wanted.
# Returns the tokens granted and, if none, after how many microseconds there will be one.
SCRIPT = b"""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local step, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local full = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
local free = math.floor((now + burst * step - full) / step + 1e-6)
local granted = math.min(free, wanted)
if granted < 1 then return {0, math.ceil(full + step - now - burst * step)} end
full = full + granted * step
redis.call('SET', KEYS[1], string.format('%.3f', full), 'PX', math.ceil((full - now) / 1000) + 1000)
return {granted, 0}
"""
SCRIPT_SHA1 = hashlib.sha1(SCRIPT).hexdigest().encode()  # noqa: S324  (Redis names scripts so)


class Link(Protocol):
    """What is needed of the Redis link."""

    def call(self, payload: bytes, expected: int) -> asyncio.Future[list[Any]]:
        """Send commands; raises OnlineStoreError, now or from the future."""


class _Bucket:
    __slots__ = (
        "blocked_until",
        "key",
        "left",
        "limit",
        "low",
        "own",
        "own_at",
        "part",
        "pending",
        "until",
        "waiting",
    )

    def __init__(self, key: bytes, limit: RateLimit, now: float) -> None:
        self.key = key
        self.limit = limit
        self.part = max(1, min(int(limit.per_second * LEASED_SHARE), limit.burst // LARGEST_PART))
        self.low = self.part // 2 if self.part > 1 else -1
        self.left = 0  # leased, not spent
        self.until = 0.0
        self.blocked_until = 0.0
        self.pending: asyncio.Future[None] | None = None
        self.waiting = 0
        self.own, self.own_at = float(limit.burst), now  # the bucket for while Redis is silent

    def take_own(self, wanted: int, now: float) -> tuple[int, float]:
        """Return how many tokens the process's own bucket gives, and when there will be one (seconds)."""
        rate = self.limit.per_second
        self.own = min(float(self.limit.burst), self.own + (now - self.own_at) * rate)
        self.own_at = now
        granted = min(wanted, int(self.own + 1e-9))
        self.own -= granted
        return granted, 0.0 if granted else (1 - self.own) / rate


class RateLimiter:
    """Counts the requests of each client; `default` holds for those without a limit of their own."""

    def __init__(
        self, service: str, default: RateLimit, *, on_local: Callable[[], None] = lambda: None
    ) -> None:
        self._service = service
        self._default = default
        self._on_local = on_local
        self._buckets: dict[str, _Bucket] = {}
        self._link: Link | None = None

    def connect(self, link: Link) -> None:
        """Use this link from now on; before, every process limits on its own."""
        self._link = link

    def take(self, client: Client) -> bool:
        """Spend a leased token of `client`; false if there is none and `wait` has to ask for more."""
        bucket = self._buckets.get(client.name)
        if bucket is None or (client.rate_limit or self._default) is not bucket.limit:
            bucket = self._bucket(client)
        if bucket.limit.per_second == 0:
            return True
        if bucket.left < 1:
            return False
        if time.monotonic() >= bucket.until:
            bucket.left = 1  # it has lain too long: one of them is as good as ever, the others are lost
        bucket.left -= 1
        if bucket.left <= bucket.low and bucket.pending is None:
            self._ask(bucket)
        return True

    async def wait(self, client: Client) -> None:
        """Wait for a token of `client`, one round trip at most ordinarily; raises RateLimited."""
        bucket = self._bucket(client)
        while True:
            if bucket.left > 0:
                bucket.left -= 1
                return
            left = bucket.blocked_until - time.monotonic()
            if left > 0:
                limit = bucket.limit
                raise RateLimited(left, limit.burst, limit.burst / limit.per_second)
            bucket.waiting += 1
            try:
                await asyncio.shield(bucket.pending or self._ask(bucket))
            finally:
                bucket.waiting -= 1

    def _bucket(self, client: Client) -> _Bucket:
        limit = client.rate_limit or self._default
        found = self._buckets.get(client.name)
        if found is not None and found.limit == limit:
            found.limit = limit
            return found
        if len(self._buckets) >= MAX_BUCKETS:
            self._forget_idle()
        digest = hashlib.blake2b(client.name.encode(), digest_size=12).hexdigest()
        bucket = _Bucket(f"rate_limit:{self._service}:{digest}".encode(), limit, time.monotonic())
        self._buckets[client.name] = bucket
        return bucket

    def _forget_idle(self) -> None:
        """Drop the older half: a client that comes again leases again."""
        for name in list(self._buckets)[: MAX_BUCKETS // 2]:
            if self._buckets[name].pending is None:
                del self._buckets[name]

    def _ask(
        self, bucket: _Bucket, command: bytes = b"EVALSHA", script: bytes = SCRIPT_SHA1
    ) -> asyncio.Future[None]:
        """Lease tokens from Redis; the future ends when they are there or known not to be."""
        done = bucket.pending
        if done is None:
            done = bucket.pending = asyncio.get_running_loop().create_future()
        wanted = max(bucket.part, bucket.waiting + 1)
        limit = bucket.limit
        payload = encode_command(
            command, script, b"1", bucket.key,
            b"%.6f" % (1e6 / limit.per_second), b"%d" % limit.burst, b"%d" % min(wanted, limit.burst),
        )  # fmt: skip
        try:
            if self._link is None:
                raise OnlineStoreError("not connected")
            answer = self._link.call(payload, 1)
        except OnlineStoreError:
            self._grant_own(bucket, wanted)
            return done
        answer.add_done_callback(lambda reply: self._granted(bucket, wanted, reply, command))
        return done

    def _granted(
        self, bucket: _Bucket, wanted: int, answer: asyncio.Future[list[Any]], command: bytes
    ) -> None:
        if answer.cancelled() or answer.exception() is not None:
            self._grant_own(bucket, wanted)
            return
        reply = answer.result()[0]
        if (
            isinstance(reply, hiredis.ReplyError)
            and str(reply).startswith("NOSCRIPT")
            and command == b"EVALSHA"
        ):
            self._ask(bucket, b"EVAL", SCRIPT)
            return
        if not isinstance(reply, list) or len(reply) != 2 or not all(isinstance(part, int) for part in reply):
            self._grant_own(bucket, wanted)
            return
        self._settle(bucket, reply[0], reply[1] / 1e6)

    def _grant_own(self, bucket: _Bucket, wanted: int) -> None:
        self._on_local()
        self._settle(bucket, *bucket.take_own(wanted, time.monotonic()))

    @staticmethod
    def _settle(bucket: _Bucket, granted: int, retry_seconds: float) -> None:
        now = time.monotonic()
        if granted > 0:
            bucket.left += granted
            bucket.until = now + LEASE_SECONDS
            bucket.blocked_until = 0.0
        elif bucket.left < 1:
            bucket.blocked_until = now + max(0.001, retry_seconds)
        done, bucket.pending = bucket.pending, None
        if done is not None and not done.done():
            done.set_result(None)
