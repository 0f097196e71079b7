"""A proxy between a service and its online store that spoils what it hands on, in a process of its own.

    python tests/faults/proxy.py LISTEN_PORT STORE_PORT     modes arrive as lines on standard input

| mode | what becomes of the store's replies |
|---|---|
| `pass` | handed on as they are |
| `blackhole` | nothing is handed on in either direction, connections stay open |
| `refuse` | connections are closed as they come |
| `delay` | handed on late: by up to 80 ms, around the deadline of a read |
| `drip` | handed on byte by byte |
| `truncate` | a reply is cut short now and then, and the stream goes on |
| `swap` | whole replies, and parts of one message to another, change places among what is under way |
| `repeat` | a reply is sent twice now and then, or not at all |
| `garbage` | other bytes stand between replies now and then |
| `mixed` | all of these in turn, a fifth of a second each |
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Self

FAULTS = ("delay", "drip", "truncate", "swap", "repeat", "garbage")
MIXED_SECONDS = 0.2
GATHER_SECONDS = 0.002
DRIP_BYTES = 1500  # more would take longer than any deadline


def frames(stream: bytearray) -> Iterator[bytes]:
    """Take whole replies off the stream; what is cut off stays."""
    while True:
        end = _end_of(stream, 0)
        if end is None:
            return
        yield bytes(stream[:end])
        del stream[:end]


def _end_of(stream: bytearray, at: int) -> int | None:
    """Return where the reply that begins at `at` ends, or None if it is not all there."""
    line = stream.find(b"\r\n", at)
    if line < 0:
        return None
    kind, end = stream[at : at + 1], line + 2
    if kind in (b"+", b"-", b":"):
        return end
    count = int(stream[at + 1 : line])
    if kind == b"$":
        end += count + 2 if count >= 0 else 0
        return end if end <= len(stream) else None
    for _ in range(max(0, count)):
        inner = _end_of(stream, end)
        if inner is None:
            return None
        end = inner
    return end


class Spoiler:
    """Spoils a list of whole replies as a mode says."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def spoilt(self, mode: str, replies: list[bytes]) -> bytes:
        chance = self._random.random
        if mode == "swap" and len(replies) > 1:
            # Whole transactions (each ends in its array) or single replies, all of them or two.
            units = _transactions(replies) if chance() < 0.5 else list(replies)
            if chance() < 0.5:
                self._random.shuffle(units)
            elif len(units) > 1:
                one, other = self._random.sample(range(len(units)), 2)
                units[one], units[other] = units[other], units[one]
            return b"".join(units)
        if mode == "truncate" and chance() < 0.05:
            at = self._random.randrange(len(replies))
            reply = replies[at]
            replies = [*replies[:at], reply[: self._random.randrange(len(reply))], *replies[at + 1 :]]
        if mode == "repeat" and chance() < 0.1:
            at = self._random.randrange(len(replies))
            replies = [*replies[:at], *[replies[at]] * self._random.choice((0, 2)), *replies[at + 1 :]]
        if mode == "garbage" and chance() < 0.1:
            at = self._random.randrange(len(replies) + 1)
            replies = [*replies[:at], self._noise(), *replies[at:]]
        return b"".join(replies)

    def _noise(self) -> bytes:
        return self._random.choice(
            [
                b"\x00\xff\x17",
                b"+OK\r\n",
                b"$3\r\nabc\r\n",
                b"*1\r\n$1\r\nx\r\n",
                b"HTTP/1.1 400\r\n\r\n",
                b":7\r\n",
            ]
        )

    def pause(self) -> float:
        return self._random.uniform(0, 0.08) if self._random.random() < 0.3 else 0.0


def _transactions(replies: list[bytes]) -> list[bytes]:
    units, open_one = [], b""
    for reply in replies:
        open_one += reply
        if reply.startswith(b"*"):
            units.append(open_one)
            open_one = b""
    return [*units, open_one] if open_one else units


class Proxy:
    """Listens, connects to the store, and hands bytes on in the mode of the moment."""

    def __init__(self, store_port: int, seed: int = 0) -> None:
        self._store_port = store_port
        self._spoiler = Spoiler(seed)
        self._mode = "pass"
        self.passing = asyncio.Event()
        self.passing.set()

    @property
    def mode(self) -> str:
        if self._mode != "mixed":
            return self._mode
        turn = int(asyncio.get_running_loop().time() / MIXED_SECONDS)
        return FAULTS[turn % len(FAULTS)]

    @mode.setter
    def mode(self, mode: str) -> None:
        self._mode = mode
        (self.passing.clear if mode == "blackhole" else self.passing.set)()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "refuse":
            writer.close()
            return
        try:
            upstream = await asyncio.open_connection("127.0.0.1", self._store_port)
        except OSError:
            writer.close()
            return
        tasks = [
            asyncio.create_task(self._requests(reader, upstream[1])),
            asyncio.create_task(self._replies(upstream[0], writer)),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        upstream[1].close()
        writer.close()

    async def _requests(self, reader: asyncio.StreamReader, store: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self.passing.wait()
            store.write(data)
            await store.drain()

    async def _replies(self, store: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held, logged_in = bytearray(), False
        while data := await store.read(1 << 16):
            await self.passing.wait()
            mode = self.mode
            if mode == "pass" and not held:
                writer.write(data)
                logged_in = True
                continue
            held += data
            if mode in {"swap", "repeat", "garbage", "truncate"}:
                await asyncio.sleep(GATHER_SECONDS)  # so that replies to several requests are at hand
            whole = list(frames(held))
            if not whole:
                continue
            if mode == "delay" and (pause := self._spoiler.pause()):
                await asyncio.sleep(pause)
            # The login stays as it is: a client that gets in nowhere meets no other fault.
            stream = self._spoiler.spoilt(mode, whole) if logged_in else b"".join(whole)
            logged_in = True
            if mode == "drip":
                for at in range(min(len(stream), DRIP_BYTES)):
                    writer.write(stream[at : at + 1])
                    await asyncio.sleep(0)
                stream = stream[DRIP_BYTES:]
            writer.write(stream)
            await writer.drain()


async def main() -> None:
    """Serve until standard input ends."""
    listen, store = map(int, sys.argv[1:3])
    proxy = Proxy(store)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", listen)
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print("ready", flush=True)
    while line := await lines.readline():
        proxy.mode = line.decode().strip()
        print(line.decode().strip(), flush=True)
    server.close()


class ProxyProcess:
    """The proxy as a process, told what to do."""

    def __init__(self, listen: int, store: int) -> None:
        self.port = listen
        self._process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, __file__, str(listen), str(store)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._told("ready")

    def _told(self, word: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == word

    def mode(self, mode: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(mode + "\n")
        self._process.stdin.flush()
        self._told(mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._process.stdout.close()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
