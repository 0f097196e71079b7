"""A proxy between a service and a server that refuses, holds back or hands on, in a thread of this process.

A broker tells its clients where to reach it, which would lead them past the proxy: with `advertised`, the
address in the server's bytes is replaced by the proxy's, of the same length.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from contextlib import suppress
from typing import Self

MODES = ("pass", "refuse", "blackhole")


class TcpProxy:
    """Listens on a port of its own and hands on to `host:port`; `mode` may change at any time."""

    def __init__(self, host: str, port: int, *, advertised: bool = False) -> None:
        self._target = (host, port)
        self._advertised = advertised
        self._mode = "pass"
        self._writers: set[asyncio.StreamWriter] = set()
        self._listening = threading.Event()
        self._loop = asyncio.new_event_loop()
        self.port = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self._listening.wait(10):
            raise RuntimeError("the proxy does not listen")

    def mode(self, mode: str) -> None:
        """Pass, refuse (every connection is closed) or swallow what comes (connections stay open)."""
        assert mode in MODES
        self._loop.call_soon_threadsafe(self._change, mode)

    def close(self) -> None:
        """End the proxy and every connection."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _change(self, mode: str) -> None:
        if self._mode == "blackhole" or mode == "refuse":  # what was swallowed is missing: no going on
            for writer in self._writers:
                writer.transport.abort()
        self._mode = mode

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._stop.wait()
        server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.01)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self._mode == "refuse":
                return
            try:
                there, onwards = await asyncio.open_connection(*self._target)
            except OSError:
                return
            self._writers.add(onwards)
            try:
                await asyncio.gather(self._pump(reader, onwards), self._pump(there, writer, replies=True))
            finally:
                self._writers.discard(onwards)
                onwards.transport.abort()
        except (OSError, asyncio.CancelledError):
            return
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool = False
    ) -> None:
        while data := await reader.read(65536):
            if self._mode == "blackhole":
                continue
            if replies and self._advertised:
                data = self._redirected(data)
            writer.write(data)
            await writer.drain()
        writer.transport.abort()

    def _redirected(self, data: bytes) -> bytes:
        host = self._target[0].encode()
        return data.replace(
            host + struct.pack(">i", self._target[1]), b"127.0.0.1" + struct.pack(">i", self.port)
        )
