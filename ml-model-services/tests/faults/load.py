"""HTTP load at a rate of its own, whatever the server does, in a process of its own.

A request is due at a moment of the plan and its latency counts from there, so that a server that stands still
is not spared the requests it kept from being sent. Requests wait for a free one among so many connections.
One that waits longer than its client's patience is never sent. Every request gets one row, see `Sample`;
times are those of the machine's monotonic clock.

    python tests/faults/load.py '{"port": 8001, "path": "/predict", "headers": {...}, "bodies": [...],
        "rate": 200, "seconds": 5, "connections": 32, "out": "samples.json"}'
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

TICK_SECONDS = 0.002
LAST_REPLY_SECONDS = 10.0
PATIENCE_SECONDS = 2.0
NO_REPLY, NEVER_SENT = 0, 1
BEGUN = b"begun\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RUNG = re.compile(rb'"rung":"(\w+)"')
_DEGRADED = b'"degraded":true'


@dataclass
class Sample:
    """One request: the moment it was due and its latency in seconds, how long of that it waited to be sent.

    `status` is 0 where there was no reply, 1 where it was never sent; `body` is the index of what was asked.
    """

    due: float
    seconds: float
    status: int
    body: int
    rung: str
    degraded: bool
    waited: float = 0.0


class _Connection(asyncio.Protocol):
    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""
        self._expected = -1
        self.transport: asyncio.Transport | None = None
        self.due = self.sent = math.nan
        self.body = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._load.free(self)

    def send(self, request: bytes, due: float, body: int) -> None:
        assert self.transport is not None
        self.due, self.body, self.sent = due, body, time.monotonic()
        self._received, self._expected = b"", -1
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received = received = self._received + data if self._received else data
        if self._expected < 0:
            end = received.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(received, 0, end)
            assert length is not None
            self._expected = end + 4 + int(length[1])
        if len(received) >= self._expected and self.body >= 0:
            self._load.answered(self, received)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.lost(self)


class Load:
    """Sends `bodies` in turn, `rate` a second; with rate 0 each connection asks again as it is answered."""

    def __init__(
        self, port: int, path: str, headers: dict[str, str], bodies: list[str], connections: int
    ) -> None:
        self._port = port
        self._connections = connections
        fields = {"host": f"127.0.0.1:{port}", "content-type": "application/json"} | headers
        head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
        self._requests = [f"{head}content-length: {len(body)}\r\n\r\n{body}".encode() for body in bodies]
        self._idle: deque[_Connection] = deque()
        self._due: deque[tuple[float, int]] = deque()
        self._sent = 0
        self._until = 0.0
        self._closed_loop = False
        self._connecting: set[asyncio.Task[Any]] = set()
        self.samples: list[Sample] = []
        self.never_sent: list[Sample] = []

    async def run(self, rate: float, seconds: float) -> list[Sample]:
        begun = time.monotonic()
        self._until = begun + seconds
        self._closed_loop = not rate
        await asyncio.gather(*(self._connect() for _ in range(self._connections)))
        print(BEGUN.decode(), end="", flush=True)
        begun = time.monotonic()
        self._until = begun + seconds
        planned = 0
        while (now := time.monotonic()) < self._until:
            if rate:
                while planned < (now - begun) * rate:
                    self._due.append((begun + planned / rate, planned % len(self._requests)))
                    planned += 1
                self._send_what_is_due()
            else:
                while self._idle:
                    self._send(self._idle.popleft(), now, self._sent % len(self._requests))
            await asyncio.sleep(TICK_SECONDS)
        give_up = time.monotonic() + LAST_REPLY_SECONDS
        while (self._due or len(self.samples) < self._sent) and time.monotonic() < give_up:
            self._send_what_is_due()
            await asyncio.sleep(TICK_SECONDS)
        silent = [Sample(give_up, LAST_REPLY_SECONDS, NO_REPLY, 0, "", False)] * (
            self._sent - len(self.samples)
        )
        return self.samples + self.never_sent + silent

    async def _connect(self) -> None:
        while True:
            try:
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
                return
            except OSError:
                await asyncio.sleep(0.05)

    def _send(self, connection: _Connection, due: float, body: int) -> None:
        self._sent += 1
        connection.send(self._requests[body], due, body)

    def _send_what_is_due(self) -> None:
        patient_since = time.monotonic() - PATIENCE_SECONDS
        while self._due and self._due[0][0] < patient_since:
            due, body = self._due.popleft()
            self.never_sent.append(Sample(due, PATIENCE_SECONDS, NEVER_SENT, body, "", False))
        while self._due and self._idle:
            self._send(self._idle.popleft(), *self._due.popleft())

    def free(self, connection: _Connection) -> None:
        self._idle.append(connection)
        self._send_what_is_due()

    def answered(self, connection: _Connection, reply: bytes) -> None:
        now = time.monotonic()
        found = _RUNG.search(reply)
        self.samples.append(
            Sample(
                connection.due, now - connection.due, int(reply[9:12]), connection.body,
                found[1].decode() if found else "", _DEGRADED in reply,
                connection.sent - connection.due,
            )
        )  # fmt: skip
        connection.body = -1
        if self._closed_loop and now < self._until:
            self._send(connection, now, self._sent % len(self._requests))
        else:
            self.free(connection)

    def lost(self, connection: _Connection) -> None:
        if connection.body >= 0:
            now = time.monotonic()
            self.samples.append(Sample(connection.due, now - connection.due, 0, connection.body, "", False))
            connection.body = -1
        elif connection in self._idle:
            self._idle.remove(connection)
        if time.monotonic() < self._until or self._due:
            task = asyncio.ensure_future(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)


class LoadProcess:
    """A load that runs beside the test; its requests are under way when it is there."""

    def __init__(self, out: Path, **job: Any) -> None:
        self._out = out
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(job | {"out": str(out)})], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == BEGUN, "the load cannot begin"

    def samples(self, seconds: float = 120) -> list[Sample]:
        """Wait for the end of the load and return what became of each request, by the time it was due."""
        assert self._process.wait(seconds) == 0
        found = [Sample(*row) for row in json.loads(self._out.read_text())]
        return sorted(found, key=lambda sample: sample.due)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


def percentile(seconds: list[float], share: float) -> float:
    """Return the latency below which a share of them lie; nothing is 0."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def main() -> None:
    """Run the job on the command line and write its samples."""
    import uvloop  # noqa: PLC0415 - the tests that import this module need none

    job: dict[str, Any] = json.loads(sys.argv[1])
    out, rate, seconds = Path(job.pop("out")), job.pop("rate"), job.pop("seconds")
    samples = uvloop.run(Load(**job).run(rate, seconds))
    out.write_text(json.dumps([list(vars(sample).values()) for sample in samples]))


if __name__ == "__main__":
    main()
