"""Load that keeps every acknowledged decision, so that each can be looked for afterwards.

Each connection sends one request after the other. Every second request carries an id of its own; when its
connection breaks it is sent again until it is answered, as a careful client does. What was acknowledged is
kept as id -> (decision, score); two answers of one id that differ are kept apart.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from typing import Self

from service_testkit import KEY

ANSWER_SECONDS = 15.0
Given = tuple[str, float | None]


class AcknowledgedLoad:
    """Sends transactions to a port until it is stopped, from a thread of its own."""

    def __init__(self, port: int, prefix: str, *, connections: int = 8, rate: float = 300.0) -> None:
        self.prefix = prefix
        self.acknowledged: dict[str, Given] = {}
        self.contradictions: list[tuple[str, Given, Given]] = []
        self.statuses: Counter[int] = Counter()
        self.broken = 0
        self.retried = 0
        self.slowest = 0.0
        self._port = port
        self._pause = connections / rate
        self._random = random.Random(prefix)
        self._number = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(connections)), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let every request under way be answered, and end."""
        self._stop.set()
        self._thread.join(ANSWER_SECONDS * 2)

    def wait_for(self, more: int, seconds: float = 60) -> None:
        """Wait until so many more decisions are acknowledged."""
        target, deadline = len(self.acknowledged) + more, time.monotonic() + seconds
        while len(self.acknowledged) < target:
            if time.monotonic() > deadline:
                raise AssertionError(f"too few decisions: {dict(self.statuses)}, broken {self.broken}")
            time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def _run(self, connections: int) -> None:
        await asyncio.gather(*(self._connection() for _ in range(connections)))

    async def _connection(self) -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._stop.is_set():
            request_id, body = self._next()
            answered = False
            while not answered and not (self._stop.is_set() and request_id is None):
                try:
                    if streams is None:
                        streams = await asyncio.open_connection("127.0.0.1", self._port)
                    async with asyncio.timeout(ANSWER_SECONDS):
                        await self._ask(*streams, request_id, body)
                    answered = True
                except (OSError, EOFError, TimeoutError):
                    self.broken += 1
                    if streams is not None:
                        streams[1].transport.abort()
                        streams = None
                    await asyncio.sleep(0.05)
                    if request_id is None or self._stop.is_set():
                        break
                    self.retried += 1
            await asyncio.sleep(self._pause * self._random.uniform(0.5, 1.5))
        if streams is not None:
            streams[1].transport.abort()

    def _next(self) -> tuple[str | None, bytes]:
        self._number += 1
        body = {
            "customer_id": self._random.randrange(10_000),
            "terminal_id": self._random.randrange(10_000),
            "tx_amount": round(self._random.expovariate(1 / 80), 2),
            "transaction_id": self.prefix,
        }
        return (f"{self.prefix}-{self._number}" if self._number % 2 else None), json.dumps(body).encode()

    async def _ask(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request_id: str | None,
        body: bytes,
    ) -> None:
        started = time.monotonic()
        lines = [
            "POST /predict HTTP/1.1", "Host: test", f"X-API-Key: {KEY}", "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]  # fmt: skip
        if request_id is not None:
            lines.append(f"X-Request-ID: {request_id}")
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line.split(":")[1])
            for line in head.split("\r\n")
            if line.lower().startswith("content-length")
        )
        content = await reader.readexactly(length)
        status = int(head.split(" ")[1])
        self.slowest = max(self.slowest, time.monotonic() - started)
        self.statuses[status] += 1
        if status == 200:
            reply = json.loads(content)
            given = (reply["decision"], reply["score"])
            before = self.acknowledged.setdefault(reply["request_id"], given)
            if before != given:
                self.contradictions.append((reply["request_id"], before, given))
        elif "connection: close" in head.lower():
            raise EOFError
