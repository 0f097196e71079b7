"""Closed-loop HTTP clients on raw sockets, in a process of their own; all servers are measured alike.

Each client sends its next request when the whole reply to the last one is there. One client uses a blocking
socket, several share an epoll loop. Run by `bench_serving`; by hand:

    python -m benchmarks.load_generator '{"url": "http://127.0.0.1:8001/predict", "bodies": "bodies.jsonl",
        "headers": {"X-API-Key": "..."}, "clients": 16, "requests": 8000}'
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

WARM_UP_SHARE = 0.1
SILENCE_SECONDS = 30.0
SLOWEST_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


class ReplyIsNo200(Exception):
    """A server that refuses is not measured."""


@dataclass
class Connection:
    """One client: its socket, what has arrived of the reply, and when the request was sent."""

    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    expected: int = -1  # the length of the whole reply; -1: not known yet, -2: chunked
    sent_at: float = 0.0

    def send(self, request: bytes) -> None:
        self.received.clear()
        self.expected = -1
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Take what is there; return whether the reply is complete."""
        part = self.socket.recv(65536)
        if not part:
            raise ReplyIsNo200(f"the server closed the connection after {bytes(self.received[:200])!r}")
        self.received += part
        if self.expected == -1:
            self._read_head()
        if self.expected == -2:
            return self.received.endswith(b"0\r\n\r\n")
        return 0 <= self.expected <= len(self.received)

    def _read_head(self) -> None:
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.received[:end]).lower()
        if not head.startswith((b"http/1.1 200", b"http/1.0 200")):
            raise ReplyIsNo200(bytes(self.received).decode(errors="replace")[:500])
        at = head.find(b"content-length:")
        if at >= 0:
            self.expected = end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])
        elif b"transfer-encoding: chunked" in head:
            self.expected = -2
        else:
            raise ReplyIsNo200("a reply of unknown length")


def requests_of(url: str, headers: dict[str, str], bodies: Path) -> Iterator[bytes]:
    """Return the requests, one for each line of `bodies`, over and over."""
    parts = urlsplit(url)
    fields = {"host": parts.netloc, "content-type": "application/json"} | headers
    head = f"POST {parts.path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
    lines = [line.encode() for line in bodies.read_text().splitlines()]
    return cycle([b"%bcontent-length: %d\r\n\r\n%b" % (head.encode(), len(line), line) for line in lines])


def connected(url: str) -> Connection:
    """Return a client."""
    parts = urlsplit(url)
    found = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=SILENCE_SECONDS)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(found)


def one_client(client: Connection, requests: Iterator[bytes]) -> list[float]:
    """Return the seconds of each request."""
    times = []
    for request in requests:
        client.send(request)
        while not client.receive():
            pass
        times.append(time.perf_counter() - client.sent_at)
    return times


def many_clients(clients: list[Connection], requests: Iterator[bytes]) -> list[float]:
    """Return the seconds of each request, in the order of the replies."""
    poll = select.epoll()
    by_number = {client.socket.fileno(): client for client in clients}
    times: list[float] = []
    waiting = 0
    for number, client in by_number.items():
        poll.register(number, select.EPOLLIN)
        if (request := next(requests, None)) is not None:
            client.send(request)
            waiting += 1
    while waiting:
        ready = poll.poll(SILENCE_SECONDS)
        if not ready:
            raise ReplyIsNo200(f"no reply for {SILENCE_SECONDS:.0f} s")
        for number, _ in ready:
            client = by_number[number]
            if not client.receive():
                continue
            times.append(time.perf_counter() - client.sent_at)
            if (request := next(requests, None)) is None:
                waiting -= 1
            else:
                client.send(request)
    return times


def percentile(values: list[float], share: float) -> float:
    """Return the value below which a share of the sorted `values` lie."""
    return values[min(len(values) - 1, int(share * len(values)))]


def measure(
    url: str, bodies: Path, headers: dict[str, str], *, clients: int, requests: int
) -> dict[str, float]:
    """Return percentiles in microseconds, requests a second, and the share of a core this process took."""
    source = requests_of(url, headers, bodies)
    connections = [connected(url) for _ in range(clients)]
    run = (lambda wanted: one_client(connections[0], wanted)) if clients == 1 else (
        lambda wanted: many_clients(connections, wanted)
    )  # fmt: skip
    run(islice(source, max(clients, int(requests * WARM_UP_SHARE))))
    begun, cpu = time.perf_counter(), time.process_time()
    times = sorted(run(islice(source, requests)))
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    for connection in connections:
        connection.socket.close()
    figures = {name: percentile(times, share) * 1e6 for name, share in SLOWEST_SHARES.items()}
    return figures | {"rate": requests / seconds, "own_cpu_share": cpu / seconds}


def main() -> None:
    """Read a job from the command line, print its figures as JSON."""
    job: dict[str, Any] = json.loads(sys.argv[1])
    job["bodies"] = Path(job["bodies"])
    print(json.dumps(measure(**job)))


if __name__ == "__main__":
    main()
